"""Bench `bits`: forward and backward of a linear layer under many adapters over a base in few bits, against that base alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from ..models.bases import weight_of
from ..models.quantised import BITS, LIBRARY, in_bits
from . import lora
from .cases import LoraCase
from .measure import Provider

RATIO_TO = "base"


@dataclass(frozen=True)
class BitsCase(LoraCase):
    """As LoraCase, over W in `bits`; bytes count W as it was."""

    bits: str = "nf4"

    @property
    def name(self) -> str:
        return f"{super().name} {self.bits}"


def cases(quick: bool, device: str = "cpu") -> list[BitsCase]:
    here = [bits for bits in BITS if find_spec(LIBRARY[bits])]
    if quick:
        return [BitsCase(64, 128, 4, "3x2..7", (5, 2, 7), torch.float32, bits=bits) for bits in here]
    k, n, tokens = (4096, 4096, 128) if device == "cuda" else (576, 1536, 8)
    return [BitsCase(k, n, 16, f"64x{tokens}", (tokens,) * 64, torch.bfloat16, bits=bits) for bits in here]


def providers(case: BitsCase, device: str) -> dict[str, Provider]:
    data = lora.inputs(case, device)
    layer, alone = (in_bits(lora.frozen_layer(data), case.bits, device) for _ in range(2))
    whole = lora.adapted(case, data, lora.frozen_layer(data))
    data = dataclasses.replace(data, w=weight_of(alone, case.dtype))
    x = data.x.clone().requires_grad_()

    def call():
        y = alone(x)
        return y, *torch.autograd.grad(y, x, data.dy)

    return {
        "base": Provider(call, lambda: dict(zip(("y", "dx"), call())), data.frozen, tolerance=TOLERANCE),
        "tmem": dataclasses.replace(lora.adapted(case, data, layer), tolerance=TOLERANCE),
        "tmem, whole weights": whole,
    }


TOLERANCE = 0.01  # of a library's own product, which rounds where it likes
