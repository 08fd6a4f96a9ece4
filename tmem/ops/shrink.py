"""lora_shrink: activations onto each slot's factor, [M,D] -> [M,R]."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _autocast, _checks
from tmem.ops._registry import define


def _fake(v, f, seg_off, seg_slot, rank, scale, plan=None):
    return v.new_empty(v.shape[0], f.shape[1], dtype=torch.float64 if v.dtype == torch.float64 else torch.float32)


def _fake_multi(v, f, seg_off, seg_slot, rank, scale, plan=None):
    one = _fake(v, f[0], seg_off, seg_slot, rank, scale)
    return one.new_empty(len(f), *one.shape)


_op = define(
    "lora_shrink(Tensor v, Tensor f, Tensor seg_off, Tensor seg_slot, Tensor rank, Tensor scale, Tensor? plan=None) -> Tensor",
    reference.lora_shrink,
    _fake,
    autocast=_autocast.rows("lora_shrink", 0),
)
_op_multi = define(
    "lora_shrink_multi(Tensor v, Tensor[] f, Tensor seg_off, Tensor seg_slot, Tensor rank, Tensor scale,"
    " Tensor? plan=None) -> Tensor",
    reference.lora_shrink_multi,
    _fake_multi,
    autocast=_autocast.rows("lora_shrink_multi", 0),
)


@_checks.public
def lora_shrink(
    v: Tensor, f: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor, plan: Tensor | None = None
) -> Tensor:
    """z[m,j] = scale[slot]·Σ_d v[m,d]·f[slot,j,d] for j < rank[slot], else 0; slot -1 gives 0. Not differentiable.

    v [M,D] fp32, bf16 or fp16; f [S,R,D], or [1,R,D] shared by all slots, of the same three, any strides; or both fp64.
    seg_off int32 [G+1], seg_slot int32 [G], rank int32 [S], plan: see tmem.reference. scale fp32 [S].
    Under torch.autocast v is first cast to its dtype, fp64 excepted. Returns z [M,R] fp32, fp64 for
    fp64. Raises ValueError or TypeError before anything is computed.
    """
    _check("lora_shrink", v, {"f": f}, seg_off, seg_slot, rank, scale, plan)
    return _op(v, f, seg_off, seg_slot, rank, scale, plan)


@_checks.public
def lora_shrink_multi(
    v: Tensor, f: list[Tensor], seg_off: Tensor, seg_slot: Tensor, rank: Tensor, scale: Tensor,
    plan: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`lora_shrink` through each of several factors that read the same rows, as q, k and v do: z [P,M,R].

    f: one or more factors of one dtype, device and shape as in lora_shrink; a GPU reads v once for up to three of them.
    Not differentiable. Raises ValueError or TypeError before anything is computed.
    """
    op = "lora_shrink_multi"
    if not f:
        raise ValueError(f"{op}: f must hold at least one factor, got none")
    _check(op, v, {f"f[{i}]": one for i, one in enumerate(f)}, seg_off, seg_slot, rank, scale, plan)
    for i, one in enumerate(f):
        _checks.shape(op, f"f[{i}]", one, None, f[0].shape[1], None)
        _checks.dtype(op, f"f[{i}]", one, f[0].dtype)
    return _op_multi(v, f, seg_off, seg_slot, rank, scale, plan)


def _check(op, v, factors, seg_off, seg_slot, rank, scale, plan) -> None:
    _checks.shape(op, "v", v, None, None)
    _checks.dtype(op, "v", v, *_checks.ACTIVATION)
    _checks.same_device(op, v, **factors, seg_off=seg_off, seg_slot=seg_slot, rank=rank, scale=scale, plan=plan)
    for name, f in factors.items():
        _checks.shape(op, name, f, None, None, v.shape[1])
        _checks.segments(op, seg_off, seg_slot, rank, v.shape[0], f.shape[1])
        _checks.factor(op, name, f, v, rank.shape[0], None, v.shape[1])
    _checks.plan(op, plan, seg_slot, rank, v.shape[0])
    _checks.dtype(op, "scale", scale, torch.float32)
    _checks.shape(op, "scale", scale, rank.shape[0])
