"""What JSON that was read from a file must look like: checked once, where it is read.

A shape is
    float, int            a finite number, a whole one
    str, bool, dict, list a value of that kind, whatever it holds
    object                anything
    {"a", "b"}            one of these words
    [s], [s, t]           a list of what is shaped as s; a list of two, shaped as s and t
    {"k": s, "l?": t, str: u}   an object with k, perhaps with l, whose others are shaped as u (without it: as they like)
    (s, None)             as s, or null
    a function            the shape that it makes of the value
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

MOST = 1e30  # of a number
DEEPEST = 64  # lists and objects inside one another

_SAID = {float: "a number", int: "a whole number", str: "text", bool: "true or false", dict: "an object", list: "a list"}


def check(value: Any, shape: Any, where: str) -> None:
    """Raise ValueError, saying where, what was expected and what was got, unless `value` is as `shape` says."""
    if isinstance(shape, tuple):
        if value is not None:
            check(value, shape[0], where)
    elif isinstance(shape, type):
        if not _is(value, shape):
            _refuse(where, _SAID[shape], value)
    elif isinstance(shape, (set, frozenset)):
        if not isinstance(value, str) or value not in shape:
            _refuse(where, f"one of {', '.join(sorted(shape))}", value)
    elif isinstance(shape, list):
        _check_list(value, shape, where)
    elif isinstance(shape, Mapping):
        _check_object(value, shape, where)
    else:
        check(value, shape(value), where)


def _check_list(value: Any, shape: list, where: str) -> None:
    if not isinstance(value, list) or len(shape) > 1 and len(value) != len(shape):
        _refuse(where, "a list" if len(shape) == 1 else f"a list of {len(shape)}", value)
    for i, item in enumerate(value):
        check(item, shape[i if len(shape) > 1 else 0], f"{where}, {i + 1}")


def _check_object(value: Any, shape: Mapping, where: str) -> None:
    if not isinstance(value, dict):
        _refuse(where, "an object", value)
    named = {str(key).removesuffix("?") for key in shape}
    for key, inner in shape.items():
        if key is str:
            for other in value.keys() - named:
                check(value[other], inner, f"{where}, `{other[:40]}`")
        elif key.removesuffix("?") in value:
            check(value[key.removesuffix("?")], inner, f"{where}, `{key.removesuffix('?')}`")
        elif not key.endswith("?"):
            raise ValueError(f"{where}: `{key}` is missing; restore the file, or make it anew.")


def _is(value: Any, kind: type) -> bool:
    if kind is object:
        return True
    if kind in (float, int):
        number = type(value) is int or kind is float and type(value) is float and math.isfinite(value)
        return number and -MOST < value < MOST
    return isinstance(value, kind)


def _refuse(where: str, expected: str, value: Any) -> None:
    got = {dict: "an object", list: "a list"}.get(type(value)) or reprlib.repr(value)
    raise ValueError(f"{where}: expected {expected}, got {got}; restore the file, or make it anew.")


def too_deep(value: Any) -> bool:
    """Whether more than DEEPEST lists and objects stand inside one another."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [v for x in level if isinstance(x, (dict, list)) for v in (x.values() if isinstance(x, dict) else x)]
        if not level:
            return False
    return True
