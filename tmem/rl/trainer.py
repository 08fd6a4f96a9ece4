"""`tmem train`: warm start, GRPO, and the control, each followed by an evaluation on held-out episodes.

The phases run in order; what is done is kept in the output folder, so an interrupted run resumes:
    base      evaluate the model as it came
    warm      supervised steps on training episodes, then evaluate
    rl        GRPO from the warm start, then evaluate
    sft       from the warm start again, supervised steps instead of RL, then evaluate

A, the subspace of Δ, is that of the model as it came, in all phases, unless `refresh_a` says otherwise. A bank built later
on the saved model takes A from the trained weights, so `tmem eval --model OUT/rl` differs from the summary by as much as the
two subspaces do (not with init "random", which does not look at the weights).

Everything in metrics.jsonl follows from the configuration; what the clock says is in timings.jsonl, line by line.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..agent.agent import Agent
from ..agent.config import agent_config, build, read
from ..agent.log import readable, record
from ..agent.loop import Clock, run
from ..files.folders import Busy, Lock, atomic_file
from ..files.journal import append
from ..files.objects import encoded, read_object, write_json
from ..machine import give_memory_back
from ..models import loading
from ..stats import bootstrap
from ..tasks import task as own_task
from ..tasks.stream import Stream
from . import checkpoint, grpo, supervised
from .config import TrainConfig
from .policy import Policy, Replicated, Sharded
from .record import read_run
from .rollout import means, scores
from .world import ALONE, World

PHASES = ("base", "warm", "rl", "sft")
MODES = {"greedy": 0.0, "sampled": 1.0}
KEEP = 2  # checkpoints: should the last one be damaged, the one before is there
SHOWN = 10  # RL steps after which, as at each checkpoint, a held-out episode is lived to show what is written now
MOST_SKIPPED = 5  # steps in a row whose gradient was not finite


@dataclass
class Progress:
    """What the trainer tells whoever watches."""

    row: Callable[[dict], None] = lambda row: None  # every line of metrics.jsonl, with its seconds; on a resume the old ones
    phase: Callable[[str, int, int, str], None] = lambda *_: None  # phase, done, total, note
    warn: Callable[[str], None] = lambda sentence: None


class Diverged(ValueError, ArithmeticError):
    """Gradients stay not finite; the last checkpoint is from before."""


class Interrupted(Exception):
    """The user asked to stop; a checkpoint has been written."""


class Trainer:
    """One training run in one output folder. `run()` does what is left to do and returns the summary.

    Under torchrun every rank makes one, with the same arguments, and gets the same summary; rank 0 writes the files.
    """

    def __init__(
        self, preset: str, out: Path, *, model: str | None = None, resume: bool = False, world: World = ALONE, **overrides
    ):
        tables = read(preset)
        self.config = dataclasses.replace(build(TrainConfig, tables.get("train", {}), "train"), **overrides)
        self.agent_config = agent_config(preset)
        self.preset, self.out, self.model_name, self.world = str(preset), out, model, world
        if self.config.task == "stream":
            self.task = Stream(self.config.difficulty, self.config.rl_questions or None)
        else:
            self.task = own_task.load(self.config.task)
        self.state = {
            "phase": "base", "step": 0, "seconds": {}, "evaluations": {}, "rows": 0, "segments": 0, "wall_seconds": 0.0,
            "number": 0, "weights": False, "skipped": 0, "damaged": 0, "done": False,
        }  # fmt: skip
        self.settings_file = out / "run.json"
        self.damaged: list[str] = []
        self.taken: Path | None = None  # the checkpoint this run goes on from
        self.lock: Lock | None = None
        self._hold()
        try:
            self._look(resume)
        except BaseException:
            self._let_go()
            raise
        world.wait()  # until every rank has looked, before rank 0 writes

    def _hold(self) -> None:
        """Keep other processes out of `out`, until the run ends; every rank raises Busy where one is at work there."""
        fault = ""
        if self.world.first and self.lock is None:
            try:
                self.lock = Lock(self.out)
            except Busy as error:
                fault = str(error)
        if faults := [f for f in self.world.gathered([fault]) if f]:
            raise Busy(faults[0])

    def _let_go(self) -> None:
        if self.lock is not None:
            self.lock.release()
            self.lock = None

    def _look(self, resume: bool) -> None:
        """Where to go on from, by what `out` holds."""
        out = self.out
        if self.settings_file.exists():
            if not resume:
                raise FileExistsError(f"train: {out} already holds a run; continue it with --resume, or give another --out.")
            held = read_object(self.settings_file)
            if held != self._settings():
                changed = _differences(held, self._settings())
                raise ValueError(
                    f"resume: {out} was made with other settings ({', '.join(changed)}); "
                    f"use the same preset and flags, or give another --out."
                )
            self.taken, self.damaged = checkpoint.newest(self._checkpoints(), self.world)
            if self.taken is not None:
                self.state |= {k: v for k, v in checkpoint.state_of(self.taken).items() if k in self.state}
                self.state["damaged"] += len(self.damaged)
            elif self.damaged:
                raise ValueError(f"resume: no checkpoint of {out} can be read ({self.damaged[0]}); start again elsewhere.")
        elif resume:
            raise FileNotFoundError(f"resume: {out} holds no run (run.json is missing); leave out --resume.")

    def _settings(self) -> dict:
        """What must stay as it is from start to end; not how often checkpoints are made or over what ranks θ0 is laid out."""
        settings = {"preset": self.preset, "model": self.model_name or loading.DEFAULT}
        for config in (self.config, self.agent_config):
            settings[type(config).__name__] = dataclasses.asdict(config)
        for name in ("save_every", "layout", "micro_tokens", "checkpointing"):
            del settings["TrainConfig"][name]
        return json.loads(json.dumps(settings))

    def _checkpoints(self) -> list[Path]:
        """Those of steps, oldest first."""
        return checkpoint.numbered(self.out / "checkpoints")

    # the run -------------------------------------------------------------------------------------------------------

    def run(self, progress: Progress | None = None, stop: Callable[[], bool] = lambda: False) -> dict:
        """Do the phases that are left. Raises Interrupted after a checkpoint when `stop()` turns true, Diverged when
        gradients stay not finite, OSError when a checkpoint cannot be written; the last one stays."""
        self._hold()
        try:
            return self._run(progress, stop)
        finally:
            self._let_go()

    def _run(self, progress: Progress | None, stop: Callable[[], bool]) -> dict:
        self.progress, self.stop = progress or Progress(), stop
        self.since = self.saved = time.perf_counter()
        if self.world.first:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.settings_file, self._settings())
            for name in ("metrics", "timings"):
                self._keep_lines(name, self.state["rows"])
            self._keep_lines("segments", self.state["segments"])
            for row in read_run(self.out) if self.state["rows"] else ():
                self.progress.row(row)
        for sentence in self.damaged:
            self.progress.warn(f"{sentence}; going on from the one before")
        self.world.wait()
        if self.state["done"]:
            return self.summary()
        self._build()
        for phase in PHASES[PHASES.index(self.state["phase"]) :]:
            self.state["phase"] = phase
            if phase not in self.state["evaluations"]:
                getattr(self, f"_{phase}")()
                self._save()
                self._evaluate(phase)
            following = PHASES[min(PHASES.index(phase) + 1, len(PHASES) - 1)]
            self.state.update(phase=following, step=0, done=phase == PHASES[-1])
            self._save()
        return self.summary()

    def _build(self) -> None:
        fsdp = self.config.layout == "fsdp"
        wanted = {"dtype": torch.float32} if fsdp else {}
        model, self.tokenizer = loading.load(self.model_name, device=self.world.device, **wanted)
        dtype = loading.default_dtype(next(model.parameters()).device)
        share = -(-self.config.rl_episodes // self.world.size)
        slots = max(share * self.config.rl_group, -(-self.config.eval_episodes // self.world.size))
        self.agent = Agent.build(model, self.tokenizer, self.agent_config, slots=slots)
        self.policy: Policy = Sharded(model, self.world, dtype) if fsdp else Replicated(model, self.world)
        self.policy.checkpointing = self.config.checkpointing
        self.drift = self.config.drift or (0.1 if dtype == torch.bfloat16 else 1e-4)
        if self.state["phase"] == "rl" and self.state["step"]:  # the reference is θ0 at RL's start
            self._read(self.out / "checkpoints" / "warm")
            self._remember()
        if self.state["weights"]:
            self._read(self.taken)

    def _remember(self) -> None:
        if self.config.rl_kl:
            self.policy.remember()

    def _base(self) -> None:
        pass

    def _warm(self) -> None:
        total = self.config.warm_steps
        self._supervised("warm", 0, lambda step, _: step / total if total else 1.0)
        self._keep_model("warm")

    def _rl(self) -> None:
        if self.state["step"] == 0:
            self.policy.restart()
            self._remember()
        while self.state["step"] < self.config.rl_steps:
            saved, step = self._pause_if_asked(), self.state["step"]
            if step and (saved or step % SHOWN == 0):
                self._show()
            if self.config.refresh_a and step and step % self.config.refresh_a == 0:
                self.agent.bank.renew()
            self._rl_step()
        self._keep_model("rl")

    def _sft(self) -> None:
        if self.state["step"] == 0:
            self._read(self.out / "checkpoints" / "warm")
        steps, budget = self.config.control_steps, self.state["seconds"].get("rl", 0.0)
        if steps:
            self._supervised("sft", self.config.warm_steps, lambda step, _: step / steps)
        else:
            self._supervised("sft", self.config.warm_steps, lambda _, seconds: seconds / budget if budget else 1.0)
        self._keep_model("sft")

    def _supervised(self, phase: str, first: int, done: Callable[[int, float], float]) -> None:
        """Supervised steps `first`, `first + 1`, ... until `done(steps, seconds)` reaches 1."""
        config, world = self.config, self.world

        def fraction() -> float:
            return world.most(done(self.state["step"], self.state["seconds"].get(phase, 0.0)))[0]

        while fraction() < 1:
            self._pause_if_asked()
            clock, start = Clock(), time.perf_counter()
            step = self.state["step"]
            keys = [f"{config.seed}/warm/{first + step}/{i}" for i in range(config.warm_episodes)]
            episodes = [self.task.episode(key, "train") for key in world.share(keys)]
            with clock("examples"):
                parts = supervised.examples(self.agent, config, first + step, episodes)
            counts = world.total(*(len(part) for part in parts))
            with clock("update"):
                losses = [
                    supervised.backward(self.agent, self.policy, part, config.micro_tokens, scale, count)
                    for part, scale, count in zip(parts, (1.0, config.warm_recall), counts)
                ]
            loss, recall_loss = world.total(*losses)
            with clock("optimizer"):
                norm = self.policy.step(config.warm_lr * min(1.0, (first + step + 1) / 4), config.grad_clip)
            self._finite(norm, phase)
            seconds = self._advance(phase, start)
            (tokens,) = world.total(sum(len(e.prompt) + len(e.answer) for part in parts for e in part))
            self._row(phase, step, clock, seconds, loss=loss, recall_loss=recall_loss, grad_norm=norm, tokens=int(tokens))
            self.progress.phase(
                phase, round(1000 * min(1.0, fraction())), 1000, f"loss {loss:.2f}  {tokens / seconds:.0f} tokens/s"
            )

    def _rl_step(self) -> None:
        config, step, clock, start = self.config, self.state["step"], Clock(), time.perf_counter()
        row, segments = grpo.step(
            self.agent, self.policy, self.task, config, step, clock=clock,
            note=lambda what: self.progress.phase("rl", step, config.rl_steps, what),
        )  # fmt: skip
        seconds = self._advance("rl", start)
        self._finite(row["grad_norm"], "rl")
        self._row("rl", step, clock, seconds, **row, drift=self.drift)
        self._log_segments(step, segments)
        if not row["dlogp_worst_segment"] <= self.drift:  # NaN is no agreement either
            self.progress.warn(
                f"step {step}: the trainer's log-probabilities are {row['dlogp_worst_segment']:.2g} off the sampler's in one "
                f"segment (expected below {self.drift:g}): Δ or weights differ between the two"
            )
        if row["reward"] is None:
            self.progress.warn(f"step {step}: there was no memory for any rollout; lower rl_group or rl_episodes")
            return
        self.progress.phase(
            "rl", self.state["step"], config.rl_steps,
            f"reward {row['reward']:.2f}  pairs/write {row['pairs_per_write']:.1f}  recall {row['recall']:.2f}  "
            f"|Δlogp| {row['dlogp']:.1g}  {row['tokens'] / seconds:.0f} tokens/s",
        )  # fmt: skip

    def _finite(self, norm: float, phase: str) -> None:
        """Count steps without a finite gradient, which the optimizer did not take; stop where they do not end."""
        self.state["skipped"] = 0 if norm < float("inf") else self.state["skipped"] + 1
        if self.state["skipped"]:
            self.progress.warn(f"{phase}: the gradient of step {self.state['step']} is {norm}; the step was skipped")
        if self.state["skipped"] >= MOST_SKIPPED:
            raise Diverged(
                f"train: {MOST_SKIPPED} steps in a row of phase {phase} had no finite gradient; the last checkpoint in "
                f"{self.out} is kept and from before; try a lower learning rate."
            )

    # evaluation ----------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        """What θ0 writes now, for the report of a run under way: the first held-out episode, greedy, whose counterpart at step
        0 is in the warm start's evaluation. Nothing else that is logged or drawn depends on it."""
        if self.world.first and self.config.eval_episodes:
            episode = self.task.episode(str(self.config.seed << 20), self.config.eval_split)
            found = [record(r) for r in run(self.agent, [episode], [episode.id])]
            write_json(self.out / "episodes" / "rl-now.json", {"step": self.state["step"], "episodes": _finite(found)})
        self.world.wait()

    def _evaluate(self, phase: str) -> None:
        config, world = self.config, self.world
        keys = [str((config.seed << 20) + i) for i in range(config.eval_episodes)]
        episodes = [self.task.episode(key, config.eval_split) for key in world.share(keys)]
        found = {}
        for index, (mode, temperature) in enumerate(MODES.items()):
            clock, start = Clock(), time.perf_counter()
            rollouts = run(
                self.agent, episodes, [f"{config.seed}/eval/{e.id}" for e in episodes], temperature=temperature, clock=clock,
                on_event=lambda what, j, n, i=index, m=mode: self.progress.phase(f"evaluate {phase}", i, 2, f"{m} {what}"),
            )  # fmt: skip
            found[mode] = world.gathered([scores(self.task, r).values for r in rollouts])
            records = world.gathered([record(r) for r in rollouts])
            if world.first:
                with atomic_file(self.out / "episodes" / f"{phase}-{mode}.md") as work:
                    work.write_bytes(encoded("\n\n".join(map(readable, records))))
                write_json(self.out / "episodes" / f"{phase}-{mode}.json", _finite(records))
            self._row(f"eval_{phase}", index, clock, time.perf_counter() - start, mode=mode, **means(found[mode]))
        score = means(found["greedy"])[config.reward]
        self.progress.phase(f"evaluate {phase}", 2, 2, f"greedy {config.reward} {score:.2f}")
        self.state["evaluations"][phase] = found

    def summary(self) -> dict:
        """Means with 95 % bootstrap intervals over episodes, per phase and mode, and the four rewards (greedy)."""
        out: dict = {f"reward_{p}": None for p in PHASES}
        out.update(n_episodes=self.config.eval_episodes, seconds=self.state["seconds"], evaluations={})
        out["wall_seconds"] = round(self.state["wall_seconds"], 1)
        out["damaged_checkpoints"] = self.state["damaged"]
        for phase, found in self.state["evaluations"].items():
            rows = {}
            for mode, episodes in found.items():
                shared = [k for k in episodes[0] if all(k in e for e in episodes)]
                rows[mode] = {
                    k: dict(zip(("mean", "low", "high"), bootstrap([e[k] for e in episodes], range(len(episodes)))))
                    for k in shared
                }
            out["evaluations"][phase] = rows
            out[f"reward_{phase}"] = rows["greedy"][self.config.reward]["mean"]
        return out

    # bookkeeping ---------------------------------------------------------------------------------------------------

    def _advance(self, phase: str, start: float) -> float:
        seconds = time.perf_counter() - start
        self.state["seconds"][phase] = self.state["seconds"].get(phase, 0.0) + seconds
        self.state["step"] += 1
        return seconds

    def _row(self, phase: str, step: int, clock: Clock, seconds: float, **values) -> None:
        row = {"phase": phase, "step": step, **values}
        timing = {
            "phase": phase, "step": step, "seconds": seconds, "trained": sum(self.state["seconds"].values()),
            **{f"seconds_{k}": v for k, v in clock.items()},
        }  # fmt: skip
        if self.world.first:
            self._append("metrics", row)
            self._append("timings", timing)
        self.state["rows"] += 1
        self.progress.row({**timing, **row})

    def _log_segments(self, step: int, mine: list) -> None:
        """|Δ log p| of every segment; the ranks' one after another."""
        segments = [s for part in self.world.gathered([mine]) for s in part]
        if self.world.first:
            self._append("segments", {"step": step, "segments": segments})
        self.state["segments"] += 1

    def _append(self, name: str, row: dict) -> None:
        append(self.out / f"{name}.jsonl", [_finite(row)], sync=False)

    def _keep_lines(self, name: str, count: int) -> None:
        """Drop the lines of steps that no checkpoint holds: they will be taken again."""
        file = self.out / f"{name}.jsonl"
        if file.exists():
            rows = file.read_bytes().splitlines(keepends=True)
            with atomic_file(file) as work:
                work.write_bytes(b"".join(rows[:count]))

    def _pause_if_asked(self) -> bool:
        """Between steps: a checkpoint if the last is old, or a stop if one was asked for. All ranks do the same; returns
        whether there was a checkpoint."""
        give_memory_back()
        asked, late = self.world.most(self.stop(), time.perf_counter() - self.saved > self.config.save_every)
        if asked or late:
            self._save()
        if asked:
            raise Interrupted
        return bool(late)

    def _save(self) -> None:
        now = time.perf_counter()
        self.state["wall_seconds"] += now - self.since
        self.since = self.saved = now
        self.state["number"] += 1
        self.state["weights"] = self.state["phase"] != "base" and not self.state["done"]
        folder = self.out / "checkpoints" / f"step-{self.state['number']:06}"
        self._write(folder)
        if self.world.first:  # a run that is done needs its results only: its models are saved
            done = self.state["done"]
            spent = [*self._checkpoints()[:-1], folder.with_name("warm")] if done else self._checkpoints()[:-KEEP]
            for old in spent:
                checkpoint.remove(old)

    def _write(self, folder: Path) -> None:
        for name in ("metrics", "timings", "segments"):
            if self.world.first and (file := self.out / f"{name}.jsonl").exists():
                with file.open("ab") as lines:
                    os.fsync(lines.fileno())
        tensors = {}
        if self.state["weights"] or folder.name == "warm":
            tensors = self.policy.tensors() | self._subspace()
        checkpoint.save(folder, {**self.state, "optimizer_steps": self.policy.steps}, tensors, self.world)

    def _read(self, folder: Path) -> None:
        """Parameters, moments, and A where it changes. Raises Damaged for a file that is not what was written."""
        subspace = self._subspace()
        steps = checkpoint.check(folder, self.world)["optimizer_steps"]
        checkpoint.load(folder, self.policy.blank(steps) | subspace, self.world)
        self.policy.publish()
        if subspace:
            self.agent.bank.take(list(subspace.values()))

    def _subspace(self) -> dict:
        """A of every adapted layer, which a checkpoint holds if training takes it anew."""
        return {f"a/{i}": a.clone() for i, a in enumerate(self.agent.bank.factors)} if self.config.refresh_a else {}

    def _keep_model(self, phase: str) -> None:
        """The trained θ0 as a Hugging Face folder; after the warm start also the parameters that RL and the control start
        from, and that RL's reference is."""
        if phase == "warm":
            self.policy.restart()
            self._write(self.out / "checkpoints" / "warm")
        weights = self.policy.full_state()
        if self.world.first:
            self.agent.bank.detach()
            try:
                loading.save(self.agent.model, self.tokenizer, self.out / phase, weights)
            finally:
                self.agent.bank.attach()
        self.world.wait()


def _finite(value):
    """None for a number that JSON does not have, also inside of lists and dicts."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
