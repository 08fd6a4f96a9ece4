"""The judge's pass over an evaluation: every answer graded by its task's protocol, and `verdicts.jsonl` beside the answers.

Replies are kept in judge.sqlite as they come, with what they took, so a pass that was stopped, or is made again with more
answers, asks for the rest alone and forgets no cost. An answer without a verdict (unreachable, malformed) is counted and has no
score; those that a protocol leaves out, too.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..agent.agent import Agent
from ..episode import Question
from ..files.folders import atomic_file
from ..files.journal import read_jsonl
from .judge import judge, local
from .judge.prompts import PROTOCOLS

LOCAL = "local"  # instead of an address: the model under test, behind a server on this machine
# The shape of a line of verdicts.jsonl.
VERDICT = {"method": str, "seed": int, "id": str, "score": (float, None), "rubrics": ([float], None)}
REPLY = 96  # tokens of the local judge's reply


@dataclasses.dataclass(frozen=True)
class Judging:
    """Whom to ask, and how; see judge.Judge. url: LOCAL, which has a config of its own, or an OpenAI-compatible address."""

    url: str
    model: str = "gpt-4o-mini"
    config: judge.JudgeConfig = judge.USUAL

    def __post_init__(self):
        if self.url != LOCAL:
            judge.Judge(self.url, self.model, cache=":memory:", config=self.config)  # what is wrong shows before any work

    @contextmanager
    def open(self, agent: Agent, out: Path):
        """The judge, with its replies in `out`."""
        cache = out / "judge.sqlite"
        if self.url != LOCAL:
            yield judge.Judge(self.url, self.model, cache=cache, config=self.config)
            return
        with local.serve(lambda messages: _reply(agent, messages)) as url:
            yield judge.Judge(url, local.LABEL, cache=cache, config=judge.JudgeConfig(concurrency=1, timeout=600.0))


def grade(
    task: str, questions: Mapping[tuple[int, str], Question], answers: Sequence[dict], judging: Judging, agent: Agent,
    out: Path, watch: Callable[[int, int], None],
) -> dict:  # fmt: skip
    """Ask for a verdict on every answer; returns what results.json says of it. questions: by seed and id.

    {"model": its name, "host": its machine (never an address with path or query, never a key), "plumbing": whether it is the
    local model, whose scores mean nothing, "judged", "left_out", "unreachable", "malformed": how many answers, "why": the
    commonest reason for having no verdict though asked, None where all have one, "spent": what
    all passes took (judge.Spent), "pass": what the last one did (judge.Usage), "methods": {method: verdicts by
    status, means of the judged ones}}.
    Raises ValueError for a task that no judge grades, or an endpoint that refuses its first request.
    """
    protocol = protocol_of(task)
    prompts = [protocol(questions[r["seed"], r["id"]], r["prediction"]) for r in answers]
    done = 0

    def count(i: int, verdict: judge.Verdict) -> None:
        nonlocal done
        done += 1
        watch(done, len(prompts))

    with judging.open(agent, out) as asked:
        verdicts = asked.ask(prompts, count)
    rows = [{"method": r["method"], "seed": r["seed"], "id": r["id"], **v._asdict()} for r, v in zip(answers, verdicts)]
    with atomic_file(out / "verdicts.jsonl") as work:
        work.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    by: dict[str, list[judge.Verdict]] = {}
    for r, v in zip(answers, verdicts):
        by.setdefault(r["method"], []).append(v)
    methods = {method: judge.summary(several) for method, several in by.items()}
    failed = Counter(v.reason for v in verdicts if v.status in ("unreachable", "malformed") and v.reason != judge.UNASKED)
    counts = (status.replace(" ", "_") for status in judge.STATUSES)
    return {
        "model": asked.model,
        "host": asked.host,
        "plumbing": judging.url == LOCAL,
        **{count: sum(m[count] for m in methods.values()) for count in counts},
        "why": failed.most_common(1)[0][0] if failed else None,
        "spent": asked.spent()._asdict(),
        "pass": dataclasses.asdict(asked.usage),
        "methods": methods,
    }


def protocol_of(task: str) -> Callable:
    """The grading of a task. Raises ValueError where it has none."""
    if task not in PROTOCOLS:
        raise ValueError(f"judge: {task} is scored without one; a judge grades {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[task]


def scored(answers: Sequence[dict], out: Path) -> list[dict]:
    """The answers with what verdicts.jsonl says of them: `judge` and, where there are rubrics, `rubrics`, their share."""
    file = out / "verdicts.jsonl"
    if not file.exists():
        return list(answers)
    verdicts = {(v["method"], v["seed"], v["id"]): v for v in read_jsonl(file, VERDICT)}
    rows = []
    for r in answers:
        v = verdicts.get((r["method"], r["seed"], r["id"]))
        rubrics = {"rubrics": sum(v["rubrics"]) / len(v["rubrics"])} if v and v["rubrics"] else {}
        rows.append(r if v is None else {**r, "judge": v["score"], **rubrics})
    return rows


def _reply(agent: Agent, messages: Sequence[Mapping[str, str]]) -> str:
    room = agent.model.config.max_position_embeddings - REPLY - 32
    text = agent.chat.clip("\n\n".join(m["content"] for m in messages), room)
    (reply,) = agent.say([text], max_new=REPLY)
    return reply.text
