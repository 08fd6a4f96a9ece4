"""What a write learns: some earlier pairs again, its own, and that the same questions about somebody else have no answer.

Without the last a memory answers whatever it is asked: nothing it ever learned says that something is not known.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..episode import Pair
from .learn import LearnConfig
from .probe import names, speakers
from .write import normalise


def lesson(earlier: Sequence[Pair], new: Sequence[Pair], config: LearnConfig) -> list[Pair]:
    """The pairs that a write teaches: `rehearsal`, each pair followed by its `contrast` if it has one; [] without new pairs."""
    if not new:
        return []
    pairs, known = rehearsal(earlier, new, config.rehearse), [*earlier, *new]
    beside = contrast(pairs, known, config.contrast, config.unknown)
    return [x for p in pairs for x in (p, beside.get(p)) if x is not None]


def rehearsal(earlier: Sequence[Pair], new: Sequence[Pair], limit: int) -> list[Pair]:
    """Up to `limit` earlier pairs, evenly spaced over the past, then the new ones.

    An earlier pair whose question is asked anew is left out: the new answer stands.
    """
    asked = {normalise(p.question) for p in new}
    past = list({normalise(p.question): p for p in earlier if normalise(p.question) not in asked}.values())
    return _spaced(past, limit) + list(new)


def contrast(pairs: Sequence[Pair], known: Sequence[Pair], limit: int, unknown: str) -> dict[Pair, Pair]:
    """For up to `limit` of `pairs`, evenly spaced: its question about somebody else, answered `unknown`.

    Somebody else is a name that other questions of `known`, all that was written so far, ask about; who is taken changes from
    pair to pair. A question that `known` answers is no contrast.
    """
    if not limit:
        return {}
    people, answered = speakers("", known), {normalise(p.question) for p in known}
    out = {}
    for i, p in enumerate(pairs):
        asked = names(p.question)
        mine = [n for n in asked if n in people]
        others = [n for n in people if n not in asked and n not in p.answer]
        questions = [p.question.replace(mine[0], n) for n in others] if mine else []
        if free := [q for q in questions if normalise(q) not in answered]:
            out[p] = Pair(free[i % len(free)], unknown)
    return {p: out[p] for p in _spaced(list(out), limit)}


def _spaced(items: list, limit: int) -> list:
    return [items[i * len(items) // limit] for i in range(limit)] if len(items) > limit else items
