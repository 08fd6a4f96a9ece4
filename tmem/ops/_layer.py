"""adapted_linear: a layer under a bank as one op, for torch.compile, which follows neither contexts nor routes.

What the op does is looked up when it runs, not when it is traced: one compiled model serves every route, and nothing is
compiled again when slots change. Its backward adds to the bank's gradient, which is no output of the graph; so `handle`, a
leaf that requires grad, gets a gradient of zero, without which the graph would be thrown away.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Protocol

import torch
from torch import Tensor

from tmem.ops._once import once_differentiable
from tmem.ops._registry import define, differentiable

PARTS = ("adapted_linear", "adapted_linear_backward")


class Layer(Protocol):
    """A layer as the op runs it."""

    ranks: int
    reads_input: bool  # backward needs x though w is frozen

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None, int]:
        """y, z [M, ranks] if an adapter served, and what `backward` finds the same route by."""

    def backward(self, dy: Tensor, x: Tensor | None, w: Tensor, z: Tensor, route: int, need_dx: bool) -> Tensor | None:
        """dx, if it is needed; adds to the bank's gradient."""


_layers: weakref.WeakValueDictionary[int, Layer] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def enter(layer: Layer) -> int:
    """The number by which the op finds this layer, for as long as somebody holds it."""
    number = next(_numbers)
    _layers[number] = layer
    return number


def _float(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _forward(x, w, bias, handle, layer):
    y, z, route = _layers[layer].forward(x, w, bias)
    if z is None:
        z = x.new_zeros(x.shape[:-1].numel(), _layers[layer].ranks, dtype=_float(x))
    return y.contiguous(), z, torch.tensor(route)


def _fake(x, w, bias, handle, layer):
    z = x.new_empty(x.shape[:-1].numel(), _layers[layer].ranks, dtype=_float(x))
    return x.new_empty(*x.shape[:-1], w.shape[0]), z, torch.empty((), dtype=torch.int64, device="cpu")


_op = define(
    "adapted_linear(Tensor x, Tensor w, Tensor? bias, Tensor handle, int layer) -> (Tensor, Tensor, Tensor)", _forward, _fake
)


def _run_backward(dy, x, w, z, route, layer, need_dx):
    dx = _layers[layer].backward(dy, x, w, z, int(route), need_dx)
    return dy.new_empty(0) if dx is None else dx.contiguous(), dy.new_zeros((), dtype=torch.float32)


def _fake_backward(dy, x, w, z, route, layer, need_dx):
    dx = dy.new_empty(*dy.shape[:-1], w.shape[1]) if need_dx else dy.new_empty(0)
    return dx, dy.new_empty((), dtype=torch.float32)


_op_backward = define(
    "adapted_linear_backward(Tensor dy, Tensor? x, Tensor w, Tensor z, Tensor route, int layer, bool need_dx)"
    " -> (Tensor, Tensor)",
    _run_backward,
    _fake_backward,
)


def _setup_context(ctx, inputs, output):
    x, w, _, _, layer = inputs
    _, z, route = output
    ctx.mark_non_differentiable(z, route)
    ctx.layer = layer
    ctx.save_for_backward(x if ctx.needs_input_grad[1] or _layers[layer].reads_input else None, w, z, route)


@once_differentiable("adapted_linear")
def _backward(ctx, saved, dy, *_):
    x, w, z, route = saved
    need_dx, need_dw, need_db = ctx.needs_input_grad[:3]
    dx, handle = torch.ops.tmem.adapted_linear_backward(dy, x, w, z, route, ctx.layer, need_dx)
    rows = dy.reshape(-1, dy.shape[-1])
    dw = rows.T @ x.reshape(-1, x.shape[-1]) if need_dw else None
    return dx if need_dx else None, dw, rows.sum(0) if need_db else None, handle, None


differentiable("adapted_linear", _setup_context, _backward)


def adapted_linear(x: Tensor, w: Tensor, bias: Tensor | None, handle: Tensor, layer: int) -> Tensor:
    """y of the layer that `enter` gave this number, under the route that is open where and when it runs."""
    return torch.ops.tmem.adapted_linear(x, w, bias, handle, layer)[0]
