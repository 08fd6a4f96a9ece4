"""backward: g[slot,j,d] += Σ_{m in slot} z[m,j]·v[m,d] and dz[m,j] = scale[slot]·Σ_d v[m,d]·f[slot,j,d], v = dy.

Of a slot whose only segment has few rows, one program holds them all: it reads each column of v once, for both. Of the
others it makes dz alone, and gram reads v again: columns that one program could sum over many rows are too few for dz.
Where a configuration has no rows, shrink and gram do all of it.
"""

import torch
import triton
import triton.language as tl

from .configs import config, padded_rank
from .dot import dot
from .gram import gram, squares_of, store_squares
from .plan import ONLY, TILE, is_few, is_stale, place_of, row_stride, rows_of_z, slot_stride, tile_of, tiles
from .shrink import factor_of, shrink, shrink_rows, z_of


@triton.jit
def _both(
    g, g_slot_stride, g_rank_stride, z, z_stride, v, v_stride, f, f_slot_stride, f_rank_stride, dz,
    seg_off, seg_slot, scale, segments, slot, r, first, left, what,
    squares, FRESH: tl.constexpr, SQUARES: tl.constexpr,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """All rows of a slot, at most BM. Under a plan of another batch g may become anything, which gram mends."""
    m, j = first + tl.arange(0, BM), tl.arange(0, RP)
    live, used = (tl.arange(0, BM) < left)[:, None], j < r
    y = rows_of_z(z, z_stride, m, live, R, RP)
    to = g + slot.to(tl.int64) * g_slot_stride + j[:, None] * g_rank_stride
    acc = tl.zeros([BM, RP], tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        x = tl.load(v + m.to(tl.int64)[:, None] * v_stride + d[None, :], live & (d < D)[None, :], other=0.0)
        acc = dot(x, factor_of(f, slot, f_slot_stride, f_rank_stride, j, d, r, D), acc)
        block = tl.trans(dot(tl.trans(x), y, tl.zeros([BD, RP], tl.float32)))
        mask = used[:, None] & (d < D)[None, :]
        if FRESH:
            tl.store(to + d[None, :], block, mask)
        elif SQUARES:
            block += tl.atomic_add(to + d[None, :], block, mask, sem="relaxed")
        else:
            tl.atomic_add(to + d[None, :], block, mask, sem="relaxed")
        if SQUARES:
            store_squares(squares, slot, start, squares_of(tl.where(mask, block, 0.0)), D, BD)
    factor = tl.load(scale + slot, r > 0, other=0.0)
    stale = is_stale(seg_off, seg_slot, segments, slot, first, left, what, TILE)
    at = dz + m.to(tl.int64)[:, None] * R + j[None, :]
    tl.store(at, z_of(acc, factor, slot, r, stale, RP), live & (j < R)[None, :])


@triton.jit(do_not_specialize=["rows", "slots", "segments"])
def backward_kernel(
    g, g_slot_stride, g_rank_stride, z, z_stride, v, v_stride, f, f_slot_stride, f_rank_stride, dz,
    plan, seg_off, seg_slot, rank, scale, rows, slots, segments,
    squares, FRESH: tl.constexpr, SHORT: tl.constexpr, SQUARES: tl.constexpr,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, FEW: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: one tile of rows, or all rows of a slot whose only segment has at most SHORT."""
    slot, r, first, left, what = tile_of(plan, rank, rows, segments, slots, R, BM)
    short = ((what & ONLY) != 0) & (r > 0) & (place_of(what) * BM + left <= SHORT)
    if short & is_few(what, left, FEW):
        _both(
            g, g_slot_stride, g_rank_stride, z, z_stride, v, v_stride, f, f_slot_stride, f_rank_stride, dz,
            seg_off, seg_slot, scale, segments, slot, r, first, left, what,
            squares, FRESH, SQUARES, D, R, RP, FEW, BD, BM,
        )  # fmt: skip
    elif short & (place_of(what) == 0):
        _both(
            g, g_slot_stride, g_rank_stride, z, z_stride, v, v_stride, f, f_slot_stride, f_rank_stride, dz,
            seg_off, seg_slot, scale, segments, slot, r, first, left, what,
            squares, FRESH, SQUARES, D, R, RP, SHORT, BD, BM,
        )  # fmt: skip
    elif (short == 0) & is_few(what, left, FEW):
        shrink_rows(
            v, v_stride, f, f, f, f_slot_stride, f_slot_stride, f_slot_stride, f_rank_stride, f_rank_stride, f_rank_stride,
            dz, seg_off, seg_slot, scale, rows, segments, slot, r, first, left, what, 1, D, R, RP, FEW, BD, BM,
        )  # fmt: skip
    elif short == 0:
        shrink_rows(
            v, v_stride, f, f, f, f_slot_stride, f_slot_stride, f_slot_stride, f_rank_stride, f_rank_stride, f_rank_stride,
            dz, seg_off, seg_slot, scale, rows, segments, slot, r, first, left, what, 1, D, R, RP, BM, BD, BM,
        )  # fmt: skip


def backward(g, z, dy, bt, seg_off, seg_slot, rank, scale, plan, fresh=False, squares=None):
    """g fp32 [S,R,D] += gram(z fp32 [M,R], dy [M,D]); returns dz fp32 [M,R] = shrink(dy, bt [S,R,D]). Last dimensions
    contiguous; fresh: what g holds of the batch's slots is nothing; squares: see gram; plan: see plan.py."""
    (rows, width), ranks, segments, short = dy.shape, z.shape[1], seg_slot.shape[0], 0
    # The products of fp32 and of fp16 leave no registers for both; of bf16 alone they do.
    c = config("backward", dy.dtype, bt.dtype, ranks) if dy.dtype == torch.bfloat16 else None
    if c is None or rows == 0 or ranks == 0 or not c.rows:
        dz = shrink(dy, [bt], seg_off, seg_slot, rank, scale, plan)[0]
    else:
        dz, short = torch.empty(rows, ranks, dtype=torch.float32, device=dy.device), c.rows
        backward_kernel[(tiles(rows, segments),)](
            g, slot_stride(g), g.stride(1), z, row_stride(z), dy, row_stride(dy), bt, slot_stride(bt), bt.stride(1), dz,
            plan, seg_off, seg_slot, rank, scale, rows, rank.shape[0], segments, g if squares is None else squares,
            FRESH=fresh, SHORT=short, SQUARES=squares is not None,
            D=width, R=ranks, RP=padded_rank(ranks), BM=TILE, FEW=c.few, BD=c.bd,
            num_warps=c.warps, num_stages=c.stages,
        )  # fmt: skip
    gram(g, z, dy, seg_off, seg_slot, rank, plan, fresh, squares, short)
    return dz
