"""LongMemEval (xiaowu0162/LongMemEval, MIT): a user's chats with an assistant, in the official format of longmemeval_s.json,
longmemeval_s_cleaned.json and their M and oracle files.

A question is one episode with a history of its own; one chunk is one of its sessions, with its date.
"""

from collections.abc import Sequence
from pathlib import Path

from tmem.episode import Episode, Evidence, Question
from tmem.tasks.dates import shown, when
from tmem.tasks.left_out import LeaveOut
from tmem.tasks.records import Record, check_limit, draw, read

__all__ = ["KINDS", "episodes", "summary"]

KINDS = (
    "single-session-user", "single-session-assistant", "single-session-preference", "temporal-reasoning", "knowledge-update",
    "multi-session",
)  # fmt: skip

_SOURCE = "get longmemeval_s_cleaned.json from https://huggingface.co/datasets/xiaowu0162/longmemeval-cleaned"
DATED = "day, weekday and time"  # of what a question tells of when it is asked; earlier runs told the day alone
UNSORTED = "sessions stand in the file's order, as the date of one cannot be read"


def episodes(path: str | Path, *, seed: int = 0, limit: int | None = None, leave_out: LeaveOut | None = None) -> list[Episode]:
    """One episode with one question for each question of the file, in its order.

    limit: at most so many questions, drawn by the seed; every type is drawn before any is drawn twice.
    Sessions stand in the order of their dates and times, as in the S and M files (the oracle's are not sorted); empty ones
    are left out. Where one of the dates cannot be read the file's order stays, and the episode's `note` says so. A question
    ends with the day, weekday and time it is asked at, where the file says; its kind is its type. Those whose id ends with
    "_abs" have category "abstention": the text does not answer them. Their answer is a sentence that says so, which f1 and em
    compare as any other; whether a prediction abstains in other words is for a judge to say.
    Evidence is the turns that are marked, or all of the answer's sessions where none is.
    Raises FileNotFoundError, and ValueError for a file of another format or a limit below 1.
    """
    check_limit("longmemeval", limit, "question")
    left = leave_out or LeaveOut()
    records = [record.named("question_id") for record in read(path, "longmemeval", _SOURCE)]
    records = [r for r in records if not left.names(r.get("question_id", str), r.get("question", str))]
    drawn = draw([_kind(record) for record in records], limit, f"longmemeval/{seed}")
    return [_episode(records[i]) for i in drawn]


def _kind(record: Record) -> str:
    kind = record.get("question_type", str)
    if kind not in KINDS:
        raise ValueError(f"{record.where}: `question_type` is {kind[:60]!r}; expected one of {', '.join(KINDS)}.")
    return kind


def _episode(record: Record) -> Episode:
    id, asked = record.get("question_id", str), record.get("question_date", str, default="").strip()
    sessions, dates = record.each("haystack_sessions", list), record.each("haystack_dates", str)
    names = record.each("haystack_session_ids", str, default=[""] * len(sessions))
    for field, values in (("haystack_dates", dates), ("haystack_session_ids", names)):
        if len(values) != len(sessions):
            raise ValueError(f"{record.where}: `{field}` has {len(values)} items; expected {len(sessions)}, one a session.")
    order, moments = range(len(sessions)), [when(date) for date in dates]
    if all(moments):
        order = sorted(order, key=moments.__getitem__)
    answering = set(record.each("answer_session_ids", str, default=()))
    chunks, marked, whole = [], [], []
    for n in order:
        turns = [Record(v, f"{record.where}, turn {i} of session {n + 1}") for i, v in enumerate(sessions[n], 1)]
        if not turns:
            continue
        lines = [f"{turn.get('role', str)}: {turn.get('content', str)}" for turn in turns]
        answers = (turn.get("has_answer", bool, default=False) for turn in turns)
        marked += [Evidence(len(chunks), line) for line, answer in zip(lines, answers) if answer]
        chunk = "\n".join((f"DATE: {shown(dates[n])}", *lines))
        whole += [Evidence(len(chunks), chunk)] if names[n] in answering else []
        chunks.append(chunk)
    if not chunks:
        raise ValueError(f"{record.where}: `haystack_sessions` holds no turns; expected at least one session.")
    abstains = id.endswith("_abs")
    question = Question(
        id,
        record.get("question", str) + (f" (asked on {shown(asked)})" if asked else ""),
        (record.answer("answer"),),
        record.get("question_type", str),
        category="abstention" if abstains else "",
        evidence=tuple(marked or whole),
    )
    return Episode(id, tuple(chunks), ((),) * len(chunks), (question,), "" if all(moments) else UNSORTED)


def summary(rows: Sequence[dict]) -> dict[str, dict]:
    """The official aggregates of every metric of `rows`, which have `kind`, `category` and numbers under the metrics' names.

    {metric: {"types": {kind: mean}, "task_average": mean of the types' means, "overall": mean of all questions,
    "abstention": mean of those that the text does not answer, None if there are none}}. Abstentions count in their types,
    too. Rows without a metric, or with None, are left out of its means.
    """
    metrics = dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, (int, float)))
    return {metric: _aggregates([row for row in rows if row.get(metric) is not None], metric) for metric in metrics}


def _aggregates(rows: Sequence[dict], metric: str) -> dict:
    def mean(some: list[dict]) -> float | None:
        return sum(row[metric] for row in some) / len(some) if some else None

    types = {kind: mean([r for r in rows if r["kind"] == kind]) for kind in sorted({r["kind"] for r in rows})}
    return {
        "types": types,
        "task_average": sum(types.values()) / len(types),
        "overall": mean(rows),
        "abstention": mean([r for r in rows if r["category"] == "abstention"]),
    }
