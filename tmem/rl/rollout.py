"""Rollouts of groups, what is measured on them, and their rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

from ..agent.agent import Agent
from ..agent.loop import Clock, Rollout, run
from ..agent.probe import names
from ..episode import Episode, Pair
from ..tasks.task import Environment
from ..tasks.tool import FAILURES
from ..words import normalise
from .config import TrainConfig

LIKELY = {"scored": "right", "logp": "logp"}
"""Settings of `rl_answers` under which nothing is said: which number of tmem.agent.scored.Likelihood is the reward."""


@dataclass(frozen=True)
class Scores:
    """One rollout: the scores of its questions and their means, and what its writes were like.

    The second half watches for the known ways to collapse: lists that become empty or run into the token limit, pairs whose
    answer is nowhere in the text, questions of the task copied with a guessed answer, a Δ that grows without bound.
    """

    questions: list[dict[str, float]]  # the task's scores and the scene's, or of scored answers how likely the right ones are
    scores: dict[str, float]  # means over the questions
    pairs_per_write: float
    written: int  # tokens
    dropped: int  # lines and pairs that the parser left out, for whatever reason
    recall: float  # share of the gold pairs of the stream that were written: same answer, same person
    grounded: float  # share of the pairs whose answer occurs in the text they were written from
    copied: float  # share of the pairs that ask what the task asks, in the same words, with an answer that is not in the text
    empty: float  # share of the writes without a pair
    cut: float  # share of the writes that the token limit ended
    rolled_back: float  # share of the updates that were undone
    norm: float  # ‖ΔW‖ at the end
    own: float  # mean answer-token loss of the pairs just learned, nats
    held: float | None  # share of the written pairs whose answer came back to other words, where this was asked
    leaked: float | None  # share of them that were also given for another person
    turns: int | None = None  # of the scene, where there is one; so the next ones
    calls: int | None = None  # of tools
    failed: int | None = None  # of these; then those that took too long, raised, returned what no such tool may return
    timeout: int | None = None
    error: int | None = None
    garbage: int | None = None
    earned: float | None = None  # the rewards on the way

    @property
    def values(self) -> dict[str, float]:
        """Everything by name."""
        own = {k: v for k, v in vars(self).items() if k not in ("questions", "scores") and v is not None}
        return {**self.scores, **own}


def sample(
    agent: Agent, episodes: Sequence[Episode], config: TrainConfig, key: str, *, probed: Sequence[int] = (),
    on_event: Callable | None = None, clock: Clock | None = None,
) -> list[Rollout]:  # fmt: skip
    """`rl_group` rollouts of each episode at T=1 with their actions traced; rollout g of episode i is item i·group + g.

    A rollout is a function of θ0, its episode and `key` alone, whatever else is in the batch. Of the episodes `probed` the
    first rollout's pairs are asked back.
    """
    group = config.rl_group
    repeated = [e for e in episodes for _ in range(group)]
    keys = [f"{key}/{e.id}/{g}" for e in episodes for g in range(group)]
    return run(
        agent, repeated, keys, temperature=1.0, trace=True,
        answering="scored" if config.rl_answers in LIKELY else config.rl_answers,
        snapshots=config.replay == "snapshot",
        probing=[i * group for i in probed], on_event=on_event, clock=clock,
    )  # fmt: skip


def scores(task: Environment, rollout: Rollout) -> Scores:
    """Score one rollout's answers, scene and writes."""
    episode, log = rollout.episode, rollout.log
    rows = [likely._asdict() for likely in rollout.likely]
    rows = rows or [_finite(episode, task.score(q, a)) for q, a in zip(episode.questions, rollout.answers)]
    rows = [*(_finite(episode, row) for row in (rollout.scene.scores() if rollout.scene else [])), *rows]
    written = [(p, e.passage) for e in log for p in e.written.pairs]
    grounded = [is_in(p.answer, passage) for p, passage in written]
    asked = {normalise(q.text) for q in episode.questions}
    copied = [not g and normalise(p.question) in asked for (p, _), g in zip(written, grounded)]
    stuck = [s for e in log for s in e.stuck]
    others = [s["leaked"] for s in stuck if s["other"] is not None]
    return Scores(
        rows,
        means(rows),
        pairs_per_write=len(written) / max(1, len(log)),
        written=sum(e.tokens for e in log),
        dropped=sum(e.written.dropped for e in log),
        recall=recall(rollout.pairs, [p for pairs in episode.pairs for p in pairs]),
        grounded=_mean(grounded),
        copied=_mean(copied),
        empty=_mean([not e.written.pairs for e in log]),
        cut=_mean([not e.finished for e in log]),
        rolled_back=_mean([not e.learned.kept for e in log]),
        norm=log[-1].learned.norm if log else 0.0,
        own=_mean([e.learned.loss_after for e in log]),
        held=_mean([s["recalled"] for s in stuck]) if stuck else None,
        leaked=_mean(others) if others else None,
        **(_of_scene(rollout) if rollout.scene else {}),
    )


def _finite(episode: Episode, row: dict[str, float]) -> dict[str, float]:
    """The scores of one question or objective, as an environment gave them; one that is no finite number is an error of it."""
    for name, value in row.items():
        if not isinstance(value, Real) or not math.isfinite(value):
            raise ValueError(f"task: the score {name!r} of episode {episode.id!r} is {value!r}; expected a finite number.")
    return row


def require(found: Sequence[Scores], episodes: Sequence[Episode], name: str) -> None:
    """ValueError where an episode has no score of this name, which is the reward."""
    for one, episode in zip(found, episodes):
        if name not in one.scores:
            there = ", ".join(one.scores) or "none at all"
            raise ValueError(f"task: episode {episode.id!r} has no score {name!r}, which is the reward; its scores: {there}.")


def _of_scene(rollout: Rollout) -> dict[str, float]:
    """What is measured on a scene, by the names of `Scores`."""
    outcomes = [turn.outcome for turn in rollout.turns]
    called = [o.called for o in outcomes if o.called]
    return {
        "turns": len(outcomes),
        "calls": len(called),
        "failed": sum(how in FAILURES for how in called),
        **{how: called.count(how) for how in FAILURES},
        "earned": math.fsum(o.reward for o in outcomes),
    }


def reward(found: Scores, config: TrainConfig) -> float:
    """The score that is trained for, with what was earned on the way, less the length and format terms."""
    return (
        found.scores[rewarded(config)]
        + (found.earned or 0.0)
        - config.length_cost * found.written / 100
        - config.format_cost * found.dropped
    )  # fmt: skip


def rewarded(config: TrainConfig) -> str:
    """The name of the score that is trained for."""
    return LIKELY.get(config.rl_answers, config.reward)


def recall(written: Sequence[Pair], gold: Sequence[Pair]) -> float:
    """Share of gold pairs for which a written pair gives the same answer about the same person."""

    def same(w: Pair, g: Pair) -> bool:
        about = set(names(g.question))
        return normalise(w.answer) == normalise(g.answer) and (not about or bool(about & set(names(w.question))))

    return sum(any(same(w, g) for w in written) for g in gold) / len(gold) if gold else 0.0


def is_in(answer: str, text: str) -> bool:
    """Whether the words of an answer stand in the text, one after another."""
    return f" {normalise(answer)} " in f" {normalise(text)} "


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every number over the rows that have it."""
    keys = dict.fromkeys(k for r in rows for k in r)
    return {k: _mean([r[k] for r in rows if k in r]) for k in keys}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
