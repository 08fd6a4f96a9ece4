"""The first names of people in a text, and other ones in their place: who did what cannot be known beforehand then."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["people", "renamed", "swaps"]

_WORD = re.compile(r"[^\W\d_]+")
_SPEAKER = re.compile(r"^([A-Z][a-z]{2,}):", re.MULTILINE)
_ROLE = re.compile(r"(?:er|or|man|ist|ian|ant|ent|boy|girl|lady)$")  # what an unknown speaker may be instead of a person


def people(text: str) -> dict[str, str]:
    """The words of a text that are surely first names, in the order of the text, each with its group: female, male, either.

    These are the names of people.toml, and who speaks two lines or more of a dialogue, `Name: text`. A name is left out where
    it may be a place, a title, part of a longer word or the short form of another one.
    """
    words = list(dict.fromkeys(_WORD.findall(text)))
    found = {w.title(): listed()[w.title()] for w in words if w.title() in listed() and w[0].isupper()}
    found = {**found, **{name: "either" for name in _speakers(text) if name not in found}}
    starts = [w[:3] for w in {w.title() for w in words if w[0].isupper()} if w in found]
    return {name: group for name, group in found.items() if starts.count(name[:3]) == 1 and _sure(name, text)}


def swaps(text: str, rng: random.Random) -> dict[str, str]:
    """Another name of the same group for each of the people of a text; the text has none of them yet, and no two are one."""
    present, out = {w.lower() for w in _WORD.findall(text)}, {}
    for name, group in people(text).items():
        free = [other for other in _table()[group] if other.lower() not in present and other not in out.values()]
        if free:
            out[name] = rng.choice(free)
    return out


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The text with every one of `names` as the other name, in the case that stands there: ANN, ann or Ann."""
    if not names:
        return text

    def other(found: re.Match) -> str:
        name = names[found[0].title()]
        return name.upper() if found[0].isupper() else name.lower() if found[0].islower() else name

    return _pattern("|".join(map(re.escape, names))).sub(other, text)


def _pattern(names: str) -> re.Pattern:
    """Whole words: neither "@Ann", "Jo-Ann" nor "O'Ann"; "Ann's" is."""
    return re.compile(rf"(?<![\w@#-])(?<!\w['’])(?:{names})(?![\w-])", re.IGNORECASE)


def _speakers(text: str) -> list[str]:
    """The speakers of a dialogue who are called by one word that is no role, such as Clerk."""
    lines = _SPEAKER.findall(text)
    lower = set(re.findall(r"\b[a-z]+\b", text))
    return [
        name for name in dict.fromkeys(lines)
        if lines.count(name) > 1 and len(set(lines)) > 1
        and name.lower() not in lower and name.lower() not in _table()["roles"] and not _ROLE.search(name)
        and not re.search(rf"\b(?:a|an|the|this|that|dear) {name}\b", text, re.IGNORECASE)
    ]  # fmt: skip


def _sure(name: str, text: str) -> bool:
    """Whether `name` is nothing but a person's name wherever it stands."""
    before, after = _around()
    if re.search(rf"\b(?:{before})\.? {name}\b|\b{name}(?:['’]s)? (?:{after})\b", text, re.IGNORECASE):
        return False
    return not re.search(rf"[@#-]\w*{name}|{name}\w*[-@]|\w['’]{name}\b|\b{name} [IVX]+\b", text)


@cache
def _around() -> tuple[str, str]:
    return "|".join(_table()["before"]), "|".join(_table()["after"])


@cache
def _table() -> dict[str, list[str]]:
    return tomllib.loads(Path(__file__).with_name("people.toml").read_text(encoding="utf-8"))


@cache
def listed() -> dict[str, str]:
    """The group of every name of people.toml."""
    return {name: group for group in ("female", "male", "either") for name in _table()[group]}
