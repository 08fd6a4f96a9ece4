"""rotate: the heads of queries or keys rotated by their positions and laid out as attention reads them; differentiable in x."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._once import once_differentiable
from tmem.ops._registry import define, differentiable


def _fake(x, cos, sin, back):
    rows, first, second, size = x.shape
    return x.new_empty(rows, second, first, size)


_op = define("rotate(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor", reference.rotate, _fake)


def _setup_context(ctx, inputs, output):
    _, cos, sin, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


@once_differentiable("rotate")
def _backward(ctx, saved, grad):
    return _op(grad, *saved, not ctx.back), None, None, None


differentiable("rotate", _setup_context, _backward)


@_checks.public
def rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """o[b,h,t] = x[b,t,h]·cos[b,t] + turn(x[b,t,h])·sin[b,t], turn(x) = (-x[D/2:], x[:D/2]): [B,T,H,D] -> [B,H,T,D] (Su et al.
    2021). back: the transpose of that, [B,H,T,D] -> [B,T,H,D].

    x any strides; cos and sin [1 or B,T,D], D even; all of one dtype, fp32, bf16, fp16 or fp64. Both products and their sum are
    rounded, as transformers' modules do. Differentiable in x, not in cos and sin: its gradient is the same op, the other way.
    Raises ValueError or TypeError before anything is computed.
    """
    op = "rotate"
    _checks.shape(op, "x", x, None, None, None, None)
    _checks.dtype(op, "x", x, *_checks.ACTIVATION)
    rows, size = x.shape[0], x.shape[3]
    if size % 2:
        raise ValueError(f"{op}: x must have heads of an even width, got {size}")
    for name, wave in (("cos", cos), ("sin", sin)):
        if wave.dim() != 3 or wave.shape[0] not in (1, rows):
            raise ValueError(f"{op}: {name} must have shape [1 or {rows}, {x.shape[1 + back]}, {size}], got {list(wave.shape)}")
        _checks.shape(op, name, wave, cos.shape[0], x.shape[1 + back], size)
        _checks.dtype(op, name, wave, x.dtype)
        if wave.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: {name} must not require grad, as no gradient reaches it; detach it")
    _checks.same_device(op, x, cos=cos, sin=sin)
    return _op(x, cos, sin, back)
