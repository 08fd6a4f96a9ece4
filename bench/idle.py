"""Bench `idle`: a step of some rows of a bank by itself, and among seven times as many rows that take no step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import step
from .cases import StepCase
from .measure import Provider

RATIO_TO = "tmem, no idle rows"


@dataclass(frozen=True)
class IdleCase(StepCase):
    idle: int = 0

    @property
    def name(self) -> str:
        return f"{super().name}, {self.idle} idle"


def cases(quick: bool, device: str = "cpu") -> list[IdleCase]:
    found = [c for c in step.cases(quick, device) if quick or c.slots >= 32][:1]
    return [IdleCase(c.slots, c.rank, c.widths, c.dtype, c.layers, 7 * c.slots) for c in found]


def providers(case: IdleCase, device: str) -> dict[str, Provider]:
    alone = StepCase(case.slots, case.rank, case.widths, case.dtype, case.layers)
    oracle = step.oracle(alone, device)
    active = torch.arange(case.slots + case.idle, device=device) % 8 == 0  # idle rows lie between the active ones
    return {
        RATIO_TO: step.bank_provider(alone, device, oracle),
        "tmem": step.bank_provider(alone, device, oracle, active),
    }
