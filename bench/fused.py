"""Bench `fused`: the gradients of all layers and a step by them, in one op a layer, and by gram a layer and one step after."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..ops import SQUARED, bank_step_, lora_gram_, lora_gram_step_, lora_plan
from ..testing import segments
from . import step
from .cases import StepCase
from .measure import Provider

RATIO_TO = "gram, then step"
LR, BETA1, BETA2, EPS, DECAY = step.LR, step.BETA1, step.BETA2, step.EPS, step.DECAY
BEFORE = 9  # steps taken, whose moments are 0 and 1: the next one is then smooth in the gradient
TOLERANCE = 1e-5


@dataclass(frozen=True)
class FusedCase(StepCase):
    """As StepCase, by rows of `dtype`, `rows` of them a slot, that each layer has."""

    rows: int = 64
    optimizer: str = "AdamW"

    @property
    def name(self) -> str:
        return f"{super().name}, {self.rows} rows, {self.optimizer}"

    @property
    def flops(self) -> int:
        """gram's, and about 12 per parameter of AdamW, 4 of SGD."""
        return self.slots * self.width * (2 * self.rows + (12 if self.optimizer == "AdamW" else 4))

    @property
    def bytes(self) -> int:
        """Parameter and moments read and written; of each layer rows and z read. No gradient."""
        each = self.slots * self.rows * sum(n * self.dtype.itemsize + 4 * self.rank for n in self.widths)
        return each + (24 if self.optimizer == "AdamW" else 8) * self.slots * self.width


def cases(quick: bool, device: str = "cpu") -> list[FusedCase]:
    both = ("AdamW", "SGD")
    if quick:
        return [FusedCase(3, 4, (64, 96), rows=5, optimizer=name) for name in both]
    dtype, rows = (torch.bfloat16, 128) if device == "cuda" else (torch.float32, 64)
    found = [c for c in step.cases(False, device) if c.layers == StepCase.layers]
    return [
        FusedCase(c.slots, c.rank, c.widths, dtype, c.layers, min(rows, 2048 // c.slots) if device == "cpu" else rows, name)
        for c in found
        for name in both
    ]


def providers(case: FusedCase, device: str) -> dict[str, Provider]:
    generator = torch.Generator(device).manual_seed(0)
    slots, rank, total = case.slots, case.rank, case.slots * case.rows
    ranks = torch.full((slots,), rank, dtype=torch.int32, device=device)
    seg = *segments((case.rows,) * slots, range(slots), device), ranks
    plan = lora_plan(*seg, total) if device == "cuda" else None
    z = torch.randn(total, rank, generator=generator, device=device)
    dy = {n: torch.randn(total, n, generator=generator, device=device).to(case.dtype) for n in set(case.widths)}

    adam = case.optimizer == "AdamW"
    param, grad, m, v = (torch.zeros(slots, case.width, device=device) for _ in range(4))
    count = torch.full((slots,), BEFORE, dtype=torch.int32, device=device)
    hyper = torch.tensor([LR, BETA1, BETA2, EPS, DECAY, 0.0], dtype=torch.float64, device=device).repeat(slots, 1)
    active = torch.ones(slots, dtype=torch.bool, device=device)
    moments = (m, v) if adam else (None, None)

    def views(matrix):
        parts = matrix.split([rank * n for n in case.widths], 1)
        return [part.view(slots, rank, n) for part, n in zip(parts, case.widths)]

    squares = [torch.zeros(slots, -(-n // SQUARED), dtype=torch.float64, device=device) for n in case.widths]
    layers = list(zip(*(views(x) for x in (param, m, v, grad)), squares, case.widths))

    def fused():
        for p, first, second, _, sums, n in layers:
            lora_gram_step_(
                p, first if adam else None, second if adam else None, count, hyper, z, dy[n], *seg, plan, None, sums
            )  # fmt: skip

    def apart():
        for *_, g, sums, n in layers:
            lora_gram_(g, z, dy[n], *seg, plan, True, sums)
        bank_step_(param, grad, *moments, count, hyper, active, None, False, torch.cat(squares, 1))

    def of(call):
        def results():
            for matrix, start in ((param, LR), (m, 0.0), (v, 1.0), (count, BEFORE)):
                matrix.fill_(start)
            call()
            return {"param": param.clone()}

        return Provider(call, results, expected, tolerance=TOLERANCE)

    gradients = [
        torch.einsum("smr,smn->srn", z.view(slots, -1, rank).double(), dy[n].view(slots, -1, n).double()) for n in case.widths
    ]
    g = torch.cat([one.flatten(1) for one in gradients], 1)
    if adam:
        t = BEFORE + 1
        mean, root = (1 - BETA1) * g / (1 - BETA1**t), (((1 - BETA2) * g * g + BETA2) / (1 - BETA2**t)).sqrt()
        g = mean / (root + EPS)
    expected = {"param": LR * (1 - LR * DECAY) - LR * g}
    return {RATIO_TO: of(apart), "tmem": of(fused)}
