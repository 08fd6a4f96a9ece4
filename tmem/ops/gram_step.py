"""lora_gram_step_: the optimizer's step of a factor from what gram has just summed, so that no gradient is written."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _autocast, _checks
from tmem.ops._registry import define


def _fake(param, m, v, step, hyper, z, dy, seg_off, seg_slot, rank, plan=None, copy=None, squares=None):
    return None


_op = define(
    "lora_gram_step_(Tensor(a!) param, Tensor(b!)? m, Tensor(c!)? v, Tensor step, Tensor hyper, Tensor z, Tensor dy,"
    " Tensor seg_off, Tensor seg_slot, Tensor rank, Tensor? plan=None, Tensor(d!)? copy=None, Tensor(e!)? squares=None) -> ()",
    reference.lora_gram_step_,
    _fake,
    autocast=_autocast.rows("lora_gram_step_", 6),
)


@_checks.public
def lora_gram_step_(
    param: Tensor, m: Tensor | None, v: Tensor | None, step: Tensor, hyper: Tensor, z: Tensor, dy: Tensor,
    seg_off: Tensor, seg_slot: Tensor, rank: Tensor, plan: Tensor | None = None, copy: Tensor | None = None,
    squares: Tensor | None = None,
) -> None:  # fmt: skip
    """One step of a factor by g = gram(z, dy), in place: lora_gram_ and bank_step_ in one, and g is never written.

    For where one call has all of a slot's gradient of this factor: no micro-batches, no layer used twice, no clip, and nobody
    who wants to see g. Slots with rows are stepped up to their rank, by AdamW if m and v are given, by SGD if not. All else
    keeps every bit. Make dz and dx first: they come from the factor as it was.
    A row's norm is known only after all of its layers, so a row cannot be left out for it, as bank_step_ does. Instead each
    element whose g is not finite keeps what it has, and squares tell. Keep a copy of a row that must not be half stepped.

    param, m, v [S,R,D] fp32 and z [M,R] fp32; dy [M,D] fp32, bf16 or fp16; or all fp64. param, m, v and copy may have any
    strides. For B, z is what shrink made of x; for A, z is dz and dy is x. step int32 [S]: steps taken so far, only read:
    count up when all layers are stepped. hyper fp32 or fp64 [S,6]: see bank_step_; clip must be 0. seg_off, seg_slot, rank,
    plan: see tmem.reference. copy bf16 or fp16 [S,R,D], if given, receives the new parameters. squares fp64
    [S,⌈D/SQUARED⌉], if given: what lora_gram_ leaves of g. Not differentiable. Under torch.autocast dy is first cast to its
    dtype, fp64 excepted. Raises ValueError or TypeError before anything is written. On a GPU no value is read: there a slot
    with a clip stays as it was, and its squares are NaN.
    """
    op = "lora_gram_step_"
    _checks.shape(op, "dy", dy, None, None)
    _checks.dtype(op, "dy", dy, *_checks.ACTIVATION)
    _checks.same_device(
        op, param, m=m, v=v, step=step, hyper=hyper, z=z, dy=dy, seg_off=seg_off, seg_slot=seg_slot, rank=rank, plan=plan,
        copy=copy, squares=squares,
    )  # fmt: skip
    _checks.shape(op, "z", z, dy.shape[0], None)
    _checks.dtype(op, "z", z, torch.float64 if dy.dtype == torch.float64 else torch.float32)
    _checks.segments(op, seg_off, seg_slot, rank, dy.shape[0], z.shape[1])
    _checks.plan(op, plan, seg_slot, rank, dy.shape[0])
    _checks.moments(op, m, v)
    for name, x in (("param", param), ("m", m), ("v", v), ("copy", copy)):
        if x is not None:
            _checks.dtype(op, name, x, *(_checks.HALF if name == "copy" else (z.dtype,)))
            _checks.shape(op, name, x, rank.shape[0], z.shape[1], dy.shape[1])
    _checks.settings(op, step, hyper, rank.shape[0])
    _checks.unclipped(op, hyper, seg_slot)
    _checks.squares(op, squares, param)
    outputs = {"param": param, "m": m, "v": v, "copy": copy, "squares": squares}
    inputs = {"step": step, "hyper": hyper, "z": z, "dy": dy, "plan": plan}
    _checks.written(op, outputs, {**inputs, "seg_off": seg_off, "seg_slot": seg_slot, "rank": rank})
    _op(param, m, v, step, hyper, z, dy, seg_off, seg_slot, rank, plan, copy, squares)
    _checks.changed(*outputs.values())
