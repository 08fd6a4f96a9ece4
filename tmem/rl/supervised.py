"""The supervised part: what a good write looks like, and how questions are answered from what was learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import forward as fw
from ..agent.chat import Chat
from ..agent.episode import Agent
from ..agent.learn import learn
from ..agent.write import render, write_prompt
from ..tasks import stream
from .config import TrainConfig


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its right answer, and the slot under which it is answered (-1: Δ = 0)."""

    prompt: list[int]
    answer: list[int]
    slot: int = -1


def writing(chat: Chat, config: TrainConfig, step: int) -> list[Example]:
    """Passages of generated training episodes with their gold pairs; a function of the seed and the step alone."""
    out: list[Example] = []
    index = 0
    while len(out) < config.warm_batch:
        episode = stream.episode(f"{config.seed}/write/{step}/{index}", "train", config.difficulty)
        index += 1
        for chunk, pairs in zip(episode.chunks, episode.pairs):
            if len(out) < config.warm_batch and pairs:
                out.append(Example(chat.prompt(write_prompt(chunk)), chat.answer(render(pairs))))
    return out


@contextmanager
def recalling(agent: Agent, config: TrainConfig, step: int) -> Iterator[list[Example]]:
    """Questions of generated training episodes, to be answered under the Δ that learning their gold pairs gives.

    What was never said is to be answered `unknown`, what the episode says with its value: θ0 is trained so that learned
    pairs answer paraphrased questions, and only those. The slots are free again after the block.
    """
    episodes = [
        stream.episode(f"{config.seed}/recall/{step}/{i}", "train", config.difficulty)
        for i in range(config.warm_episodes)
    ]
    slots = [agent.bank.alloc() for _ in episodes]
    try:
        jobs = [(slot, [p for pairs in e.pairs for p in pairs]) for slot, e in zip(slots, episodes)]
        learn(agent.model, agent.bank, jobs, agent.chat, agent.config.learn)
        yield [
            Example(agent.chat.prompt(q.text), agent.chat.answer(q.answers[0]), slot)
            for slot, e in zip(slots, episodes)
            for q in e.questions
        ]
    finally:
        for slot in slots:
            agent.bank.free(slot)


def backward(agent: Agent, batch: Sequence[Example], micro_tokens: int) -> float:
    """Accumulate the gradient of the mean over examples of each example's mean token loss; returns that loss (nats).

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
        loss.backward()
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
