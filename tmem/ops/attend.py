"""attend: one new token of every row against its cached keys and values, [B,H,D] and [B,G,L,D] -> [B,H,D]."""

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks
from tmem.ops._registry import define


def _fake(q, k, v, mask, scale, alike=None):
    return q.new_empty(q.shape)


WIDEST = {torch.float32: 128, torch.bfloat16: 256, torch.float16: 256}  # heads that the kernel for a GPU takes

_op = define(
    "attend(Tensor q, Tensor k, Tensor v, Tensor mask, float scale, Tensor? alike=None) -> Tensor", reference.attend, _fake
)


@_checks.public
def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, alike: Tensor | None = None) -> Tensor:
    """o[b,h] = Σ_c softmax_c(scale·q[b,h]·k[b,g,c]) v[b,g,c] over the columns c with mask[b,c]; head h reads key head
    g = h // (H/G). Zeros for a row that sees none. Not differentiable.

    q [B,H,D]; k and v [B,G,L,D], any strides, G a divisor of H; mask bool [B,L]; all fp32, bf16 or fp16 (sums in fp32,
    rounded once at the end), or fp64. alike int32 [B,2] says of every row in which row, and in how many columns from the first
    on, keys and values are the same as its own: a CPU reads them there, so that what several rows begin with goes through its
    cache once. What a row does not see has no influence, NaN or not, and is not read. A row's bits depend neither on L nor on
    its neighbours nor on `alike`; on the CPU on what it sees alone, on a GPU also on where that stands. There heads wider than
    256, or 128 in fp32, and fp64 go to the formula. Raises ValueError or TypeError before anything is
    computed.
    """
    op = "attend"
    _checks.shape(op, "q", q, None, None, None)
    _checks.dtype(op, "q", q, *_checks.ACTIVATION)
    _checks.shape(op, "k", k, q.shape[0], None, None, q.shape[2])
    _checks.shape(op, "v", v, *k.shape)
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{op}: q must have a multiple of k's {k.shape[1]} heads, got {q.shape[1]}")
    _checks.shape(op, "mask", mask, q.shape[0], k.shape[2])
    _checks.dtype(op, "mask", mask, torch.bool)
    for name, x in (("k", k), ("v", v)):
        _checks.dtype(op, name, x, q.dtype)
    _checks.same_device(op, q, k=k, v=v, mask=mask)
    if alike is not None:
        _checks.shape(op, "alike", alike, q.shape[0], 2)
        _checks.dtype(op, "alike", alike, torch.int32)
        _checks.same_device(op, q, alike=alike)
        _checks.alike(op, alike, k.shape[2])
    return _op(q, k, v, mask, scale, alike)
