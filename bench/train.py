"""Study `train`: one GRPO step by the trainer and by the straightforward implementation, part by part, with the limits.

The work is frozen, so that both ways do the same in every round. A rollout writes its episode's gold pairs, all but one,
another one in each rollout of a group, and answers with the gold answers: what a trained policy does, of the same length
whatever the weights and the machine. Advantages are +1 and -1 in turns, so that no action is left out of the update, and
θ0's learning rate is 0, so that every round starts from the same weights. The rest is the default preset's.

tmem             the trainer's own functions. Sampling does its work, then the given token is taken.
straightforward  transformers, PEFT and torch.optim, one rollout after another. An adapter of the same layers, rank and A, A
                 frozen, B in fp32 trained by fused AdamW on the same minibatches of the same pairs for as many epochs as tmem
                 took. `generate` samples as many tokens as are given: batch 1 for a write, one left-padded batch for an
                 episode's questions. The update runs one action after another under the Δ it was sampled with, logits only at
                 the generated tokens, gradients accumulated in the model's dtype, fused AdamW on fp32 masters.

The same dtype (models.default_dtype), attention (SDPA) and threads for both. What the trainer only watches, probes and
neutral text, is left out. Before anything is timed, the two are compared, in fp32 and in that dtype: see `check`.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn

from ..adapters.bank import AdapterBank, Snapshot
from ..agent.agent import Agent
from ..agent.config import LOOP_PRESET, agent_config
from ..agent.learn import joins, packed, rows_of
from ..agent.loop import Action, Clock, Rollout, run
from ..agent.renderings import rendered
from ..agent.sampling import forced
from ..agent.write import render
from ..episode import Pair
from ..machine import keep_memory
from ..models import loading
from ..models.tiny import default_or_tiny
from ..report.figure import figure
from ..rl import replay
from ..rl.budget import Shape
from ..rl.config import train_config
from ..rl.loss import Objective, policy_loss
from ..rl.policy import Policy, Replicated
from ..rl.rollout import scores
from ..rl.rows import Row, below
from ..tasks.stream import Stream
from ..testing import rel_rms
from .busy import Busy
from .measure import WrongNumbers, ceilings
from .padded import batch_of

PARTS = ("write", "learn", "answer", "score", "backward", "optimizer")
AIMS = {"cpu": 6.0, "cuda": 20.0}  # how many times faster a whole step is to be
OUTSIDE = 0.1  # of a step that may pass outside of ops
# What the ways may differ by: mean |Δ log p|; an answer token's loss before and after learning, as a share of the loss before;
# relative RMS of θ0's gradient. bf16 says little about a gradient: given tokens are improbable, and where two roundings
# of one stand on either side of PPO's clip, only one way counts it.
TOLERANCES = {
    torch.float32: {"log p": 1e-4, "loss before": 1e-4, "loss after": 1e-3, "gradient": 1e-3},
    torch.bfloat16: {"log p": 0.1, "loss before": 0.02, "loss after": 0.02, "gradient": 0.7},
}


@dataclass(frozen=True)
class Size:
    """How much is timed. pairs: that a rollout writes at most."""

    episodes: int
    group: int
    rounds: int
    pairs: int = 32

    @classmethod
    def of(cls, quick: bool, device: str) -> Size:
        if quick:
            return cls(2, 2, 2, 2)
        return cls(8, 8, 2) if device == "cuda" else cls(2, 8, 2)


class Waiting(Clock):
    """A clock that waits for the GPU at the end of a part."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        with super().__call__(name):
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()


