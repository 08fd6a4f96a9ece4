"""The folder of a memory: a PEFT adapter, and tmem.json with what was learned, tied together by one digest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from ..episode import Pair
from ..files.objects import object_in
from ..models.lora import CONFIG, WEIGHTS, read_folder, write_folder

RECORD = "tmem.json"

_FIELDS = {"digest": str, "made_with": dict, "pairs": list, "context": list}


def write_memory(
    path: Path, adapter: Mapping[str, bytes], made_with: Mapping, pairs: Sequence[Pair], context: Sequence[str]
) -> None:
    """Write the folder; atomic. The digest is of every byte of its files, tmem.json's with an empty digest among them."""
    record = {"digest": "", "made_with": made_with, "pairs": [[p.question, p.answer] for p in pairs], "context": list(context)}
    blank = json.dumps(record, indent=1, ensure_ascii=False)
    digest = _digest({**adapter, RECORD: _bytes(blank)})
    files = {**adapter, RECORD: _bytes(blank.replace('"digest": ""', f'"digest": "{digest}"', 1))}
    write_folder(path, files, RECORD)  # an adapter that is no memory, such as a trained one, is not replaced


def read_memory(path: Path) -> tuple[dict[str, bytes], dict, list[Pair], list[str]]:
    """The adapter's files, made_with, the pairs and the waiting text, all of one moment.

    A folder of before digests were kept has none and is taken as it is. Raises FileNotFoundError for a missing file,
    ValueError for one that is damaged or does not belong to the others.
    """
    if path.is_dir() and not (path / RECORD).is_file() and (path / CONFIG).is_file():
        raise FileNotFoundError(f"load: {path / RECORD} is missing; expected a folder written by Memory.save.")
    files = read_folder(path, (RECORD, CONFIG, WEIGHTS))
    record = object_in(files[RECORD], path / RECORD, **{k: v for k, v in _FIELDS.items() if k != "digest"})
    if unknown := record.keys() - _FIELDS.keys():
        raise ValueError(f"load: {path / RECORD} is damaged: {min(unknown)!r} is no field of it; save the memory again.")
    if "digest" in record:
        digest = str(record["digest"])
        blank = files[RECORD].replace(digest.encode("utf-8", "replace"), b"", 1) if digest else files[RECORD]
        if digest != _digest({**files, RECORD: blank}):
            raise ValueError(
                f"load: {path} is damaged: its files are not those that were saved together; restore all of them, or teach "
                "the memory again."
            )
    return {name: files[name] for name in (CONFIG, WEIGHTS)}, record["made_with"], *_texts(record, path / RECORD)


def _texts(record: Mapping, file: Path) -> tuple[list[Pair], list[str]]:
    for i, pair in enumerate(record["pairs"]):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise ValueError(f"load: {file} is damaged: pairs[{i}] is {pair!r:.40}, expected a question and an answer.")
    for i, text in enumerate(record["context"]):
        if not isinstance(text, str):
            raise ValueError(f"load: {file} is damaged: context[{i}] is {text!r:.40}, expected a text.")
    return [Pair(*pair) for pair in record["pairs"]], record["context"]


def _digest(files: Mapping[str, bytes]) -> str:
    digest = blake2b(digest_size=16)
    for name in (CONFIG, WEIGHTS, RECORD):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # halves of surrogates, in JSON's own escape
