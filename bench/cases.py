"""The shapes: SmolLM2-135M's linear layers and many adapters, on a GPU also a large model's; each case with the least
bytes and flops of its task."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..models import tiny

_LAYERS = ((576, 1536), (1536, 576), (576, 576))  # (K, N): gate and up, down, q and o
RAGGED = (16, 128, 40, 96, 24, 72, 56, 112)
_LENGTHS = {"8x16..128": RAGGED, "32x16": (16,) * 32, "1x512": (512,)}
# What the cost depends on, one at a time; the one in the middle is 8 adapters of rank 16 with 64 tokens each.
_SWEEPS = {
    "adapters": [(slots, 512 // slots, 16) for slots in (1, 2, 4, 8, 16, 32, 64, 128)],
    "tokens": [(8, tokens, 16) for tokens in (1, 4, 16, 64, 256)],
    "rank": [(8, 64, rank) for rank in (1, 4, 8, 16, 32, 64)],
}
_MLP_SITES = (1536, 1536, 576) * 8  # N of gate, up and down in the last 8 layers
_ALL_SITES = (576, 192, 192, 576, 1536, 1536, 576) * 30  # of every linear layer


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
    sweep: str = ""  # which picture it belongs to; "" = the table's own

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
    layers: str = "MLP, last 8 layers"

    @property
    def name(self) -> str:
        return f"{self.slots} adapters r={self.rank}, {self.layers}"

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


ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MLP = ALL[4:]
SMOL = (
    ("vocab_size", 49152), ("hidden_size", 576), ("intermediate_size", 1536), ("num_hidden_layers", 30),
    ("num_attention_heads", 9), ("num_key_value_heads", 3),
)  # fmt: skip
TINY = tiny.SIZES


def linear_sizes(sizes: tuple[tuple[str, int], ...]) -> dict[str, tuple[int, int]]:
    """(K, N) of every linear layer of a decoder layer."""
    size = dict(sizes)
    hidden, mlp = size["hidden_size"], size["intermediate_size"]
    kv = hidden // size["num_attention_heads"] * size["num_key_value_heads"]
    attention = {"q_proj": (hidden, hidden), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (hidden, hidden)}
    return {**attention, "gate_proj": (hidden, mlp), "up_proj": (hidden, mlp), "down_proj": (mlp, hidden)}


@dataclass(frozen=True)
class Adapters:
    """Which layers are adapted: `targets` of the last `last_layers` decoder layers, all of them where it is None."""

    rank: int
    targets: tuple[str, ...]
    last_layers: int | None


@dataclass(frozen=True)
class Work:
    """How much passes through a decoder.

    tokens  through its last `layers` layers (None: all)
    slots   adapters, one a sequence
    passes  1: forward; 2: also dX and dB
    logits  rows of the head
    times   that all of this is done
    """

    tokens: int
    slots: int
    passes: int
    layers: int | None = None
    logits: int = 0
    times: int = 1


@dataclass(frozen=True)
class ModelCase:
    """A whole decoder with random weights under adapters.

    Counted are the linear layers, rows of the head, and the adapters; attention, norms and activations are not: the least
    bytes are those of the weights, once a pass.
    """

    name: str
    precision: str  # "float32", "float32 medium" (torch.set_float32_matmul_precision), "bfloat16"
    sizes: tuple[tuple[str, int], ...]
    adapters: Adapters
    work: Work

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @property
    def _base(self) -> int:
        """Weights of the linear layers."""
        return sum(k * n for k, n in linear_sizes(self.sizes).values()) * (self.work.layers or self._layers)

    @property
    def _head(self) -> int:
        size = dict(self.sizes)
        return size["hidden_size"] * size["vocab_size"] if self.work.logits else 0

    @property
    def _layers(self) -> int:
        return dict(self.sizes)["num_hidden_layers"]

    @property
    def _adapted(self) -> list[tuple[int, int]]:
        """(K, N) of every adapted layer."""
        linear = linear_sizes(self.sizes)
        return [linear[t] for t in self.adapters.targets] * (self.adapters.last_layers or self._layers)

    @property
    def _up(self) -> int:
        """Numbers in B of one adapter."""
        return self.adapters.rank * sum(n for _, n in self._adapted)

    @property
    def flops(self) -> int:
        """Base and head: a product a pass. Adapter: both factors a pass, dB in the second."""
        work, both = self.work, self.adapters.rank * sum(k + n for k, n in self._adapted)
        base = 2 * work.passes * (work.tokens * self._base + work.logits * self._head)
        adapters = 2 * work.tokens * (both * work.passes + (self._up if work.passes == 2 else 0))
        return work.times * (base + adapters)

    @property
    def bytes(self) -> int:
        """Weights once a pass; B read, and with two passes read again and dB read and written, 4 bytes each."""
        work, itemsize = self.work, self.dtype.itemsize
        adapters = 4 * work.slots * self._up * (4 if work.passes == 2 else 1)
        return work.times * (work.passes * (self._base + self._head) * itemsize + adapters)


def lora_cases(quick: bool, device: str = "cpu") -> list[LoraCase]:
    dtypes = (torch.float32, torch.bfloat16)
    if quick:
        sweep = [LoraCase(64, 96, 4, f"{s}x4", (4,) * s, torch.float32, "adapters") for s in (1, 2)]
        return [LoraCase(64, 96, 4, "3x2..7", (5, 2, 7), d) for d in dtypes] + sweep
    if device == "cuda":
        large = {
            "64x128": (128,) * 64, "64x1..253": tuple(1 + 4 * (i * 37 % 64) for i in range(64)),
            "256x16": (16,) * 256, "1x8192": (8192,),
        }  # fmt: skip
        return [LoraCase(4096, 4096, r, e, lengths, torch.bfloat16) for r in (16, 64) for e, lengths in large.items()]
    table = [
        LoraCase(k, n, r, episodes, lengths, d)
        for d in dtypes
        for k, n in _LAYERS
        for r in (8, 16)
        for episodes, lengths in _LENGTHS.items()
    ]
    sweeps = [
        LoraCase(576, 1536, rank, f"{slots}x{tokens}", (tokens,) * slots, torch.float32, sweep)
        for sweep, points in _SWEEPS.items()
        for slots, tokens, rank in points
    ]
    return table + sweeps


def step_cases(quick: bool, device: str = "cpu") -> list[StepCase]:
    if quick:
        return [StepCase(3, 4, (64, 128))]
    if device == "cuda":
        return [StepCase(64, 16, (4096,) * 64)]
    mlp = [StepCase(slots, 16, _MLP_SITES) for slots in (8, 32)]
    return [*mlp, StepCase(32, 8, _ALL_SITES, layers="all linear layers")]
