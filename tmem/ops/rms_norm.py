"""rms_norm: RMSNorm of every row, in one pass over memory; differentiable in x and weight."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._once import once_differentiable
from tmem.ops._registry import define, differentiable


def _fake(x, weight, eps, plus):
    return x.new_empty(x.shape)


def _fake_backward(dy, x, weight, eps, plus, need_dw):
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape), x.new_empty(len(weight) if need_dw else 0, dtype=sums)


_op = define("rms_norm(Tensor x, Tensor weight, float eps, float plus) -> Tensor", reference.rms_norm, _fake)
_op_backward = define(
    "rms_norm_backward(Tensor dy, Tensor x, Tensor weight, float eps, float plus, bool need_dw) -> (Tensor, Tensor)",
    reference.rms_norm_backward,
    _fake_backward,
)


def _setup_context(ctx, inputs, output):
    x, weight, *ctx.settings = inputs
    ctx.save_for_backward(x, weight)


@once_differentiable("rms_norm")
def _backward(ctx, saved, dy):
    x, weight = saved
    need_dw = ctx.needs_input_grad[1]
    dx, dw = _op_backward(dy, x, weight, *ctx.settings, need_dw)
    return dx, dw.to(weight.dtype) if need_dw else None, None, None


differentiable("rms_norm", _setup_context, _backward)


@_checks.public
def rms_norm(x: Tensor, weight: Tensor, eps: float, plus: float) -> Tensor:
    """y = x·(mean(x²) + eps)^-1/2·(plus + weight) over the last dimension (Zhang and Sennrich 2019). [..., N]

    x [..., N] and weight [N] of one dtype, fp32, bf16, fp16 or fp64. Sums in fp32 (fp64 of fp64). Rounded once, with `plus` 0
    also before the product with the weight: as transformers' Gemma does and its Llama. Differentiable in x and weight; dw is
    summed in fp32, in blocks of rows in their order, and rounded once. On a CPU a row's bits do not depend on its neighbours,
    nor any bits on the number of threads. Raises ValueError or TypeError before anything is computed.
    """
    op = "rms_norm"
    _checks.dtype(op, "x", x, *_checks.ACTIVATION)
    if x.dim() < 1:
        raise ValueError(f"{op}: x must have shape [..., N], got []")
    _checks.shape(op, "weight", weight, x.shape[-1])
    _checks.dtype(op, "weight", weight, x.dtype)
    _checks.same_device(op, x, weight=weight)
    return _op(x, weight, eps, plus)
