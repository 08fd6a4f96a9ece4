"""lora_glu: the adapters of gate and up and the gated product of both, of one new token of every row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(gate, up, gelu, x, a, bt, row_slot, rank, scale):
    return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


_op = define(
    "lora_glu(Tensor gate, Tensor up, bool gelu, Tensor? x, Tensor[] a, Tensor[] bt, Tensor? row_slot, Tensor? rank,"
    " Tensor? scale) -> Tensor",
    reference.lora_glu,
    _fake,
)


@_checks.public
def lora_glu(
    gate: Tensor, up: Tensor, gelu: bool, x: Tensor | None = None, a: Sequence[Tensor] = (), bt: Sequence[Tensor] = (),
    row_slot: Tensor | None = None, rank: Tensor | None = None, scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """o = f(gate + Δ0(x))·(up + Δ1(x)), [M,N] each; f is silu, or with `gelu` GELU by tanh. Not differentiable.

    gate, up of one dtype, fp32, bf16, fp16 or fp64. Δ(x): what lora_decode_ adds to each, with two a and two bt in lists;
    without adapters the lists are empty and the rest None. Computed in fp32, rounded once. A row's bits do not depend on its
    neighbours. Raises ValueError or TypeError before anything is computed.
    """
    op = "lora_glu"
    _checks.shape(op, "gate", gate, None, None)
    _checks.dtype(op, "gate", gate, *_checks.ACTIVATION)
    _checks.shape(op, "up", up, *gate.shape)
    _checks.dtype(op, "up", up, gate.dtype)
    _checks.same_device(op, gate, up=up)
    _checks.adapters(op, {"gate": gate, "up": up}, x, a, bt, row_slot, rank, scale)
    return _op(gate, up, gelu, x, list(a), list(bt), row_slot, rank, scale)
