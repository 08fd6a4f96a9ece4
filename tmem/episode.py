"""What agents live through and tasks are made of: a stream of text in chunks, and questions asked after it was read."""

from dataclasses import dataclass

__all__ = ["Episode", "Evidence", "Pair", "Question"]


@dataclass(frozen=True)
class Pair:
    """A self-contained question with its short answer: what a write should look like."""

    question: str
    answer: str


@dataclass(frozen=True)
class Evidence:
    """A passage that a question's answer rests on: `text`, as it stands in chunk number `chunk` of the stream."""

    chunk: int
    text: str


@dataclass(frozen=True)
class Question:
    """A question asked after everything was read.

    answers: any of them is right. kind, category: the task's own labels, for reporting by group.
    intrusions: values of this episode that belong to another person or to an older fact; naming one of them instead of
    an answer is a wrong binding (`metrics.intrusion`).
    evidence: where the answer stands, empty where the task does not say. rubrics: what a judge checks one by one, for
    tasks whose answers are graded and not compared (then `answers` is empty). choices: what (a) and (b) stand for in
    `text`, if it offers them.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    kind: str
    intrusions: tuple[str, ...] = ()
    category: str = ""
    evidence: tuple[Evidence, ...] = ()
    rubrics: tuple[str, ...] = ()
    choices: tuple[str, str] | tuple[()] = ()


@dataclass(frozen=True)
class Episode:
    """chunks: the stream in order, one conversation session each, with a date header.

    pairs[i]: the gold pairs of chunk i, empty where the task has none. note: what a reader of its scores should know.
    """

    id: str
    chunks: tuple[str, ...]
    pairs: tuple[tuple[Pair, ...], ...]
    questions: tuple[Question, ...]
    note: str = ""
