"""Bench `forward`: what adapters of their own A and B add to one linear layer, y += scale·(x Aᵀ) B, forward alone, against
the kernels of serving engines. One token of every adapter is decoding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import lora_decode_, lora_expand_, lora_plan, lora_shrink
from ..testing import segments
from .cases import RAGGED, lora_cases
from .engines import ENGINES, Mix, state
from .measure import Provider, check, left_out

RATIO_TO = "base"
SCALE = 2.0
TOKENS = (1, 16, 64, 128, 256, 512)  # adapters with one token each


@dataclass(frozen=True)
class ForwardCase:
    """y [M, N] += SCALE·(x [M, K] a[i]ᵀ) bt[i] on the rows of adapter i, all in `dtype`; M = Σ lengths."""

    k: int
    n: int
    rank: int
    episodes: str
    lengths: tuple[int, ...]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.k}→{self.n} r={self.rank} {self.episodes}, forward alone"

    @property
    def decodes(self) -> bool:
        return set(self.lengths) == {1}

    @property
    def flops(self) -> int:
        return 2 * sum(self.lengths) * self.rank * (self.k + self.n)

    @property
    def bytes(self) -> int:
        """x read, y read and written, both factors read; z, fp32, written and read but in decoding."""
        m, z = sum(self.lengths), 0 if self.decodes else 8 * sum(self.lengths) * self.rank
        return z + self.dtype.itemsize * (m * (self.k + 2 * self.n) + len(self.lengths) * self.rank * (self.k + self.n))


def cases(quick: bool, device: str = "cpu") -> list[ForwardCase]:
    if device == "cuda":
        mixes = {(c.k, c.n, c.rank, c.episodes, c.lengths) for c in lora_cases(quick, device)}
        tokens = [(64, 96, 4, "3x1", (1,) * 3)] if quick else [(4096, 4096, 16, f"{s}x1", (1,) * s) for s in TOKENS]
        return [ForwardCase(*mix, torch.bfloat16) for mix in (*sorted(mixes, key=lambda m: (m[2], -len(m[4]))), *tokens)]
    size = (64, 96, 4) if quick else (576, 1536, 8)
    mixes = {"3x2..7": (5, 2, 7), "3x1": (1,) * 3} if quick else {"8x16..128": RAGGED, "16x1": (1,) * 16}
    return [ForwardCase(*size, name, lengths, torch.float32) for name, lengths in mixes.items()]


@dataclass(frozen=True)
class Inputs:
    """x [M, K], w [N, K], a [S, R, K] and bt [S, R, N] in the case's dtype; rows of adapter i: rows[i]."""

    x: Tensor
    w: Tensor
    a: Tensor
    bt: Tensor
    rows: list[slice]

    def oracle(self) -> dict[str, Tensor]:
        """y in fp64, of a y of zeros."""
        x, a, bt = self.x.double(), self.a.double(), self.bt.double()
        return {"y": torch.cat([SCALE * x[rows] @ a[i].T @ bt[i] for i, rows in enumerate(self.rows)])}


def inputs(case: ForwardCase, device: str) -> Inputs:
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape, size=1.0):
        return (torch.randn(*shape, generator=generator, device=device) * size).to(case.dtype)

    ends, slots = torch.tensor(case.lengths).cumsum(0).tolist(), len(case.lengths)
    return Inputs(
        random(sum(case.lengths), case.k),
        random(case.n, case.k, size=case.k**-0.5),
        random(slots, case.rank, case.k, size=case.k**-0.5),
        random(slots, case.rank, case.n, size=case.rank**-0.5),
        [slice(end - length, end) for end, length in zip(ends, case.lengths)],
    )


def providers(case: ForwardCase, device: str) -> dict[str, Provider]:
    data = inputs(case, device)
    oracle = data.oracle()
    base = Provider(lambda: data.x @ data.w.T, lambda: {"y": data.x @ data.w.T}, {"y": data.x.double() @ data.w.double().T})
    ways = {"base": base, "tmem": _added(data, oracle, _tmem(case, data)), "grouped bank": _grouped(case, data, oracle)}
    engines = {name: _engine(name, case, data, oracle) for name in ENGINES}
    return ways | {name if way.absent else f"{name} {state(name)}": way for name, way in engines.items()}


def _added(data: Inputs, oracle: dict[str, Tensor], apply, tolerance: float | None = None) -> Provider:
    """Of what adds to y in place."""
    y = torch.zeros(data.x.shape[0], data.bt.shape[2], dtype=data.x.dtype, device=data.x.device)

    def from_zero():
        y.zero_()
        apply(y, data.x)
        return {"y": y.clone()}

    return Provider(lambda: apply(y, data.x), from_zero, oracle, y.zero_, tolerance)


def _tmem(case: ForwardCase, data: Inputs):
    slots, device = len(case.lengths), data.x.device
    off, slot = segments(case.lengths, range(slots), device)
    rank = torch.full((slots,), case.rank, dtype=torch.int32, device=device)
    scale = torch.full((slots,), SCALE, device=device)
    plan = lora_plan(off, slot, rank, data.x.shape[0]) if device.type == "cuda" else None

    def decode(y: Tensor, x: Tensor) -> None:
        lora_decode_(y, x, data.a, data.bt, slot, rank, scale)

    def both(y: Tensor, x: Tensor) -> None:
        lora_expand_(y, lora_shrink(x, data.a, off, slot, rank, scale, plan), data.bt, off, slot, rank, plan)

    return decode if case.decodes else both


def _grouped(case: ForwardCase, data: Inputs, oracle: dict[str, Tensor]) -> Provider:
    """torch's grouped GEMM over the segments. Its rows of memory are multiples of 16 bytes: ranks are kept padded."""
    each = 16 // case.dtype.itemsize
    a, bt = (F.pad(f, (0, 0, 0, -case.rank % each)) for f in (data.a, data.bt))
    a_t = a.mT.contiguous()
    offs = torch.tensor([rows.stop for rows in data.rows], dtype=torch.int32, device=data.x.device)

    def apply(y: Tensor, x: Tensor) -> None:
        y += torch._grouped_mm(torch._grouped_mm(x, a_t, offs=offs) * SCALE, bt, offs=offs)

    return _added(data, oracle, apply, 0.01 if data.x.is_cuda else None)


def _engine(name: str, case: ForwardCase, data: Inputs, oracle: dict[str, Tensor]) -> Provider:
    """An engine's kernels; where they are not there, do not run or compute something else, why."""
    found = state(name)
    if found.startswith("not installed"):
        return left_out(found)
    if not data.x.is_cuda:
        return left_out(f"{found} needs a GPU")
    slots = len(case.lengths)
    try:
        apply = ENGINES[name](Mix(case.lengths, (case.rank,) * slots, (SCALE,) * slots, data.a, data.bt))
        provider = _added(data, oracle, apply, 0.01)  # z, or what is added, is rounded to 16 bits
        check("forward", case, name, provider)
    except Exception as error:  # of a package that is not ours; the others are still worth their time
        return left_out(f"{found}: {type(error).__name__}: {error}"[:300])
    return provider
