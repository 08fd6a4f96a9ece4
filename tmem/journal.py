"""Append-only files with one JSON object a line, which a kill at any moment leaves readable; and files of one object."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The records of a file with one JSON object a line. Raises ValueError that names a broken line."""
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not a JSON object ({error}); mend or remove this line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object ({line[:40]}); mend or remove this line")
        rows.append(row)
    return rows


def read_object(path: str | Path, **fields: type) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ValueError that names the file if it is none, or lacks one of `fields`."""
    return object_in(Path(path).read_bytes(), path, **fields)


def object_in(content: bytes, path: str | Path, **fields: type) -> dict[str, Any]:
    """As `read_object`, of a file that was read already."""
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8, too
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

    def __init__(self, path: Path):
        self.path, self.rows = path, []
        if not path.exists():
            return
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        self.rows = read_jsonl(path)

    def append(self, rows: Iterable[dict]) -> None:
        """Add rows; when this returns they are on the disk."""
        rows = list(rows)
        text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        with self.path.open("ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows
