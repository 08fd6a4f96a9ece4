"""Argument checks shared by the public functions. Every message names the op, the tensor, what was expected, what came.

The values of a segment descriptor are read only where that costs nothing: on the CPU, outside tracing. On a GPU reading
them would wait for the device; there the kernels guard memory by themselves.
"""

import torch
from torch import Tensor

from tmem import reference

FACTOR = (torch.float32, torch.bfloat16)


def shape(op: str, name: str, x: Tensor, *expected: int | None) -> None:
    """`x` has exactly these sizes; None = any."""
    if x.dim() != len(expected) or any(e is not None and e != n for e, n in zip(expected, x.shape)):
        want = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{op}: {name} must have shape [{want}], got {list(x.shape)}")


def dtype(op: str, name: str, x: Tensor, *expected: torch.dtype) -> None:
    if x.dtype not in expected:
        want = " or ".join(str(e).removeprefix("torch.") for e in expected)
        raise TypeError(f"{op}: {name} must be {want}, got {str(x.dtype).removeprefix('torch.')}")


def same_device(op: str, like: Tensor, **others: Tensor | None) -> None:
    """Every tensor lives where `like`, the op's first argument, lives."""
    for name, x in others.items():
        if x is not None and x.device != like.device:
            raise ValueError(f"{op}: {name} must be on {like.device} as the first argument is, got {x.device}")


def writable(op: str, name: str, x: Tensor) -> None:
    """An output written in place must not be an expanded view, whose elements share memory."""
    if any(stride == 0 and size > 1 for stride, size in zip(x.stride(), x.shape)):
        raise ValueError(f"{op}: {name} is written in place and must own each element, got an expanded view; clone it")


def factor(op: str, name: str, f: Tensor, activation: Tensor, slots: int, ranks: int | None, width: int) -> None:
    """A factor [slots or 1, ranks, width]: fp32 or bf16, fp64 exactly when the activation is."""
    dtype(op, name, f, *((torch.float64,) if activation.dtype == torch.float64 else FACTOR))
    if f.dim() != 3 or f.shape[0] not in (1, slots):
        raise ValueError(f"{op}: {name} must have shape [1 or {slots}, ranks, {width}], got {list(f.shape)}")
    shape(op, name, f, None, ranks, width)


def plan(op: str, given: Tensor | None, seg_slot: Tensor, rank: Tensor, rows: int) -> None:
    """What lora_plan gave for a batch of this size."""
    if given is None:
        return
    dtype(op, "plan", given, torch.int32)
    if given.dim() != 1 or given.shape[0] != plan_size(rows, seg_slot.shape[0], rank.shape[0]):
        raise ValueError(
            f"{op}: plan must be lora_plan(seg_off, seg_slot, rank, {rows}) of these segments and slots, of shape"
            f" [{plan_size(rows, seg_slot.shape[0], rank.shape[0])}], got {list(given.shape)}"
        )


def plan_size(rows: int, segments: int, slots: int) -> int:
    """Elements of a plan: count, tiles twice, slot_ptr, seg_order. See tmem.reference.lora_plan."""
    return 2 + 2 * (-(-rows // reference.TILE) + segments) + slots + segments


def segments(op: str, seg_off: Tensor, seg_slot: Tensor, rank: Tensor, rows: int, stored: int) -> None:
    """A descriptor of `rows` rows: offsets 0 .. rows nondecreasing, slots in [-1, S), 1 <= rank <= stored if named."""
    dtype(op, "seg_off", seg_off, torch.int32)
    dtype(op, "seg_slot", seg_slot, torch.int32)
    dtype(op, "rank", rank, torch.int32)
    shape(op, "seg_slot", seg_slot, None)
    shape(op, "seg_off", seg_off, seg_slot.shape[0] + 1)
    shape(op, "rank", rank, None)
    if torch.compiler.is_compiling() or type(seg_off) is not Tensor or not seg_off.is_cpu:
        return
    offsets = seg_off.tolist()
    if offsets[0] != 0 or offsets[-1] != rows:
        raise ValueError(f"{op}: seg_off must run from 0 to {rows} (rows), got {offsets[0]} to {offsets[-1]}")
    for g in range(len(offsets) - 1):
        if offsets[g + 1] < offsets[g]:
            raise ValueError(f"{op}: seg_off must not decrease, got {offsets[g]} then {offsets[g + 1]} at segment {g}")
    _slots(op, "seg_slot", "segment", seg_slot, rank, stored)


def rows(op: str, row_slot: Tensor, rank: Tensor, stored: int) -> None:
    """One slot in [-1, S) per row, 1 <= rank <= stored if named."""
    dtype(op, "row_slot", row_slot, torch.int32)
    dtype(op, "rank", rank, torch.int32)
    shape(op, "rank", rank, None)
    if not torch.compiler.is_compiling() and type(row_slot) is Tensor and row_slot.is_cpu:
        _slots(op, "row_slot", "row", row_slot, rank, stored)


def _slots(op: str, name: str, item: str, slots: Tensor, rank: Tensor, stored: int) -> None:
    ranks = rank.tolist()
    for i, slot in enumerate(slots.tolist()):
        if not -1 <= slot < len(ranks):
            raise ValueError(f"{op}: {name} must be in [-1, {len(ranks)}), got slot {slot} at {item} {i}")
        if slot >= 0 and ranks[slot] == 0:
            raise ValueError(f"{op}: {name} names slot {slot} at {item} {i}, but that slot is freed (rank 0)")
        if slot >= 0 and not 1 <= ranks[slot] <= stored:
            raise ValueError(f"{op}: rank of slot {slot} must be in 1..{stored} (stored ranks), got {ranks[slot]}")
