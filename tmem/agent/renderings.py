"""The words in which a question is put to Δ: templates with {question} and {unknown}, the abstention, in them.

A memory recalls best what it is asked in words that it was taught in. So a pair is taught in several renderings, and what
asks takes one of these.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence

from ..episode import Pair

BARE = "{question}"  # what pairs were taught and asked as before presets said it
_FIELDS = re.compile(r"\{(question|unknown)\}")
ANSWER = "{answer}"  # in the words in which a question is asked back from its answer


def worded(template: str, question: str, unknown: str) -> str:
    """The template with its fields filled in, both at once: braces in a question stay as they are."""
    values = {"question": question, "unknown": unknown}
    return "".join(values[part] if i % 2 else part for i, part in enumerate(_FIELDS.split(template)))


def asked_back(reverse: str, answer: str) -> str:
    """The words that ask a question back from its answer."""
    return reverse.replace(ANSWER, answer)


def rendered(pairs: Sequence[Pair], epoch: int, renderings: Sequence[str], unknown: str, reverse: str = "") -> list[Pair]:
    """The pairs as they are taught in an epoch: all in rendering number epoch mod n, the last one in reverse if there is one.

    n epochs teach every pair in each of n renderings, for as many sequences as one rendering takes. Those of one rendering
    are of about one length, so that few length buckets are needed: pairs in turns with each other took 1.3 times as long.
    An abstention leads back to no question; it is taught in the first rendering then.
    """
    turn = epoch % (len(renderings) + bool(reverse))
    if turn == len(renderings):
        first = renderings[0]
        return [
            Pair(worded(first, p.question, unknown), p.answer) if p.answer == unknown
            else Pair(asked_back(reverse, p.answer), p.question)
            for p in pairs
        ]  # fmt: skip
    template = renderings[turn]
    return [Pair(worded(template, p.question, unknown), p.answer) for p in pairs]


def check(asked: str, renderings: Sequence[str], epochs: int, reverse: str = "") -> None:
    """Raises ValueError for a template without {question}, or {answer} in reverse, or with other braces, and where what asks
    is not taught in any of the epochs."""
    if reverse and (ANSWER not in reverse or re.search("[{}]", reverse.replace(ANSWER, ""))):
        raise ValueError(
            f"preset: [learn] reverse: expected a text with {{answer}} and no other braces, or an empty one, got "
            f"{reprlib.repr(reverse)}."
        )
    for where, template in (("[answer] asked", asked), *(("[learn] renderings", r) for r in renderings)):
        if BARE not in template or re.search("[{}]", _FIELDS.sub("", template)):
            raise ValueError(
                f"preset: {where}: expected a text with {{question}}, and no braces but those of {{question}} and {{unknown}}, "
                f"got {reprlib.repr(template)}."
            )
    if asked not in renderings:
        raise ValueError(
            f"preset: [answer] asked: expected one of [learn] renderings, got {reprlib.repr(asked)}; add it there, so that "
            "pairs are taught in the words in which they are asked."
        )
    if epochs <= (place := list(renderings).index(asked)):
        raise ValueError(
            f"preset: [learn] epochs: expected {place + 1} or more, as [answer] asked is rendering {place + 1} and each epoch "
            f"teaches one, got {epochs}."
        )
