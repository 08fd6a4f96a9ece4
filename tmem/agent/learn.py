"""The online update: a few gradient steps write question/answer pairs into one slot per episode.

All episodes learn in the same minibatches. What each gets is what it would get alone, bit for bit: its loss is normalised
by its own label count, only sequences of one length bucket share a batch, and a slot's sequences of a bucket never split
over two batches. The frozen trunk below the lowest adapted layer runs once per update, logits exist only at labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import forward as fw
from ..bank import AdapterBank
from ..episode import Pair
from .chat import Chat

MAX_TOKENS = 8192  # padded tokens in one forward pass; bounds activation memory


@dataclass(frozen=True)
class LearnConfig:
    """Online SFT. Defaults are for SmolLM2-135M; the paper's (SGD 5e-4, 5 epochs) are in presets/paper.toml."""

    lr: float = 1e-3
    epochs: int = 10
    batch: int = 16  # pairs per minibatch and slot
    clip: float = 0.0  # gradient norm per slot; 0 = off
    weight_decay: float = 0.0
    norm_cap: float = math.inf  # ‖ΔW‖_F above which a write is rolled back
    max_pair_tokens: int = 512


@dataclass(frozen=True)
class Learned:
    """What one update did to one slot: mean answer-token loss (nats) before and after, ‖ΔW‖_F, and if it was kept."""

    loss_before: float
    loss_after: float
    norm: float
    kept: bool
    reason: str = ""


@dataclass
class _Block:
    """Sequences of one bucket: trunk output [B, T, D], slot per row, and the labels as flat positions with weights."""

    hidden: Tensor
    slots: list[int]
    rows: Tensor
    columns: Tensor
    targets: Tensor
    weights: Tensor  # 1 / labels of this slot in this minibatch; 0 for dummies
    owners: Tensor  # slot per label


def learn(
    model,
    bank: AdapterBank,
    jobs: Sequence[tuple[int, Sequence[Pair]]],
    chat: Chat,
    config: LearnConfig,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Learned]:
    """Teach slot `s` its pairs, for every job `(s, pairs)`: `epochs` passes in minibatches, one optimizer step each.

    A write that ends with a higher loss, a non-finite number or a norm above the cap is rolled back: the slot is as
    before. `on_step(done, total)` reports progress. Jobs without pairs return zeros and leave their slot alone.
    Raises ValueError if a slot appears twice.
    """
    if len({s for s, _ in jobs}) != len(jobs):
        raise ValueError("learn: a slot appears in two jobs; give each slot one list of pairs.")
    active = [(slot, list(pairs)) for slot, pairs in jobs if pairs]
    before = {slot: bank.snapshot(slot) for slot, _ in active}
    for slot, _ in active:
        bank.configure(slot, lr=config.lr, clip=config.clip, weight_decay=config.weight_decay)
    minibatches = _minibatches(model, bank, active, chat, config)
    total = config.epochs * len(minibatches)
    first: dict[int, float] = {}
    for epoch in range(config.epochs):
        for index, (slots, blocks) in enumerate(minibatches):
            losses = _pass(model, bank, blocks, backward=True)
            bank.step(slots)
            if epoch == 0:
                _accumulate(first, losses)
            if on_step is not None:
                on_step(epoch * len(minibatches) + index + 1, total)
    last: dict[int, float] = {}
    with torch.no_grad():
        for _, blocks in minibatches:
            _accumulate(last, _pass(model, bank, blocks, backward=False))
    out = []
    for slot, pairs in jobs:
        if not pairs:
            out.append(Learned(0.0, 0.0, bank.delta_norm(slot), True, "nothing to learn"))
            continue
        n = math.ceil(len(pairs) / config.batch)
        loss_before, loss_after, norm = first[slot] / n, last[slot] / n, bank.delta_norm(slot)
        reason = ""
        if not (math.isfinite(loss_after) and math.isfinite(norm)):
            reason = "not finite"
        elif loss_after > loss_before:
            reason = "the loss rose"
        elif norm > config.norm_cap:
            reason = f"‖ΔW‖ above {config.norm_cap:g}"
        if reason:
            bank.restore(slot, before[slot])
        out.append(Learned(loss_before, loss_after, norm, not reason, reason))
    return out


