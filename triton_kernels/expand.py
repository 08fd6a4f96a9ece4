"""expand: o[m,d] += Σ_{j<rank[slot]} z[m,j]·f[slot,j,d], in place, rounded once to o's dtype."""

import triton
import triton.language as tl

from .configs import config, padded_rank
from .dot import dot, dot_in
from .plan import TILE, row_stride, slot_stride, tile_of, tiles


@triton.jit(do_not_specialize=["rows", "slots", "capacity"])
def expand_kernel(
    o, o_stride, z, z_stride, f, slot_stride, rank_stride, plan, seg_off, seg_slot, rank, rows, slots, capacity,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: one tile of rows x BD columns. Rows without a slot are not touched."""
    m, live, slot, r = tile_of(plan, seg_off, seg_slot, rank, rows, slots, capacity, R, BM)
    if slot == -1:
        return
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    at = o + m.to(tl.int64)[:, None] * o_stride + d[None, :]
    mask = live[:, None] & (d < D)[None, :]
    if r > 0:
        if RP < 64:  # it comes while the product is made; of a larger rank, registers do not suffice
            before = tl.load(at, mask, other=0.0)
        j = tl.arange(0, RP)
        used = j < r
        x = tl.load(z + m.to(tl.int64)[:, None] * z_stride + j[None, :], live[:, None] & used[None, :], other=0.0)
        where = f + slot.to(tl.int64) * slot_stride + j[:, None] * rank_stride + d[None, :]
        y = tl.load(where, used[:, None] & (d < D)[None, :], other=0.0)
        sum = tl.zeros([BM, BD], tl.float32)
        if (o.dtype.element_ty == tl.float32) or (f.dtype.element_ty != tl.float32):
            sum = dot(x, y, sum)
        else:
            sum = dot_in(x, y, sum)
        if RP >= 64:
            before = tl.load(at, mask, other=0.0)
        tl.store(at, (before.to(tl.float32) + sum).to(o.dtype.element_ty), mask)
    else:  # a slot is named that is not known
        tl.store(at, tl.full([BM, BD], float("nan"), o.dtype.element_ty), mask)


def expand(o, z, f, seg_off, seg_slot, rank, plan):
    """o [M,D] += z fp32 [M,R] through f [S or 1,R,D]. Last dimensions contiguous; plan: see plan.py."""
    (rows, width), ranks = o.shape, f.shape[1]
    if rows == 0 or width == 0 or ranks == 0:
        return
    c, capacity = config("expand", o.dtype, f.dtype, ranks), tiles(rows, seg_slot.shape[0])
    expand_kernel[(capacity, triton.cdiv(width, c.bd))](
        o, row_stride(o), z, row_stride(z), f, slot_stride(f), f.stride(1),
        plan, seg_off, seg_slot, rank, rows, rank.shape[0], capacity,
        D=width, R=ranks, RP=padded_rank(ranks), BM=TILE, BD=c.bd, num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
