"""Bench `token`: what a decoder's layer does for one new token of every row beside its products, by one op each, against the
ops of torch that transformers' layers make of it and `lora_decode_` for each adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..ops import lora_decode_, lora_decode_multi_, lora_glu, lora_norm, rope_write_
from .measure import Provider

RATIO_TO = "apart"
KINDS = ("projections", "norm", "glu", "rope")
EPS = 1e-6


@dataclass(frozen=True)
class TokenCase:
    """`rows` of a layer of width d, an MLP of width n, and heads of width `size`, `share` of which share a key head.

    kernel  one of KINDS: the adapters of q, k and v; that of o_proj, the residual sum and the next norm; those of gate and up
            and the gated product; the rotation and the write to the cache
    """

    kernel: str
    rows: int
    d: int = 4096
    n: int = 14336
    size: int = 128
    share: int = 4
    rank: int = 16
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        return f"{self.kernel} of {self.rows} rows" + ("" if self.kernel == "rope" else f" r={self.rank}")

    @property
    def outputs(self) -> list[int]:
        """Columns of what each projection makes."""
        few = self.d // self.share
        return {"projections": [self.d, few, few], "norm": [self.d], "glu": [self.n] * 2}.get(self.kernel, [])

    @property
    def flops(self) -> int:
        adapters = sum(2 * self.rank * (self.d + n) for n in self.outputs)
        other = {"norm": 5 * self.d, "glu": 5 * self.n, "rope": 4 * self.d}.get(self.kernel, 0)
        return self.rows * (adapters + other)

    @property
    def bytes(self) -> int:
        """Factors of every row, and what is read and written once."""
        few = self.d // self.share
        factors = sum(self.rank * (self.d + n) for n in self.outputs) + (self.d if self.outputs else 0)
        other = {
            "projections": 2 * sum(self.outputs), "norm": 4 * self.d, "glu": 3 * self.n,
            "rope": 2 * self.d + 4 * few + 2 * self.size,
        }[self.kernel]  # fmt: skip
        return self.dtype.itemsize * self.rows * (factors + other)


def cases(quick: bool, device: str = "cpu") -> list[TokenCase]:
    if quick:
        return [TokenCase(kind, 3, d=64, n=80, size=16, share=2, rank=4) for kind in KINDS]
    if device != "cuda":
        return []  # there a step takes the layers of transformers
    return [TokenCase(kind, rows) for kind in KINDS for rows in (1, 16, 64)]


def providers(case: TokenCase, device: str) -> dict[str, Provider]:
    return _Data(case, device).providers()


class _Data:
    """What a case computes with: every row has a slot of its own."""

    def __init__(self, case: TokenCase, device: str):
        self.case, self.generator, self.device = case, torch.Generator().manual_seed(0), device
        rows, slots = case.rows, torch.arange(case.rows, dtype=torch.int32, device=device)
        self.x, self.residual = self.random(rows, case.d), self.random(rows, case.d)
        self.y = [self.random(rows, n) for n in case.outputs]
        self.work = [y.clone() for y in self.y]
        self.a = [self.random(rows, case.rank, case.d, size=case.d**-0.5) for _ in case.outputs]
        self.bt = [self.random(rows, case.rank, n) for n in case.outputs]
        self.named = slots, torch.full_like(slots, case.rank), torch.ones(rows, device=device)

    def random(self, *shape: int, size: float = 1.0) -> Tensor:
        return (size * torch.randn(*shape, generator=self.generator)).to(self.device, self.case.dtype)

    def providers(self) -> dict[str, Provider]:
        return getattr(self, self.case.kernel)()

    def reset(self) -> None:
        for work, y in zip(self.work, self.y):
            work.copy_(y)

    def adapted(self) -> list[Tensor]:
        """Every y with its adapter, by lora_decode_, in place."""
        for y, a, bt in zip(self.work, self.a, self.bt):
            lora_decode_(y, self.x, a, bt, *self.named)
        return self.work

    def wide(self, *tensors):
        return [[one.double() for one in x] if isinstance(x, list) else x.double() for x in tensors]

    def two(self, one: Callable, apart: Callable, names: str, oracle, written=()) -> dict[str, Provider]:
        """tmem's way and the other. Each gives, and leaves in `written`, what `names` name."""
        want = dict(zip(names, oracle))

        def results(way):
            self.reset()
            return dict(zip(names, [*way(), *(x.clone() for x in written)]))

        return {
            "tmem": Provider(one, lambda: results(one), want, self.reset),
            "apart": Provider(apart, lambda: results(apart), want, self.reset, tolerance=0.02),  # it rounds more often
        }

    def projections(self) -> dict[str, Provider]:
        want = self.wide(self.y)[0]
        reference.lora_decode_multi_(want, *self.wide(self.x, self.a, self.bt), *self.named)

        def one():
            lora_decode_multi_(self.work, self.x, self.a, self.bt, *self.named)
            return self.work

        return self.two(one, self.adapted, "qkv", want)

    def norm(self) -> dict[str, Provider]:
        (y,), weight = self.y, self.random(self.case.d)
        oracle = reference.lora_norm(
            *self.wide(y, self.residual), None, weight.double(), EPS, 0.0, *self.wide(self.x, self.a, self.bt), *self.named
        )

        def one():
            return lora_norm(y, self.residual, None, weight, EPS, 0.0, self.x, self.a, self.bt, *self.named)

        def apart():
            h = self.residual + self.adapted()[0]
            wide = h.float()
            return h, weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)).to(h.dtype)

        return self.two(one, apart, "hn", oracle)

    def glu(self) -> dict[str, Provider]:
        adapters = *self.wide(self.x, self.a, self.bt), *self.named
        oracle = reference.lora_glu(*self.wide(self.y)[0], False, *adapters)

        def one():
            return (lora_glu(*self.y, False, self.x, self.a, self.bt, *self.named),)

        def apart():
            gate, up = self.adapted()
            return (F.silu(gate) * up,)

        return self.two(one, apart, "o", [oracle])

    def rope(self) -> dict[str, Provider]:
        rows, size, few = self.case.rows, self.case.size, self.case.d // self.case.share
        k, v, cos, sin = (self.random(rows, n) for n in (few, few, size, size))
        keys, values = (self.random(rows, few // size, 512, size) for _ in range(2))
        at = torch.arange(rows, device=k.device)
        wide = self.wide(keys, values, self.x, k, v, cos, sin)
        q = reference.rope_write_(*wide, at, None, None, 0.0, 0.0)

        def one():
            return (rope_write_(keys, values, self.x, k, v, cos, sin, at),)

        def turned(x):
            x = x.unflatten(1, (-1, size))
            first, second = x.chunk(2, -1)
            return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]

        def apart():
            keys[at, :, at], values[at, :, at] = turned(k), v.unflatten(1, (-1, size))
            return (turned(self.x),)

        return self.two(one, apart, "qkv", (q, *wide[:2]), written=(keys, values))
