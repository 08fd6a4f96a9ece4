"""lora_backward_: what a layer's backward needs of dy, from one read of it."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _autocast, _checks
from tmem.ops._registry import define


def _fake(g, z, dy, bt, seg_off, seg_slot, rank, scale, plan=None, fresh=False, squares=None):
    return torch.empty_like(z, memory_format=torch.contiguous_format)


_op = define(
    "lora_backward_(Tensor(a!) g, Tensor z, Tensor dy, Tensor bt, Tensor seg_off, Tensor seg_slot, Tensor rank,"
    " Tensor scale, Tensor? plan=None, bool fresh=False, Tensor(b!)? squares=None) -> Tensor",
    reference.lora_backward_,
    _fake,
    autocast=_autocast.rows("lora_backward_", 2),
)


@_checks.public
def lora_backward_(
    g: Tensor, z: Tensor, dy: Tensor, bt: Tensor,
    seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor, plan: Tensor | None = None,
    fresh: bool = False, squares: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """g += gram(z, dy), in place, and dz = shrink(dy, bt): the gradient of bt, and what dx and the gradient of a need.

    g [S,R,N] fp32, any strides; z [M,R] fp32; dy [M,N] and bt [S,R,N] fp32, bf16 or fp16; or all fp64. seg_off,
    seg_slot, rank, plan: see tmem.reference; scale fp32 [S]. fresh: what g holds of slots with rows counts as zero, so that it
    need not be cleared before. squares: see lora_gram_. Under torch.autocast dy is first cast to its dtype, fp64 excepted.
    Returns dz [M,R] in z's dtype. Not differentiable. Raises ValueError or TypeError before anything is written.
    """
    op = "lora_backward_"
    _checks.shape(op, "dy", dy, None, None)
    _checks.dtype(op, "dy", dy, *_checks.ACTIVATION)
    _checks.same_device(
        op, g, z=z, dy=dy, bt=bt, seg_off=seg_off, seg_slot=seg_slot, rank=rank, scale=scale, plan=plan,
        squares=squares,
    )  # fmt: skip
    _checks.shape(op, "z", z, dy.shape[0], None)
    _checks.dtype(op, "z", z, torch.float64 if dy.dtype == torch.float64 else torch.float32)
    (rows, width), ranks = dy.shape, z.shape[1]
    _checks.segments(op, seg_off, seg_slot, rank, rows, ranks)
    slots = rank.shape[0]
    _checks.plan(op, plan, seg_slot, rank, rows)
    _checks.dtype(op, "g", g, z.dtype)
    _checks.shape(op, "g", g, slots, ranks, width)
    _checks.shape(op, "bt", bt, slots, ranks, width)
    _checks.factor(op, "bt", bt, dy, slots, ranks, width)
    _checks.dtype(op, "scale", scale, torch.float32)
    _checks.shape(op, "scale", scale, slots)
    _checks.squares(op, squares, g)
    inputs = {"z": z, "dy": dy, "bt": bt, "scale": scale, "plan": plan}
    _checks.written(op, {"g": g, "squares": squares}, {**inputs, "seg_off": seg_off, "seg_slot": seg_slot, "rank": rank})
    dz = _op(g, z, dy, bt, seg_off, seg_slot, rank, scale, plan, fresh, squares)
    _checks.changed(g, squares)
    return dz
