"""What a write learns: some earlier pairs again, its own, and to abstain from the same questions about somebody else.

Without the last a memory never abstains: nothing that it learned shows an abstention.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..episode import Pair
from ..words import content, identity
from .learn import LearnConfig
from .probe import about, names


@dataclass
class Lesson:
    """What one memory was taught so far: of every question the newest pair, where the first one stood."""

    pairs: list[Pair] = field(default_factory=list)

    def remember(self, new: Iterable[Pair]) -> None:
        """Add pairs; one whose question was asked before takes the place of the old one."""
        self.pairs = newest([*self.pairs, *new])


def newest(pairs: Iterable[Pair]) -> list[Pair]:
    """Of several pairs with one question the last, where the first one stood."""
    return list({identity(p.question): p for p in pairs}.values())


def chosen(earlier: Sequence[Pair], new: Sequence[Pair], config: LearnConfig) -> list[Pair]:
    """What is learned with a write: `rehearsal`, then the new pairs, each followed by its `contrast` if it has one.

    Without new pairs nothing is.
    """
    if not new:
        return []
    past = rehearsal(earlier, new, config.rehearse)
    beside = contrast(past, new, [*earlier, *new], config.contrast, config.unknown)
    return [x for p, other in zip([*past, *new], beside, strict=True) for x in (p, other) if x is not None]


def rehearsal(earlier: Sequence[Pair], new: Sequence[Pair], limit: int) -> list[Pair]:
    """Up to `limit` earlier pairs, evenly spaced over the past.

    An earlier pair whose question is asked anew is left out: the new answer stands.
    """
    asked = {identity(p.question) for p in new}
    return _spaced(newest(p for p in earlier if identity(p.question) not in asked), limit)


def contrast(past: Sequence[Pair], new: Sequence[Pair], known: Sequence[Pair], limit: int, unknown: str) -> list[Pair | None]:
    """For each of `past` and `new` None or, for up to `limit` of them, its question about somebody else, answered `unknown`.

    The new pairs come first, then the past evenly spaced. Somebody else is a name that questions of `known`, all that was
    written so far, ask about alone; who is taken changes from pair to pair. Where a known question about that name shares a
    word with this one, it may be the same question in other words: then it is no contrast.
    """
    pairs = [*past, *new]
    asked = [names(p.question) for p in known]
    words: dict[str, set[str]] = {}  # of the questions that name somebody
    for p, found in zip(known, asked):
        for name in found:
            words.setdefault(name, set()).update(_words(p.question))
    people = list(dict.fromkeys(found[0] for found in asked if len(found) == 1))
    others = [_others(p, people, words) for p in pairs]
    may = [i for i, found in enumerate(others) if found]
    own = _spaced([i for i in may if i >= len(past)], limit)
    taken = own + _spaced([i for i in may if i < len(past)], limit - len(own))
    out: list[Pair | None] = [None] * len(pairs)
    for count, i in enumerate(taken):
        question = pairs[i].question
        out[i] = Pair(about(question, names(question)[0], others[i][count % len(others[i])]), unknown)
    return out


def _others(pair: Pair, people: Sequence[str], words: dict[str, set[str]]) -> list[str]:
    """About whom a pair's question can be asked as one that nothing known answers; [] unless it is about one of `people`."""
    asked = names(pair.question)
    if len(asked) != 1 or asked[0] not in people:
        return []
    mine = _words(pair.question)
    return [n for n in people if n not in asked and n not in pair.answer and not mine & words[n]]


def _words(question: str) -> frozenset[str]:
    """The words of a question that say what is asked."""
    return content(question) - {n.lower() for n in names(question)}


def _spaced(items: list, limit: int) -> list:
    return [items[i * len(items) // limit] for i in range(limit)] if len(items) > limit else items
