"""The language of a split: what its people are called and how they talk. The words are in train.toml, dev.toml, test.toml and
new.toml. The topics of new are none of the others, which share theirs.

A phrase may hold {name} (whom the fact is about), {v} (the value), {av} (the value with "a" or "an") and {date}.
No pronoun stands for a person other than the speaker, so every phrase says on its own whom it is about.
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPLITS = ("train", "dev", "test", "new")


@dataclass(frozen=True)
class Topic:
    """One thing that people tell about themselves or each other.

    said: first person. told: by another person who is present. changed: first person, replaces an older fact; empty
    when such a fact does not change. pair: questions of the gold pairs. After the text is gone, ask: oblique questions,
    which take a step of thought; plain: the pair's question in other words or another order.
    An event also has a date, with its own pair_date, ask_date and plain_date.
    """

    kind: str
    values: tuple[str, ...]
    said: tuple[str, ...]
    told: tuple[str, ...]
    pair: tuple[str, ...]
    ask: tuple[str, ...]
    plain: tuple[str, ...]
    changed: tuple[str, ...] = ()
    pair_date: tuple[str, ...] = ()
    ask_date: tuple[str, ...] = ()
    plain_date: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chat:
    """Lines without facts. lead asks {name} to speak; react answers any fact; confirm is the subject's own answer."""

    open: tuple[str, ...]
    lead: tuple[str, ...]
    react: tuple[str, ...]
    confirm: tuple[str, ...]
    small: tuple[str, ...]
    close: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """Everything a split may say. `names` are the speakers' first names; they never occur as values."""

    names: tuple[str, ...]
    chat: Chat
    topics: dict[str, Topic]


@functools.cache
def language_of(split: str) -> Language:
    """The language of a split, read when it is first asked for. Raises ValueError for an unknown split."""
    if split not in SPLITS:
        raise ValueError(f"stream: unknown split {split!r}, expected one of {', '.join(SPLITS)}")
    tables = tomllib.loads((Path(__file__).parent / f"{split}.toml").read_text(encoding="utf-8"))
    topics = {name: Topic(**_tuples(table)) for name, table in tables["topics"].items()}
    return Language(tuple(tables["names"]), Chat(**_tuples(tables["chat"])), topics)


def _tuples(table: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
