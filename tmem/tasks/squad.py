"""SQuAD (CC BY-SA 4.0): does one passage get into the weights? Passages with their questions, or the official v1.1 and v2.0.

A passage is one episode with one chunk.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from tmem.episode import Episode, Evidence, Question
from tmem.tasks.left_out import LeaveOut
from tmem.tasks.metrics import ABSTENTIONS
from tmem.tasks.records import Record, check_limit, draw, read

__all__ = ["BOUNDARY", "Passage", "episodes", "passages"]

BOUNDARY = re.compile(r"(?<=[.!?])\s+|\n")  # between sentences
_SOURCE = "get dev-v1.1.json or dev-v2.0.json from https://rajpurkar.github.io/SQuAD-explorer"


@dataclass(frozen=True)
class Passage:
    """A text with the questions that are asked of it, as a file has it; the title is "" where there is none.

    Evidence of a question stands in chunk 0.
    """

    title: str
    text: str
    questions: tuple[Question, ...]


def episodes(path: str | Path, *, seed: int = 0, limit: int | None = None, leave_out: LeaveOut | None = None) -> list[Episode]:
    """One episode for each passage of the file, in its order; at most `limit`, drawn by the seed. See `passages`."""
    check_limit("squad", limit, "passage")
    episodes = [_episode(i, passage) for i, passage in enumerate(passages(path, leave_out=leave_out))]
    return [episodes[i] for i in draw([""] * len(episodes), limit, f"squad/{seed}")]


def passages(
    path: str | Path,
    task: str = "squad",
    source: str = _SOURCE,
    kind: Callable[[Record], str] = lambda question: "squad",
    leave_out: LeaveOut | None = None,
) -> list[Passage]:
    """The passages of a file, or of several, with their questions, in order.

    The file is a list of {title, context, questions: [{question, answer, answers}]}, of which one of the two may be missing, or
    the official one, {data: [{title, paragraphs: [{context, qas: [{id, question, answers: [{text}]}]}]}]}, or Hugging Face's
    rows, {id, title, context, question, answers: {text: [], answer_start: []}}; neighbours with one context are one passage.
    Any of a question's answers is right; one without answers has category "abstention", and to say that the text does not tell
    is right.
    Evidence is the sentences that hold the first answer. `kind` gives a question's from its record.
    Raises FileNotFoundError, and ValueError for a file of another format; the errors begin with `task`, and say that a file
    comes from `source`.
    """
    left, found = leave_out or LeaveOut(), _passages(read(path, task, source, under="data"))
    return [_passage(i, title, held, asked, kind, left) for i, (title, held, asked) in enumerate(found)]


def _passages(records: Iterable[Record]) -> Iterator[tuple[str, Record, list[Record]]]:
    """Title, passage and questions."""
    for _, group in groupby(records, lambda record: _place(record) if _is_row(record) else record):
        rows = list(group)
        title = rows[0].get("title", str, default="")
        if _is_row(rows[0]):
            yield title, rows[0], rows
            continue
        for passage in rows[0].each("paragraphs", dict) if "paragraphs" in rows[0] else rows:
            yield title, passage, passage.each("qas" if "qas" in passage else "questions", dict)


def _is_row(record: Record) -> bool:
    """Whether a record is one question beside its passage."""
    return "question" in record and "context" in record


def _place(record: Record) -> tuple:
    return record.raw("title"), record.raw("context")


def _episode(number: int, passage: Passage) -> Episode:
    title = passage.title.replace("_", " ")
    chunk = f"TITLE: {title}\n{passage.text}" if title else passage.text
    return Episode(f"{number}/{title}", (chunk,), ((),), passage.questions)


def _passage(
    number: int, title: str, passage: Record, asked: list[Record], kind: Callable[[Record], str], left: LeaveOut
) -> Passage:
    context = passage.get("context", str)
    if not context.strip():
        raise ValueError(f"{passage.where}: `context` is empty; expected a passage.")
    questions = (_question(f"{number}/{i}", qa, context, kind(qa)) for i, qa in enumerate(asked))
    return Passage(title, context, tuple(q for q in questions if not left.names(q.id, q.text)))


def _question(id: str, qa: Record, context: str, kind: str) -> Question:
    id, text = qa.get("id", str, default=id), qa.get("question", str)
    golds, start = _golds(qa)
    if not golds:
        return Question(id, text, ABSTENTIONS, kind, category="abstention")
    return Question(id, text, tuple(dict.fromkeys(golds)), kind, evidence=_evidence(context, golds[0], start))


def _golds(qa: Record) -> tuple[list[str], int]:
    """A question's answers, none where the text does not tell, and where the first stands at the earliest."""
    listed = qa.raw("answers")
    if "answer" in qa:
        return [qa.answer("answer"), *(qa.answers("answers") if listed is not None else [])], 0
    if qa.get("is_impossible", bool, default=False):
        return [], 0
    if isinstance(listed, dict):
        columns = qa.under("answers")
        return columns.answers("text"), next(iter(columns.each("answer_start", int, default=[])), 0)
    if isinstance(listed, list) and not any(isinstance(answer, dict) for answer in listed):
        return qa.answers("answers"), 0
    answers = qa.each("answers", dict)
    return [a.answer("text") for a in answers], answers[0].get("answer_start", int, default=0)


def _evidence(context: str, answer: str, start: int = 0) -> tuple[Evidence, ...]:
    """The sentences of the context, which is the end of chunk 0, that `answer` at or after `start` stands in."""
    begin = max(context.find(answer, start), context.find(answer)) if answer else -1
    if begin < 0:
        return ()
    cuts = [0, *(cut.end() for cut in BOUNDARY.finditer(context)), len(context)]
    end = begin + len(answer)
    return (Evidence(0, context[max(c for c in cuts if c <= begin) : min(c for c in cuts if c >= end)].strip()),)
