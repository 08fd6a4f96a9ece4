"""gated_product: f(gate)·up, in one pass over memory; differentiable in both."""

from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._once import once_differentiable
from tmem.ops._registry import define, differentiable


def _fake(gate, up, gelu):
    return gate.new_empty(gate.shape)


def _fake_backward(grad, gate, up, gelu):
    return gate.new_empty(gate.shape), gate.new_empty(gate.shape)


_op = define("gated_product(Tensor gate, Tensor up, bool gelu) -> Tensor", reference.gated_product, _fake)
_op_backward = define(
    "gated_product_backward(Tensor grad, Tensor gate, Tensor up, bool gelu) -> (Tensor, Tensor)",
    reference.gated_product_backward,
    _fake_backward,
)


def _setup_context(ctx, inputs, output):
    gate, up, ctx.gelu = inputs
    ctx.save_for_backward(gate, up)


@once_differentiable("gated_product")
def _backward(ctx, saved, grad):
    return *_op_backward(grad, *saved, ctx.gelu), None


differentiable("gated_product", _setup_context, _backward)


@_checks.public
def gated_product(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """o = f(gate)·up; f is silu, or with `gelu` GELU by tanh (Shazeer 2020).

    gate and up [M,N], or of any one shape, of one dtype, fp32, bf16, fp16 or fp64. Computed in fp32 (fp64 of fp64), f(gate) and
    o rounded, as transformers' modules do. Differentiable in both; gradients are rounded once. Raises ValueError or TypeError
    before anything is computed.
    """
    op = "gated_product"
    _checks.dtype(op, "gate", gate, *_checks.ACTIVATION)
    _checks.shape(op, "up", up, *gate.shape)
    _checks.dtype(op, "up", up, gate.dtype)
    _checks.same_device(op, gate, up=up)
    return _op(gate, up, gelu)
