"""lora_plan: the tiles of a batch of segments, for the kernels of a GPU."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(seg_off, seg_slot, rank, rows):
    return seg_off.new_empty(_checks.plan_size(rows, seg_slot.shape[0], rank.shape[0]))


_op = define("lora_plan(Tensor seg_off, Tensor seg_slot, Tensor rank, SymInt rows) -> Tensor", reference.lora_plan, _fake)


@_checks.public
def lora_plan(seg_off: Tensor, seg_slot: Tensor, rank: Tensor, rows: int) -> Tensor:
    """The plan of a batch of `rows` rows: built on the device in one launch, without waiting, for all layers at once.

    seg_off int32 [G+1], seg_slot int32 [G], rank int32 [S]: see tmem.reference, which also gives the layout of the int32
    tensor that is returned. The CPU's kernels do not read it. Raises ValueError or TypeError for bad arguments; on a GPU
    the values are not read: there segments that do not run from 0 to `rows` make every kernel write NaN, and so does a plan
    that is given with other segments or slots than it was made for.
    """
    if rows < 0:
        raise ValueError(f"lora_plan: rows must be 0 or more, got {rows}")
    _checks.same_device("lora_plan", seg_off, seg_slot=seg_slot, rank=rank)
    _checks.segments("lora_plan", seg_off, seg_slot, rank, rows, torch.iinfo(torch.int32).max)
    return _op(seg_off, seg_slot, rank, rows)
