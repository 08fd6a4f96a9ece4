"""Tasks: streams of text with questions asked after the text is gone, and their scores."""

from tmem.episode import Episode, Evidence, Pair, Question
from tmem.tasks import locomo, metrics, stream
from tmem.tasks.task import Task

__all__ = ["TASKS", "Episode", "Evidence", "Pair", "Question", "Task", "abstention", "load", "score"]

TASKS = ("stream", "locomo")


def load(
    task: str,
    *,
    data: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    split: str = "test",
    difficulty: int = 1,
) -> list[Episode]:
    """The episodes of a task, the same for the same arguments on every machine.

    stream: `limit` episodes (default 16) of `split` and `difficulty`; different seeds share none. `data` is not used.
    locomo: the conversations in the file `data`, `limit` questions of each; `split` and `difficulty` are not used.
    Raises ValueError or FileNotFoundError with one sentence that says what to do.
    """
    if task == "stream":
        count = 16 if limit is None else limit
        if count < 1:
            raise ValueError(f"stream: limit is {limit}, expected at least 1 episode")
        if data is not None:
            raise ValueError(f"stream: episodes are generated, leave out the data file (got {data})")
        return [stream.episode((seed << 20) + i, split, difficulty) for i in range(count)]
    if task == "locomo":
        if data is None:
            raise ValueError("locomo: no data file given; pass the path of the official locomo10.json as data")
        return locomo.load(data, seed=seed, limit=limit)
    raise ValueError(f"unknown task {task!r}, expected one of {', '.join(TASKS)}")


def abstention(task: str) -> str:
    """The words for "it was never said" that a task counts as right where that is so."""
    return locomo.ABSTENTIONS[0] if task == "locomo" else stream.UNKNOWN


def score(task: str, question: Question, prediction: str) -> dict[str, float]:
    """f1 and em in 0..1, intrusion 0 or 1; for locomo also official_f1. ValueError for an unknown task."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}, expected one of {', '.join(TASKS)}")
    scores = {
        "f1": metrics.f1(prediction, question),
        "em": metrics.em(prediction, question),
        "intrusion": metrics.intrusion(prediction, question),
    }
    if task == "locomo":
        scores["official_f1"] = metrics.official_f1(prediction, question)
    return scores
