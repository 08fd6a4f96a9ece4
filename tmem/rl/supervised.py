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
from ..episode import Episode
from ..tasks import stream
from .config import TrainConfig


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its right answer, and the slot under which it is answered (-1: Δ = 0)."""

    prompt: list[int]
    answer: list[int]
    slot: int = -1


@contextmanager
def examples(agent: Agent, config: TrainConfig, step: int) -> Iterator[tuple[list[Example], list[Example]]]:
    """Writing and recalling examples of one step's generated training episodes, a function of the seed and the step.

    Chunk j with its gold pairs is to be written under the Δ that learning the gold pairs of the chunks before it gives,
    as in a rollout: a model that writes well only while it has learned nothing stops writing after its first write.
    Questions are to be answered under the Δ of all gold pairs, with `unknown` where the episode does not say.
    In the first `warm_plain` steps Δ = 0 and no questions: how to write comes first, and costs half as much to teach.
    The slots are free again after the block.
    """
    episodes = [
        stream.episode(f"{config.seed}/warm/{step}/{i}", "train", config.difficulty) for i in range(config.warm_episodes)
    ]
    chat, bank = agent.chat, agent.bank

    def passage(episode: Episode, j: int, slot: int) -> Example:
        return Example(chat.prompt(write_prompt(episode.chunks[j])), chat.answer(render(episode.pairs[j])), slot)

    if step < config.warm_plain:
        yield [passage(e, j, -1) for e in episodes for j in range(len(e.chunks))], []
        return
    writing: list[Example] = []
    slots = [bank.alloc() for _ in episodes]
    taken = list(slots)
    try:
        for j in range(max(len(e.chunks) for e in episodes)):
            jobs = []
            for i, episode in enumerate(episodes):
                if j >= len(episode.chunks):
                    continue
                writing.append(passage(episode, j, slots[i] if j else -1))
                if j:
                    slots[i] = bank.fork(slots[i])
                    taken.append(slots[i])
                past = [p for pairs in episode.pairs[:j] for p in pairs]
                jobs.append((slots[i], rehearsal(past, episode.pairs[j], agent.config.learn.rehearse)))
            learn(agent.model, bank, jobs, chat, agent.config.learn)
        recalling = [
            Example(chat.prompt(q.text), chat.answer(q.answers[0]), slot)
            for slot, e in zip(slots, episodes)
            for q in e.questions
        ]
        yield writing, recalling
    finally:
        for slot in taken:
            bank.free(slot)


def backward(agent: Agent, batch: Sequence[Example], micro_tokens: int, scale: float = 1.0) -> float:
    """Accumulate `scale` times the gradient of the mean over examples of their mean token loss; returns the loss (nats).

    Every example weighs the same however long it is, and its loss does not depend on which others share the batch. Δ is
    a constant.
    """
    device = agent.bank.device
    total = 0.0
    for group, length in micro_batches([e.prompt + e.answer for e in batch], micro_tokens):
        members = [batch[i] for i in group]
        ids = fw.pad([e.prompt + e.answer for e in members], length, device=device)
        spots = [
            (row, len(e.prompt) + k - 1, token, 1.0 / (len(e.answer) * len(batch)))
            for row, e in enumerate(members)
            for k, token in enumerate(e.answer)
        ]
        rows, columns, targets, weights = (list(x) for x in zip(*spots))
        slots = [e.slot for e in members] + [-1] * (len(ids) - len(members))
        with agent.bank.route(slots, learn=False):
            logits = token_logits(agent.model, ids, rows, columns)
        nll = F.cross_entropy(logits, torch.tensor(targets, device=device), reduction="none")
        loss = (nll * torch.tensor(weights, device=device)).sum()
        (scale * loss).backward()
        total += float(loss.detach())
    return total


def micro_batches(sequences: Sequence[list[int]], tokens: int) -> list[tuple[list[int], int]]:
    """Indices of sequences grouped by length bucket into parts of at most `tokens` padded tokens: (indices, bucket)."""
    buckets: dict[int, list[int]] = {}
    for i, ids in enumerate(sequences):
        buckets.setdefault(fw.bucket(len(ids)), []).append(i)
    out = []
    for length, members in sorted(buckets.items()):
        size = max(1, tokens // length)
        out += [(members[at : at + size], length) for at in range(0, len(members), size)]
    return out


def token_logits(model, ids: torch.Tensor, rows: list[int], columns: list[int]) -> torch.Tensor:
    """Logits [len(rows), V] at the given positions of right-padded `ids` [B, T]; the head runs nowhere else."""
    length = ids.shape[1]
    positions = torch.arange(length, device=ids.device)[None]
    hidden = fw.layers(model, fw.embed(model, ids), positions, fw.causal_mask(length, ids.device))
    return fw.logits(model, hidden[rows, columns])
