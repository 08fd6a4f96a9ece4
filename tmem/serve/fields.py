"""The fields of a request's body, checked: each refusal is one sentence that names the field."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any

from ..words import sound


class Refused(ValueError):
    """A request that is not served; becomes an error of OpenAI's shape."""

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        param = None if param is None else param[:60].encode("ascii", "backslashreplace").decode()
        self.param, self.status, self.code = param, status, code


def text_field(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field that is text. Raises Refused."""
    value = body.get(name, default)
    if not isinstance(value, str):
        raise Refused(f"{name}: expected text, got {kind(value)}.", name)
    return whole(name, value)


def only(body: Mapping[str, Any], *names: str) -> None:
    """Raises Refused for a field that is none of `names`."""
    for name in body:
        if name not in names:
            expected = f"expected {', '.join(names)}" if names else "expected none"
            raise Refused(f"unknown field {name!r:.60}; {expected}.", name)


def whole(where: str, text: str) -> str:
    """Text that UTF-8 has bytes for."""
    if not sound(text):
        raise Refused(f"{where}: it holds half of a surrogate pair, which is no character; send valid Unicode.", where)
    return text


def number(body: Mapping[str, Any], name: str, form: type, least: float, most: float) -> Any:
    """A field that is a number of this form, int or float; None where there is none. Raises Refused."""
    value = body.get(name)
    if value is None:
        return None
    sound = type(value) is int or form is float and type(value) is float and math.isfinite(value)
    if not sound or not least <= value <= most:
        what = "a whole number" if form is int else "a number"
        raise Refused(f"{name}: expected {what} from {least} to {most}, got {reprlib.repr(value)}.", name)
    return form(value)


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false; false where there is none. Raises Refused."""
    value = body.get(name)
    if value not in (None, True, False) or isinstance(value, (int, float)) and not isinstance(value, bool):
        raise Refused(f"{name}: expected true or false, got {reprlib.repr(value)}.", name)
    return bool(value)


def kind(value: Any) -> str:
    """What a value of JSON is called."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")
