"""Bench `overhead`: layers so small that what is not a kernel shows: Python, the dispatcher, autograd.

A chain of layers, forward and backward (dX, dB), with one token of each adapter. `ops alone` calls the same ops one after
another, without layers, routes and autograd: what it takes less than `tmem` is theirs. Times are those of a whole chain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..adapters.bank import AdapterBank
from ..testing import segments
from .measure import Provider

RATIO_TO = "base"


@dataclass(frozen=True)
class ChainCase:
    """`layers` frozen layers of d columns one after another, under `slots` adapters of `rank`, one row each; fp32."""

    layers: int = 16
    d: int = 64
    slots: int = 8
    rank: int = 8
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"{self.layers} layers {self.d}→{self.d} r={self.rank}, {self.slots} adapters of 1 token"

    @property
    def flops(self) -> int:
        return self.layers * self.slots * (4 * self.d**2 + 10 * self.rank * self.d)

    @property
    def bytes(self) -> int:
        """Weights read twice, factors of all slots read twice and their gradients written."""
        return 4 * self.layers * (2 * self.d**2 + 3 * (self.slots + 1) * self.rank * self.d)


class _Layer(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.o_proj = nn.Linear(d, d, bias=False)


class _Chain(nn.Module):
    """As a decoder is laid out, so that a bank finds its layers."""

    def __init__(self, case: ChainCase):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(_Layer(case.d) for _ in range(case.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.decoder.layers:
            x = layer.o_proj(x)
        return x


def cases(quick: bool, device: str = "cpu") -> list[ChainCase]:
    return [ChainCase(layers=2) if quick else ChainCase()]


def providers(case: ChainCase, device: str) -> dict[str, Provider]:
    torch.manual_seed(0)
    frozen, under = (_Chain(case).to(device).requires_grad_(False) for _ in range(2))
    under.load_state_dict(frozen.state_dict())
    bank = AdapterBank(under, case.slots, case.rank, targets=("o_proj",), init="random")
    slots = [bank.alloc() for _ in range(case.slots)]
    for site in bank.sites:
        site.bt.copy_(0.1 * torch.randn(site.bt.shape))
    x = torch.randn(case.slots, 1, case.d, device=device).requires_grad_()
    dy = torch.randn(case.slots, 1, case.d, device=device)

    def chain(model: nn.Module) -> Tensor:
        x.grad = None
        model(x).backward(dy)
        return x.grad

    def adapted() -> dict[str, Tensor]:
        bank.zero_grad(slots)
        dx = routed()
        return {"dx": dx, "db": torch.stack([site.bt_grad for site in bank.sites])}

    def routed() -> Tensor:
        with bank.route(slots):
            return chain(under)

    off, slot = segments([1] * case.slots, range(case.slots), device)
    seg, grads = (off, slot, bank.rank), [torch.zeros_like(site.bt_grad) for site in bank.sites]
    squares = [torch.zeros_like(site.bt_squares) for site in bank.sites]

    @torch.no_grad()
    def alone() -> Tensor:
        rows, kept = x.detach(), []
        for site in bank.sites:
            y, z = torch.ops.tmem.lora_linear(rows, site.module.weight, None, site.a, site.bt, *seg, bank.scale)
            kept.append((site, z))
            rows = y
        g = dy.view(-1, case.d)
        for i, (site, z) in reversed(list(enumerate(kept))):
            dz = torch.ops.tmem.lora_backward_(grads[i], z, g, site.bt, *seg, bank.scale, fresh=True, squares=squares[i])
            g = g @ site.module.weight
            torch.ops.tmem.lora_expand_(g, dz, site.a, *seg)
        return g.view_as(dy)

    oracle = _oracle(case, bank, x, dy)
    plain = dy.double()
    for layer in reversed(frozen.decoder.layers):
        plain = plain @ layer.o_proj.weight.double()
    tolerance = 1e-5  # of a chain of layers
    return {
        "base": Provider(lambda: chain(frozen), lambda: {"dx": chain(frozen)}, {"dx": plain}, tolerance=tolerance),
        "tmem": Provider(routed, adapted, oracle, tolerance=tolerance),
        "ops alone": Provider(alone, lambda: {"dx": alone(), "db": torch.stack(grads)}, oracle, tolerance=tolerance),
    }


def _oracle(case: ChainCase, bank: AdapterBank, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """The chain rule in fp64, an adapter a row."""
    rows, seen = x.detach().double()[:, 0], []
    for site in bank.sites:
        w, a, bt = (t.double() for t in (site.module.weight, site.a[0], site.bt))
        z = rows @ a.T
        seen.append((w, a, bt, z))
        rows = rows @ w.T + torch.einsum("sr,srd->sd", z, bt)
    g, db = dy.double()[:, 0], []
    for w, a, bt, z in reversed(seen):
        db.append(torch.einsum("sr,sd->srd", z, g))
        g = g @ w + torch.einsum("sd,srd->sr", g, bt) @ a
    return {"dx": g[:, None], "db": torch.stack(db[::-1])}
