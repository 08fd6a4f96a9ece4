"""The form of a split's language; the words themselves are in stream_data_train, _dev and _test.

A phrase may hold {name} (whom the fact is about), {v} (the value), {av} (the value with "a" or "an") and {date}.
No pronoun stands for a person other than the speaker, so every phrase says on its own whom it is about.
"""

from dataclasses import dataclass

__all__ = ["Chat", "Language", "Topic", "lines", "words"]


def words(text: str) -> tuple[str, ...]:
    """The comma-separated entries of `text`."""
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def lines(text: str) -> tuple[str, ...]:
    """The non-empty lines of `text`, stripped."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


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
