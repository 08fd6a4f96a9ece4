"""expand: o[m,d] += Σ_{j<rank[slot]} z[m,j]·f[slot,j,d], in place, rounded once to o's dtype."""

import triton
import triton.language as tl

from .configs import config, padded_rank
from .dot import dot, dot_in
from .plan import TILE, is_few, is_stale, row_stride, rows_of_z, slot_stride, tile_of, tiles


@triton.jit
def _expand_rows(
    o, o_stride, z, z_stride, f, slot_stride, rank_stride, seg_off, seg_slot, segments, slot, r, first, left, what,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """BM rows of a tile x BD columns."""
    m, d, j = first + tl.arange(0, BM), tl.program_id(1) * BD + tl.arange(0, BD), tl.arange(0, RP)
    at = o + m.to(tl.int64)[:, None] * o_stride + d[None, :]
    live, used, inside = (tl.arange(0, BM) < left)[:, None], j < r, d < D
    mask = live & inside[None, :]
    if RP < 64:  # it comes while the product is made; of a larger rank, registers do not suffice
        before = tl.load(at, mask & (r > 0), other=0.0)
    x = tl.where(used[None, :], rows_of_z(z, z_stride, m, live, R, RP), 0.0)
    where = f + slot.to(tl.int64) * slot_stride + j[:, None] * rank_stride + d[None, :]
    y = tl.load(where, used[:, None] & inside[None, :], other=0.0)
    sum = tl.zeros([BM, BD], tl.float32)
    if (o.dtype.element_ty == tl.float32) or (f.dtype.element_ty != tl.float32):
        sum = dot(x, y, sum)
    else:
        sum = dot_in(x, y, sum)
    stale = is_stale(seg_off, seg_slot, segments, slot, first, left, what, TILE)
    if RP >= 64:
        before = tl.load(at, mask & (r > 0), other=0.0)
    # A slot that is named and not known shows as NaN.
    sum = tl.where((r > 0) & (stale == 0), before.to(tl.float32) + sum, float("nan"))
    tl.store(at, sum.to(o.dtype.element_ty), mask & ((slot != -1) | stale))


@triton.jit(do_not_specialize=["rows", "slots", "segments"])
def expand_kernel(
    o, o_stride, z, z_stride, f, slot_stride, rank_stride, plan, seg_off, seg_slot, rank, rows, slots, segments,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, FEW: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: one tile of rows x BD columns. Rows without a slot are not touched."""
    slot, r, first, left, what = tile_of(plan, rank, rows, segments, slots, R, BM)
    if is_few(what, left, FEW):
        _expand_rows(
            o, o_stride, z, z_stride, f, slot_stride, rank_stride, seg_off, seg_slot, segments, slot, r, first, left, what,
            D, R, RP, FEW, BD, BM,
        )  # fmt: skip
    else:
        _expand_rows(
            o, o_stride, z, z_stride, f, slot_stride, rank_stride, seg_off, seg_slot, segments, slot, r, first, left, what,
            D, R, RP, BM, BD, BM,
        )  # fmt: skip


def expand(o, z, f, seg_off, seg_slot, rank, plan):
    """o [M,D] += z fp32 [M,R] through f [S or 1,R,D]. Last dimensions contiguous; plan: see plan.py."""
    (rows, width), ranks, segments = o.shape, f.shape[1], seg_slot.shape[0]
    if rows == 0 or width == 0 or ranks == 0:
        return
    c = config("expand", o.dtype, f.dtype, ranks)
    expand_kernel[(tiles(rows, segments), triton.cdiv(width, c.bd))](
        o, row_stride(o), z, row_stride(z), f, slot_stride(f), f.stride(1),
        plan, seg_off, seg_slot, rank, rows, rank.shape[0], segments,
        D=width, R=ranks, RP=padded_rank(ranks), BM=TILE, FEW=c.few, BD=c.bd,
        num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
