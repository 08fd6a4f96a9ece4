"""Benchmark files: JSON or JSON lines, whose records say in one sentence what is wrong with them."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..words import sound

__all__ = ["Record", "check_limit", "content", "distinct", "draw", "files", "listed", "read", "text"]

_KINDS = {str: "text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}
_REQUIRED = object()
# What a file that is no text begins with, and what makes text of it.
_BINARY = {
    b"PAR1": "is a Parquet file; make lines of JSON of it: pandas.read_parquet(FILE).to_json('x.jsonl', orient='records', "
    "lines=True)",
    b"\x1f\x8b": "is compressed; unpack it with gunzip",
    b"BZh": "is compressed; unpack it with bunzip2",
    b"\xfd7zX": "is compressed; unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "is compressed; unpack it with unzstd",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file itself with git lfs pull",
}


class Record:
    """A JSON object and `where` it stands; it hands out its fields checked, or raises a ValueError that names them."""

    def __init__(self, value: Any, where: str):
        self._fields, self.where = _checked(value, (dict,), where), where

    def __iter__(self):
        return iter(self._fields)

    def named(self, name: str) -> Record:
        """The same record, whose errors also tell its id, the text in field `name`."""
        return Record(self._fields, f"{self.where} ({name} {self.get(name, str)[:60]!r})")

    def raw(self, name: str) -> Any:
        """Whatever field `name` holds, None if it is missing."""
        return self._fields.get(name)

    def get(self, name: str, *kinds: type, default: Any = _REQUIRED) -> Any:
        """The field `name`, of one of the JSON types `kinds`; `default`, where there is one, if it is missing or null."""
        value = self._fields.get(name)
        if value is None and default is not _REQUIRED:
            return default
        if name not in self._fields:
            raise ValueError(f"{self.where}: `{name}` is missing; expected {_named(kinds)}.")
        return _checked(value, kinds, f"{self.where}: `{name}`")

    def each(self, name: str, *kinds: type, default: Any = _REQUIRED) -> list:
        """The items of the list `name`, each of one of `kinds`; objects come as records."""
        values = self.get(name, list, default=default)
        return [_item(v, kinds, f"{self.where}, item {i} of `{name}`") for i, v in enumerate(values, 1)]

    def under(self, name: str, default: Any = _REQUIRED) -> Record:
        """The object in field `name` as a record."""
        return Record(self.get(name, dict, default=default), f"{self.where}, `{name}`")

    def answer(self, name: str) -> str:
        """Text, or the text of a number: golds such as 2022 stand in official files without quotes."""
        return _written(self.get(name, str, int, float), f"{self.where}: `{name}`")

    def answers(self, name: str) -> list[str]:
        """The items of the list `name`, each as `answer` has it; text or a number alone is a list of one."""
        if not isinstance(self.raw(name), list):
            return [self.answer(name)]
        values = enumerate(self.each(name, str, int, float), 1)
        return [_written(value, f"{self.where}, item {i} of `{name}`") for i, value in values]


def _written(value: Any, where: str) -> str:
    if value in (math.inf, -math.inf):  # as JSON reads 1e999
        raise ValueError(f"{where} is larger than any number; expected text or a number.")
    return str(value)


def _item(value: Any, kinds: tuple[type, ...], where: str) -> Any:
    value = _checked(value, kinds, where)
    return Record(value, where) if isinstance(value, dict) else value


def _named(kinds: Sequence[type]) -> str:
    whole = int in kinds and float not in kinds
    return " or ".join(dict.fromkeys("a whole number" if whole and k is int else _KINDS[k] for k in kinds))


def _checked(value: Any, kinds: tuple[type, ...], where: str) -> Any:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{where} is {_KINDS.get(type(value), 'null')}; expected {_named(kinds)}.")
    if isinstance(value, str) and not sound(value):
        raise ValueError(f"{where} holds half a surrogate pair; expected Unicode text.")
    return value


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_constant)
    except ValueError as error:  # also of an integer with thousands of digits
        raise ValueError(f"{where} is not JSON ({error}).") from error
    except RecursionError as error:
        raise ValueError(f"{where} is nested too deeply; expected the official format.") from error


def files(data: str | Path | Sequence[str | Path] | None) -> list[str | Path]:
    """One data file, several or none, as a list."""
    return [data] if isinstance(data, (str, Path)) else list(data or ())


def read(path: str | Path | Sequence[str | Path], task: str, source: str, *, under: str = "") -> list[Record]:
    """The records of a .jsonl file, one a line, or of any other file, a JSON list (or an object with that list in `under`);
    of several files one after another.

    source: where a user gets the file, for the error. Raises FileNotFoundError, and ValueError for a file that cannot
    be read, is not JSON in UTF-8, holds no records, or holds something else than objects.
    """
    if not isinstance(path, (str, Path)):
        return [record for one in path for record in read(one, task, source, under=under)]
    found = content(path, task, source)
    if under and isinstance(found, dict):
        found = Record(found, f"{task}: {path}").get(under, list)
    return listed(found, f"{task}: {path}", source)


def content(path: str | Path, task: str, source: str) -> Any:
    """What a file holds, whatever it is: of a .jsonl file the list of its lines. Arguments and errors as `read`."""
    held, path, where = text(path, task, source), Path(path), f"{task}: {path}"
    if not held.strip():
        raise ValueError(f"{where} is empty; {source}.")
    if path.suffix.lower() == ".jsonl":
        return [_parsed(line, f"{where}, line {n}") for n, line in enumerate(held.split("\n"), 1) if line.strip()]
    try:
        return _parsed(held, where)
    except ValueError as error:
        if "Extra data" in str(error):
            raise ValueError(f"{str(error).rstrip('.')}; if it holds a record a line, name it .jsonl.") from error
        raise


def text(path: str | Path, task: str, source: str) -> str:
    """A text file as it is, in UTF-8 with or without a mark of byte order. Arguments and errors as `read`."""
    path = Path(path)
    where = f"{task}: {path}"
    if not path.exists():
        raise FileNotFoundError(f"{task}: no file at {path}; {source}.")
    if not path.is_file():  # a pipe could be read once alone, and files are read again when a run goes on
        raise ValueError(f"{where} is a folder, a pipe or a device; expected a file; {source}.")
    try:
        with path.open("rb") as file:
            start = file.read(max(map(len, _BINARY)))
        if told := next((what for magic, what in _BINARY.items() if start.startswith(magic)), None):
            raise ValueError(f"{where} {told}.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{where} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 ({error}); {source}.") from error


def listed(found: Any, where: str, source: str) -> list[Record]:
    """A non-empty JSON list of objects as records. Raises ValueError for anything else."""
    if not isinstance(found, list) or not found:
        kind = "an empty list" if found == [] else _KINDS.get(type(found), "null")
        raise ValueError(f"{where} holds {kind}, expected a non-empty list of records; {source}.")
    return [Record(value, f"{where}, record {n}") for n, value in enumerate(found, 1)]


def distinct(ids: Iterable[str], what: str) -> None:
    """ValueError for an id that occurs twice: answers, verdicts and memories are kept by them."""
    if twice := [i for i, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{what} {twice[0][:60]!r} occurs twice; expected every one once: remove or rename one of them.")


def check_limit(task: str, limit: int | None, what: str) -> None:
    """ValueError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"{task}: limit is {limit}, expected at least 1 {what}")


def draw(labels: Sequence[str], limit: int | None, key: str) -> list[int]:
    """At most `limit` of the indexes of `labels`, in order, drawn without replacement; the same for the same key.

    Every label is drawn once before any is drawn twice, then labels come in proportion to how often they occur.
    A larger limit draws the same ones and more.
    """
    total, seen, ranked = Counter(labels), Counter(), []
    for i in random.Random(key).sample(range(len(labels)), len(labels)):
        before = seen[labels[i]]
        seen[labels[i]] += 1
        ranked.append((before > 0, before and before / total[labels[i]], len(ranked), i))
    return sorted(i for *_, i in sorted(ranked)[:limit])
