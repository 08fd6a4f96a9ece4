"""lora_expand_: [M,R] through each slot's factor, added to [M,D] in place."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(o, z, f, seg_off, seg_slot, rank, plan=None):
    return None


_op = define(
    "lora_expand_(Tensor(a!) o, Tensor z, Tensor f, Tensor seg_off, Tensor seg_slot, Tensor rank, Tensor? plan=None) -> ()",
    reference.lora_expand_,
    _fake,
)


@_checks.public
def lora_expand_(
    o: Tensor, z: Tensor, f: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, plan: Tensor | None = None
) -> None:
    """o[m,d] += Σ_{j<rank[slot]} z[m,j]·f[slot,j,d], in place; rows of slot -1 keep every bit. Not differentiable.

    o [M,D] fp32, bf16 or fp16 (rounded once, from the fp32 sum), any strides; z [M,R] fp32; f [S,R,D], or [1,R,D]
    shared by all slots, fp32, bf16 or fp16, any strides; or all fp64. seg_off, seg_slot, rank, plan: see tmem.reference.
    torch.autocast changes nothing: o has its dtype already.
    Raises ValueError or TypeError before anything is written.
    """
    op = "lora_expand_"
    _checks.shape(op, "o", o, None, None)
    _checks.dtype(op, "o", o, *_checks.ACTIVATION)
    _checks.same_device(op, o, z=z, f=f, seg_off=seg_off, seg_slot=seg_slot, rank=rank, plan=plan)
    _checks.shape(op, "z", z, o.shape[0], None)
    _checks.dtype(op, "z", z, torch.float64 if o.dtype == torch.float64 else torch.float32)
    _checks.segments(op, seg_off, seg_slot, rank, o.shape[0], z.shape[1])
    _checks.factor(op, "f", f, o, rank.shape[0], z.shape[1], o.shape[1])
    _checks.plan(op, plan, seg_slot, rank, o.shape[0])
    _checks.written(op, {"o": o}, {"z": z, "f": f, "seg_off": seg_off, "seg_slot": seg_slot, "rank": rank, "plan": plan})
    _op(o, z, f, seg_off, seg_slot, rank, plan)
    _checks.changed(o)
