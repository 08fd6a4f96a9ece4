"""Bench `decode`: one token for every episode, each with its own adapter, against the frozen decoder; on a GPU also one
layer's adapters alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters import token
from ..adapters.bank import AdapterBank
from ..agent.steps import Growing, Spots
from ..models import forward as fw
from ..ops import lora_decode_, lora_decode_multi_
from .cases import ALL, MLP, SMOL, TINY, Adapters, ModelCase, Work
from .measure import Provider
from .model import bank_of, decoder

RATIO_TO = "base"
SLOTS, CONTEXT = 16, 128


@dataclass(frozen=True)
class RowsCase:
    """y += (x Aᵀ) B of `slots` rows, each with its own bf16 adapter, onto a layer of width d."""

    slots: int
    d: int = 4096
    rank: int = 16
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        return f"{self.slots} slots, {self.d}→{self.d} r={self.rank}"

    @property
    def flops(self) -> int:
        return 4 * self.slots * self.rank * self.d

    @property
    def bytes(self) -> int:
        """Both factors and x read, y read and written."""
        return 2 * self.slots * self.d * (2 * self.rank + 3)


def cases(quick: bool, device: str = "cpu") -> list[ModelCase | RowsCase]:
    if device == "cuda":
        return [RowsCase(n) for n in ((3,) if quick else (1, 16, 64, 128, 256, 512))]
    sizes, slots = (TINY, 3) if quick else (SMOL, SLOTS)
    kinds = (("MLP, last 8 layers", MLP, 2 if quick else 8, 16), ("all linear layers", ALL, None, 8))
    return [
        ModelCase(
            f"{slots} slots, {name} r={rank}", "bfloat16", sizes, Adapters(rank, targets, last),
            Work(slots, slots, passes=1, logits=slots),
        )
        for name, targets, last, rank in kinds
    ]  # fmt: skip


def providers(case: ModelCase | RowsCase, device: str) -> dict[str, Provider]:
    return _rows(case, device) if isinstance(case, RowsCase) else _model(case, device)


class _Step:
    """One step of the decode loop: last-token logits of every row, keys and values of CONTEXT tokens behind it, which are the
    base model's in all ways."""

    def __init__(self, case: ModelCase, device: str):
        self.slots, self.context = (3, 16) if case.sizes == TINY else (SLOTS, CONTEXT)
        self.network = decoder(case, device)
        self.bank = bank_of(case, self.network, self.slots)
        self.bank.detach()
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(1, 150, (self.slots, self.context + 1), generator=generator).to(device)
        cache, rows = fw.KVCache(self.context), torch.arange(self.slots, device=device)
        with torch.inference_mode():
            embedded, positions = fw.embed(self.network, ids[:, :-1]), torch.arange(self.context, device=device)[None]
            fw.layers(self.network, embedded, positions, None, cache=cache)
            self.steps = Growing(self.network, None)
            columns = fw.shown(self.context + 1)
            self.steps.resize([], self.slots, columns, next(self.network.parameters()))
            self.steps.put(range(self.slots), (cache, rows))
        last = torch.full_like(rows, self.context)
        visible = (torch.arange(columns, device=device) <= self.context).expand(self.slots, -1)
        self.spots = Spots(ids[:, -1], last, last, list(range(self.slots)), visible, columns)

    @torch.inference_mode()
    def _run(self, bank: AdapterBank | None = None, by_rows: bool = True) -> Tensor:
        self.steps.bank, self.steps.by_rows = bank, by_rows and token.fits_rows(self.network)
        return self.steps(self.spots)

    def base(self) -> Tensor:
        return self._run()

    def layers(self) -> Tensor:
        """The frozen decoder as transformers runs it."""
        return self._run(by_rows=False)

    def tmem(self) -> Tensor:
        return self._run(self.bank)

    @torch.inference_mode()
    def dense(self) -> Tensor:
        """Row by row, Δ added to the weights: what each episode would compute by itself."""
        out = []
        for slot in range(self.slots):
            kept = [site.module.weight for site in self.bank.sites]
            for site in self.bank.sites:
                weight = site.module.weight
                delta = site.bt[slot].T @ site.a[0]
                site.module.weight = torch.nn.Parameter((weight.float() + delta).to(weight.dtype), False)
            out.append(self.base()[slot])
            for site, weight in zip(self.bank.sites, kept):
                site.module.weight = weight
        return torch.stack(out)

    def attach(self) -> None:
        self.bank.detach()
        self.bank.attach()

    def adapted(self) -> dict[str, Tensor]:
        self.attach()
        found = self.tmem()
        self.bank.detach()
        return {"logits": found}


def _model(case: ModelCase, device: str) -> dict[str, Provider]:
    step = _Step(case, device)
    layers = step.layers()
    # A rounded sum of weights is another rounding.
    return {
        "base": Provider(step.base, lambda: {"logits": step.base()}, {"logits": layers}, step.bank.detach, tolerance=0.05),
        "transformers' layers": Provider(step.layers, lambda: {"logits": step.layers()}, {"logits": layers}, step.bank.detach),
        "tmem": Provider(step.tmem, step.adapted, {"logits": step.dense()}, step.attach, tolerance=0.05),
    }


def _rows(case: RowsCase, device: str) -> dict[str, Provider]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return (torch.randn(*shape, generator=generator) * case.d**-0.5).to(device, case.dtype)

    x, w = random(case.slots, case.d), random(case.d, case.d)
    a, bt = random(case.slots, case.rank, case.d), random(case.slots, case.rank, case.d)
    row_slot = torch.arange(case.slots, dtype=torch.int32, device=device)
    rank = torch.full((case.slots,), case.rank, dtype=torch.int32, device=device)
    scale = torch.ones(case.slots, device=device)
    y = torch.zeros(case.slots, case.d, device=device, dtype=case.dtype)
    z = torch.einsum("md,mrd->mr", x.double(), a.double())
    oracle = {"y": torch.einsum("mr,mrd->md", z, bt.double())}

    def tmem():
        lora_decode_(y, x, a, bt, row_slot, rank, scale)

    def bmm():
        return torch.bmm(torch.bmm(x[:, None], a.mT), bt)[:, 0].add_(y)

    def one_launch():
        lora_decode_multi_([y], x, [a], [bt], row_slot, rank, scale)

    def from_zero(call):
        y.zero_()
        call()
        return {"y": y.clone()}

    def bmm_from_zero():
        y.zero_()
        return {"y": bmm()}

    return {
        "base": Provider(lambda: x @ w.T, lambda: {"y": x @ w.T}, {"y": x.double() @ w.double().T}),
        "tmem lora_decode_": Provider(tmem, lambda: from_zero(tmem), oracle, y.zero_),
        "tmem, one launch": Provider(one_launch, lambda: from_zero(one_launch), oracle, y.zero_),
        "bmm on one bank": Provider(bmm, bmm_from_zero, oracle, tolerance=0.01),
    }
