"""An episode: a stream of text in chunks, and questions asked after it was read."""

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

        id          one of its own among the task's questions
        text        as it is put to the model
        answers     any of them is right
        kind        the task's own label, for reporting by group
        intrusions  values of this episode that belong to another person or to an older fact; naming one of them instead of
                    an answer is a wrong binding (`metrics.intrusion`)
        category    another label of the task
        evidence    where the answer stands, empty where the task does not say
        rubrics     what a judge checks one by one
        choices     what (a) and (b) stand for in `text`, if it offers them

    Where there are rubrics, answers are graded and not compared, and `answers` is empty.
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
    """A stream of text and the questions that are asked after it.

        id         one of its own among the task's episodes
        chunks     the stream, in order
        pairs      pairs[i]: the gold pairs of chunk i, empty where the task has none
        questions  asked when all was read
        note       what a reader of its scores should know

    A chunk is one conversation session with a date header.
    """

    id: str
    chunks: tuple[str, ...]
    pairs: tuple[tuple[Pair, ...], ...]
    questions: tuple[Question, ...]
    note: str = ""
