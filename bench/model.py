"""Bench `model`: forward and backward through a whole decoder, every linear layer adapted, against the frozen decoder."""

from __future__ import annotations

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.bank import AdapterBank
from ..models import forward as fw
from .cases import ALL, RAGGED, SMOL, TINY, Adapters, ModelCase, Work
from .measure import Provider

RATIO_TO = "base"
SLOW = True
TITLE = "8 ragged episodes through the whole decoder, forward and backward"


def cases(quick: bool, device: str = "cpu") -> list[ModelCase]:
    sizes, lengths = (TINY, (5, 2, 7)) if quick else (SMOL, RAGGED)
    name = "all linear layers r=8 3x2..7" if quick else "all linear layers r=8 8x16..128"
    return [
        ModelCase(name, p, sizes, Adapters(8, ALL, None), Work(len(lengths) * max(lengths), len(lengths), passes=2))
        for p in ("float32", "float32 medium", "bfloat16")
    ]


def decoder(case: ModelCase, device: str) -> nn.Module:
    """Frozen, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**dict(case.sizes), tie_word_embeddings=True, max_position_embeddings=2048, pad_token_id=0)
    with torch.device(device):
        network = LlamaForCausalLM(config)
    return network.to(case.dtype).eval().requires_grad_(False)


def bank_of(case: ModelCase, network: nn.Module, slots: int) -> AdapterBank:
    """`slots` adapters with Δ about a hundredth of the weights."""
    adapters = case.adapters
    bank = AdapterBank(network, slots, adapters.rank, targets=adapters.targets, last_layers=adapters.last_layers, init="random")
    generator = torch.Generator().manual_seed(0)
    for _ in range(slots):
        bank.alloc()
    for site in bank.sites:
        site.bt.copy_(0.01 * torch.randn(site.bt.shape, generator=generator))
    return bank


@contextlib.contextmanager
def precision(case: ModelCase):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if "medium" in case.precision else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _bmm_linear(site, module, a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    z = x.to(a.dtype) @ a.T
    return (F.linear(x, module.weight, module.bias) + torch.bmm(z, b)).to(x.dtype)


class _Passes:
    """Ways through one decoder, at the same padded [B, T] and precision, with the same gradient of the output; that of the
    padding is zero, as a loss would leave it."""

    def __init__(self, case: ModelCase, device: str):
        self.case, self.lengths = case, RAGGED if case.sizes == SMOL else (5, 2, 7)
        self.network = decoder(case, device)
        self.bank = bank_of(case, self.network, len(self.lengths))
        self.bank.detach()
        rows, width = len(self.lengths), max(self.lengths)
        ids = torch.randint(1, 150, (rows, width), generator=torch.Generator().manual_seed(1)).to(device)
        self.positions = torch.arange(width, device=device)[None]
        self.hidden = fw.embed(self.network, ids).detach()
        self.dy = torch.randn(self.hidden.shape, generator=torch.Generator().manual_seed(2)).to(device, case.dtype)
        for row, length in enumerate(self.lengths):
            self.dy[row, length:] = 0
        self.stacked = {s.name: s.bt.clone().requires_grad_() for s in self.bank.sites}

    def base(self) -> Tensor:
        """Forward and backward; the states of every row's last token [B, D]."""
        with precision(self.case):
            h = self.hidden.clone().requires_grad_()
            out = fw.layers(self.network, h, self.positions, None)
            out.backward(self.dy)
            return torch.stack([out[i, n - 1].detach() for i, n in enumerate(self.lengths)])

    def tmem(self) -> Tensor:
        self.bank.attach()
        try:
            with self.bank.route(list(range(len(self.lengths))), lengths=self.lengths):
                return self.base()
        finally:
            self.bank.detach()

    def bmm(self) -> Tensor:
        for site in self.bank.sites:
            forward = functools.partial(_bmm_linear, site, site.module, site.a[0], self.stacked[site.name])
            site.module.forward = forward
        try:
            return self.base()
        finally:
            for site in self.bank.sites:
                del site.module.forward

    def clear(self) -> None:
        self.bank.zero_grad(range(len(self.lengths)))

    def tmem_results(self) -> dict[str, Tensor]:
        self.clear()
        return {"y": self.tmem().float(), "db": torch.cat([s.bt_grad.flatten() for s in self.bank.sites])}

    def bmm_results(self) -> dict[str, Tensor]:
        for b in self.stacked.values():
            b.grad = None
        y = self.bmm().float()
        return {"y": y, "db": torch.cat([self.stacked[s.name].grad.flatten() for s in self.bank.sites])}


def providers(case: ModelCase, device: str) -> dict[str, Provider]:
    ways = _Passes(case, device)
    # Two ways through dozens of layers differ by the roundings of each: in bf16 by some hundredths.
    # "medium" lets products round their factors to bf16 and add in fp32, which CPUs with AMX do.
    tolerance = {"float32": 1e-3, "float32 medium": 1e-2, "bfloat16": 0.05}[case.precision]
    oracle, plain = ways.bmm_results(), {"y": ways.base().float()}
    return {
        "base": Provider(ways.base, lambda: {"y": ways.base().float()}, plain),
        "tmem": Provider(ways.tmem, ways.tmem_results, oracle, ways.clear, tolerance),
        "padded bmm": Provider(ways.bmm, ways.bmm_results, oracle, tolerance=tolerance),
    }
