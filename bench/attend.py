"""Bench `attend`: the decode loop's attention, one new token of every row against its cached keys and values.

All rows begin with the same columns, as many as the shortest one has. "tmem, alike" is told so, which a CPU makes use of. There
each call has other memory, as each layer of a step has: what the last call read is no longer in the cache.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .. import reference
from ..ops import attend
from .measure import Provider

RATIO_TO = "tmem"
LAYERS, COLD = 30, 2**28  # keys and values that calls on a CPU go through in turns: so many, and so many bytes at most


@dataclass(frozen=True)
class AttendCase:
    """`rows` that hold half of `length` columns to all of them, in memory of `bucket` columns (0: no more); SmolLM2-135M's
    heads."""

    rows: int
    length: int
    dtype: torch.dtype
    heads: int = 9
    groups: int = 3
    size: int = 64
    bucket: int = 0

    @property
    def name(self) -> str:
        held = f" of {self.bucket}" if self.bucket else ""
        return f"{self.rows} rows, {self.length // 2}..{self.length} columns{held}"

    @property
    def shape(self) -> str:
        return f"{self.rows} rows of {self.length}"

    @property
    def seen(self) -> list[int]:
        """Columns of every row."""
        half = self.length // 2
        return [half + half * row // max(1, self.rows - 1) for row in range(self.rows)]

    @property
    def flops(self) -> int:
        return 4 * sum(self.seen) * self.heads * self.size

    @property
    def bytes(self) -> int:
        """Keys and values that are seen, read once; q read, o written."""
        return 2 * self.dtype.itemsize * self.size * (sum(self.seen) * self.groups + self.rows * self.heads)


def cases(quick: bool, device: str = "cpu") -> list[AttendCase]:
    if device == "cuda" and not quick:  # an 8B model's heads; captured steps have a power of two of columns
        sizes = ((1, 400, 512), (16, 400, 512), (16, 3000, 4096), (64, 1100, 2048), (4, 9000, 16384))
        return [AttendCase(rows, length, torch.bfloat16, 32, 8, 128, bucket) for rows, length, bucket in sizes]
    sizes = ((3, 10),) if quick else ((4, 1024), (16, 128), (16, 512), (64, 512))
    return [AttendCase(rows, length, dtype) for dtype in (torch.float32, torch.bfloat16) for rows, length in sizes]


def providers(case: AttendCase, device: str) -> dict[str, Provider]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device, case.dtype)

    q = random(case.rows, case.heads, case.size)
    columns = case.bucket or case.length
    k, v = (random(case.rows, case.groups, columns, case.size) for _ in range(2))
    for x in (k, v):
        x[:, :, : case.length // 2] = x[:1, :, : case.length // 2]
    alike = torch.tensor([[0, case.length // 2]] * case.rows, dtype=torch.int32, device=device)
    mask = torch.arange(columns, device=device) < torch.tensor(case.seen, device=device)[:, None]
    scale = case.size**-0.5
    oracle = {"o": reference.attend(q.double(), k.double(), v.double(), mask, scale)}

    others = min(LAYERS - 1, COLD // (k.nbytes + v.nbytes)) if device == "cpu" else 0
    turns = itertools.cycle([(k, v), *((k.clone(), v.clone()) for _ in range(others))])

    def tmem():
        return attend(q, *next(turns), mask, scale)

    def told():
        return attend(q, *next(turns), mask, scale, alike)

    def folded():
        """Query heads of one key head as rows of one product, so that keys are not repeated."""
        k, v = next(turns)
        rows = q.view(case.rows, case.groups, -1, case.size)
        return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask[:, None, None], scale=scale).view_as(q)

    def grouped():
        k, v = next(turns)
        out = F.scaled_dot_product_attention(q[:, :, None], k, v, attn_mask=mask[:, None, None], scale=scale, enable_gqa=True)
        return out[:, :, 0]

    ways = {"tmem": tmem, "torch sdpa, folded": folded, "torch sdpa, enable_gqa": grouped}
    if device == "cpu":
        ways["tmem, alike"] = told
    return {name: Provider(way, lambda way=way: {"o": way()}, oracle) for name, way in ways.items()}
