"""What a store tells of a memory: its facts with where they come from; and which pairs tell the same fact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..agent.teach import Lesson
from ..words import content, identity, normalise
from .database import Told, Write


@dataclass(frozen=True)
class Fact:
    """A pair that a memory has learned, and where from.

    question, answer          the pair
    write, time, source       the write that taught it, when that was (seconds since 1970), and what its text is called
    passage                   the text it was written from, "" where the pair was given
    loss_before, loss_after   of that write, in nats
    corrected                 whether the answer was replaced by hand
    """

    question: str
    answer: str
    write: int
    time: float
    source: str
    passage: str
    loss_before: float | None
    loss_after: float | None
    corrected: bool


@dataclass(frozen=True)
class About:
    """A memory in a list of them: its name, when it was made and last changed (seconds since 1970), how many writes it has had,
    and ‖ΔW‖ after the last of them."""

    name: str
    made: float
    changed: float
    writes: int
    norm: float


def lesson_of(writes: Sequence[Write]) -> Lesson:
    """What a memory was taught by these writes; what was rolled back is not in it."""
    lesson = Lesson()
    for write in writes:
        if write.kept:
            lesson.remember(write.pairs)
    return lesson


def sure_of(lesson: Lesson, kept: Mapping[str, float]) -> dict[str, float]:
    """How sure the answers to a lesson's questions are, by `identity`, of what a store kept. One of before kept them by
    `normalise`; where two questions share that form, it is not known of which it was."""
    old = Counter(normalise(p.question) for p in lesson.pairs)
    found: dict[str, float] = {}
    for p in lesson.pairs:
        key, before = identity(p.question), normalise(p.question)
        if key in kept:
            found[key] = kept[key]
        elif before in kept and old[before] == 1:
            found[key] = kept[before]
    return found


def facts(writes: Sequence[Write]) -> list[Fact]:
    """What these writes taught: of every question the newest pair, where the first one stood."""
    found: dict[str, Fact] = {}
    for w in writes:
        for t in w.told if w.kept else ():
            found[identity(t.question)] = Fact(
                t.question, t.answer, w.id, w.time, w.source, w.passage, w.loss_before, w.loss_after, t.corrected
            )
    return list(found.values())


def of_one_fact(question: str, writes: Sequence[Write]) -> list[Told]:
    """All pairs that tell the fact which `question` asks for: those of the question itself, whatever their answers, and those
    with one of these answers whose question shares at least half of its words with it."""
    key, words = identity(question), content(question)
    told = [t for w in writes for t in w.told]
    answers = {normalise(t.answer) for t in told if identity(t.question) == key}

    def same(t: Told) -> bool:
        alike = 2 * len(words & content(t.question)) >= max(1, len(words))
        return identity(t.question) == key or (normalise(t.answer) in answers and alike)

    return [t for t in told if same(t)]
