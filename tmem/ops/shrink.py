"""lora_shrink: activations onto each slot's factor, [M,D] -> [M,R]."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(v, f, seg_off, seg_slot, rank, scale):
    return v.new_empty(v.shape[0], f.shape[1], dtype=torch.float64 if v.dtype == torch.float64 else torch.float32)


_op = define(
    "lora_shrink(Tensor v, Tensor f, Tensor seg_off, Tensor seg_slot, Tensor rank, Tensor scale) -> Tensor",
    reference.lora_shrink,
    _fake,
)


def lora_shrink(v: Tensor, f: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor) -> Tensor:
    """z[m,j] = scale[slot]·Σ_d v[m,d]·f[slot,j,d] for j < rank[slot], else 0; slot -1 gives 0. Not differentiable.

    v [M,D] fp32 or bf16; f [S,R,D], or [1,R,D] shared by all slots, fp32 or bf16, any strides; or both fp64.
    seg_off int32 [G+1], seg_slot int32 [G], rank int32 [S]: see tmem.reference. scale fp32 [S].
    Returns z [M,R] fp32, fp64 for fp64. Raises ValueError or TypeError before anything is computed.
    """
    op = "lora_shrink"
    _checks.shape(op, "v", v, None, None)
    _checks.dtype(op, "v", v, torch.float32, torch.bfloat16, torch.float64)
    _checks.same_device(op, v, f=f, seg_off=seg_off, seg_slot=seg_slot, rank=rank, scale=scale)
    _checks.shape(op, "f", f, None, None, v.shape[1])
    _checks.segments(op, seg_off, seg_slot, rank, v.shape[0], f.shape[1])
    _checks.factor(op, "f", f, v, rank.shape[0], None, v.shape[1])
    _checks.dtype(op, "scale", scale, torch.float32)
    _checks.shape(op, "scale", scale, rank.shape[0])
    return _op(v, f, seg_off, seg_slot, rank, scale)
