"""Passes over what agents said, every token under the Δ that was in its slot when it was sampled.

The Δ of an action comes from a snapshot of its row (`snapshot`) or is learned again from the rollout's log (`log`): the same
numbers, no memory for snapshots, and every online update done twice.

Rollouts of a group begin with the same prompt under the same Δ = 0. What they said to it goes through the model as branches of
one row, so that the prompt, most of the tokens, is computed once, forward and backward. So is what the questions of one rollout
begin with, and below the layers that have a Δ what several rollouts read and say alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..adapters.bank import AdapterBank, Snapshot
from ..agent.agent import Agent
from ..agent.loop import Action, Rollout
from ..agent.teach import Lesson
from ..episode import Pair
from ..ops import token_logp
from .loss import PLAIN, Objective, policy_loss
from .policy import Policy
from .rows import Row, grouped, joined, logits_of


@dataclass
class Sample:
    """One action of a rollout in the updates of a batch: its advantage, and per token what the first update found."""

    rollout: int
    action: Action
    advantage: float
    reference: Tensor | None = None  # log-probability of the reference, if there is one
    own: Tensor | None = None  # of the trainer before the first update
    off: Tensor | None = None  # |log-probability of the trainer - of the sampler|


@dataclass
class Replayed:
    """An update's totals over the tokens of its samples, before division by their number."""

    samples: list[Sample]
    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    ratio: float = 0.0
    clipped: float = 0.0

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(len(s.action.generation.ids) for s in self.samples)

    @property
    def live(self) -> int:
        """Those that have an advantage."""
        return sum(len(s.action.generation.ids) for s in self.samples if s.advantage)

    @property
    def actions(self) -> list[tuple[int, str, int, int, float, float]]:
        """Per sample (rollout, kind, writes before it, tokens, mean and largest |Δ log p|), as the first update found."""
        return [
            (s.rollout, s.action.kind, s.action.writes, len(s.off), float(s.off.mean()), float(s.off.max()))
            for s in self.samples
        ]


def backward(
    agent: Agent, policy: Policy, rollouts: Sequence[Rollout], advantages: Sequence[Sequence[float]], total: float,
    objective: Objective = PLAIN, *, tokens: int = 4096, mode: str = "snapshot", before: Replayed | None = None,
) -> Replayed:  # fmt: skip
    """Accumulate the gradient of the policy loss over all actions of `rollouts` into θ0.

    advantages[i][k]  of action k of rollout i
    total   what all rollouts of all ranks generated: tokens Σ|o|, or actions, see Objective.weight
    tokens  padded tokens in one forward and backward pass
    mode    where an action's Δ comes from: "snapshot" or "log"
    before  what the update before this one found on the same batch; None: this is the batch's first
    Actions whose advantage is 0 contribute nothing but a KL term, and without one they are skipped. All ranks must call this
    together.
    """
    out = Replayed(_samples(rollouts, advantages, objective) if before is None else before.samples)
    rounds = _from_logs if mode == "log" else _from_snapshots
    for passes in rounds(agent, rollouts, out.samples, tokens):
        if objective.beta and before is None:
            with policy.referring(), torch.no_grad():
                for part, holding in passes:
                    with holding() as slots, agent.bank.route(slots, learn=False):
                        _score(policy, agent.bank, part, reference=True)
        with policy.updating(len(passes)):
            for part, holding in passes:
                with holding() as slots, agent.bank.route(slots, learn=False):
                    _accumulate(policy, agent.bank, part, total, objective, out)
    return out


def _samples(rollouts: Sequence[Rollout], advantages: Sequence[Sequence[float]], objective: Objective) -> list[Sample]:
    return [
        Sample(i, action, advantage)
        for i, (rollout, own) in enumerate(zip(rollouts, advantages))
        for action, advantage in zip(rollout.actions, own, strict=True)
        if (advantage != 0.0 or objective.beta) and action.generation.ids
    ]


