"""Bench `branches`: attention of texts that share the beginning of a row, forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference
from ..ops import attend_branches
from .measure import Provider

RATIO_TO = "tmem"


@dataclass(frozen=True)
class BranchesCase:
    """`rows` of `texts` texts of `own` tokens each behind a beginning of `shared`; SmolLM2-135M's heads."""

    rows: int
    shared: int
    texts: int
    own: int
    dtype: torch.dtype
    heads: int = 9
    groups: int = 3
    size: int = 64

    @property
    def name(self) -> str:
        return f"{self.rows} rows of {self.shared} + {self.texts} x {self.own} tokens"

    @property
    def shape(self) -> str:
        return self.name

    @property
    def tokens(self) -> int:
        return self.shared + self.texts * self.own

    @property
    def flops(self) -> int:
        """Two products forward, five backward, of the pairs of tokens of which one sees the other."""
        seen = self.shared * (self.shared + 1) // 2 + self.texts * self.own * (2 * self.shared + self.own + 1) // 2
        return 14 * self.rows * seen * self.heads * self.size

    @property
    def bytes(self) -> int:
        """q, k, v, o and their gradients, once."""
        return 4 * self.dtype.itemsize * self.rows * self.tokens * self.size * (self.heads + self.groups)


def cases(quick: bool, device: str = "cpu") -> list[BranchesCase]:
    sizes = ((1, 4, 2, 3),) if quick else ((2, 240, 8, 92), (16, 20, 6, 18), (16, 3, 6, 18), (2, 512, 0, 0))
    return [BranchesCase(*size, dtype) for dtype in (torch.float32, torch.bfloat16) for size in sizes]


def providers(case: BranchesCase, device: str) -> dict[str, Provider]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device, case.dtype)

    q = random(case.rows, case.heads, case.tokens, case.size).requires_grad_()
    k, v = (random(case.rows, case.groups, case.tokens, case.size).requires_grad_() for _ in range(2))
    grad, scale = random(case.rows, case.tokens, case.heads, case.size), case.size**-0.5
    ends = [0, case.shared, *(case.shared + case.own * (i + 1) for i in range(case.texts))]
    runs = torch.tensor([ends], dtype=torch.int32, device=device)
    seen = reference.seen_in_runs(runs, case.rows, case.tokens, 0)[0]

    def tmem():
        return attend_branches(q, k, v, runs, scale)

    def masked():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
        return out.transpose(1, 2)

    def text_by_text():
        """Each text a row of its own, its beginning in front of it again; no mask."""
        if not case.texts:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
            return out.transpose(1, 2)
        cut = []
        for x in (q, k, v):
            begun = x[:, :, None, : case.shared].expand(-1, -1, case.texts, -1, -1)
            alone = torch.cat([begun, x[:, :, case.shared :].unflatten(2, (case.texts, case.own))], 3)
            cut.append(alone.transpose(1, 2).flatten(0, 1))
        out = F.scaled_dot_product_attention(*cut, is_causal=True, scale=scale, enable_gqa=True)
        out = out.unflatten(0, (case.rows, case.texts)).transpose(2, 3)
        return torch.cat([out[:, 0, : case.shared], out[:, :, case.shared :].flatten(1, 2)], 1)

    def results(way) -> dict[str, Tensor]:
        out = way()
        return dict(zip(("o", "dq", "dk", "dv"), (out.detach(), *torch.autograd.grad(out, (q, k, v), grad))))

    wide = [x.detach().double() for x in (q, k, v)]
    o, lse = reference.attend_branches(*wide, runs, scale, 0)
    of = reference.attend_branches_backward(grad.double(), *wide, o, lse, runs, scale, 0)
    oracle = dict(zip(("o", "dq", "dk", "dv"), (o, *of)))
    ways = {"tmem": tmem, "torch sdpa, masked": masked, "torch sdpa, text by text": text_by_text}
    # bf16: o, which backward reads, and torch's probabilities were rounded
    tolerance = {torch.bfloat16: 2e-2}.get(case.dtype)
    return {
        name: Provider(lambda way=way: results(way), lambda way=way: results(way), oracle, tolerance=tolerance)
        for name, way in ways.items()
    }
