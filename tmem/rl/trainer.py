"""`tmem train`: warm start, GRPO, and the control, each followed by an evaluation on held-out episodes.

What is GRPO here (arXiv 2402.03300): every episode is run by a group of rollouts. A rollout's reward is the mean score of its
answers. Its advantage is the reward less the group's mean, divided by the group's standard deviation, and PPO's clipped ratio
multiplies it.

What is not:
  1. One update a batch, unless `rl_updates` says more. The ratio is 1 apart from rounding and the clip hardly acts: REINFORCE
     with the group as baseline.
  2. The loss is a mean over the tokens of the whole batch (DAPO), not over the tokens of each rollout first. `rl_average` says
     otherwise. docs/training.md has a table of all options of the loss.
  3. A rollout is an episode of many actions, its writes and its answers. Each action gets the rollout's advantage; actions are
     no members of the group. With `rl_credit = "action"` each has its own (tmem.rl.credit).
  4. Every action is scored under the Δ that it was sampled with. That Δ is a constant: no gradient goes through learning.
  5. No KL term unless `rl_kl` asks for it. The reference then has the same Δ.
  6. `normalise = false` leaves the standard deviation out (Dr. GRPO, arXiv 2503.20783).

The phases run in order; what is done is kept in the output folder, so an interrupted run resumes:
    base      evaluate the model as it came
    warm      supervised steps on training episodes, then evaluate
    rl        GRPO from the warm start, then evaluate
    sft       from the warm start again, supervised steps instead of RL, then evaluate
With rl_steps = 0 there is no phase rl, and a phase sft only where control_steps says of how many steps.

A, the subspace of Δ, is that of the model as it came, in all phases, unless `refresh_a` says otherwise. A bank built later on
the saved model takes A from the trained weights. So `tmem eval --model OUT/rl` differs from the summary by as much as the two
subspaces do (not with init "random", which does not look at the weights).

Everything in metrics.jsonl follows from the configuration; measured times are in timings.jsonl, line by line.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..agent.agent import Agent
from ..agent.config import agent_config, recorded
from ..agent.loop import Clock
from ..files.digest import digest
from ..files.folders import Busy, Lock
from ..files.objects import read_object, write_json
from ..machine import give_memory_back
from ..models import loading
from ..models.chat import Chat
from ..models.families import trainable
from ..tasks.task import source
from . import checkpoint, grpo, halves, held_out, keep, supervised
from .config import BEFORE, IDLE, train_config
from .log import Log
from .low_rank import LowRank
from .policy import Policy, Replicated, Sharded, falling
from .record import phases_of, read_run
from .tasks import task_of
from .wire import Theta
from .world import ALONE, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .workers import Workers

KEEP = 2  # checkpoints: should the last one be damaged, the one before is there
SHOWN = 10  # RL steps after which, as at each checkpoint, a held-out episode is run to show what is written now
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


# the phases --------------------------------------------------------------------------------------------------------------


def base(trainer: Trainer) -> None:
    """The model as it came: there is nothing to do before its evaluation."""


def warm(trainer: Trainer) -> None:
    """Supervised steps on the gold pairs of training episodes."""
    _supervised(trainer, "warm", 0, trainer.config.warm_steps)


def rl(trainer: Trainer) -> None:
    """GRPO on the score of the answers."""
    config, state = trainer.config, trainer.state
    if state["step"] == 0:
        trainer.policy.restart()
        trainer.remember()
    while state["step"] < config.rl_steps:
        saved, step = trainer.pause_if_asked(), state["step"]
        if step and (saved or step % SHOWN == 0):
            held_out.show(trainer)
        if config.refresh_a and step and step % config.refresh_a == 0:
            trainer.agent.bank.renew()
        _rl_step(trainer)


def sft(trainer: Trainer) -> None:
    """The control: from the warm start again, more supervised steps, for as many seconds as RL took unless their number is
    given."""
    config, state = trainer.config, trainer.state
    if state["step"] == 0:
        trainer.read(trainer.out / "checkpoints" / "warm")
    steps, budget = config.control_steps, state["seconds"].get("rl", 0.0)
    _supervised(trainer, "sft", config.warm_steps, steps, budget)


PHASES: dict[str, Callable[[Trainer], None]] = {"base": base, "warm": warm, "rl": rl, "sft": sft}
"""In the order in which they run."""


def _supervised(trainer: Trainer, phase: str, first: int, steps: int, budget: float = 0.0) -> None:
    """Supervised steps `first`, `first + 1`, ...: so many, or if that is 0 for `budget` seconds. None where the first one finds
    nothing to teach."""
    state = trainer.state

    def fraction() -> float:
        seconds = state["seconds"].get(phase, 0.0)
        done = state["step"] / steps if steps else seconds / budget if budget else 1.0
        return trainer.world.most(done)[0]

    def tell(done: float, note: str) -> None:
        if steps:
            trainer.progress.phase(phase, state["step"], steps, note)
        else:  # how many they will be is not known: seconds
            trainer.progress.phase(phase, round(min(1.0, done) * budget), round(budget), note)

    if (done := fraction()) < 1:
        tell(done, "")
    while done < 1:
        trainer.pause_if_asked()
        note = _supervised_step(trainer, phase, first + state["step"], 1 - done)
        if note is None:
            trainer.progress.warn(f"{phase}: there is nothing to teach, no gold pair and no scene that knows what is right")
            return
        done = fraction()
        tell(done, note)


def _supervised_step(trainer: Trainer, phase: str, number: int, left: float) -> str | None:
    """Step `number` of all supervised steps, with `left` of the phase still to do; returns what to say of it. None: it would be
    the first one, and has no example."""
    config, world, policy = trainer.config, trainer.world, trainer.policy
    clock, start, step = Clock(), time.perf_counter(), trainer.state["step"]
    keys = [f"{config.seed}/warm/{number}/{i}" for i in range(config.warm_episodes)]
    episodes = [trainer.task.episode(key, "train") for key in keys]
    with clock("examples"):
        keeping = world.share(keep.drawn(trainer.kept, config.seed, number))
        parts = supervised.examples(trainer.agent, config, number, episodes, keeping, world).parts
    counts = world.total(*(len(part) for part in parts))
    if step == 0 and not any(counts):
        return None
    with clock("update"):
        losses = supervised.backward(
            trainer.agent, policy, parts, config.micro_tokens,
            (1.0, config.warm_read, config.warm_recall, config.warm_keep), counts,
        )  # fmt: skip
    loss, read_loss, recall_loss, keep_loss = world.total(*losses)
    with clock("optimizer"):
        rising = min(1.0, (number + 1) / max(4, config.warm_steps // 40))
        norm = policy.step(config.warm_lr * rising * falling(left, config.warm_decay), config.grad_clip)
    trainer.count_skipped(norm, phase)
    seconds = trainer.advance(phase, start)
    (tokens,) = world.total(sum(len(e.prompt) + len(e.answer) for part in parts for e in part))
    found = {"loss": loss, "read_loss": read_loss, "recall_loss": recall_loss, "keep_loss": keep_loss}
    trainer.row(phase, step, clock, seconds, **found, grad_norm=norm, tokens=int(tokens))
    return f"loss {loss:.2f}  {tokens / seconds:.0f} tokens/s"


def _rl_step(trainer: Trainer) -> None:
    config, state, progress = trainer.config, trainer.state, trainer.progress
    step, clock, start = state["step"], Clock(), time.perf_counter()
    agent = trainer.agent
    if trainer.workers is not None:
        with clock("send"):
            trainer.publish()
        agent = dataclasses.replace(agent, elsewhere=trainer.workers)
    row, actions = grpo.step(
        agent, trainer.policy, trainer.task, config, step, clock=clock,
        note=lambda what: progress.phase("rl", step, config.rl_steps, what),
    )  # fmt: skip
    seconds = trainer.advance("rl", start)
    trainer.count_skipped(row["grad_norm"], "rl")
    trainer.row("rl", step, clock, seconds, trainer.counted(), **row, drift=trainer.drift)
    trainer.log_actions(step, actions)
    if noise := halves.verdict(state["split_half"], row["split_half"]):
        progress.warn(f"step {step}: {noise}")
    if not row["dlogp_worst_segment"] <= trainer.drift:  # NaN is no agreement either
        progress.warn(
            f"step {step}: the trainer's log-probabilities are {row['dlogp_worst_segment']:.2g} off the sampler's in one "
            f"action (expected below {trainer.drift:g}): Δ or weights differ between the two"
        )
    if row["reward"] is None:
        progress.warn(f"step {step}: there was no memory for any rollout; lower rl_group or rl_episodes")
        return
    progress.phase(
        "rl", state["step"], config.rl_steps,
        f"reward {row['reward']:.2f}  pairs/write {row['pairs_per_write']:.1f}  recall {row['recall']:.2f}  "
        f"|Δlogp| {row['dlogp']:.1g}  {row['tokens'] / seconds:.0f} tokens/s",
    )  # fmt: skip


# the run -----------------------------------------------------------------------------------------------------------------


class Trainer:
    """One training run in one output folder. `run()` does what is left to do and returns the summary.

    Under torchrun every rank makes one, with the same arguments, and gets the same summary; rank 0 writes the files.
    """

    def __init__(
        self, preset: str, out: Path, *, model: str | None = None, adapter: str | None = None, bits: str | None = None,
        resume: bool = False, world: World = ALONE, workers: Workers | None = None, **overrides,
    ):  # fmt: skip
        """workers: what generates the rollouts of RL; which ones, a resume may change. overrides: fields of TrainConfig."""
        self.config, self.bits = dataclasses.replace(train_config(preset), **overrides), bits
        self.agent_config = agent_config(preset)
        self.preset, self.out, self.model_name, self.adapter, self.world = str(preset), out, model, adapter, world
        self.workers = workers
        if workers is not None and self.config.policy != "lora":
            raise ValueError('train: workers get θ0 as an adapter; set policy = "lora" in [train], or leave out --workers.')
        self.task = task_of(self.config)
        self.state = {
            "phase": "base", "step": 0, "seconds": {}, "evaluations": {}, "rows": 0, "segments": 0, "wall_seconds": 0.0,
            "number": 0, "weights": False, "skipped": 0, "damaged": 0, "done": False,
            "split_half": [],
        }  # fmt: skip
        self.settings_file = out / "run.json"
        self.log = Log(out, world)
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
            held = read_object(self.settings_file, AgentConfig=dict, TrainConfig=dict)
            older = "memory" in held["AgentConfig"]
            held["AgentConfig"] = recorded(held["AgentConfig"])
            held["TrainConfig"] = {**self._unsaid(), **held["TrainConfig"]}
            for file in source(self.config.task):  # a run of before does not name it
                held.setdefault("data_blake2b", {}).setdefault(file, digest(file))
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
                if older and self.state["phase"] in ("warm", "sft") and self.state["step"]:
                    raise ValueError(
                        f"resume: {out} was stopped amid supervised steps of an older version, which may have taught of a "
                        f"passage of several chunks the pairs of the first alone; start again with another --out."
                    )
            elif self.damaged:
                raise ValueError(f"resume: no checkpoint of {out} can be read ({self.damaged[0]}); start again elsewhere.")
        elif resume:
            raise FileNotFoundError(f"resume: {out} holds no run (run.json is missing); leave out --resume.")

    def _settings(self) -> dict:
        """What must stay as it is from start to end; not how often checkpoints are made or over what ranks θ0 is laid out."""
        settings = {"preset": self.preset, "model": self.model_name or loading.DEFAULT}
        if self.adapter not in (None, loading.NO_ADAPTER):
            settings["adapter"] = self.adapter
        if self.bits is not None:
            settings["bits"] = self.bits
        for config in (self.config, self.agent_config):
            settings[type(config).__name__] = dataclasses.asdict(config)
        for name in ("save_every", "layout", "micro_tokens", "checkpointing"):
            del settings["TrainConfig"][name]
        if files := [*self.task.files, *source(self.config.task)]:
            settings["data_blake2b"] = {file: digest(file) for file in files}
        return json.loads(json.dumps(settings))

    def _unsaid(self) -> dict:
        """The settings of training that a run of before does not name: what they were, or where that meant nothing, are."""
        now = self._settings()["TrainConfig"]
        return {**{name: now[name] for name in IDLE}, **BEFORE}

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
            if ids := self.task.trained:
                write_json(self.out / "trained.json", list(ids))
            self.log.cut(self.state)
            for row in read_run(self.out) if self.state["rows"] else ():
                self.progress.row(row)
        for sentence in self.damaged:
            self.progress.warn(f"{sentence}; going on from the one before")
        self.world.wait()
        if self.state["done"]:
            return self.summary()
        self._build()
        names, wanted = list(PHASES), phases_of(self.config.rl_steps, self.config.control_steps)
        while not self.state["done"]:
            phase = self.state["phase"]
            if phase in wanted and phase not in self.state["evaluations"]:
                PHASES[phase](self)
                if phase != "base":
                    self._keep_model(phase)
                self._save()
                held_out.evaluate(self, phase)
            left = [p for p in names[names.index(phase) + 1 :] if p in wanted]
            self.state.update(phase=left[0] if left else phase, step=0, done=not left)
            self._save()
        return self.summary()

    def _build(self) -> None:
        name = self.model_name or loading.DEFAULT
        self.progress.phase("load", 0, 1, name)
        model, policy = self._loaded()
        dtype = loading.default_dtype(next(model.parameters()).device)
        warm, rollouts, held = (
            -(-n // self.world.size) for n in (self.config.warm_episodes, self.config.rl_episodes, self.config.eval_episodes)
        )
        slots = max(warm, rollouts * self.config.rl_group, held)
        self.agent = Agent.build(model, self.tokenizer, self.agent_config, slots=slots)
        self.policy: Policy = policy or self._whole(model, dtype)
        self.policy.checkpointing = self.config.checkpointing
        self.drift = self.config.drift or (0.1 if dtype == torch.bfloat16 else 1e-4)
        if self.state["phase"] == "rl" and self.state["step"]:  # the reference is θ0 at RL's start
            self.read(self.out / "checkpoints" / "warm")
            self.remember()
        if self.state["weights"]:
            self.read(self.taken)
        if self.workers is not None:
            self.workers.warn = self.progress.warn
            if self.config.rl_steps and list(PHASES).index(self.state["phase"]) <= list(PHASES).index("rl"):
                self.publish()  # whoever has no workers is told before the warm start, not after it
        self.progress.phase("load", 1, 1, name)

    def _loaded(self) -> tuple[PreTrainedModel, Policy | None]:
        """The model as training begins, and the policy where it is an adapter, which goes on from the one over the model, or
        where every rank has read its own rows of the model's files.

        What it is to keep is said by the model as it came, without an adapter where that is what is trained.
        """
        config, device = self.config, self.world.device
        under = trainable(loading.config(self.model_name), self.bits, adapter=config.policy == "lora")
        if config.policy == "full":
            if config.layout == "fsdp" and (policy := self._in_parts()) is not None:
                self.kept = self._to_keep(policy.model)
                return policy.model, policy
            wanted = {"dtype": torch.float32} if config.layout == "fsdp" else {}
            model, self.tokenizer = loading.load_model(self.model_name, adapter=self.adapter, device=device, **wanted)
            self.kept = self._to_keep(model)
            return model, None
        base, start = loading.apart(self.model_name, self.adapter)
        model, self.tokenizer = loading.load_model(base, bits=self.bits, device=device)
        self.kept = self._to_keep(model)
        return model, LowRank(model, config.policy_rank, config.seed, self.world, start, under)

    def _in_parts(self) -> Sharded | None:
        """The sharded policy, of which no rank has read more than its share; None where that cannot be."""
        if (found := loading.unfilled(*loading.apart(self.model_name, self.adapter))) is None:
            return None
        model, self.tokenizer, weights = found
        device = self.world.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return Sharded(model, self.world, loading.default_dtype(device), weights, device)

    def _to_keep(self, model: PreTrainedModel) -> list[supervised.Example]:
        return keep.kept(model, Chat(self.tokenizer, model)) if self.config.warm_keep else []

    def _whole(self, model: PreTrainedModel, dtype: torch.dtype) -> Policy:
        """The policy that trains all weights of a model that was loaded whole."""
        return Sharded(model, self.world, dtype) if self.config.layout == "fsdp" else Replicated(model, self.world)

    def publish(self) -> None:
        """Have the workers go on with θ0 as it is now. All ranks must call this together; the first one sends it."""
        theta = Theta.of(self.policy.lora, self.agent.bank)
        vocabulary = self.agent.model.get_input_embeddings().weight.shape[0]
        for mine in (self.world.first, not self.world.first):
            if mine:
                self.workers.publish(theta, vocabulary)
            self.world.wait()

    def counted(self) -> dict:
        """What became of the workers since the last call: see Workers.counted; of all ranks."""
        if self.workers is None:
            return {}
        found = self.workers.counted()
        (lost,), (again,) = self.world.most(found["workers_lost"]), self.world.total(found["asked_again"])
        return {**found, "workers_lost": int(lost), "asked_again": int(again)}

    def remember(self) -> None:
        """Keep θ0 as the reference of the KL term, where there is one."""
        if self.config.rl_kl:
            self.policy.remember()

    def count_skipped(self, norm: float, phase: str) -> None:
        """Count steps without a finite gradient, which the optimizer did not take; stop where they do not end."""
        self.state["skipped"] = 0 if norm < float("inf") else self.state["skipped"] + 1
        if self.state["skipped"]:
            self.progress.warn(f"{phase}: the gradient of step {self.state['step']} is {norm}; the step was skipped")
        if self.state["skipped"] >= MOST_SKIPPED:
            raise Diverged(
                f"train: {MOST_SKIPPED} steps in a row of phase {phase} had no finite gradient; the last checkpoint in "
                f"{self.out} is kept and from before; try a lower learning rate."
            )

    def summary(self) -> dict:
        """Means with 95 % bootstrap intervals over episodes, per phase and mode, and the reward of each phase (greedy)."""
        found = held_out.intervals(self.state["evaluations"])
        return {
            **{f"reward_{phase}": modes["greedy"][self.config.reward]["mean"] for phase, modes in found.items()},
            "n_episodes": self.config.eval_episodes,
            "seconds": self.state["seconds"],
            "evaluations": found,
            "wall_seconds": round(self.state["wall_seconds"], 1),
            "damaged_checkpoints": self.state["damaged"],
        }

    # bookkeeping ---------------------------------------------------------------------------------------------------

    def advance(self, phase: str, start: float) -> float:
        seconds = time.perf_counter() - start
        self.state["seconds"][phase] = self.state["seconds"].get(phase, 0.0) + seconds
        self.state["step"] += 1
        return seconds

    def row(self, phase: str, step: int, clock: Clock, seconds: float, unsettled: dict | None = None, /, **values) -> None:
        """Log one step, or one mode of an evaluation. unsettled: what no setting decides, so that it goes with the times.

        Arguments go by their places, for a score of a task may have any name.
        """
        row = {"phase": phase, "step": step, **values}
        timing = {
            "phase": phase, "step": step, "seconds": seconds, "trained": sum(self.state["seconds"].values()),
            **{f"seconds_{k}": v for k, v in clock.items()}, **(unsettled or {}),
        }  # fmt: skip
        self.log.add("metrics", row)
        self.log.add("timings", timing)
        self.state["rows"] += 1
        self.progress.row({**timing, **row})

    def log_actions(self, step: int, mine: list) -> None:
        """|Δ log p| of every action; the ranks' one after another."""
        actions = [a for part in self.world.gathered([mine]) for a in part]
        self.log.add("segments", {"step": step, "segments": actions})
        self.state["segments"] += 1

    def pause_if_asked(self) -> bool:
        """Between steps: a checkpoint if the last is old, or a stop if one was asked for. All ranks do the same; returns
        whether there was a checkpoint."""
        give_memory_back()
        asked, late = self.world.most(self.stop(), time.perf_counter() - self.saved > self.config.save_every)
        if asked or late:
            self._save()
        if asked:
            raise Interrupted
        return bool(late)

    def leave_if_asked(self) -> None:
        """Within an evaluation: a stop without a checkpoint, for that before the evaluation holds, which is then begun anew.
        All ranks must call this together."""
        if self.world.most(self.stop())[0]:
            raise Interrupted

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
        self.log.sync()
        tensors = {}
        if self.state["weights"] or folder.name == "warm":
            tensors = self.policy.tensors() | self._subspace()
        checkpoint.save_checkpoint(folder, {**self.state, "optimizer_steps": self.policy.steps}, tensors, self.world)

    def read(self, folder: Path) -> None:
        """Parameters, moments, and A where it changes. Raises Damaged for a file that is not what was written."""
        subspace = self._subspace()
        steps = checkpoint.check(folder, self.world)["optimizer_steps"]
        checkpoint.load_checkpoint(folder, self.policy.blank(steps) | subspace, self.world)
        self.policy.publish()
        if subspace:
            self.agent.bank.take(list(subspace.values()))

    def _subspace(self) -> dict:
        """A of every adapted layer, which a checkpoint holds if training takes it anew."""
        return {f"a/{i}": a.clone() for i, a in enumerate(self.agent.bank.factors)} if self.config.refresh_a else {}

    def _keep_model(self, phase: str) -> None:
        """The trained θ0 as a folder that `--model` takes; after the warm start also the parameters that RL and the control
        start from, and that RL's reference is."""
        if phase == "warm":
            self.policy.restart()
            self._write(self.out / "checkpoints" / "warm")
        weights = self.policy.full_state()
        if self.world.first:
            self.agent.bank.detach()
            try:
                self.policy.save(self.tokenizer, self.out / phase, weights)
            finally:
                self.agent.bank.attach()
        self.world.wait()


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
