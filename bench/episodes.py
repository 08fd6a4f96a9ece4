"""Study `eval`: many episodes run at once, one slot each, against the same episodes one after another.

Timed is `agent.loop.run`, by which an evaluation has tmem read, write and learn. Scoring, files and the other methods are not
in it. (An evaluation asks its questions later, decoded in the same way.) Both ways have the same weights, dtype and threads;
they differ in how many episodes `run` gets. An episode reads its stream, writes its gold pairs, learns them and answers all its
questions. Gold pairs are what a trained model writes, and have the same length on every machine (agent.sampling.forced).

On a CPU what both ways say is the same to the bit, in bf16 on AMX the same to rounding (machine.rows_apart). Every round checks
it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..agent.agent import Agent
from ..agent.config import LOOP_PRESET, agent_config
from ..agent.loop import Rollout, run
from ..agent.sampling import forced
from ..agent.write import render
from ..episode import Episode
from ..machine import keep_memory, rows_apart
from ..models import loading
from ..models.tiny import default_or_tiny
from ..report.figure import figure
from ..tasks import stream
from .measure import WrongNumbers

ROUNDING = 0.1  # nats, mean difference in bf16, where products round otherwise for other numbers of rows


@dataclass(frozen=True)
class Size:
    """counts: of episodes; each is done `rounds` times both ways."""

    counts: tuple[int, ...]
    rounds: int

    @classmethod
    def of(cls, quick: bool, device: str) -> Size:
        if quick:
            return cls((2,), 1)
        return cls((8, 64), 3) if device == "cuda" else cls((4, 16), 2)


def time_episodes(quick: bool, watch: Callable[[str, int, int], None], kept: Callable) -> dict:
    """{"rows", "work"}: a row for each number of episodes.

    together, apart: seconds, medians of the rounds; ratio: the median of the rounds' apart/together; an_hour: episodes.
    Nothing is `kept`: times are compared within one run.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = Size.of(quick, device)
    if not quick:
        keep_memory()
    dtype = loading.default_dtype(device)
    model, tokenizer = default_or_tiny(quick, device, dtype)
    agent = Agent.build(model, tokenizer, agent_config(LOOP_PRESET), slots=max(size.counts))
    rows, each = [], size.rounds + 1
    for k, count in enumerate(size.counts):
        episodes = [stream.episode(i, "train", 1) for i in range(count)]
        times: dict[str, list[float]] = {"together": [], "apart": []}
        for i in range(-1, size.rounds):  # the first round is not timed
            said = {}
            for name in ("together", "apart") if i % 2 == 0 else ("apart", "together"):
                watch(f"{count} episodes, round {i + 2}: {name}", k * each + i + 1, len(size.counts) * each)
                gc.collect()
                start = time.perf_counter()
                said[name] = _said(agent, episodes, together=name == "together")
                if device == "cuda":
                    torch.cuda.synchronize()
                if i >= 0:
                    times[name].append(time.perf_counter() - start)
            if device == "cpu":
                exact = dtype != torch.bfloat16 or rows_apart()
                _check(said["together"], said["apart"], 0.0 if exact else ROUNDING)
        row = {"device": device, "dtype": str(dtype).removeprefix("torch."), "episodes": count}
        for name, seconds in times.items():
            row |= {name: statistics.median(seconds), f"{name}_rounds": seconds}
            row[f"{name}_an_hour"] = 3600 * count / row[name]
        row["ratio"] = statistics.median(b / a for a, b in zip(times["together"], times["apart"]))
        rows.append(row)
    work = {"model": "tiny, random" if quick else loading.DEFAULT, "preset": LOOP_PRESET, "rounds": size.rounds}
    return {"rows": rows, "work": work}


def _said(agent: Agent, episodes: list[Episode], *, together: bool) -> list[tuple]:
    keys = [e.id for e in episodes]
    texts = {}
    for e in episodes:
        texts[f"{e.id}/write0"] = agent.chat.answer(render([p for pairs in e.pairs for p in pairs]))
        for q in e.questions:
            texts[f"{e.id}/answer/{q.id}"] = agent.chat.answer(q.answers[0])
    with forced(texts):
        if together:
            rollouts = run(agent, episodes, keys, temperature=1.0, trace=True, snapshots=False)
        else:
            rollouts = [r for e in episodes for r in run(agent, [e], [e.id], temperature=1.0, trace=True, snapshots=False)]
    return [_told(r) for r in rollouts]


def _told(rollout: Rollout) -> tuple[list[int], list[float], list[float]]:
    """What one rollout said, its log-probabilities and losses (nats), and ‖ΔW‖ after each write."""
    said = [a.generation for a in rollout.actions]
    losses = [x for e in rollout.log for x in (e.learned.loss_before, e.learned.loss_after)]
    norms = [e.learned.norm for e in rollout.log]
    return [t for g in said for t in g.ids], [*(p for g in said for p in g.logprobs), *losses], norms


def _check(together: Sequence[tuple], apart: Sequence[tuple], allowed: float) -> None:
    """Raises WrongNumbers unless every episode said the same both ways, its numbers `allowed` nats apart in the mean;
    and, where nothing is allowed, with the same norms."""
    for (said, numbers, norms), (said_alone, numbers_alone, norms_alone) in zip(together, apart, strict=True):
        same = said == said_alone and len(numbers) == len(numbers_alone) and (allowed > 0 or norms == norms_alone)
        off = sum(abs(x - y) for x, y in zip(numbers, numbers_alone)) / max(1, len(numbers)) if same else float("inf")
        if not off <= allowed:
            raise WrongNumbers(
                f"bench eval: an episode run among others differs from the same one run alone (by {off:.2g} nats, allowed "
                f"{allowed:.2g}); nothing is reported."
            )


def tables(found: dict) -> list[Table]:
    rows, work = found["rows"], found["work"]
    table = Table(
        title=f"\nepisodes of stream, {work['model']}, {rows[0]['dtype']}: at once and one after another, medians of "
        f"{work['rounds']} rounds in turns", title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for i, column in enumerate(("episodes", "at once, s", "an hour", "apart, s", "an hour", "ratio")):
        table.add_column(column, justify="right" if i else "left")
    for r in rows:
        table.add_row(str(r["episodes"]), f"{r['together']:.1f}", f"{r['together_an_hour']:.0f}", f"{r['apart']:.1f}",
                      f"{r['apart_an_hour']:.0f}", f"{r['ratio']:.1f}x")  # fmt: skip
    return [table]


def draw(found: dict, beside: Path) -> list[Path]:
    """Beside `x.json`: x-episodes.png, episodes an hour both ways."""
    path = beside.with_name(f"{beside.stem}-episodes.png")
    rows = found["rows"]
    with figure(path, (6.4, 3.2)) as picture:
        axes = picture.subplots()
        for shift, name, label in ((-0.2, "together", "at once"), (0.2, "apart", "one after another")):
            values = [r[f"{name}_an_hour"] for r in rows]
            bars = axes.bar([i + shift for i in range(len(rows))], values, 0.38, label=label)
            axes.bar_label(bars, [f"{v:.0f}" for v in values], fontsize=8)
        axes.set_xticks(range(len(rows)), [f"{r['episodes']} episodes" for r in rows])
        axes.set(ylabel="episodes an hour", title=f"episodes of stream, {found['work']['model']}")
        axes.legend(fontsize=8, loc="upper left")
    return [path]
