"""Append-only files with one JSON object a line, which a kill at any moment leaves readable; and files of one object."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .folders import in_use
from .shapes import check, too_deep


def read_jsonl(path: str | Path, shape: Any = dict) -> list[dict[str, Any]]:
    """The records of a file with one JSON object a line, each as `shape` (tmem.shapes) says.

    Raises ValueError that names a broken line. While another process works in the folder, a last line that is not whole yet is
    left out.
    """
    path, rows = Path(path), []
    growing = in_use(path.parent)  # asked before it is read: whoever has ended since has ended the line, too
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines if growing else [*lines, last], 1):
        if not line:
            continue
        where = f"{path}, line {number}"
        try:
            row = parsed(line)
        except ValueError as error:
            raise ValueError(f"{where}: not a JSON object ({error}); mend or remove this line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: not a JSON object ({reprlib.repr(row)}); mend or remove this line")
        check(row, shape, where)
        rows.append(row)
    return rows


def parsed(data: bytes) -> Any:
    """What JSON in UTF-8 says. Raises ValueError for what is none, or goes deeper than any file of ours."""
    try:
        found = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("lists or objects too deep inside one another") from error
    if too_deep(found):
        raise ValueError("lists or objects too deep inside one another")
    return found


def read_object(path: str | Path, **fields: type) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ValueError that names the file if it is none, or lacks one of `fields`."""
    return object_in(Path(path).read_bytes(), path, **fields)


def object_in(content: bytes, path: str | Path, **fields: type) -> dict[str, Any]:
    """As `read_object`, of a file that was read already."""
    try:
        found = parsed(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not JSON ({error}); restore the file or start anew") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, got {type(found).__name__}; restore it or start anew")
    for name, kind in fields.items():
        if not isinstance(found.get(name), kind):
            got = type(found[name]).__name__ if name in found else "nothing"
            raise ValueError(f"{path} is damaged: `{name}` is {got}, expected {kind.__name__}; restore it or start anew")
    return found


class Journal:
    """`rows` of the file so far, and `append`. A last line that a kill cut off is removed when the file is opened."""

    def __init__(self, path: Path, shape: Any = dict):
        self.path, self.rows = path, []
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        self.rows = read_jsonl(path, shape)

    def append(self, rows: Iterable[dict]) -> None:
        """Add rows; when this returns they are on the disk."""
        rows = list(rows)
        append(self.path, rows)
        self.rows += rows


def append(path: Path, rows: Iterable[Mapping], *, sync: bool = True) -> None:
    """Add a line for each row to a file, all or none; with `sync` they are on the disk when this returns.

    Raises OSError that names the file, such as for a full disk, and ValueError for NaN or infinity.
    """
    append_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows), sync=sync)


def append_text(path: Path, text: str, *, sync: bool = True) -> None:
    """As `append`, of text."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            left = memoryview(encoded(text))
            while left:
                left = left[file.write(left) :]
            if sync:
                os.fsync(file.fileno())
        except OSError as error:
            file.truncate(before)
            raise OSError(error.errno, error.strerror, str(path)) from error


def encoded(text: str) -> bytes:
    """JSON as UTF-8; half a surrogate pair, which UTF-8 has no bytes for, as JSON's own escape."""
    return text.encode("utf-8", "backslashreplace")
