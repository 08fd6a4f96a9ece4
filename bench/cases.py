"""The shapes: SmolLM2-135M's linear layers and many adapters, each case with the least bytes and flops of its task."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_LAYERS = ((576, 1536), (1536, 576), (576, 576))  # (K, N): gate and up, down, q and o
_LENGTHS = {
    "8x16..128": (16, 128, 40, 96, 24, 72, 56, 112),
    "8x64": (64,) * 8,
    "32x16": (16,) * 32,
}
_MLP_SITES = (1536, 1536, 576) * 8  # N of gate, up and down in the last 8 layers


@dataclass(frozen=True)
class LoraCase:
    """Forward and backward (dX, dB) of y = x Wᵀ + scale·(x Aᵀ) B[episode], A shared and frozen, W frozen.

    x [M, K] and w [N, K] in `dtype`; factors, z and dB fp32; one adapter of `rank` per episode, M = Σ lengths.
    """

    k: int
    n: int
    rank: int
    episodes: str
    lengths: tuple[int, ...]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.k}→{self.n} r={self.rank} {self.episodes}"

    @property
    def flops(self) -> int:
        """Base: y and dX. Adapter: shrink x, expand z, shrink dY, expand dZ, gram."""
        m = sum(self.lengths)
        return 4 * m * self.k * self.n + 2 * m * self.rank * (2 * self.k + 3 * self.n)

    @property
    def bytes(self) -> int:
        """x, dY and W (twice) read, y and dX written; A and B read twice, z written and read, dB read and written."""
        m, r = sum(self.lengths), self.rank
        base = 2 * (m * self.k + m * self.n + self.k * self.n) * self.dtype.itemsize
        return base + 4 * (2 * r * self.k + 4 * len(self.lengths) * r * self.n + 2 * m * r)


@dataclass(frozen=True)
class StepCase:
    """One AdamW step of `slots` adapters, each with B [rank, N] fp32 for every N in `widths`."""

    slots: int
    rank: int
    widths: tuple[int, ...]
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"{self.slots} adapters r={self.rank}"

    @property
    def width(self) -> int:
        """Parameters of one adapter."""
        return self.rank * sum(self.widths)

    @property
    def flops(self) -> int:
        """About 12 per parameter: decay, two moments, two corrections, root, quotient, update."""
        return 12 * self.slots * self.width

    @property
    def bytes(self) -> int:
        """Parameter, gradient and two moments read, parameter and moments written, 4 bytes each."""
        return 7 * 4 * self.slots * self.width


def lora_cases(quick: bool) -> list[LoraCase]:
    dtypes = (torch.float32, torch.bfloat16)
    if quick:
        return [LoraCase(64, 96, 4, "3x2..7", (5, 2, 7), d) for d in dtypes]
    return [
        LoraCase(k, n, r, episodes, lengths, d)
        for d in dtypes
        for k, n in _LAYERS
        for r in (8, 16)
        for episodes, lengths in _LENGTHS.items()
    ]


def step_cases(quick: bool) -> list[StepCase]:
    return [StepCase(3, 4, (64, 128))] if quick else [StepCase(slots, 16, _MLP_SITES) for slots in (8, 32)]
