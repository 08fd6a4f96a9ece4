"""decode: y[m,d] += Σ_{j<rank[slot]} z[m,j]·bt[slot,j,d] with z[m,j] = scale[slot]·Σ_k x[m,k]·a[slot,j,k], slot = row_slot[m].

One row at a time through its own adapter, bound by the bytes of the factors. Two launches: `down` sums slices of the width
into planes, `up` adds the planes in order and expands. The slices depend on width and stored rank alone. x and y lie where the
batch puts them, so their alignment decides no layout: a row's bits do not depend on its neighbours.

`decode_multi` adds those of up to three projections of one x in one launch. There is no wait between z and what is made of it:
every program computes the whole z of its row, and the copies of A that this reads come from the cache.
"""

import torch
import triton
import triton.language as tl

from .configs import FACTOR, PLANES, PROGRAMS, padded_rank
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


@triton.jit
def z_of_row(x, a, rank_stride, r, K: tl.constexpr, RP: tl.constexpr, BD: tl.constexpr):
    """Σ_k x[k]·a[j,k] of one row and one slot's factor, fp32 [RP]: BD sums a rank, added up at the end."""
    j = tl.arange(0, RP)
    sums = tl.zeros([RP, BD], tl.float32)
    for start in range(0, K, BD):
        d = start + tl.arange(0, BD)
        inside = d < K
        f = tl.load(a + j[:, None] * rank_stride + d[None, :], (j < r)[:, None] & inside[None, :], other=0.0)
        sums += f.to(tl.float32) * tl.load(x + d, inside, other=0.0).to(tl.float32)[None, :]
    return tl.sum(sums, 1)


@triton.jit
def delta_of_row(z, bt, rank_stride, r, d, N: tl.constexpr, RP: tl.constexpr):
    """Σ_j z[j]·bt[j,d] at the columns d; NaN where r is 0, as of a slot that is named and not known."""
    j = tl.arange(0, RP)
    used = (j < r)[:, None]
    f = tl.load(bt + j[:, None] * rank_stride + d[None, :], used & (d < N)[None, :], other=0.0).to(tl.float32)
    sum = tl.sum(tl.where(used, z[:, None] * f, 0.0), 0)  # after the product: 0·NaN is NaN
    return tl.where(r > 0, sum, float("nan"))


@triton.jit
def add_to_row(
    y, x, a, bt, a_stride, bt_stride, r, factor, K: tl.constexpr, N: tl.constexpr, RP: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """y[d] += factor·Σ_j (x·a[j]) bt[j,d], for this program's share of the columns."""
    z = z_of_row(x, a, a_stride, r, K, RP, BD) * factor
    for tile in range(tl.program_id(1), tl.cdiv(N, BD), tl.num_programs(1)):
        d = tile * BD + tl.arange(0, BD)
        before = tl.load(y + d, d < N, other=0.0).to(tl.float32)
        tl.store(y + d, (before + delta_of_row(z, bt, bt_stride, r, d, N, RP)).to(y.dtype.element_ty), d < N)


UNPLACED = ["x", "y0", "y1", "y2", "row_slot", "rank", "scale"]  # where a batch puts these decides no layout


@triton.jit(do_not_specialize=["slots"], do_not_specialize_on_alignment=UNPLACED)
def each_kernel(
    y0, y1, y2, y_stride0, y_stride1, y_stride2, x, x_stride, a0, a1, a2, b0, b1, b2,
    a_slot0, a_slot1, a_slot2, b_slot0, b_slot1, b_slot2, a_rank0, a_rank1, a_rank2, b_rank0, b_rank1, b_rank2,
    row_slot, rank, scale, slots,
    K: tl.constexpr, N0: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, P: tl.constexpr, R: tl.constexpr, RP: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """One program: (row, its share of the columns, projection). Each computes the row's z anew, in one order."""
    row, which = tl.program_id(0).to(tl.int64), tl.program_id(2)
    slot = tl.load(row_slot + row)
    if slot == -1:
        return
    r = known_rank(slot, rank, slots, R)
    factor, s = tl.load(scale + slot, r > 0, other=0.0), slot.to(tl.int64)
    x += row * x_stride
    if which == 0:
        add_to_row(y0 + row * y_stride0, x, a0 + s * a_slot0, b0 + s * b_slot0, a_rank0, b_rank0, r, factor, K, N0, RP, BD)
    if (P > 1) & (which == 1):
        add_to_row(y1 + row * y_stride1, x, a1 + s * a_slot1, b1 + s * b_slot1, a_rank1, b_rank1, r, factor, K, N1, RP, BD)
    if (P > 2) & (which == 2):
        add_to_row(y2 + row * y_stride2, x, a2 + s * a_slot2, b2 + s * b_slot2, a_rank2, b_rank2, r, factor, K, N2, RP, BD)


def shares(rows: int, tiles: int) -> int:
    """Among how many programs the columns of a row are shared out: as many as keep a GPU busy. It decides no bit."""
    return max(1, min(tiles, PROGRAMS // max(1, rows)))


def decode_multi(y, x, a, bt, row_slot, rank, scale):
    """y [M,N] each += x [M,K] through as many a [S or 1,R,K] and bt [S,R,N], 1 to 3, in one launch. One dtype of all y, of
    all a and of all bt."""
    (rows, width), ranks, count = x.shape, a[0].shape[1], len(y)
    if rows == 0 or width == 0 or ranks == 0:
        return
    padded = padded_rank(ranks)
    columns = FACTOR // padded
    y3, a3, b3 = ([*some, *some[:1] * (3 - count)] for some in (y, a, bt))
    tiles = max(triton.cdiv(one.shape[1], columns) for one in y)
    each_kernel[(rows, shares(rows * count, tiles), count)](
        *y3, *(row_stride(one) for one in y3), x, row_stride(x), *a3, *b3,
        *(slot_stride(f) for f in (*a3, *b3)), *(f.stride(1) for f in (*a3, *b3)), row_slot, rank, scale, rank.shape[0],
        K=width, N0=y3[0].shape[1], N1=y3[1].shape[1], N2=y3[2].shape[1], P=count, R=ranks, RP=padded, BD=columns, num_warps=4,
    )  # fmt: skip
