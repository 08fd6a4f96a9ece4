"""Pairs as a batch for transformers: what the ways to learn that use PEFT have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..episode import Pair
from ..models.chat import Chat


def batch_of(chat: Chat, pairs: Sequence[Pair], device: torch.device | str) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, int64 [pairs, longest], padded on the right; labels stand at answers alone."""
    rows = [(chat.prompt(p.question), chat.answer(p.answer)) for p in pairs]
    width = max(len(q) + len(a) for q, a in rows)
    found = {
        "input_ids": [q + a + [chat.end] * (width - len(q + a)) for q, a in rows],
        "attention_mask": [[1] * len(q + a) + [0] * (width - len(q + a)) for q, a in rows],
        "labels": [[-100] * len(q) + a + [-100] * (width - len(q + a)) for q, a in rows],
    }
    return {name: torch.tensor(value, device=device) for name, value in found.items()}
