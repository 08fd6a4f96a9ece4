"""The supervised part: what a good write looks like, and how questions are answered from what was learned."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..adapters.bank import Snapshot
from ..agent.agent import Agent
from ..agent.teach import Lesson, rehearsal
from ..agent.write import render, write_prompt
from ..episode import Episode, Pair
from .config import TrainConfig
from .loss import token_logp
from .policy import Policy
from .replay import micro_batches, padded


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
            out[-1] = f"{text}\n\n{chunk}", [*rehearsal(standing, pairs, len(standing)), *pairs]
            used += size
        else:
            out.append((chunk, list(pairs)))
            used = size
    return out


def shown(text: str, pairs: Sequence[Pair], config: TrainConfig) -> list[Pair]:
    """The gold pairs of a passage that a supervised example writes: all, or with `warm_pairs` 1 to so many, in their order.

    A sample shows the form and leaves to the reward how much to write, and what.
    """
    if not config.warm_pairs:
        return list(pairs)
    draw = random.Random(f"{config.seed}/{text}")
    count = min(len(pairs), draw.randint(1, config.warm_pairs))
    return [pairs[i] for i in sorted(draw.sample(range(len(pairs)), count))]


def examples(agent: Agent, config: TrainConfig, step: int, episodes: Sequence[Episode]) -> tuple[list[Example], list[Example]]:
    """Writing and recalling examples of one step's training episodes.

    Passage j with its gold pairs is to be written under the Δ that learning the gold pairs before it gives, as in a
    rollout: a model that writes well only while it has learned nothing stops writing after its first write. Where a rollout
    writes without Δ (`under_delta` off), so does the example.
    Questions are to be answered under the Δ of all gold pairs, with `unknown` where the episode does not say.
    With `warm_pairs` what is written is only a sample of a passage's gold pairs.
    In the first `warm_plain` steps Δ = 0 and no questions: how to write comes first, and costs half as much to teach.
    """
    chat = agent.chat
    streams = [passages(agent, e) for e in episodes]

    def example(text: str, pairs: list[Pair], delta: Snapshot | None) -> Example:
        return Example(chat.prompt(write_prompt(text)), chat.answer(render(shown(text, pairs, config))), delta)

    if step < config.warm_plain:
        return [example(*passage, None) for stream in streams for passage in stream], []
    writing: list[Example] = []
    deltas: list[Snapshot | None] = [None] * len(episodes)
    lessons, under_delta = [Lesson() for _ in episodes], agent.config.write.under_delta
    with agent.bank.borrowed(len(episodes)) as slots:
        for j in range(max(map(len, streams), default=0)):
            due = [i for i, stream in enumerate(streams) if j < len(stream)]
            writing += [example(*streams[i][j], deltas[i] if under_delta else None) for i in due]
            agent.teach([slots[i] for i in due], [streams[i][j][1] for i in due], [lessons[i] for i in due])
            for i in due:
                deltas[i] = agent.bank.snapshot(slots[i], optimizer=False)
    recalling = [
        Example(chat.prompt(agent.asked(q.text)), chat.answer(q.answers[0]), delta)
        for delta, episode in zip(deltas, episodes)
        for q in episode.questions
    ]
    return writing, recalling


def backward(
    agent: Agent, policy: Policy, batch: Sequence[Example], micro_tokens: int, scale: float = 1.0, count: float | None = None
) -> float:
    """Accumulate `scale` times the gradient of the mean over examples of their mean token loss; returns the loss (nats).

    Every example weighs the same however long it is, and its loss does not depend on which others share the batch. Δ is
    a constant. `count`: examples of all ranks, if there are more; the losses of the ranks are then parts of one. All ranks
    must call this together.
    """
    device, count = agent.bank.device, count or len(batch)
    total = 0.0
    groups = micro_batches([e.prompt + e.answer for e in batch], micro_tokens, [e.delta for e in batch], agent.bank)
    with policy.updating(len(groups)):
        for group in groups:
            members = [batch[i] for i in group]
            ids = padded([e.prompt + e.answer for e in members], device)
            spots = [
                (row, len(e.prompt) + k - 1, token, 1.0 / (len(e.answer) * count))
                for row, e in enumerate(members)
                for k, token in enumerate(e.answer)
            ]
            rows, columns, targets, weights = (list(x) for x in zip(*spots))
            with agent.bank.holding([e.delta for e in members]) as slots, agent.bank.route(slots, learn=False):
                logits = policy.logits(ids, rows, columns)
                logp, _ = token_logp(logits, torch.tensor(targets, device=device))
                loss = -(logp * torch.tensor(weights, device=device)).sum()
                (scale * loss).backward()
            total += float(loss.detach())
    return total
