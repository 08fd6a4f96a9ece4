"""Multi-hop questions in the official formats of HotpotQA, 2WikiMultihopQA and MuSiQue.

The files are the user's own and are never part of this project.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Hop", "contexts", "load", "read"]

_EXPECTED = "expected the official records of HotpotQA, 2WikiMultihopQA or MuSiQue"
_KINDS = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}


@dataclass(frozen=True)
class Hop:
    """One question. answers: any of them is right. evidence: titles of the articles it rests on, empty where not said."""

    id: str
    question: str
    answers: tuple[str, ...]
    evidence: tuple[str, ...] = ()


def load(path: str | Path, limit: int | None = None, seed: int = 0) -> list[Hop]:
    """The answerable questions of a .json or .jsonl file, in its order.

    limit: at most so many, drawn without replacement; the draw depends on the seed and the number of questions alone.
    MuSiQue's unanswerable questions are left out.
    Raises FileNotFoundError, and ValueError that names the file, the record and the field for anything else than the format.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"multihop: limit is {limit}, expected at least 1 question")
    found = read(path, "multihop")
    if not isinstance(found, list) or not found:
        raise ValueError(f"multihop: {path} holds {kind(found)}, expected a non-empty list of questions")
    hops = [hop for i, record in enumerate(found) if (hop := _hop(record, f"multihop: {path}: record {i}"))]
    if not hops:
        raise ValueError(f"multihop: {path} has only unanswerable questions, expected at least one with an answer")
    if limit is not None and limit < len(hops):
        hops = [hops[i] for i in sorted(random.Random(f"multihop/{seed}").sample(range(len(hops)), limit))]
    return hops


def read(path: str | Path, who: str):
    """What a .json file holds, or the list of what the lines of a .jsonl file hold; `who` starts the error messages.

    Raises FileNotFoundError, and ValueError for a file that is not UTF-8 or not JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{who}: no file at {path}; give the path of a .json or .jsonl file")
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".jsonl":
            return json.loads(text)
        out = []
        for number, line in enumerate(text.split("\n"), 1):
            where = f"{path}, line {number}"
            if line.strip():
                out.append(json.loads(line))
        return out
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{who}: {where} is not JSON ({error}); expected a .json or .jsonl file in UTF-8") from error


def contexts(record: dict, where: str) -> list[tuple[str, str]]:
    """Title and text of every article that comes with a question; none where the record has no context."""
    if "paragraphs" in record:
        return [(text_of(p, "title", at), text_of(p, "paragraph_text", at)) for p, at in _paragraphs(record, where)]
    found = record.get("context", [])
    if isinstance(found, dict):  # the columns of the Hugging Face copies
        found = _columns(found, ("title", "sentences"), f"{where}: context")
    out = []
    for i, entry in enumerate(_list(found, f"{where}: context")):
        at = f"{where}: context {i}"
        title, sentences = _couple(entry, at, "[title, [sentences]]")
        out.append((clean(title, f"{at}: title"), joined(sentences, at)))
    return out


def joined(sentences, where: str) -> str:
    """A list of sentences as one text; text as it is. Raises ValueError for anything else."""
    if isinstance(sentences, str):
        return clean(sentences, where)
    return " ".join(clean(s, f"{where}: sentence {i}").strip() for i, s in enumerate(_list(sentences, where)))


def text_of(record, field: str, where: str) -> str:
    """A record's text field that is not blank. Raises ValueError that starts with `where` and names the field."""
    if not isinstance(record, dict):
        raise ValueError(f"{where} is {kind(record)}, expected an object with {field}")
    if field not in record:
        raise ValueError(f"{where} has no {field}; {_EXPECTED}")
    value = clean(record[field], f"{where}: {field}")
    if not value.strip():
        raise ValueError(f"{where}: {field} is empty, expected text")
    return value


def clean(value, where: str) -> str:
    """Text without the halves of surrogate pairs that JSON may hold and UTF-8 may not. Raises ValueError for no text."""
    if not isinstance(value, str):
        raise ValueError(f"{where} is {kind(value)}, expected text")
    return value.encode("utf-8", "replace").decode()


def kind(value) -> str:
    """A JSON value's type in plain words."""
    return "an empty list" if value == [] else _KINDS.get(type(value), "null")


def _hop(record, where: str) -> Hop | None:
    if not isinstance(record, dict):
        raise ValueError(f"{where} is {kind(record)}, expected an object with question and answer")
    if record.get("answerable") is False:
        return None
    names = [name for name in ("_id", "id") if name in record]
    if not names:
        raise ValueError(f"{where} has no _id or id; {_EXPECTED}")
    answers = [text_of(record, "answer", where)]
    for i, alias in enumerate(_list(record.get("answer_aliases", []), f"{where}: answer_aliases")):
        answers.append(clean(alias, f"{where}: answer_aliases {i}"))
    return Hop(
        text_of(record, names[0], where),
        text_of(record, "question", where).strip(),
        tuple(dict.fromkeys(a for a in answers if a.strip())),
        tuple(dict.fromkeys(_evidence(record, where))),
    )


def _evidence(record: dict, where: str) -> list[str]:
    if "paragraphs" in record:
        return [text_of(p, "title", at) for p, at in _paragraphs(record, where) if p.get("is_supporting") is True]
    if not any(name in record for name in ("context", "supporting_facts")):
        raise ValueError(f"{where} has neither context nor paragraphs; {_EXPECTED}")
    facts = record.get("supporting_facts", [])
    if isinstance(facts, dict):
        facts = _columns(facts, ("title", "sent_id"), f"{where}: supporting_facts")
    pairs = [
        _couple(f, f"{where}: supporting_facts {i}", "[title, index]")
        for i, f in enumerate(_list(facts, f"{where}: supporting_facts"))
    ]
    return [clean(title, f"{where}: supporting_facts {i}: title") for i, (title, _) in enumerate(pairs)]


def _paragraphs(record: dict, where: str) -> list[tuple[dict, str]]:
    found = _list(record["paragraphs"], f"{where}: paragraphs")
    out = [(p, f"{where}: paragraphs {i}") for i, p in enumerate(found)]
    for p, at in out:
        if not isinstance(p, dict):
            raise ValueError(f"{at} is {kind(p)}, expected an object with title and paragraph_text")
    return out


def _columns(found: dict, names: tuple[str, str], where: str) -> list[tuple]:
    for name in names:
        if name not in found:
            raise ValueError(f"{where} has no {name}, expected {' and '.join(names)}")
    one, two = (_list(found[name], f"{where}: {name}") for name in names)
    if len(one) != len(two):
        raise ValueError(f"{where} has {len(one)} {names[0]} and {len(two)} {names[1]}, expected as many of each")
    return list(zip(one, two))


def _couple(entry, where: str, form: str) -> tuple:
    if not isinstance(entry, (list, tuple)) or len(entry) != 2:
        raise ValueError(f"{where} is {kind(entry)}, expected {form}")
    return tuple(entry)


def _list(value, where: str) -> list:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {kind(value)}, expected a list")
    return value
