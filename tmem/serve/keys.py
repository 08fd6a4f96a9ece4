"""The keys of who may call, in lines NAME KEY."""

from __future__ import annotations

import re

OPERATOR = "metrics"  # whose key opens /metrics alone

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_KEY = re.compile(r"[!-~]{16,200}")


def keys_in(text: str, where: str) -> list[tuple[str, str]]:
    """Names and keys out of lines NAME KEY; empty lines and those that begin with # are left out.

    Raises ValueError, which says nothing of what the line holds.
    """
    found: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or not _NAME.fullmatch(words[0]) or not _KEY.fullmatch(words[1]):
            raise ValueError(
                f"{where}, line {number}: expected NAME KEY: a name of up to 40 letters, digits and . _ -, and a key of 16 to "
                "200 ASCII characters without spaces."
            )
        name, key = words
        if key in found:
            raise ValueError(f"{where}, line {number}: it has the key of line {found[key][0]}; give each its own.")
        found[key] = number, name
    if not any(name != OPERATOR for _, name in found.values()):
        raise ValueError(f"{where} holds no tenant's key; write lines NAME KEY.")
    return [(name, key) for key, (_, name) in found.items()]
