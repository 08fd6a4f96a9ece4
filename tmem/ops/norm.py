"""lora_norm: a projection's adapter, the residual sum and the RMSNorm of what comes next, of one new token of every row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(y, residual, before, weight, eps, plus, x, a, bt, row_slot, rank, scale):
    return tuple(torch.empty(y.shape, dtype=y.dtype, device=y.device) for _ in range(2))


_op = define(
    "lora_norm(Tensor y, Tensor residual, Tensor? before, Tensor weight, float eps, float plus, Tensor? x, Tensor[] a,"
    " Tensor[] bt, Tensor? row_slot, Tensor? rank, Tensor? scale) -> (Tensor, Tensor)",
    reference.lora_norm,
    _fake,
)


@_checks.public
def lora_norm(
    y: Tensor, residual: Tensor, before: Tensor | None, weight: Tensor, eps: float, plus: float, x: Tensor | None = None,
    a: Sequence[Tensor] = (), bt: Sequence[Tensor] = (), row_slot: Tensor | None = None, rank: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h = residual + y + Δ(x) and n = h·(mean(h²) + eps)^-1/2·(plus + weight), [M,N] both. Not differentiable.

    y, residual [M,N] of one dtype, fp32, bf16, fp16 or fp64; weight [N] and before [N] or None of any of these. Δ(x): what
    lora_decode_ adds to y, with one a and one bt in lists; without an adapter the lists are empty and the rest None. Sums in
    fp32, h rounded once, and n from h as it is rounded. With `before`, y + Δ(x) is rounded, and normed by `before` in place of
    `weight`, before it is added. A row's bits do not depend on its neighbours. Raises ValueError or TypeError before
    anything is computed.
    """
    op = "lora_norm"
    _checks.shape(op, "y", y, None, None)
    _checks.dtype(op, "y", y, *_checks.ACTIVATION)
    _checks.shape(op, "residual", residual, *y.shape)
    _checks.dtype(op, "residual", residual, y.dtype)
    for name, w in (("before", before), ("weight", weight)):
        if w is not None:
            _checks.shape(op, name, w, y.shape[1])
            _checks.dtype(op, name, w, *_checks.ACTIVATION)
    _checks.same_device(op, y, residual=residual, before=before, weight=weight)
    _checks.adapters(op, {"y": y}, x, a, bt, row_slot, rank, scale)
    return _op(y, residual, before, weight, eps, plus, x, list(a), list(bt), row_slot, rank, scale)
