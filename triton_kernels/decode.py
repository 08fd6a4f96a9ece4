"""decode: y[m,d] += Σ_{j<rank[slot]} z[m,j]·bt[slot,j,d] with z[m,j] = scale[slot]·Σ_k x[m,k]·a[slot,j,k], slot = row_slot[m].

One row at a time through its own adapter, bound by the bytes of the factors. Two launches: `down` sums slices of the width
into planes, `up` adds the planes in order and expands. The slices depend on width and stored rank alone. x and y lie where the
batch puts them, so their alignment decides no layout: a row's bits do not depend on its neighbours.
"""

import torch
import triton
import triton.language as tl

from .configs import FACTOR, PLANES, padded_rank
from .plan import known_rank, row_stride, slot_stride


@triton.jit(do_not_specialize=["rows", "slots"], do_not_specialize_on_alignment=["x", "row_slot", "rank"])
def down_kernel(
    planes, x, x_stride, a, slot_stride, rank_stride, row_slot, rank, rows, slots,
    K: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: (row, BD columns) -> planes[slice, row, :]. A row without a known slot is left out."""
    row, slice = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = tl.load(row_slot + row)
    r = known_rank(slot, rank, slots, R)
    if r == 0:
        return
    j, d = tl.arange(0, RP), slice * BD + tl.arange(0, BD)
    used, inside = j < r, d < K
    at = a + slot.to(tl.int64) * slot_stride + j[:, None] * rank_stride + d[None, :]
    f = tl.load(at, used[:, None] & inside[None, :], other=0.0).to(tl.float32)
    v = tl.load(x + row * x_stride + d, inside, other=0.0).to(tl.float32)
    tl.store(planes + (slice * rows.to(tl.int64) + row) * R + j, tl.sum(f * v[None, :], 1), used)


@triton.jit(do_not_specialize=["rows", "slots"], do_not_specialize_on_alignment=["y", "row_slot", "rank", "scale"])
def up_kernel(
    y, y_stride, planes, bt, slot_stride, rank_stride, row_slot, rank, scale, rows, slots,
    N: tl.constexpr, SLICES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """One program: (row, BD columns). A row without a slot is not touched."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(row_slot + row)
    if slot == -1:
        return
    r = known_rank(slot, rank, slots, R)
    j, d = tl.arange(0, RP), tl.program_id(1) * BD + tl.arange(0, BD)
    used, inside = j < r, d < N
    to = y + row * y_stride + d
    before = tl.load(to, inside, other=0.0)
    at = bt + slot.to(tl.int64) * slot_stride + j[:, None] * rank_stride + d[None, :]
    f = tl.load(at, used[:, None] & inside[None, :], other=0.0).to(tl.float32)
    parts = tl.zeros([BP, RP], tl.float32)
    for first in range(0, SLICES, BP):
        p = first + tl.arange(0, BP)
        where = planes + (p[:, None] * rows.to(tl.int64) + row) * R + j[None, :]
        parts += tl.load(where, (p < SLICES)[:, None] & used[None, :], other=0.0)
    z = tl.sum(parts, 0) * tl.load(scale + slot, r > 0, other=0.0)
    # After the product: 0·NaN is NaN. A slot that is named and not known shows as NaN.
    sum = tl.sum(tl.where(used[:, None], z[:, None] * f, 0.0), 0)
    sum = tl.where(r > 0, sum, float("nan"))
    tl.store(to, (before.to(tl.float32) + sum).to(y.dtype.element_ty), inside)


def decode(y, x, a, bt, row_slot, rank, scale):
    """y [M,N] += x [M,K] through a [S or 1,R,K] and bt [S,R,N], of slot row_slot [M]. Last dimensions contiguous."""
    (rows, width), outputs, ranks, slots = x.shape, y.shape[1], a.shape[1], rank.shape[0]
    if rows == 0 or width == 0 or outputs == 0 or ranks == 0:
        return
    padded = padded_rank(ranks)
    columns = FACTOR // padded
    slices = triton.cdiv(width, columns)
    planes = torch.empty(slices, rows, ranks, dtype=torch.float32, device=x.device)
    down_kernel[(rows, slices)](
        planes, x, row_stride(x), a, slot_stride(a), a.stride(1), row_slot, rank, rows, slots,
        K=width, R=ranks, RP=padded, BD=columns, num_warps=4,
    )  # fmt: skip
    up_kernel[(rows, triton.cdiv(outputs, columns))](
        y, row_stride(y), planes, bt, slot_stride(bt), bt.stride(1), row_slot, rank, scale, rows, slots,
        N=outputs, SLICES=slices, R=ranks, RP=padded, BD=columns, BP=PLANES, num_warps=4,
    )  # fmt: skip
