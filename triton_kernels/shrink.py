"""shrink: z[p,m,j] = scale[slot]·Σ_d v[m,d]·f_p[slot,j,d] for up to three factors f_p that read the same rows v."""

import torch
import triton
import triton.language as tl

from .configs import config, padded_rank
from .dot import dot
from .plan import TILE, is_few, is_stale, row_stride, slot_stride, tile_of, tiles

MOST = 3  # factors that share one read of v: q, k and v


def most(ranks: int) -> int:
    """How many factors of so many stored ranks share a launch: the sums of several of rank 128 do not fit into registers."""
    return MOST if padded_rank(ranks) <= 64 else 1


@triton.jit
def factor_of(f, slot, slot_stride, rank_stride, j, d, r, D: tl.constexpr):
    """f[slot, j, d] as [BD, RP]: the live ranks alone are read."""
    at = f + slot.to(tl.int64) * slot_stride + j[None, :] * rank_stride + d[:, None]
    return tl.load(at, (j < r)[None, :] & (d < D)[:, None], other=0.0)


@triton.jit
def z_of(acc, factor, slot, r, stale, RP: tl.constexpr):
    """Rows of z from their sums, after the product: 0·NaN is NaN. What has no known slot, though it names one, shows as NaN."""
    nothing = tl.where(((r == 0) & (slot != -1)) | stale, float("nan"), 0.0)
    return tl.where((tl.arange(0, RP) < r)[None, :] & (stale == 0), acc * factor, nothing)


@triton.jit
def shrink_rows(
    v, v_stride, f0, f1, f2, slot_stride0, slot_stride1, slot_stride2, rank_stride0, rank_stride1, rank_stride2,
    z, seg_off, seg_slot, scale, rows, segments, slot, r, first, left, what,
    P: tl.constexpr, D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """BM rows of a tile, over all of D, in steps of BD."""
    m, j = first + tl.arange(0, BM), tl.arange(0, RP)
    live = (tl.arange(0, BM) < left)[:, None]
    acc0 = tl.zeros([BM, RP], tl.float32)
    acc1 = acc0
    acc2 = acc0
    if r > 0:
        for start in range(0, D, BD):
            d = start + tl.arange(0, BD)
            x = tl.load(v + m.to(tl.int64)[:, None] * v_stride + d[None, :], live & (d < D)[None, :], other=0.0)
            acc0 = dot(x, factor_of(f0, slot, slot_stride0, rank_stride0, j, d, r, D), acc0)
            if P > 1:
                acc1 = dot(x, factor_of(f1, slot, slot_stride1, rank_stride1, j, d, r, D), acc1)
            if P > 2:
                acc2 = dot(x, factor_of(f2, slot, slot_stride2, rank_stride2, j, d, r, D), acc2)
    factor = tl.load(scale + slot, r > 0, other=0.0)
    stale = is_stale(seg_off, seg_slot, segments, slot, first, left, what, TILE)
    at = z + m.to(tl.int64)[:, None] * R + j[None, :]
    mask = live & (j < R)[None, :]
    tl.store(at, z_of(acc0, factor, slot, r, stale, RP), mask)
    if P > 1:
        tl.store(at + rows.to(tl.int64) * R, z_of(acc1, factor, slot, r, stale, RP), mask)
    if P > 2:
        tl.store(at + 2 * rows.to(tl.int64) * R, z_of(acc2, factor, slot, r, stale, RP), mask)


@triton.jit(do_not_specialize=["rows", "slots", "segments"])
def shrink_kernel(
    v, v_stride, f0, f1, f2, slot_stride0, slot_stride1, slot_stride2, rank_stride0, rank_stride1, rank_stride2,
    z, plan, seg_off, seg_slot, rank, scale, rows, slots, segments,
    P: tl.constexpr, D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, FEW: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: one tile of rows. Rows without a slot get zeros."""
    slot, r, first, left, what = tile_of(plan, rank, rows, segments, slots, R, BM)
    if is_few(what, left, FEW):
        shrink_rows(
            v, v_stride, f0, f1, f2, slot_stride0, slot_stride1, slot_stride2, rank_stride0, rank_stride1, rank_stride2,
            z, seg_off, seg_slot, scale, rows, segments, slot, r, first, left, what, P, D, R, RP, FEW, BD, BM,
        )  # fmt: skip
    else:
        shrink_rows(
            v, v_stride, f0, f1, f2, slot_stride0, slot_stride1, slot_stride2, rank_stride0, rank_stride1, rank_stride2,
            z, seg_off, seg_slot, scale, rows, segments, slot, r, first, left, what, P, D, R, RP, BM, BD, BM,
        )  # fmt: skip


def shrink(v, factors, seg_off, seg_slot, rank, scale, plan):
    """v [M,D], 1 to most(R) factors [S or 1,R,D] -> z fp32 [P,M,R]. Last dimensions contiguous; plan: see plan.py."""
    (rows, width), ranks, count = v.shape, factors[0].shape[1], len(factors)
    z = torch.empty(count, rows, ranks, dtype=torch.float32, device=v.device)
    if rows == 0 or ranks == 0:
        return z
    kernel = "shrink" if count == 1 else "shrink of several factors"
    c, segments = config(kernel, v.dtype, factors[0].dtype, ranks), seg_slot.shape[0]
    f = [*factors, *factors[:1] * (MOST - count)]
    shrink_kernel[(tiles(rows, segments),)](
        v, row_stride(v), *f, *(slot_stride(x) for x in f), *(x.stride(1) for x in f),
        z, plan, seg_off, seg_slot, rank, scale, rows, rank.shape[0], segments,
        P=count, D=width, R=ranks, RP=padded_rank(ranks), BM=TILE, FEW=c.few, BD=c.bd,
        num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
    return z
