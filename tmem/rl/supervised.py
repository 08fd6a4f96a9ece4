"""The supervised part: what a good write looks like, and that an empty memory answers `unknown`."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .. import forward as fw
from ..agent.chat import Chat
from ..agent.write import render, write_prompt
from ..tasks import stream
from .config import TrainConfig

Example = tuple[list[int], list[int]]  # prompt ids, answer ids


def examples(chat: Chat, config: TrainConfig, step: int) -> list[Example]:
    """The batch of one step, a function of the seed and the step alone.

    Passages of generated training episodes with their gold pairs, and questions asked with Δ = 0, to which `unknown` is
    the right answer: what the fast weights do not hold, the model should not make up.
    """
    rng = random.Random(f"{config.seed}/supervised/{step}")
    out: list[Example] = []
    questions: list[str] = []
    index = 0
    while len(out) < config.warm_batch:
        episode = stream.episode(f"{config.seed}/supervised/{step}/{index}", "train", config.difficulty)
        index += 1
        questions += [q.text for q in episode.questions]
        for chunk, pairs in zip(episode.chunks, episode.pairs):
            if len(out) < config.warm_batch and pairs:
                out.append((chat.prompt(write_prompt(chunk)), chat.answer(render(pairs))))
    for text in rng.sample(questions, min(config.warm_unknown, len(questions))):
        out.append((chat.prompt(text), chat.answer("unknown")))
    return out


def backward(model, batch: Sequence[Example], micro_tokens: int) -> float:
    """Accumulate the gradient of the mean over examples of each example's mean token loss; returns that loss (nats).

    Every example weighs the same however long it is, and its loss does not depend on which others share the batch.
    """
    device = next(model.parameters()).device
    total = 0.0
    for group, length in micro_batches([p + a for p, a in batch], micro_tokens):
        ids = fw.pad([batch[i][0] + batch[i][1] for i in group], length, device=device)
        spots = [(r, c - 1, i) for r, i in enumerate(group) for c in range(len(batch[i][0]), len(sum(batch[i], [])))]
        rows, columns, owners = (list(x) for x in zip(*spots))
        weights = torch.tensor([1.0 / (len(batch[i][1]) * len(batch)) for i in owners], device=device)
        logits = token_logits(model, ids, rows, columns)
        loss = (F.cross_entropy(logits, ids[rows, [c + 1 for c in columns]], reduction="none") * weights).sum()
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