class Ours:
    """tmem's way, and the frozen work: `rollouts`, the `epochs` that each learned, their `advantages`, `total` tokens."""

    name = "tmem"

    def __init__(self, size: Size, model, tokenizer):
        self.config = train_config(LOOP_PRESET)
        self.agent = Agent.build(model, tokenizer, agent_config(LOOP_PRESET), slots=size.episodes * size.group)
        self.policy: Policy = Replicated(model)
        self.task = Stream(1)
        once = [self.task.episode(f"bench/{i}", "train") for i in range(size.episodes)]
        self.episodes = [e for e in once for _ in range(size.group)]
        self.keys = [f"{e.id}/{g}" for e in once for g in range(size.group)]
        self.advantages = [1.0, -1.0] * math.ceil(len(self.keys) / 2)
        self.texts: dict[str, list[int]] = {}
        for i, (episode, key) in enumerate(zip(self.episodes, self.keys)):
            gold = [p for pairs in episode.pairs for p in pairs]
            left_out = i % size.group % len(gold)
            written = [p for j, p in enumerate(gold) if j != left_out][: size.pairs]
            self.texts[f"{key}/write0"] = self.agent.chat.answer(render(written))
            for q in episode.questions:
                self.texts[f"{key}/answer/{q.id}"] = self.agent.chat.answer(q.answers[0])
        self._freeze()

    def _freeze(self) -> None:
        self.rollouts = self._rollouts(Clock())
        if any(len(r.log) != 1 for r in self.rollouts):
            raise ValueError("bench train: an episode takes several writes; its stream must fit into [write] window.")
        self.epochs = [self._epochs(r) for r in self.rollouts]
        self.total = sum(len(a.generation.ids) for r in self.rollouts for a in r.actions)

    def taught(self, pairs: Sequence[Pair], epoch: int) -> list[Pair]:
        """The pairs in the words in which an epoch teaches them."""
        config = self.agent.config.learn
        return rendered(pairs, epoch, config.renderings, config.unknown, config.reverse)

    def rows(self, pairs: Sequence[Pair], epoch: int) -> list:
        """What an epoch of these pairs passes through the model."""
        return rows_of(self.agent.chat, self.taught(pairs, epoch), self.agent.config.learn, joins(self.agent.model))

    def tokens(self, pairs: Sequence[Pair], epoch: int) -> int:
        """How many tokens that are."""
        return sum(len(row.ids) for row in self.rows(pairs, epoch))

    def _epochs(self, rollout: Rollout) -> int:
        """After how many of its epochs what a rollout learned was enough."""
        left, epochs = rollout.log[0].learned.tokens, 0
        while left > 0:
            left, epochs = left - self.tokens(rollout.pairs, epochs), epochs + 1
        return epochs

    def _rollouts(self, clock: Clock) -> list[Rollout]:
        with forced(self.texts):
            return run(self.agent, self.episodes, self.keys, temperature=1.0, trace=True, clock=clock)

    def step(self, clock: Clock) -> None:
        """One step, its parts and the "whole" told to `clock`."""
        with clock("whole"):
            self.parts(clock)

    def parts(self, clock: Clock) -> None:
        """One step, its parts told to `clock`."""
        rollouts = self._rollouts(clock)
        with clock("score"):
            for rollout in rollouts:
                scores(self.task, rollout)
        with clock("backward"):
            self.backward(rollouts)
        with clock("optimizer"):
            self.policy.step(0.0, self.config.grad_clip)

    def backward(self, rollouts: Sequence[Rollout]) -> None:
        replay.backward(
            self.agent, self.policy, rollouts, [[a] * len(r.actions) for a, r in zip(self.advantages, rollouts)], self.total,
            Objective(self.config.rl_clip), tokens=self.config.micro_tokens,
        )  # fmt: skip


