"""Subspaces for the fast weights: what the shared factor A is made from. B starts at zero, so Δ = 0 exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ops import batched_rsvd

INITS = ("sigma", "none", "random")


def make_a(weights: list[Tensor], rank: int, init: str = "sigma", seed: int = 0) -> list[Tensor]:
    """One factor A [rank, K] fp32 for every weight [N, K].

    `sigma`: A = Σ_r V_rᵀ, the top right-singular directions scaled by their singular values (arXiv 2606.04536).
    `none`: A = V_rᵀ, the same directions with unit rows. `random`: Kaiming-uniform as PEFT initialises lora_A.
    Raises ValueError for an unknown init or a rank above min(N, K).
    """
    if init not in INITS:
        raise ValueError(f"init: expected one of {', '.join(INITS)}, got {init!r}.")
    for w in weights:
        if not 1 <= rank <= min(w.shape):
            raise ValueError(f"rank: expected 1..{min(w.shape)} for a weight of shape {tuple(w.shape)}, got {rank}.")
    if init == "random":
        gen = torch.Generator().manual_seed(seed)
        bound = [1 / math.sqrt(w.shape[1]) for w in weights]
        return [
            torch.empty(rank, w.shape[1]).uniform_(-b, b, generator=gen).to(w.device) for w, b in zip(weights, bound)
        ]
    out = []
    for _, s, v in batched_rsvd([w.detach() for w in weights], rank, seed=seed):
        out.append((v * s if init == "sigma" else v).T.contiguous().float())
    return out
