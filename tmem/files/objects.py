"""Files of one JSON object, read whole and written whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .folders import atomic_file
from .layout import laid_out
from .shapes import too_deep


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


def parsed(data: bytes) -> Any:
    """What JSON in UTF-8 says. Raises ValueError for what is none, or goes deeper than any file of ours."""
    try:
        found = json.loads(data.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("lists or objects too deep inside one another") from error
    if too_deep(found):
        raise ValueError("lists or objects too deep inside one another")
    return found


def write_json(path: str | Path, value: Any) -> None:
    """Write `value`, one record a line; the file appears whole or not at all. ValueError, saying where, for NaN or infinity."""
    try:
        text = laid_out(value)
    except ValueError as error:
        raise ValueError(f"{path}: JSON has no NaN or infinity, got one at {_not_finite(value)}; nothing written") from error
    with atomic_file(path) as work:
        work.write_bytes(encoded(text + "\n"))


def _not_finite(value: Any, where: str = "the top") -> str | None:
    """Where in `value` the first NaN or infinity is, like "methods.tmem.f1"."""
    if isinstance(value, float):
        return None if math.isfinite(value) else where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    prefix = "" if where == "the top" else f"{where}."
    return next((found for key, item in items if (found := _not_finite(item, f"{prefix}{key}"))), None)


def encoded(text: str) -> bytes:
    """JSON as UTF-8; half a surrogate pair, which UTF-8 has no bytes for, as JSON's own escape."""
    return text.encode("utf-8", "backslashreplace")