class Plain:
    """The straightforward way through the same work."""

    name = "straightforward"

    def __init__(self, ours: Ours, model):
        from peft import LoraConfig, get_peft_model

        self.ours, self.chat, self.bank = ours, ours.agent.chat, ours.agent.bank
        rank, names = self.bank.max_rank, [s.name for s in self.bank.sites]
        self.peft = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
        ).eval()
        modules = dict(self.peft.get_base_model().named_modules())
        self.b: list[nn.Parameter] = []
        for name, a in zip(names, self.bank.factors):
            modules[name].lora_A["default"].weight.requires_grad_(False).copy_(a)
            self.b.append(modules[name].lora_B["default"].weight)
        self.base = [p for n, p in self.peft.named_parameters() if "lora_" not in n]
        wide = self.base[0].dtype == torch.float32
        self.masters = self.base if wide else [nn.Parameter(p.detach().float()) for p in self.base]
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=0.0, betas=Policy.betas, weight_decay=Policy.weight_decay, fused=True
        )
        self.device = self.base[0].device

    def step(self, clock: Clock) -> None:
        """As for Ours."""
        with clock("whole"):
            deltas = [self.run_alone(rollout, epochs, clock) for rollout, epochs in zip(self.ours.rollouts, self.ours.epochs)]
            with clock("backward"):
                self.backward(self.ours.rollouts, deltas)
            with clock("optimizer"):
                self.update()

    def run_alone(self, rollout: Rollout, epochs: int, clock: Clock) -> list[Tensor]:
        """One rollout; returns the Δ it ends with."""
        write, *answers = rollout.actions
        self.restore(None)
        with clock("write"):
            self.generate([write.prompt], len(write.generation.ids))
        with clock("learn"):
            self.learn(rollout.pairs, epochs)
            delta = [b.detach().clone() for b in self.b]
        with clock("answer"):
            self.generate([a.prompt for a in answers], max(len(a.generation.ids) for a in answers))
        with clock("score"):
            scores(self.ours.task, rollout)
        return delta

    @torch.no_grad()
    def restore(self, delta: Sequence[Tensor] | None) -> None:
        """Put Δ, the B of every layer, under the model; None: Δ = 0."""
        for i, b in enumerate(self.b):
            b.zero_() if delta is None else b.copy_(delta[i])

    def generate(self, prompts: Sequence[list[int]], tokens: int) -> Tensor:
        from transformers import GenerationConfig

        width = max(map(len, prompts))
        ids = [[self.chat.end] * (width - len(p)) + p for p in prompts]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        config = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=tokens, max_new_tokens=tokens,
            eos_token_id=list(self.chat.ends), pad_token_id=self.chat.end,
        )  # fmt: skip
        return self.peft.generate(
            input_ids=torch.tensor(ids, device=self.device), attention_mask=torch.tensor(mask, device=self.device),
            generation_config=config,
        )  # fmt: skip

    def learn(self, pairs: Sequence[Pair], epochs: int) -> tuple[float, float]:
        """Teach the adapter, Δ = 0 at first; mean loss of an answer token in the first epoch and after the last."""
        config = self.ours.agent.config.learn
        self._train(self.b)
        optimizer = torch.optim.AdamW(self.b, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        first = []
        for epoch in range(epochs):
            for batch in self._batches(pairs, epoch):
                loss = self.peft(**batch, use_cache=False).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if epoch == 0:
                    first.append(loss.detach())
        with torch.no_grad():
            last = [self.peft(**batch, use_cache=False).loss for batch in self._batches(pairs, 0)]
        return tuple(float(sum(x)) / max(1, len(x)) for x in (first, last))

    def _batches(self, pairs: Sequence[Pair], epoch: int) -> list[dict[str, Tensor]]:
        taught, size = self.ours.taught(pairs, epoch), self.ours.agent.config.learn.batch
        return [batch_of(self.chat, taught[i : i + size], self.device) for i in range(0, len(taught), size)]

    def logp(self, action: Action) -> Tensor:
        """Log-probabilities of what was said, under the Δ that is in place."""
        said = torch.tensor(action.generation.ids, device=self.device)
        ids = torch.tensor([action.prompt + action.generation.ids], device=self.device)
        logits = self.peft(input_ids=ids, logits_to_keep=len(said) + 1, use_cache=False).logits[0, :-1]
        return logits.float().log_softmax(-1).gather(-1, said[:, None])[:, 0]

    def backward(self, rollouts: Sequence[Rollout], deltas: Sequence[Sequence[Tensor]]) -> None:
        """Accumulate the policy loss's gradient in θ0; deltas[i]: what rollout i answered with."""
        self._train(self.base)
        for rollout, delta, advantage in zip(rollouts, deltas, self.ours.advantages):
            for action in rollout.actions:
                self.restore(delta if action.kind == "answer" else None)
                new = self.logp(action)
                old = torch.tensor(action.generation.logprobs, device=self.device)
                advantages, weight = (torch.full_like(new, x).detach() for x in (advantage, 1 / self.ours.total))
                policy_loss(new, old, advantages, weight, Objective(self.ours.config.rl_clip)).loss.backward()

    def update(self) -> None:
        if self.masters is not self.base:
            for master, p in zip(self.masters, self.base):
                master.grad, p.grad = p.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, self.ours.config.grad_clip)
        self.optimizer.step()
        if self.masters is not self.base:
            with torch.no_grad():
                torch._foreach_copy_(self.base, self.masters)
        self.optimizer.zero_grad()

    def _train(self, parameters: Sequence[nn.Parameter]) -> None:
        for p in itertools.chain(self.base, self.b):
            p.requires_grad_(False)
        for p in parameters:
            p.requires_grad_(True)


