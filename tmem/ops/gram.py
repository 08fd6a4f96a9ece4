"""lora_gram: each slot's gradient of its factor, [M,R] and [M,D] -> [S,R,D]."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _autocast, _checks
from tmem.ops._registry import define

SQUARED = reference.SQUARED


def _fake_(g, z, v, seg_off, seg_slot, rank, plan=None, fresh=False, squares=None):
    return None


def _fake(z, v, seg_off, seg_slot, rank, plan=None):
    return z.new_empty(rank.shape[0], z.shape[1], v.shape[1])


_op_ = define(
    "lora_gram_(Tensor(a!) g, Tensor z, Tensor v, Tensor seg_off, Tensor seg_slot, Tensor rank, Tensor? plan=None,"
    " bool fresh=False, Tensor(b!)? squares=None) -> ()",
    reference.lora_gram_,
    _fake_,
    autocast=_autocast.rows("lora_gram_", 2),
)
_op = define(
    "lora_gram(Tensor z, Tensor v, Tensor seg_off, Tensor seg_slot, Tensor rank, Tensor? plan=None) -> Tensor",
    reference.lora_gram,
    _fake,
    autocast=_autocast.rows("lora_gram", 1),
)


def _check(op, z, v, seg_off, seg_slot, rank, plan) -> None:
    _checks.shape(op, "v", v, None, None)
    _checks.dtype(op, "v", v, *_checks.ACTIVATION)
    _checks.same_device(op, z, v=v, seg_off=seg_off, seg_slot=seg_slot, rank=rank, plan=plan)
    _checks.shape(op, "z", z, v.shape[0], None)
    _checks.dtype(op, "z", z, torch.float64 if v.dtype == torch.float64 else torch.float32)
    _checks.segments(op, seg_off, seg_slot, rank, v.shape[0], z.shape[1])
    _checks.plan(op, plan, seg_slot, rank, v.shape[0])


@_checks.public
def lora_gram_(
    g: Tensor, z: Tensor, v: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, plan: Tensor | None = None,
    fresh: bool = False, squares: Tensor | None = None,
) -> None:  # fmt: skip
    """g[slot,j,d] += Σ_{m in slot} z[m,j]·v[m,d] for j < rank[slot], in place. Not differentiable.

    Each segment is summed by itself and then added to g, in order: the bits are the same whether a slot's segments come
    in one call or in several. Slots without rows and rows j >= rank[slot] keep every bit. fresh: what g holds of slots with
    rows, up to their rank, counts as zero, so that it need not be cleared before.
    squares fp64 [S,⌈D/SQUARED⌉], if given: entries of slots with rows are set so that they add up to Σ g², up to the rank, of
    the g that this call leaves: what bank_step_ needs of a norm. Which of the columns' entries hold it is the kernel's choice.
    g [S,R,D] fp32, any strides; z [M,R] fp32; v [M,D] fp32, bf16 or fp16; or all fp64. seg_off, seg_slot, rank,
    plan: see tmem.reference. Under torch.autocast v is first cast to its dtype, fp64 excepted.
    Raises ValueError or TypeError before anything is written.
    """
    op = "lora_gram_"
    _check(op, z, v, seg_off, seg_slot, rank, plan)
    _checks.dtype(op, "g", g, z.dtype)
    _checks.shape(op, "g", g, rank.shape[0], z.shape[1], v.shape[1])
    _checks.same_device(op, z, g=g, squares=squares)
    _checks.squares(op, squares, g)
    inputs = {"z": z, "v": v, "seg_off": seg_off, "seg_slot": seg_slot, "rank": rank, "plan": plan}
    _checks.written(op, {"g": g, "squares": squares}, inputs)
    _op_(g, z, v, seg_off, seg_slot, rank, plan, fresh, squares)
    _checks.changed(g, squares)


@_checks.public
def lora_gram(z: Tensor, v: Tensor, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, plan: Tensor | None = None) -> Tensor:
    """g[slot,j,d] = Σ_{m in slot} z[m,j]·v[m,d] for j < rank[slot], else 0. Not differentiable.

    z [M,R] fp32; v [M,D] fp32, bf16 or fp16; or both fp64. seg_off, seg_slot, rank [S], plan: see tmem.reference.
    Under torch.autocast v is first cast to its dtype, fp64 excepted.
    Returns g [S,R,D] in z's dtype. Raises ValueError or TypeError before anything is computed.
    """
    _check("lora_gram", z, v, seg_off, seg_slot, rank, plan)
    return _op(z, v, seg_off, seg_slot, rank, plan)
