"""Bench `model`: forward and backward through a whole decoder, every linear layer adapted, against the frozen decoder."""

from __future__ import annotations

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..adapters.bank import AdapterBank
from ..models import forward as fw
from .cases import ALL, RAGGED, SMOL, TINY, ModelCase, model_case
from .measure import Provider

RATIO_TO = "base"
SLOW = True
TITLE = "8 ragged episodes through the whole decoder, forward and backward"


def cases(quick: bool, device: str = "cpu") -> list[ModelCase]:
    sizes, lengths = (TINY, (5, 2, 7)) if quick else (SMOL, RAGGED)
    name = "all linear layers r=8 3x2..7" if quick else "all linear layers r=8 8x16..128"
    return [
        model_case(name, p, 8, ALL, None, sizes, len(lengths) * max(lengths), len(lengths), passes=2)
        for p in ("float32", "float32 medium", "bfloat16")
    ]


def decoder(case: ModelCase, device: str) -> nn.Module:
    """Frozen, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**dict(case.sizes), tie_word_embeddings=True, max_position_embeddings=2048, pad_token_id=0)
    return LlamaForCausalLM(config).to(device, case.dtype).eval().requires_grad_(False)


def bank_of(case: ModelCase, network: nn.Module, slots: int) -> AdapterBank:
    """`slots` adapters with Δ about a hundredth of the weights."""
    bank = AdapterBank(network, slots, case.rank, targets=case.targets, last_layers=case.last_layers, init="random")
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


def providers(case: ModelCase, device: str) -> dict[str, Provider]:
    """All at the same padded [B, T] and precision; gradients of the padding are zero, as a loss would leave them."""
    lengths = RAGGED if case.sizes == SMOL else (5, 2, 7)
    network = decoder(case, device)
    bank = bank_of(case, network, len(lengths))
    bank.detach()
    rows, width = len(lengths), max(lengths)
    ids = torch.randint(1, 150, (rows, width), generator=torch.Generator().manual_seed(1)).to(device)
    positions, mask = torch.arange(width, device=device)[None], fw.causal_mask(width, device)
    hidden = fw.embed(network, ids).detach()
    dy = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2)).to(device, case.dtype)
    for row, length in enumerate(lengths):
        dy[row, length:] = 0
    stacked = {s.name: s.bt.clone().requires_grad_() for s in bank.sites}

    def through() -> Tensor:
        h = hidden.clone().requires_grad_()
        out = fw.layers(network, h, positions, mask)
        out.backward(dy)
        return torch.stack([out[i, n - 1].detach() for i, n in enumerate(lengths)])

    def base():
        with precision(case):
            return through()

    def tmem():
        bank.attach()
        try:
            with precision(case), bank.route(list(range(rows)), lengths=lengths):
                return through()
        finally:
            bank.detach()

    def bmm():
        for site in bank.sites:
            forward = functools.partial(_bmm_linear, site, site.module, site.a[0], stacked[site.name])
            site.module.forward = forward
        try:
            with precision(case):
                return through()
        finally:
            for site in bank.sites:
                del site.module.forward

    def tmem_results():
        bank.grad.zero_()
        return {"y": tmem().float(), "db": torch.cat([s.bt_grad.flatten() for s in bank.sites])}

    def bmm_results():
        for b in stacked.values():
            b.grad = None
        return {"y": bmm().float(), "db": torch.cat([stacked[s.name].grad.flatten() for s in bank.sites])}

    # Two ways through dozens of layers differ by the roundings of each: in bf16 by some hundredths.
    # "medium" lets products round their factors to bf16 and add in fp32, which CPUs with AMX do.
    oracle, tolerance = bmm_results(), {"float32": 1e-3, "float32 medium": 1e-2, "bfloat16": 0.05}[case.precision]
    plain = {"y": base().float()}
    return {
        "base": Provider(base, lambda: {"y": base().float()}, plain),
        "tmem": Provider(tmem, tmem_results, oracle, bank.grad.zero_, tolerance),
        "padded bmm": Provider(bmm, bmm_results, oracle, tolerance=tolerance),
    }