def factors(bank: AdapterBank, delta: Snapshot) -> list[Tensor]:
    """A snapshot as lora_B.weight [N, R] of every layer."""
    with bank.holding([delta]) as (slot,):
        return [site.bt[slot].T.clone() for site in bank.sites]


def check(ours: Ours, plain: Plain) -> dict[str, float]:
    """How far the ways are apart, by TOLERANCES' names, on the first rollout and the last. Raises WrongNumbers if too far.

    Log-probabilities are tmem's sampler's against PEFT's forward pass, each under the Δ that tmem recorded.
    """
    rollouts, logps = [ours.rollouts[i] for i in (0, -1)], []
    deltas = [factors(ours.agent.bank, r.delta) for r in rollouts]
    before, after = [], []
    for rollout, epochs, delta in zip(rollouts, (ours.epochs[0], ours.epochs[-1]), deltas):
        for action in rollout.actions:
            plain.restore(delta if action.kind == "answer" else None)
            with torch.no_grad():
                logps.append(plain.logp(action).cpu() - torch.tensor(action.generation.logprobs))
        plain.restore(None)
        mine, (first, last) = rollout.log[0].learned, plain.learn(rollout.pairs, epochs)
        before.append(abs(first - mine.loss_before) / mine.loss_before)
        after.append(abs(last - mine.loss_after) / mine.loss_before)
    ours.backward(rollouts)
    plain.backward(rollouts, deltas)
    gradients = [torch.cat([p.grad.float().flatten() for p in x]) for x in (plain.base, ours.policy.params)]
    ours.policy.drop()
    for p in plain.base:
        p.grad = None
    found = {
        "log p": float(torch.cat(logps).abs().mean()), "loss before": sum(before) / 2, "loss after": sum(after) / 2,
        "gradient": rel_rms(*gradients),
    }  # fmt: skip
    dtype = plain.base[0].dtype
    for what, allowed in TOLERANCES[dtype].items():
        if not found[what] <= allowed:
            raise WrongNumbers(
                f"bench train, {dtype}: {what} of the straightforward way is {found[what]:.2g} off tmem's, "
                f"allowed {allowed:.2g}; nothing was timed."
            )
    return found


def ways(size: Size, quick: bool, device: str, dtype: torch.dtype) -> tuple[Ours, Plain]:
    """Each with a model of its own."""
    ours = Ours(size, *default_or_tiny(quick, device, dtype))
    return ours, Plain(ours, default_or_tiny(quick, device, dtype)[0])


