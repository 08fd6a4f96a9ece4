"""Questions that a passage seems to answer and does not: what a reader must learn to abstain from."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from tmem.episode import Question
from tmem.tasks import people
from tmem.tasks.squad import ABSTENTIONS, Passage
from tmem.words import normalise

__all__ = ["elsewhere", "of_another", "untold"]


def untold(passage: Passage, others: Sequence[Passage], rng: random.Random) -> list[Question]:
    """At most one of each kind, drawn: a question of the passage about another of its people, and one of another part of the
    same document. Their category is "abstention".

    A question about another person may by chance have an answer; most have none.
    """
    found = [of_another(passage, rng), elsewhere(passage, others, rng)]
    return [Question(f"untold/{i}", q, ABSTENTIONS, "untold", category="abstention") for i, q in enumerate(found) if q]


def of_another(passage: Passage, rng: random.Random) -> str:
    """A question of the passage that names one of its people, with another of them in that place; "" where there is none."""
    names = list(people.people(passage.text))
    own = {normalise(q.text) for q in passage.questions}
    found = []
    for question in passage.questions:
        named = [n for n in names if _names(n, question.text)]
        said = [n for n in names if any(_names(n, answer) for answer in question.answers)]
        if len(named) == 1 and question.category != "abstention" and not set(map(normalise, question.answers)) & {"yes", "no"}:
            for other in names:
                text = people.renamed(question.text, {named[0]: other})
                if other not in (*named, *said) and normalise(text) not in own:
                    found.append(text)
    return rng.choice(found) if found else ""


def elsewhere(passage: Passage, others: Sequence[Passage], rng: random.Random) -> str:
    """A question of another part, none of whose answers stands in the passage; "" where there is none."""
    text, own = f" {normalise(passage.text)} ", {normalise(q.text) for q in passage.questions}
    found = [
        q.text for other in others for q in other.questions
        if normalise(q.text) not in own and not any(f" {normalise(a)} " in text for a in q.answers)
        and not set(map(normalise, q.answers)) & {"yes", "no"}
    ]  # fmt: skip
    return rng.choice(found) if found else ""


def _names(name: str, text: str) -> bool:
    return bool(re.search(rf"\b{name}\b", text, re.IGNORECASE))
