"""Append-only files with one JSON object a line, which a kill at any moment leaves readable."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .folders import in_use
from .objects import encoded, parsed
from .shapes import check


def read_jsonl(path: str | Path, shape: Any = dict) -> list[dict[str, Any]]:
    """The records of a file with one JSON object a line, each as `shape` (tmem.files.shapes) says.

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
