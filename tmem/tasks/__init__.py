"""Tasks: streams of text with questions asked after the text is gone, and their scores."""

from collections.abc import Sequence
from dataclasses import replace

from tmem.episode import Episode, Evidence, Pair, Question
from tmem.tasks import clbench, locomo, longmemeval, metrics, passages, squad, stream
from tmem.tasks.left_out import LeaveOut
from tmem.tasks.records import distinct, files
from tmem.tasks.task import Environment, Task

__all__ = [
    "AT_LENGTH", "TASKS", "Environment", "Episode", "Evidence", "Pair", "Question", "Task", "abstention", "episodes", "score",
]  # fmt: skip

# A task's scores. CL-bench has none: its answers are graded by a judge, rubric by rubric.
_SCORES = {
    "stream": (metrics.f1, metrics.em, metrics.contains, metrics.intrusion),
    "locomo": (metrics.f1, metrics.em, metrics.contains, metrics.intrusion, metrics.official_f1),
    "longmemeval": (metrics.f1, metrics.em, metrics.contains),
    "squad": (metrics.f1, metrics.em, metrics.contains, metrics.squad_f1, metrics.squad_em),
    "passages": (metrics.f1, metrics.em, metrics.contains),
    "clbench": (),
}
TASKS = tuple(_SCORES)
AT_LENGTH = ("clbench",)  # whose answers are whole texts

_READERS = {
    "locomo": locomo.episodes,
    "longmemeval": longmemeval.episodes,
    "squad": squad.episodes,
    "passages": passages.episodes,
    "clbench": clbench.episodes,
}
_FILES = {
    "locomo": "the official locomo10.json",
    "longmemeval": "the official longmemeval_s_cleaned.json",
    "squad": "the official dev-v1.1.json",
    "passages": "a file of passages with questions",
    "clbench": "the official CL-bench.jsonl",
}


def episodes(
    task: str,
    *,
    data: str | Sequence[str] | None = None,
    seed: int = 0,
    limit: int | None = None,
    split: str = "test",
    difficulty: int = 1,
    adversarial: str = "open",
    leave_out: LeaveOut | None = None,
) -> list[Episode]:
    """The episodes of a task, the same for the same arguments on every machine.

    stream: `limit` episodes (default 16) of `split` and `difficulty`; different seeds share none. `data` is not used.
    The others read the file `data`, or several one after another; `difficulty` is not used, nor `split` but by passages.
    locomo: its conversations, `limit` questions of each; `adversarial` "open" or "choice" puts those of category 5.
    longmemeval, squad, clbench: `limit` questions, passages or tasks, an episode each.
    passages: `limit` passages of `split`, an episode each; "all": whole files.
    leave_out: names questions that are not asked; its `check` tells afterwards whether all were there.
    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    _known(task)
    left = leave_out or LeaveOut()
    if not data:
        data = None
    if task == "stream":
        count = 16 if limit is None else limit
        if count < 1:
            raise ValueError(f"stream: limit is {limit}, expected at least 1 episode")
        if data is not None:
            got = ", ".join(map(str, files(data)))
            raise ValueError(f"stream: episodes are generated, leave out the data file (got {got})")
        episodes = [stream.episode((seed << 20) + i, split, difficulty) for i in range(count)]
        return [replace(e, questions=tuple(q for q in e.questions if not left.names(q.id, q.text))) for e in episodes]
    if data is None:
        raise ValueError(f"{task}: no data file given; pass the path of {_FILES[task]} as data")
    own: dict[str, dict] = {"locomo": {"adversarial": adversarial}, "passages": {"split": split}}
    options = own.get(task, {})
    episodes = _READERS[task](data, seed=seed, limit=limit, leave_out=left, **options)
    where = f"{task}: {', '.join(map(str, files(data)))}: the id"
    distinct((e.id for e in episodes), where)
    distinct((q.id for e in episodes for q in e.questions), where)
    return episodes


def abstention(task: str) -> str:
    """The words with which a task abstains: right where the text does not answer the question."""
    return stream.UNKNOWN if task == "stream" else metrics.ABSTENTIONS[0]


def score(task: str, question: Question, prediction: str) -> dict[str, float]:
    """A task's scores of one prediction in 0..1, by name. ValueError for an unknown task.

    f1, em and contains (0 or 1); stream and locomo also intrusion (0 or 1), locomo official_f1, squad squad_f1 and squad_em;
    clbench none.
    Where the question offers choices, the letter of one counts as its text.
    """
    _known(task)
    said = metrics.chosen(prediction, question)
    return {metric.__name__: metric(said, question) for metric in _SCORES[task]}


def _known(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}, expected one of {', '.join(TASKS)}")
