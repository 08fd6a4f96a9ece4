"""The supervised part: what a good write looks like, and how questions are answered from what was learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import forward as fw
from ..agent.episode import Agent
from ..agent.learn import learn, rehearsal
from ..agent.write import render, write_prompt
from ..bank import AdapterBank, Snapshot
from ..episode import Episode, Pair
from ..tasks import stream
from .config import TrainConfig


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its right answer, and the Δ under which it is answered (None: Δ = 0)."""

    prompt: list[int]
    answer: list[int]
    delta: Snapshot | None = None


def passages(agent: Agent, episode: Episode) -> list[tuple[str, list[Pair]]]:
    """The texts an agent would write, whole chunks up to its window, each with the gold pairs that then stand.

    A model that only ever saw single chunks writes about the first of several and stops.
    """
    out: list[tuple[str, list[Pair]]] = []
    used = 0
    for chunk, pairs in zip(episode.chunks, episode.pairs):
        size = agent.chat.count(chunk)
        if out and used + size <= agent.config.write.window:
            text, standing = out[-1]
            out[-1] = f"{text}\n\n{chunk}", rehearsal(standing, pairs, len(standing))
            used += size
        else:
            out.append((chunk, list(pairs)))
            used = size
    return out


def examples(agent: Agent, config: TrainConfig, step: int) -> tuple[list[Example], list[Example]]:
    """Writing and recalling examples of one step's generated training episodes, a function of the seed and the step.

    Passage j with its gold pairs is to be written under the Δ that learning the gold pairs before it gives, as in a
    rollout: a model that writes well only while it has learned nothing stops writing after its first write.
    Questions are to be answered under the Δ of all gold pairs, with `unknown` where the episode does not say.
    In the first `warm_plain` steps Δ = 0 and no questions: how to write comes first, and costs half as much to teach.
    """
    episodes = [
        stream.episode(f"{config.seed}/warm/{step}/{i}", "train", config.difficulty) for i in range(config.warm_episodes)
    ]
    chat, bank = agent.chat, agent.bank
    cut = [passages(agent, e) for e in episodes]

    def example(text: str, pairs: list[Pair], delta: Snapshot | None) -> Example:
        return Example(chat.prompt(write_prompt(text)), chat.answer(render(pairs)), delta)

    if step < config.warm_plain:
        return [example(*passage, None) for plan in cut for passage in plan], []
    writing: list[Example] = []
    deltas: list[Snapshot | None] = [None] * len(episodes)
    past: list[list[Pair]] = [[] for _ in episodes]
    slots = [bank.alloc() for _ in episodes]
    try:
        for j in range(max(len(plan) for plan in cut)):
            due = [i for i, plan in enumerate(cut) if j < len(plan)]
            writing += [example(*cut[i][j], deltas[i]) for i in due]
            jobs = [(slots[i], rehearsal(past[i], cut[i][j][1], agent.config.learn.rehearse)) for i in due]
            learn(agent.model, bank, jobs, chat, agent.config.learn)
            for i in due:
                past[i] += cut[i][j][1]
                deltas[i] = bank.snapshot(slots[i], optimizer=False)
    finally:
        for slot in slots:
            bank.free(slot)
    recalling = [
        Example(chat.prompt(q.text), chat.answer(q.answers[0]), delta)
        for delta, episode in zip(deltas, episodes)
        for q in episode.questions
    ]
    return writing, recalling


def backward(agent: Agent, batch: Sequence[Example], micro_tokens: int, scale: float = 1.0) -> float:
    """Accumulate `scale` times the gradient of the mean over examples of their mean token loss; returns the loss (nats).

    Every example weighs the same however long it is, and its loss does not depend on which others share the batch. Δ is
    a constant.
    """
    device = agent.bank.device
    total = 0.0
    groups = micro_batches([e.prompt + e.answer for e in batch], micro_tokens, [e.delta for e in batch], agent.bank)
    for group in groups:
        members = [batch[i] for i in group]
        ids = padded([e.prompt + e.answer for e in members], device)
        spots = [
            (row, len(e.prompt) + k - 1, token, 1.0 / (len(e.answer) * len(batch)))
            for row, e in enumerate(members)
            for k, token in enumerate(e.answer)
        ]
        rows, columns, targets, weights = (list(x) for x in zip(*spots))
        with under(agent.bank, [e.delta for e in members]):
            logits = token_logits(agent.model, ids, rows, columns)
            nll = F.cross_entropy(logits, torch.tensor(targets, device=device), reduction="none")
            loss = (nll * torch.tensor(weights, device=device)).sum()
            (scale * loss).backward()
        total += float(loss.detach())
    return total


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


@contextmanager
def under(bank: AdapterBank, deltas: Sequence[Snapshot | None]) -> Iterator[None]:
    """Batch row i of the model runs under `deltas[i]` as a constant; forward and backward belong into the block.

    The snapshots take free slots of the bank, one for each different Δ. Raises RuntimeError if there are too few.
    """
    slots: dict[int, int] = {}
    try:
        for delta in deltas:
            if delta is not None and id(delta) not in slots:
                slots[id(delta)] = bank.alloc()
                bank.restore(slots[id(delta)], delta)
        with bank.route([-1 if d is None else slots[id(d)] for d in deltas], learn=False):
            yield
    finally:
        for slot in slots.values():
            bank.free(slot)


def padded(sequences: Sequence[list[int]], device) -> torch.Tensor:
    """Token ids int64 [len(sequences), longest], zeros to the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True).to(device)


def token_logits(model, ids: torch.Tensor, rows: list[int], columns: list[int]) -> torch.Tensor:
    """Logits [len(rows), V] at the given positions of right-padded `ids` [B, T]; the head runs nowhere else."""
    length = ids.shape[1]
    positions = torch.arange(length, device=ids.device)[None]
    hidden = fw.layers(model, fw.embed(model, ids), positions, fw.causal_mask(length, ids.device))
    return fw.logits(model, hidden[rows, columns])
