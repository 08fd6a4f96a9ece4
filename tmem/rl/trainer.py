"""`tmem train`: warm start, GRPO, and the control, each followed by an evaluation on held-out episodes.

The phases run in order; what is done is kept in the output folder after each, so an interrupted run resumes:
    base      evaluate the model as it came
    warm      supervised steps on generated episodes, then evaluate
    rl        GRPO from the warm start, then evaluate
    sft       from the warm start again, supervised steps for as many seconds as RL took, then evaluate

A, the subspace of Δ, is that of the model as it came, in all phases. A bank built later on the saved model takes A from
the trained weights, so `tmem eval --model OUT/rl` differs from the summary by as much as the two subspaces do.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import models, tasks
from ..agent.config import agent_config, build, read
from ..agent.episode import Agent, Rollout, run
from ..agent.log import readable
from ..folders import atomic_file
from . import rollout as ro
from . import supervised
from .config import TrainConfig
from .loss import advantages
from .masters import Masters

PHASES = ("base", "warm", "rl", "sft")
MODES = {"greedy": 0.0, "sampled": 1.0}


@dataclass
class Progress:
    """What the trainer tells whoever watches: called with every metrics row, and with the fraction of a phase done."""

    row: Callable[[dict], None]
    phase: Callable[[str, int, int, str], None]  # phase, done, total, note


class Interrupted(Exception):
    """The user asked to stop; a checkpoint has been written."""


class Trainer:
    """One training run in one output folder. `run()` does what is left to do and returns the summary."""

    def __init__(self, preset: str, out: Path, *, model: str | None = None, resume: bool = False, **overrides):
        tables = read(preset)
        self.config = dataclasses.replace(build(TrainConfig, tables.get("train", {}), "train"), **overrides)
        self.agent_config = agent_config(preset)
        self.preset, self.out, self.model_name = str(preset), out, model
        self.state_file = out / "state.json"
        self.state = {
            "phase": "base", "step": 0, "seconds": {}, "evaluations": {}, "settings": self._settings(),
            "checkpoint": None, "rows": 0, "wall_seconds": 0.0,
        }
        if self.state_file.exists():
            if not resume:
                raise FileExistsError(
                    f"train: {out} already holds a run; continue it with --resume, or give another --out."
                )
            self.state = json.loads(self.state_file.read_text())
            if self.state["settings"] != self._settings():
                changed = _differences(self.state["settings"], self._settings())
                raise ValueError(
                    f"resume: {out} was made with other settings ({', '.join(changed)}); "
                    f"use the same preset and flags, or give another --out."
                )
        elif resume:
            raise FileNotFoundError(f"resume: {out} holds no run (state.json is missing); leave out --resume.")

    def _settings(self) -> dict:
        settings = {"preset": self.preset, "model": self.model_name or models.DEFAULT}
        for config in (self.config, self.agent_config):
            settings[type(config).__name__] = dataclasses.asdict(config)
        return json.loads(json.dumps(settings))

    # the run -------------------------------------------------------------------------------------------------------

    def run(self, progress: Progress, stop: Callable[[], bool] = lambda: False) -> dict:
        """Do the phases that are left. Raises Interrupted after a checkpoint when `stop()` turns true."""
        self.progress, self.stop = progress, stop
        self.since = self.saved = time.perf_counter()
        self.out.mkdir(parents=True, exist_ok=True)
        model, self.tokenizer = models.load(self.model_name)
        rollouts = self.config.rl_episodes * self.config.rl_group
        self.agent = Agent.build(
            model, self.tokenizer, self.agent_config, slots=max(rollouts, self.config.eval_episodes)
        )
        self.masters = Masters(model)
        if self.state["checkpoint"]:
            self.masters.load(self.out / self.state["checkpoint"])
        self._keep_rows(self.state["rows"])
        for phase in PHASES[PHASES.index(self.state["phase"]) :]:
            self.state["phase"] = phase
            if self._done(phase) is None:
                getattr(self, f"_{phase}")()
                self._save()
                self._evaluate(phase)
            following = PHASES[min(PHASES.index(phase) + 1, len(PHASES) - 1)]
            self.state.update(phase=following, step=0)
            self._save()
        return self.summary()

    def _done(self, phase: str) -> dict | None:
        return self.state["evaluations"].get(phase)

    def _base(self) -> None:
        pass

    def _warm(self) -> None:
        total = self.config.warm_steps
        self._supervised("warm", 0, lambda step, _: step / total if total else 1.0)
        self._checkpoint_model("warm")

    def _rl(self) -> None:
        if self.state["step"] == 0:
            self.masters.restart()
        while self.state["step"] < self.config.rl_steps:
            self._pause_if_asked()
            self._rl_step()
        self._checkpoint_model("rl")

    def _sft(self) -> None:
        if self.state["step"] == 0:
            self.masters.load(self.out / "warm.safetensors")
        budget = self.state["seconds"].get("rl", 0.0)
        self._supervised("sft", self.config.warm_steps, lambda _, seconds: seconds / budget if budget else 1.0)

    def _supervised(self, phase: str, first: int, done: Callable[[int, float], float]) -> None:
        """Supervised steps `first`, `first + 1`, ... until `done(steps, seconds)` reaches 1."""
        config = self.config
        while done(self.state["step"], self.state["seconds"].get(phase, 0.0)) < 1:
            self._pause_if_asked()
            start = time.perf_counter()
            step = self.state["step"]
            writing, recalling = supervised.examples(self.agent, config, first + step)
            self.masters.trainable(True)
            loss = supervised.backward(self.agent, writing, config.micro_tokens)
            recall_loss = supervised.backward(self.agent, recalling, config.micro_tokens, config.warm_recall)
            self.masters.trainable(False)
            norm = self.masters.step(config.warm_lr * min(1.0, (first + step + 1) / 4), config.grad_clip)
            seconds = self._advance(phase, start)
            tokens = sum(len(e.prompt) + len(e.answer) for e in writing + recalling)
            self._row(
                phase, step, loss=loss, recall_loss=recall_loss, grad_norm=norm, tokens_per_s=tokens / seconds
            )
            fraction = min(1.0, done(self.state["step"], self.state["seconds"][phase]))
            self.progress.phase(phase, round(1000 * fraction), 1000, f"loss {loss:.2f}  {tokens / seconds:.0f} tokens/s")

    def _rl_step(self) -> None:
        config, step = self.config, self.state["step"]
        start = time.perf_counter()
        episodes = [
            tasks.stream.episode(f"{config.seed}/rl/{step}/{i}", "train", config.difficulty)
            for i in range(config.rl_episodes)
        ]
        note = self.progress.phase
        rollouts = ro.sample(
            self.agent, episodes, config.rl_group, f"{config.seed}/rl/{step}",
            on_event=lambda phase, *_: note("rl", step, config.rl_steps, phase),
        )
        results = [ro.scores("stream", r) for r in rollouts]
        rewards = torch.tensor([getattr(s, config.reward) for s in results]).view(-1, config.rl_group)
        advantage = advantages(rewards, normalise=config.normalise)
        sampled = time.perf_counter()
        note("rl", step, config.rl_steps, "update")
        self.masters.trainable(True)
        actions = [(a, adv) for r, adv in zip(rollouts, advantage.flatten().tolist()) for a in r.actions]
        replayed = ro.backward(self.agent, actions, config.rl_clip, config.micro_tokens)
        norm = self.masters.step(config.rl_lr, config.grad_clip) if replayed.tokens else 0.0
        self.masters.trainable(False)
        seconds = self._advance("rl", start)
        generated = sum(len(a.generation.ids) for r in rollouts for a in r.actions)
        mean = {
            k: sum(getattr(s, k) for s in results) / len(results)
            for k in ("f1", "em", "intrusion", "pairs_per_write", "recall")
        }
        self._row(
            "rl", step,
            reward=float(rewards.mean()),
            reward_std_in_group=float(rewards.std(1, correction=0).mean()),
            dead_groups=float((rewards.amax(1) == rewards.amin(1)).float().mean()),
            dropped=sum(s.dropped for s in results),
            rolled_back=sum(not e.learned.kept for r in rollouts for e in r.log),
            loss=replayed.loss, ratio_off=replayed.ratio_off, clipped=replayed.clipped, grad_norm=norm,
            tokens_per_s=generated / seconds, seconds_sampling=sampled - start, seconds_update=seconds - (sampled - start),
            **mean,
        )
        self.progress.phase(
            "rl", self.state["step"], config.rl_steps,
            f"reward {rewards.mean():.2f}  pairs/write {mean['pairs_per_write']:.1f}  "
            f"dropped {sum(s.dropped for s in results)}  recall {mean['recall']:.2f}  {generated / seconds:.0f} tokens/s",
        )

    # evaluation ----------------------------------------------------------------------------------------------------

    def _evaluate(self, phase: str) -> None:
        config = self.config
        episodes = tasks.load(
            "stream", seed=config.seed, limit=config.eval_episodes, split=config.eval_split, difficulty=config.difficulty
        )
        found = {}
        for index, (mode, temperature) in enumerate(MODES.items()):
            start = time.perf_counter()
            keys = [f"{config.seed}/eval/{e.id}" for e in episodes]
            rollouts = run(
                self.agent, episodes, keys, temperature=temperature,
                on_event=lambda what, j, n, i=index, m=mode: self.progress.phase(f"evaluate {phase}", i, 2, f"{m} {what}"),
            )
            found[mode] = [dataclasses.asdict(ro.scores("stream", r)) for r in rollouts]
            self._write_log(phase, mode, rollouts)
            mean = {k: sum(s[k] for s in found[mode]) / len(found[mode]) for k in found[mode][0]}
            self._row(f"eval_{phase}", index, mode=mode, seconds_eval=time.perf_counter() - start, **mean)
        self.progress.phase(f"evaluate {phase}", 2, 2, f"greedy f1 {sum(s['f1'] for s in found['greedy']) / len(episodes):.2f}")
        self.state["evaluations"][phase] = found

    def _write_log(self, phase: str, mode: str, rollouts: list[Rollout]) -> None:
        """A readable account of every episode: what was read, written, learned, asked and answered."""
        with atomic_file(self.out / "episodes" / f"{phase}-{mode}.md") as work:
            work.write_text("\n\n".join(readable(r) for r in rollouts))

    def summary(self) -> dict:
        """Means with 95 % bootstrap intervals over episodes, per phase and mode, and the four rewards (greedy F1)."""
        from ..report import bootstrap

        out: dict = {f"reward_{p}": None for p in PHASES}
        out.update(n_episodes=self.config.eval_episodes, seconds=self.state["seconds"], evaluations={})
        out["wall_seconds"] = round(self.state["wall_seconds"], 1)
        for phase, found in self.state["evaluations"].items():
            rows = {}
            for mode, episodes in found.items():
                rows[mode] = {
                    k: dict(zip(("mean", "low", "high"), bootstrap([e[k] for e in episodes], range(len(episodes)))))
                    for k in ("f1", "em", "intrusion", "pairs_per_write", "recall")
                }
            out["evaluations"][phase] = rows
            out[f"reward_{phase}"] = rows["greedy"]["f1"]["mean"]
        return out

    # bookkeeping ---------------------------------------------------------------------------------------------------

    def _advance(self, phase: str, start: float) -> float:
        seconds = time.perf_counter() - start
        self.state["seconds"][phase] = self.state["seconds"].get(phase, 0.0) + seconds
        self.state["step"] += 1
        return seconds

    def _row(self, phase: str, step: int, **values) -> None:
        row = {"phase": phase, "step": step, "seconds": sum(self.state["seconds"].values()), **values}
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.state["rows"] += 1
        self.progress.row(row)

    def _keep_rows(self, count: int) -> None:
        """Drop the metrics of steps that no checkpoint holds: they will be taken again."""
        file = self.out / "metrics.jsonl"
        if file.exists():
            rows = file.read_text().splitlines(keepends=True)
            with atomic_file(file) as work:
                work.write_text("".join(rows[:count]))

    def _pause_if_asked(self) -> None:
        """Between steps: a checkpoint if the last is old, or a stop if one was asked for."""
        if time.perf_counter() - self.saved > self.config.save_every:
            self._save()
        if self.stop():
            self._save()
            raise Interrupted

    def _save(self) -> None:
        """The weights in a file of their own name, then the state that names it: whichever is cut off, both fit."""
        now = time.perf_counter()
        self.state["wall_seconds"] += now - self.since
        self.since = self.saved = now
        if self.state["phase"] != "base":
            self.state["checkpoint"] = f"checkpoint-{self.state['phase']}-{self.state['step']}.safetensors"
            self.masters.save(self.out / self.state["checkpoint"])
        with atomic_file(self.state_file) as work:
            work.write_text(json.dumps(self.state))
        for old in self.out.glob("checkpoint-*.safetensors"):
            if old.name != self.state["checkpoint"]:
                old.unlink()

    def _checkpoint_model(self, phase: str) -> None:
        """The trained θ0 as a Hugging Face folder; after the warm start also the masters the control starts from."""
        self.agent.bank.detach()
        try:
            models.save(self.agent.model, self.tokenizer, self.out / phase)
        finally:
            self.agent.bank.attach()
        if phase == "warm":
            self.masters.restart()
            self.masters.save(self.out / "warm.safetensors")


def _differences(old: dict, new: dict, where: str = "") -> list[str]:
    """Names of the settings in which two nested dicts differ."""
    out = []
    for key in {**old, **new}:
        a, b, name = old.get(key), new.get(key), f"{where}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            out += _differences(a, b, f"{name}.")
        elif a != b:
            out.append(name)
    return out
