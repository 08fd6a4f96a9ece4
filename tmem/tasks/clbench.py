"""CL-bench (Tencent-Hunyuan): tasks on a new context, graded by rubrics, in the official CL-bench.jsonl format.

A task is one episode with one question; a judge scores it. For evaluation only, never for training.
"""

import re
from pathlib import Path

from tmem.episode import Episode, Question
from tmem.tasks.left_out import LeaveOut
from tmem.tasks.records import Record, check_limit, draw, read

__all__ = ["EVALUATION_ONLY", "is_clbench", "episodes", "split"]

EVALUATION_ONLY = "CL-bench is for evaluation only, never for training; take stream or a task of your own (file.py:Class)."

_SOURCE = "get CL-bench.jsonl from https://huggingface.co/datasets/tencent/CL-bench"

# In characters. A longer message holds a context beside its task; the task is sought in so much of its two ends.
LONG, HEAD, TAIL = 6000, 500, 1000


def episodes(path: str | Path, *, seed: int = 0, limit: int | None = None, leave_out: LeaveOut | None = None) -> list[Episode]:
    """One episode for each task of the file, in its order; at most `limit`, drawn by the seed, of every category first.

    The last user message is the question, and the messages before it (the system's, too) are the stream, a chunk each.
    Where the last user message is long, or stands alone, `split` takes its context into the stream. The question has
    rubrics and no answers; kind is the context's category, category the sub-category.
    Raises FileNotFoundError, and ValueError for a file of another format or a limit below 1.
    """
    check_limit("clbench", limit, "task")
    left = leave_out or LeaveOut()
    tasks = [(record, record.under("metadata")) for record in read(path, "clbench", _SOURCE)]
    tasks = [(record, m) for record, m in tasks if not left.names(m.get("task_id", str), "")]
    drawn = draw([m.get("context_category", str) for _, m in tasks], limit, f"clbench/{seed}")
    return [_episode(*tasks[i]) for i in drawn]


def _episode(record: Record, metadata: Record) -> Episode:
    id, kind, category = (metadata.get(name, str) for name in ("task_id", "context_category", "sub_category"))
    messages = [(message.get("role", str), _content(message)) for message in record.each("messages", dict)]
    last = max((i for i, (role, _) in enumerate(messages) if role == "user"), default=None)
    if last is None or not messages[last][1].strip():
        raise ValueError(f"{record.where}: `messages` asks nothing; expected a last user message with text.")
    context, task = "", messages[last][1]
    chunks = [f"{role}: {text}" for role, text in messages[:last] if text.strip()]
    if len(task) > LONG or not chunks:
        context, task = split(task)
    if context or not chunks:  # a lone message too short to split is read and asked
        chunks.append(f"user: {context or task}")
    rubrics = tuple(r if isinstance(r, str) else r.get("rubric_criteria", str) for r in record.each("rubrics", str, dict))
    if not rubrics:
        raise ValueError(f"{record.where}: `rubrics` is empty; expected what an answer is graded by.")
    return Episode(id, tuple(chunks), ((),) * len(chunks), (Question(id, task, (), kind, category=category, rubrics=rubrics),))


def _content(message: Record) -> str:
    """A message's text; of a list of parts, the text of all."""
    content = message.get("content", str, list)
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", str) for part in message.each("content", dict))


def split(message: str) -> tuple[str, str]:
    """(context, task) of a message that holds both; every word of it is in one of them, and none in both.

    People write what they want behind a long text, or before it, rarely in its middle. The task is therefore the last
    `TAIL` characters, from the first paragraph that begins there (else line, else sentence, else word), after the first
    paragraph if that ends within `HEAD` characters. A few lines of the context come along; none of the task is lost
    unless it is longer. A message of at most HEAD + TAIL characters is all task, its context "".
    """
    message = message.strip()
    if len(message) <= HEAD + TAIL:
        return "", message
    first = re.search(r"\n\s*\n", message[:HEAD])
    first = first.end() if first else 0
    window = message[-TAIL:]
    cuts = (re.search(boundary, window) for boundary in (r"\n\s*\n", r"\n", r"(?<=[.!?])\s+", r"\s+"))
    start = len(message) - TAIL + next((cut.end() for cut in cuts if cut), 0)
    head, context, tail = (part.strip() for part in (message[:first], message[first:start], message[start:]))
    return context, "\n\n".join(filter(None, (head, tail)))


def is_clbench(name: str) -> bool:
    """Whether what a user names as a task is CL-bench or a file of it: by its name, or by its first record's fields."""
    path = Path(name)
    if path.suffix not in ("", ".json", ".jsonl"):
        return False
    if path.stem.lower().replace("-", "").replace("_", "").startswith("clbench"):
        return True
    try:
        return {"messages", "rubrics", "metadata"} <= set(read(path, "clbench", _SOURCE)[0])
    except (ValueError, FileNotFoundError):
        return False