def _score(
    policy: Policy, bank: AdapterBank, part: Sequence[list[Sample]], *, reference: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [tokens] of the part's generated tokens; the former kept as `reference` if so asked."""
    rows = [row_of(row) for row in part]
    said = torch.tensor([token for row in rows for token in row.said], device=bank.device)
    logp, entropy = token_logp(logits_of(policy, bank, rows), said)
    if reference:
        samples = [s for row in part for s in row]
        for sample, values in zip(samples, logp.split([len(s.action.generation.ids) for s in samples])):
            sample.reference = values
    return logp, entropy


def _accumulate(policy, bank, part, total, objective: Objective, out: Replayed) -> None:
    new, entropy = _score(policy, bank, part)
    part = [s for row in part for s in row]
    sizes = [len(s.action.generation.ids) for s in part]
    for sample, own in zip(part, new.detach().split(sizes)):
        sample.own = own if sample.own is None else sample.own

    def per_token(values) -> Tensor:
        return torch.tensor(values, device=bank.device, dtype=new.dtype)

    sampled = per_token([lp for s in part for lp in s.action.generation.logprobs])
    found = policy_loss(
        new,
        torch.cat([s.own for s in part]) if objective.truncate else sampled,
        per_token([s.advantage for s, n in zip(part, sizes) for _ in range(n)]),
        per_token([objective.weight(n, total) for n in sizes for _ in range(n)]),
        objective,
        sizes=sizes,
        sampled=sampled,
        reference=torch.cat([s.reference for s in part]) if objective.beta else None,
    )
    found.loss.backward()
    out.loss += float(found.loss.detach())
    out.kl += float(found.kl.sum())
    out.ratio += float(found.ratio.sum())
    out.clipped += float(found.clipped.sum())
    out.entropy += float(entropy.sum())
    for sample, off in zip(part, found.off.split(sizes)):
        sample.off = off.cpu() if sample.off is None else sample.off


# which Δ -----------------------------------------------------------------------------------------------------------------


# What goes through the model together, and a block in which slots hold its Δ.
Passes = list[tuple[list[list[Sample]], Callable[[], AbstractContextManager[list[int]]]]]


def shared(samples: Sequence[Sample], under: Callable[[Sample], Hashable]) -> list[list[Sample]]:
    """The samples by rows: those under the same Δ, which `under` names, with one prompt or prompts that begin alike."""

    def size(sample: Sample) -> int:
        return len(sample.action.generation.ids)

    rows = grouped(samples, lambda s: (under(s), s.action.prompt), size)
    return joined(rows, under, lambda s: s.action.prompt, size)


def row_of(samples: Sequence[Sample]) -> Row:
    """What the prompts of samples begin with, and what goes on from there in each: the rest of it, and what was said."""
    return Row.of([(s.action.prompt, s.action.generation.ids) for s in samples])


def _from_snapshots(agent, rollouts, samples, tokens) -> Iterator[Passes]:
    rows = shared(samples, lambda s: id(s.action.delta))
    deltas = [row[0].action.delta for row in rows]
    groups = micro_batches([row_of(row).ids for row in rows], tokens, deltas, agent.bank)
    yield [([rows[i] for i in group], partial(agent.bank.holding, [deltas[i] for i in group])) for group in groups]


def _from_logs(agent, rollouts, samples, tokens) -> Iterator[Passes]:
    with agent.bank.borrowed(len(rollouts)) as slots:
        for writes in learned_again(agent, [[e.written.pairs for e in r.log] for r in rollouts], slots):
            rows = shared([s for s in samples if s.action.writes == writes], lambda s: s.rollout if s.action.writes else None)
            groups = micro_batches([row_of(row).ids for row in rows], tokens, [None] * len(rows), agent.bank)
            parts = [[rows[i] for i in group] for group in groups]
            yield [(part, partial(nullcontext, [slots[row[0].rollout] for row in part])) for part in parts]


def learned_again(agent: Agent, logs: Sequence[Sequence[Sequence[Pair]]], slots: Sequence[int]) -> Iterator[int]:
    """How many writes were learned so far, from 0. Slot i, empty at first, then holds what as many of logs[i] taught: the pairs
    of one write after another."""
    lessons = [Lesson() for _ in logs]
    yield 0
    for j in range(max(map(len, logs), default=0)):
        due = [i for i, log in enumerate(logs) if j < len(log)]
        agent.teach([slots[i] for i in due], [logs[i][j] for i in due], [lessons[i] for i in due])
        yield j + 1


def micro_batches(
    sequences: Sequence[list[int]], tokens: int, deltas: Sequence[Snapshot | None], bank: AdapterBank
) -> list[list[int]]:
    """Indices of sequences, longest first, in parts of at most `tokens` padded tokens and at most a quarter padding each.

    A part has no more different Δ than the bank has free slots. A gradient over a batch is a sum in fp32: unlike an
    online update it is not promised bit by bit, so sequences of different length share a pass and no row is filled in.
    """
    free = bank.used.count(False)
    out: list[list[int]] = []
    kinds: set[int] = set()
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        mine = set() if deltas[i] is None else {id(deltas[i])}
        if out:
            longest = len(sequences[out[-1][0]])
            fits = (len(out[-1]) + 1) * longest <= tokens and len(kinds | mine) <= free
            if fits and 4 * len(sequences[i]) >= 3 * longest:
                out[-1].append(i)
                kinds |= mine
                continue
        out.append([i])
        kinds = mine
    return out
