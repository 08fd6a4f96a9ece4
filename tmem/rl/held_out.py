"""How good θ0 is on held-out episodes: the evaluation after each phase, and what it writes while RL is under way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..agent.agent import Agent
from ..agent.log import readable, record
from ..agent.loop import Clock, run
from ..files.folders import atomic_file
from ..files.objects import encoded, write_json
from ..stats import bootstrap
from ..tasks.task import Environment
from .config import TrainConfig
from .log import finite
from .rollout import means, require, scores
from .world import World

MODES = {"greedy": 0.0, "sampled": 1.0}
"""How an evaluation decodes: the temperature of each mode."""


class Run(Protocol):
    """What an evaluation asks of the training that it belongs to: see Trainer."""

    config: TrainConfig
    task: Environment
    agent: Agent
    world: World
    out: Path
    state: dict[str, Any]
    progress: Any

    def row(self, phase: str, step: int, clock: Clock, seconds: float, **values: Any) -> None: ...

    def leave_if_asked(self) -> None: ...


def evaluate(trainer: Run, phase: str) -> None:
    """Evaluate once in each mode. What was found goes into the log, `episodes/` and the run's state."""
    config, found = trainer.config, {}
    keys = [str((config.seed << 20) + i) for i in range(config.eval_episodes)]
    episodes = [trainer.task.episode(key, config.eval_split) for key in trainer.world.share(keys)]
    for index, mode in enumerate(MODES):
        trainer.leave_if_asked()
        found[mode] = _evaluated(trainer, phase, index, mode, episodes)
    score = means(found["greedy"])[config.reward]
    trainer.progress.phase(f"evaluate {phase}", 2, 2, f"greedy {config.reward} {score:.2f}")
    trainer.state["evaluations"][phase] = found


def _evaluated(trainer: Run, phase: str, index: int, mode: str, episodes: Sequence) -> list[dict[str, float]]:
    """The values of all ranks' episodes in one mode, which is line `index` of the evaluation."""
    world, clock, start = trainer.world, Clock(), time.perf_counter()

    def tell(what: str, *_) -> None:
        trainer.progress.phase(f"evaluate {phase}", index, 2, f"{mode} {what}")
        if world.size == 1:  # ranks are not at the same place here
            trainer.leave_if_asked()

    rollouts = run(
        trainer.agent, episodes, [f"{trainer.config.seed}/eval/{e.id}" for e in episodes], temperature=MODES[mode], clock=clock,
        on_event=tell,
    )  # fmt: skip
    own = [scores(trainer.task, r) for r in rollouts]
    require(own, episodes, trainer.config.reward)
    found = world.gathered([one.values for one in own])
    records = world.gathered([record(r) for r in rollouts])
    if world.first:
        with atomic_file(trainer.out / "episodes" / f"{phase}-{mode}.md") as work:
            work.write_bytes(encoded("\n\n".join(map(readable, records))))
        write_json(trainer.out / "episodes" / f"{phase}-{mode}.json", finite(records))
    trainer.row(f"eval_{phase}", index, clock, time.perf_counter() - start, mode=mode, **means(found))
    return found


def show(trainer: Run) -> None:
    """What θ0 writes now, for the report of a run under way: the first held-out episode, greedy, whose counterpart at step 0
    is in the warm start's evaluation. Nothing else that is logged or drawn depends on it."""
    config = trainer.config
    if trainer.world.first and config.eval_episodes:
        episode = trainer.task.episode(str(config.seed << 20), config.eval_split)
        found = [record(r) for r in run(trainer.agent, [episode], [episode.id])]
        now = {"step": trainer.state["step"], "episodes": finite(found)}
        write_json(trainer.out / "episodes" / "rl-now.json", now)
    trainer.world.wait()


def intervals(evaluations: dict[str, dict[str, list[dict[str, float]]]]) -> dict:
    """{phase: {mode: {score: {"mean", "low", "high"}}}} of every score that all episodes have: 95 % bootstrap intervals over
    episodes."""
    out: dict = {}
    for phase, found in evaluations.items():
        out[phase] = {}
        for mode, episodes in found.items():
            shared = [k for k in episodes[0] if all(k in e for e in episodes)]
            out[phase][mode] = {
                k: dict(zip(("mean", "low", "high"), bootstrap([e[k] for e in episodes], range(len(episodes))))) for k in shared
            }
    return out