def _accumulate(total: dict[int, float], losses: dict[int, float]) -> None:
    for slot, value in losses.items():
        total[slot] = total.get(slot, 0.0) + value


def _minibatches(model, bank, jobs, chat, config) -> list[tuple[list[int], list[_Block]]]:
    """Minibatch j holds pairs [j·batch, (j+1)·batch) of every slot that has so many."""
    out = []
    for start in range(0, max((len(p) for _, p in jobs), default=0), config.batch):
        encoded: dict[int, dict[int, list[tuple[list[int], int]]]] = {}  # bucket -> slot -> (ids, prompt length)
        labels: dict[int, int] = {}
        for slot, pairs in jobs:
            for pair in pairs[start : start + config.batch]:
                prompt, answer = chat.prompt(pair.question), chat.answer(pair.answer)
                prompt = prompt[-max(1, config.max_pair_tokens - len(answer)) :]
                answer = answer[: config.max_pair_tokens - len(prompt)]
                ids = prompt + answer
                encoded.setdefault(fw.bucket(len(ids)), {}).setdefault(slot, []).append((ids, len(prompt)))
                labels[slot] = labels.get(slot, 0) + len(answer)
        blocks = []
        for length, by_slot in sorted(encoded.items()):
            group: list[tuple[int, list[int], int]] = []
            for slot, sequences in by_slot.items():
                if group and (len(group) + len(sequences)) * length > MAX_TOKENS:
                    blocks.append(_block(model, bank, group, length, labels))
                    group = []
                group += [(slot, ids, prompt) for ids, prompt in sequences]
            blocks.append(_block(model, bank, group, length, labels))
        out.append((sorted(labels), blocks))
    return out


@torch.no_grad()
def _block(model, bank, group, length, labels) -> _Block:
    device = bank.device
    ids = fw.pad([g[1] for g in group], length, device=device)
    positions = torch.arange(length, device=device)[None]
    hidden = fw.layers(
        model, fw.embed(model, ids), positions, fw.causal_mask(length, device), stop=bank.first_layer
    )
    # The state at column c predicts token c + 1.
    spots = [(r, c - 1, s) for r, (s, seq, prompt) in enumerate(group) for c in range(prompt, len(seq))]
    rows, columns, owners = (list(x) for x in zip(*spots))
    weights = [1.0 / labels[s] for s in owners]
    targets = ids[rows, [c + 1 for c in columns]]
    for _ in range(fw.MIN_ROWS - len(rows)):  # dummy labels keep the head's GEMM in its M >= 4 class
        rows.append(0)
        columns.append(0)
        owners.append(-1)
        weights.append(0.0)
        targets = torch.cat([targets, targets[:1]])
    slots = [g[0] for g in group] + [-1] * (len(ids) - len(group))
    return _Block(
        hidden,
        slots,
        torch.tensor(rows, device=device),
        torch.tensor(columns, device=device),
        targets,
        torch.tensor(weights, device=device),
        torch.tensor(owners, device=device),
    )


def _pass(model, bank, blocks: list[_Block], *, backward: bool) -> dict[int, float]:
    """Loss per slot (each normalised by its own labels); with `backward`, gradients accumulate in the bank's rows."""
    losses: dict[int, float] = {}
    for block in blocks:
        length = block.hidden.shape[1]
        positions = torch.arange(length, device=bank.device)[None]
        mask = fw.causal_mask(length, bank.device)
        with bank.route(block.slots, learn=backward):
            hidden = fw.layers(model, block.hidden, positions, mask, start=bank.first_layer)
            logits = fw.logits(model, hidden[block.rows, block.columns])
            nll = F.cross_entropy(logits, block.targets, reduction="none") * block.weights
            if backward:
                nll.sum().backward()
        for slot, value in zip(block.owners.tolist(), nll.detach().tolist()):
            if slot >= 0:
                losses[slot] = losses.get(slot, 0.0) + value
    return losses
