"""lora_decode_: the adapters of single rows, each row with a slot of its own."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _autocast, _checks
from tmem.ops._registry import define


def _fake(y, x, a, bt, row_slot, rank, scale):
    return None


_op = define(
    "lora_decode_(Tensor(a!) y, Tensor x, Tensor a, Tensor bt, Tensor row_slot, Tensor rank, Tensor scale) -> ()",
    reference.lora_decode_,
    _fake,
    autocast=lambda y, x, *rest: (y, _autocast.like("lora_decode_", x, y), *rest),
)


@_checks.public
def lora_decode_(y: Tensor, x: Tensor, a: Tensor, bt: Tensor, row_slot: Tensor, rank: Tensor, scale: Tensor) -> None:
    """y[m] += (scale[slot]·x[m] a[slot]ᵀ) bt[slot] with slot = row_slot[m], in place; -1 leaves the row alone.

    For one or a few rows per slot, where a row's bits must not depend on its neighbours and the factors' bytes are what
    costs. y [M,N] and x [M,K] of one dtype, fp32, bf16 or fp16; a [S,R,K], or [1,R,K] shared by all slots; bt [S,R,N]; a and
    bt fp32, bf16 or fp16; or all fp64; any strides. row_slot int32 [M], rank int32 [S], scale fp32 [S]. y is rounded once,
    from the fp32 sum. Under torch.autocast, which gave y its dtype, x is first cast to it, fp64 excepted. Not differentiable.
    Raises ValueError or TypeError before anything is written; on a GPU the values of row_slot are not read: there a slot that
    is out of range or freed shows as NaN.
    """
    op = "lora_decode_"
    _checks.shape(op, "y", y, None, None)
    _checks.dtype(op, "y", y, *_checks.ACTIVATION)
    _checks.same_device(op, y, x=x, a=a, bt=bt, row_slot=row_slot, rank=rank, scale=scale)
    _checks.shape(op, "rank", rank, None)
    (rows, n), slots = y.shape, rank.shape[0]
    x = _autocast.like(op, x, y)
    _checks.dtype(op, "x", x, y.dtype)
    _checks.shape(op, "x", x, rows, None)
    _checks.shape(op, "a", a, None, None, x.shape[1])
    _checks.shape(op, "row_slot", row_slot, rows)
    _checks.rows(op, row_slot, rank, a.shape[1])
    _checks.factor(op, "a", a, x, slots, None, x.shape[1])
    _checks.shape(op, "bt", bt, slots, a.shape[1], n)
    _checks.factor(op, "bt", bt, x, slots, a.shape[1], n)
    _checks.dtype(op, "scale", scale, torch.float32)
    _checks.shape(op, "scale", scale, slots)
    inputs = {"x": x, "a": a, "bt": bt, "row_slot": row_slot, "rank": rank, "scale": scale}
    _checks.written(op, {"y": y}, inputs)
    _op(y, x, a, bt, row_slot, rank, scale)
    _checks.changed(y)


def _fake_multi(y, x, a, bt, row_slot, rank, scale):
    return None


_multi = define(
    "lora_decode_multi_(Tensor(a!)[] y, Tensor x, Tensor[] a, Tensor[] bt, Tensor row_slot, Tensor rank, Tensor scale) -> ()",
    reference.lora_decode_multi_,
    _fake_multi,
)
MOST = 3  # projections of one x


@_checks.public
def lora_decode_multi_(
    y: list[Tensor], x: Tensor, a: list[Tensor], bt: list[Tensor], row_slot: Tensor, rank: Tensor, scale: Tensor
) -> None:
    """lora_decode_ of one to three projections of one x, in one launch on a GPU: y[p][m] += (scale·x[m] a[p]ᵀ) bt[p], in place.

    y[p] [M,N_p] and x [M,K] of one dtype; a[p] [S or 1,R,K], bt[p] [S,R,N_p], all a of one dtype and all bt of one; the rest
    as of lora_decode_. A row's bits do not depend on its neighbours. Raises ValueError or TypeError before anything is written.
    """
    op = "lora_decode_multi_"
    if not 1 <= len(y) <= MOST:
        raise ValueError(f"{op}: y must hold 1 to {MOST} tensors, got {len(y)}")
    for i, one in enumerate(y):
        _checks.shape(op, f"y[{i}]", one, y[0].shape[0] if i else None, None)
        _checks.dtype(op, f"y[{i}]", one, *((y[0].dtype,) if i else _checks.ACTIVATION))
    outputs = {f"y[{i}]": one for i, one in enumerate(y)}
    _checks.adapters(op, outputs, x, a, bt, row_slot, rank, scale)
    _checks.written(op, outputs, {"x": x, **_checks.named_factors(a, bt), "row_slot": row_slot, "rank": rank, "scale": scale})
    _multi(y, x, a, bt, row_slot, rank, scale)
    _checks.changed(*y)
