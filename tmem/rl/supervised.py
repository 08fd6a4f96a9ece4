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
from ..episode import Episode, Pair
from ..tasks import stream
from .config import TrainConfig


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of its right answer, and the slot under which it is answered (-1: Δ = 0)."""

    prompt: list[int]
    answer: list[int]
    slot: int = -1


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


@contextmanager
def examples(agent: Agent, config: TrainConfig, step: int) -> Iterator[tuple[list[Example], list[Example]]]:
    """Writing and recalling examples of one step's generated training episodes, a function of the seed and the step.

    Passage j with its gold pairs is to be written under the Δ that learning the gold pairs before it gives, as in a
    rollout: a model that writes well only while it has learned nothing stops writing after its first write.
    Questions are to be answered under the Δ of all gold pairs, with `unknown` where the episode does not say.
    In the first `warm_plain` steps Δ = 0 and no questions: how to write comes first, and costs half as much to teach.
    The slots are free again after the block.
    """
    episodes = [
        stream.episode(f"{config.seed}/warm/{step}/{i}", "train", config.difficulty) for i in range(config.warm_episodes)
    ]
    chat, bank = agent.chat, agent.bank
    cut = [passages(agent, e) for e in episodes]

    def example(text: str, pairs: list[Pair], slot: int) -> Example:
        return Example(chat.prompt(write_prompt(text)), chat.answer(render(pairs)), slot)

    if step < config.warm_plain:
        yield [example(*passage, -1) for plan in cut for passage in plan], []
        return
    writing: list[Example] = []
    slots = [bank.alloc() for _ in episodes]
    taken = list(slots)
    past: list[list[Pair]] = [[] for _ in episodes]
    try:
        for j in range(max(len(plan) for plan in cut)):
            jobs = []
            for i, plan in enumerate(cut):
                if j >= len(plan):
                    continue
                writing.append(example(*plan[j], slots[i] if j else -1))
                if j:
                    slots[i] = bank.fork(slots[i])
                    taken.append(slots[i])
                jobs.append((slots[i], rehearsal(past[i], plan[j][1], agent.config.learn.rehearse)))
                past[i] += plan[j][1]
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
    for group in micro_batches([e.prompt + e.answer for e in batch], micro_tokens):
        members = [batch[i] for i in group]
        ids = padded([e.prompt + e.answer for e in members], device)
        spots = [
            (row, len(e.prompt) + k - 1, token, 1.0 / (len(e.answer) * len(batch)))
            for row, e in enumerate(members)
            for k, token in enumerate(e.answer)
        ]
        rows, columns, targets, weights = (list(x) for x in zip(*spots))
        with agent.bank.route([e.slot for e in members], learn=False):
            logits = token_logits(agent.model, ids, rows, columns)
        nll = F.cross_entropy(logits, torch.tensor(targets, device=device), reduction="none")
        loss = (nll * torch.tensor(weights, device=device)).sum()
        (scale * loss).backward()
        total += float(loss.detach())
    return total


def micro_batches(sequences: Sequence[list[int]], tokens: int) -> list[list[int]]:
    """Indices of sequences, longest first, in parts of at most `tokens` padded tokens and at most a quarter padding each.

    A gradient over a batch is a sum in fp32: unlike an online update it is not promised bit by bit, so sequences of
    different length may share a pass and no row is filled in.
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    out: list[list[int]] = []
    for i in order:
        if out:
            longest = len(sequences[out[-1][0]])
            if (len(out[-1]) + 1) * longest <= tokens and 4 * len(sequences[i]) >= 3 * longest:
                out[-1].append(i)
                continue
        out.append([i])
    return out


def padded(sequences: Sequence[list[int]], device) -> torch.Tensor:
    """Token ids int64 [len(sequences), longest], zeros to the right."""
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sequences], batch_first=True).to(device)


def token_logits(model, ids: torch.Tensor, rows: list[int], columns: list[int]) -> torch.Tensor:
    """Logits [len(rows), V] at the given positions of right-padded `ids` [B, T]; the head runs nowhere else."""
    length = ids.shape[1]
    positions = torch.arange(length, device=ids.device)[None]
    hidden = fw.layers(model, fw.embed(model, ids), positions, fw.causal_mask(length, ids.device))
    return fw.logits(model, hidden[rows, columns])