def time_grpo_step(quick: bool, watch: Callable[[str, int, int], None], kept: Callable) -> dict:
    """{"rows", "ceilings", "aims", "work", "off", "outside"}: a row for every part and the whole.

    tmem, plain: seconds, medians of the rounds, in each of which both ways take the whole step twice and the second one
    counts; ratio: the median of the rounds' plain/tmem. tokens, least: see `needs`. work: what a step is; off: see `check`.
    outside: the share of one more of tmem's steps in which no op was running, see `Busy`. Nothing is `kept`: times are
    compared within one run.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = Size.of(quick, device)
    if not quick:
        keep_memory()  # as `tmem train` does; both ways have it
    dtype, off, total = loading.default_dtype(device), {}, 2 * size.rounds + 2
    watch("both ways compared, fp32", 0, total)
    if dtype != torch.float32:
        off["float32"] = check(*ways(Size(1, 2, 1, size.pairs), quick, device, torch.float32))
    dtype_name = str(dtype).removeprefix("torch.")
    watch(f"both ways compared, {dtype_name}", 1, total)
    ours, plain = ways(size, quick, device, dtype)
    off[dtype_name] = check(ours, plain)
    limits = ceilings(quick, device)
    times: dict[str, list[Clock]] = {"tmem": [], "straightforward": []}
    for i in range(size.rounds):
        for j, way in enumerate((ours, plain) if i % 2 == 0 else (plain, ours)):
            watch(f"round {i + 1} of {size.rounds}: {way.name}", 2 + 2 * i + j, total)
            gc.collect()
            way.step(Waiting())  # untimed: a run's steps find their memory as the step before left it
            times[way.name].append(Waiting())
            way.step(times[way.name][-1])
    watched = Busy()
    ours.parts(watched)
    needed = needs(ours, limits, dtype_name)
    rows = []
    for part in (*PARTS, "whole"):
        mine, theirs = ([clock[part] for clock in times[name]] for name in times)
        rows.append({
            "device": device, "dtype": dtype_name, "part": part, "tmem": statistics.median(mine),
            "plain": statistics.median(theirs), "ratio": statistics.median(b / a for a, b in zip(mine, theirs)),
            "tmem_rounds": mine, "plain_rounds": theirs, **needed[part],
        })  # fmt: skip
    work = {
        "model": "tiny, random" if quick else loading.DEFAULT, "episodes": size.episodes, "group": size.group,
        "rounds": size.rounds, "pairs": sum(len(r.pairs) for r in ours.rollouts), "epochs": ours.epochs,
    }  # fmt: skip
    aim = {
        "work": f"one GRPO step on {size.episodes * size.group} rollouts: over the straightforward implementation",
        "aim": f"≥ {AIMS[device]:.2f}x", "reached": rows[-1]["ratio"], "met": rows[-1]["ratio"] >= AIMS[device],
    }  # fmt: skip
    outside = watched.outside
    trainer = {
        "work": "one GRPO step: share of the time in which no op runs", "aim": f"≤ {OUTSIDE:.2f}x", "reached": outside,
        "met": outside <= OUTSIDE,
    }  # fmt: skip
    return {"ceilings": limits, "rows": rows, "aims": [aim, trainer], "work": work, "off": off, "outside": outside}


def needs(ours: Ours, limits: dict[str, float], dtype: str) -> dict[str, dict]:
    """Of every part the tokens, the least flops and bytes, and the seconds for them at this run's GEMM and copy rates.

    Counted are the linear layers, those of the last one that come after its attention for labels alone, and the head where a
    logit is needed; adapters, attention and norms come on top.
    write, answer  prompts at the GEMM rate, a prompt under Δ = 0 once, and what the questions of one rollout begin with; then
                   steps that produce one token for every rollout at once and read all weights, at the copy rate or the GEMM
                   rate, whichever takes longer. tokens: generated
    learn          layers below the first adapted one once for each text of a rendering; in an epoch those above forward and,
                   for dX, backward (not through the lowest), and forward again for the loss at the end. tokens: of all epochs
    backward       forward, dX and dW of every action; what actions of one Δ begin with alike counts once, where the trainer
                   puts them into one row, and below the first adapted layer what rollouts have alike. tokens: of the actions,
                   with their prompts
    optimizer      θ0's parameter, gradient and two moments read, parameter and moments written, in fp32
    """
    agent, rollouts = ours.agent, ours.rollouts
    shape = Shape.of(agent.model.config)
    layer, head = sum(k * n for k, n in shape.sizes().values()), shape.hidden * shape.vocab
    after = sum(k * n for name, (k, n) in shape.sizes().items() if name not in ("q_proj", "k_proj", "v_proj", "qkv_proj"))
    decoder, bottom = shape.layers * layer, agent.bank.first_layer * layer
    top = decoder - bottom
    gemm, copy = limits[f"{dtype} GF/s"] * 1e9, limits["copy GB/s"] * 1e9
    itemsize = agent.bank.model.dtype.itemsize

    def decode(actions: list[Action]) -> dict:
        read_of = set()  # tokens by what precedes them, under which Δ
        begins = agent.opened([a.prompt for a in actions])  # of a write nothing
        for a, begin in zip(actions, begins):
            under = id(a.delta) if a.delta else 0
            read_of |= {(under, tuple(a.prompt[:begin] if i < begin else a.prompt), i) for i in range(len(a.prompt))}
        said = [len(a.generation.ids) for a in actions]
        read = 2 * (len(read_of) * decoder + len(actions) * head)
        stepped, bytes_ = 2 * (sum(said) - len(said)) * (decoder + head), (max(said) - 1) * (decoder + head) * itemsize
        least = read / gemm + max(stepped / gemm, bytes_ / copy)
        return {"tokens": sum(said), "flops": read + stepped, "bytes": bytes_, "least": least}

    def compute(tokens: int, flops: int) -> dict:
        return {"tokens": tokens, "flops": flops, "bytes": 0, "least": flops / gemm}

    learned = [0, 0]
    for turn in range(agent.config.learn.turns):
        texts = {text for r in rollouts for row in ours.rows(r.pairs, turn) for text in row.texts}
        once = packed(0, [(list(text), len(text)) for text in texts], joins(agent.model))
        learned[1] += 2 * bottom * sum(len(row.ids) for row in once)
    for rollout, epochs in zip(rollouts, ours.epochs):
        labels = sum(len(agent.chat.answer(p.answer)) for p in rollout.pairs)
        tokens = [ours.tokens(rollout.pairs, epoch) for epoch in range(epochs)]
        learned[0] += sum(tokens)
        learned[1] += (4 * top - 2 * layer) * sum(tokens) + 2 * top * sum(tokens[:1])
        learned[1] += labels * head * (4 * epochs + 2)
        learned[1] -= after * (4 * (sum(tokens) - epochs * labels) + 2 * (sum(tokens[:1]) - labels))
    actions = [a for r in rollouts for a in r.actions]
    samples = [replay.Sample(i, a, 1.0) for i, r in enumerate(rollouts) for a in r.actions]
    shared = replay.shared(samples, lambda s: id(s.action.delta))
    rows = [replay.row_of(row) for row in shared]
    in_rows = sum(len(row.ids) for row in rows)
    parts = replay.micro_batches(
        [row.ids for row in rows], ours.config.micro_tokens, [row[0].action.delta for row in shared], agent.bank
    )
    lower = sum(_below([rows[i] for i in part], agent.bank.first_layer) for part in parts)
    seen = sum(len(a.prompt) + len(a.generation.ids) for a in actions)
    parameters = sum(p.numel() for p in ours.policy.params)
    out = {
        "write": decode([a for a in actions if a.kind == "write"]),
        "learn": compute(*learned),
        "answer": decode([a for a in actions if a.kind == "answer"]),
        "score": compute(0, 0),
        "backward": compute(seen, 6 * (lower * bottom + in_rows * (top - after) + ours.total * (after + head))),
        "optimizer": {"tokens": 0, "flops": 0, "bytes": 28 * parameters, "least": 28 * parameters / copy},
    }
    whole = {key: sum(found[key] for found in out.values()) for key in ("flops", "bytes", "least")}
    return {**out, "whole": {"tokens": ours.total, **whole}}


def _below(rows: list[Row], layers: int) -> int:
    """Tokens of rows below the adapted layers, what they have alike once."""
    found = below(rows, layers, "cpu")
    if found is None:
        return sum(len(row.ids) for row in rows)
    return len({spot for row, own in zip(rows, found.at.tolist()) for spot in own[: len(row.ids)]})


# what a person sees ------------------------------------------------------------------------------------------------------


def tables(found: dict) -> list[Table]:
    rows, work, off = found["rows"], found["work"], found["off"]["float32"]
    table = Table(
        title=f"\none GRPO step on {_rollouts(work)}, {rows[0]['dtype']}: seconds, medians of {work['rounds']} rounds in turns",
        title_justify="left", title_style="", box=SIMPLE_HEAD, padding=(0, 1, 0, 0),
        caption=f"limit: the least flops and bytes of the part at the GEMM and copy rates below. Tokens: generated; in learn "
        f"and backward those passed through the model. Both ways compared before, in float32: |Δ log p| {off['log p']:.1g}, "
        f"loss after learning {off['loss after']:.1g} of that before apart, θ0's gradient {off['gradient']:.1g}. "
        f"Outside of ops: {found['outside']:.1%} of tmem's step.",
        caption_justify="left", caption_style="",
    )  # fmt: skip
    for i, column in enumerate(("part", "tmem", "plain", "ratio", "tmem tok/s", "plain tok/s", "limit", "reached")):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        speeds = [f"{row['tokens'] / row[way]:.0f}" if row["tokens"] else "" for way in ("tmem", "plain")]
        limit = [f"{row['least']:.2f}", f"{row['least'] / row['tmem']:.0%}"] if row["least"] else ["", ""]
        table.add_row(
            row["part"], *(f"{row[way]:.2f}" for way in ("tmem", "plain")), f"{row['ratio']:.1f}x", *speeds, *limit,
            style="bold" if row["part"] == "whole" else "",
        )  # fmt: skip
    return [table]


def _rollouts(work: dict) -> str:
    n = work["episodes"] * work["group"]
    return f"{n} rollouts ({work['episodes']} episodes x {work['group']}), {work['model']}"


def draw(found: dict, beside: Path) -> list[Path]:
    """Beside `x.json`: x-parts.png, the parts of a step as stacked bars."""
    path = beside.with_name(f"{beside.stem}-parts.png")
    *parts, whole = found["rows"]
    bars = {"straightforward": "plain", "tmem": "tmem", "limit of this machine": "least"}
    longest = max(whole["plain"], whole["tmem"])
    with figure(path, (9, 3.2)) as picture:
        axes = picture.subplots()
        left = dict.fromkeys(bars, 0.0)
        for i, row in enumerate(parts):
            seconds = [row[key] for key in bars.values()]
            axes.barh(list(bars), seconds, left=list(left.values()), color=f"C{i}", label=row["part"], height=0.6)
            for at, (name, value) in enumerate(zip(bars, seconds)):
                if value > 0.06 * longest:
                    axes.text(left[name] + value / 2, at, f"{value:.3g} s", ha="center", va="center", color="w", fontsize=8)
                left[name] += value
        for at, (name, end) in enumerate(left.items()):
            ratio = f", {whole['ratio']:.1f}x" if name == "tmem" else ""
            axes.text(end + 0.01 * longest, at, f"{end:.3g} s{ratio}", va="center", fontsize=9)
        axes.invert_yaxis()
        axes.set(xlabel="seconds", xlim=(0, 1.12 * longest),
                 title=f"one GRPO step on {_rollouts(found['work'])}, {whole['dtype']}")  # fmt: skip
        axes.legend(loc="lower right", fontsize=8)
    return [path]
