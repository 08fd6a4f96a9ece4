"""Do written pairs say the facts of a stream, of the right person, about the right thing?

A fact is (person, attribute, value). The person and the value stand in the pair, and the attribute is the topic that its
question is closest to: what is written follows no template.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..agent.probe import names
from ..episode import Episode, Pair
from ..tasks import stream
from ..words import normalise


def strict(episode: Episode, pairs: Sequence[Pair]) -> dict[str, float]:
    """Of the gold facts: `facts` written with the right person, attribute and value; `person`: the value under another person;
    `attribute`: the right person's value asked as something else. Of the pairs: `precise`, those that are such a fact."""
    split = episode.id.split("/")[1]

    def key(pair: Pair) -> tuple:
        return frozenset(names(pair.question)), stream.attribute(pair.question, split), normalise(pair.answer)

    mine, facts = [key(p) for p in pairs], [key(p) for ps in episode.pairs for p in ps]

    def same(a, b) -> bool:
        return bool(a[0] & b[0]) and a[1:] == b[1:]

    right = [any(same(w, g) for w in mine) for g in facts]
    person = [not r and any(w[1:] == g[1:] for w in mine) for r, g in zip(right, facts)]
    other = [not r and not p and any(w[2] == g[2] and w[0] & g[0] for w in mine) for r, p, g in zip(right, person, facts)]
    out = {k: sum(v) / max(1, len(facts)) for k, v in (("facts", right), ("person", person), ("attribute", other))}
    out["precise"] = sum(any(same(w, g) for g in facts) for w in mine) / len(mine) if mine else 0.0
    out["pairs"] = len(mine)
    return out
