"""JSON that a person can read: one record a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

WIDTH = 400  # characters of a line that holds more than a flat record


def laid_out(value: Any) -> str:
    """The JSON text of `value`, one record a line, without a newline at its end.

    A flat object or list (of strings, numbers, booleans and nulls) is a line, however long. So is any other that fits in
    WIDTH characters. Every other stands open: one member a line, indented by 1. Only white space differs from what
    `json.dumps` gives with ensure_ascii=False. Raises what it raises: ValueError for NaN, infinity or a circle, TypeError for
    what JSON cannot say.
    """
    return "\n".join(_lines(json.loads(_line(value))))


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _lines(value: Any, key: str = "", comma: str = "", indent: str = "") -> Iterator[str]:
    """The lines of one member: its key, its value, and the comma after it."""
    line = _line(value)
    members = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if len(line) <= WIDTH or not any(isinstance(v, (dict, list)) for _, v in members):
        yield indent + key + line + comma
        return
    yield indent + key + line[0]
    for i, (name, member) in enumerate(members):
        named = f"{_line(name)}: " if isinstance(value, dict) else ""
        yield from _lines(member, named, "," * (i < len(members) - 1), indent + " ")
    yield indent + line[-1] + comma
