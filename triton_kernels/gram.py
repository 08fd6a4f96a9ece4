"""gram: g[slot,j,d] += Σ_{m in slot} z[m,j]·v[m,d].

A slot's segments are summed one by one, from zero, then added to g in the order of the batch: one program owns
(slot, BD columns). It adds where g lies, in the second-level cache, instead of waiting for g: a thread's additions to one
address happen in its order, and nobody else adds there. Where g is fresh, the first segment is stored instead.
"""

import triton
import triton.language as tl

from .configs import FEW, config, padded_rank
from .dot import dot
from .plan import HEAD, is_lost, known_rank, row_stride, rows_of_z, slot_stride, tiles


@triton.jit
def gram_zeros(dtype: tl.constexpr, RP: tl.constexpr, BD: tl.constexpr):
    """What `gram_rows` adds to for rows of this dtype."""
    if dtype == tl.float32:
        return tl.zeros([RP, BD], tl.float32)
    else:
        return tl.zeros([BD, RP], tl.float32)


@triton.jit
def gram_rows(z, z_stride, m, live, x, acc, R: tl.constexpr, RP: tl.constexpr):
    """acc + zᵀ @ x of rows m; for 16-bit x its transpose, acc + xᵀ @ z. Matrix units take 16-bit memory either way, so that
    there z is loaded as it lies, 16 bytes at a time, and x, which is wide, has the 64 rows that wgmma wants."""
    if x.dtype == tl.float32:
        j = tl.arange(0, RP)
        at = z + m.to(tl.int64)[None, :] * z_stride + j[:, None]
        return dot(tl.load(at, live[None, :] & (j < R)[:, None], other=0.0), x, acc)
    else:
        return dot(tl.trans(x), rows_of_z(z, z_stride, m, live[:, None], R, RP), acc)


@triton.jit
def gram_of(acc, dtype: tl.constexpr):
    """[RP, BD] of what `gram_rows` has summed."""
    if dtype == tl.float32:
        return acc
    else:
        return tl.trans(acc)


SQUARED = tl.constexpr(16)  # columns of an entry of squares: see tmem.reference


@triton.jit
def squares_of(x):
    """Σ x², fp64."""
    x = tl.ravel(x).to(tl.float64)
    return tl.sum(x * x)


@triton.jit
def store_squares(squares, slot, start, sum, D: tl.constexpr, BD: tl.constexpr):
    """The sum of the BD columns from `start` on into the first of their entries, zero into the others."""
    t = tl.arange(0, BD // SQUARED)
    at = squares + slot.to(tl.int64) * ((D + SQUARED - 1) // SQUARED) + start // SQUARED
    tl.store(at + t, tl.where(t == 0, sum, 0.0), start + t * SQUARED < D)


@triton.jit(do_not_specialize=["rows", "slots", "segments", "capacity"])
def gram_kernel(
    g, g_slot_stride, g_rank_stride, z, z_stride, v, v_stride,
    plan, seg_off, seg_slot, rank, rows, slots, segments, capacity,
    squares, FRESH: tl.constexpr, SHORT: tl.constexpr, SQUARES: tl.constexpr,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: (slot, BD columns). Idle slots and ranks beyond the slot's keep every bit. What backward.py has done is
    left out: slots of a single segment of at most SHORT rows."""
    slot = tl.program_id(0)
    slot_ptr = plan + HEAD + 4 * capacity
    spans = slot_ptr + slots + 1
    first, last = tl.maximum(tl.load(slot_ptr + slot), 0), tl.minimum(tl.load(slot_ptr + slot + 1), segments)
    some = first < last
    lo, hi = tl.load(spans + 2 * first, some, other=0), tl.load(spans + 2 * first + 1, some, other=0)
    idle = (some == 0) | ((last - first == 1) & (hi - lo <= SHORT))
    if idle & (tl.program_id(1) > 0):
        return
    r = known_rank(slot, rank, slots, R)
    j = tl.arange(0, RP)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    used, inside = j < r, d < D
    at = g + slot.to(tl.int64) * g_slot_stride + j[:, None] * g_rank_stride + d[None, :]
    mask = used[:, None] & inside[None, :]
    for i in range(first, tl.where(idle, first, last)):
        lo, hi = tl.maximum(lo, 0), tl.minimum(hi, rows)
        acc = gram_zeros(v.dtype.element_ty, RP, BD)
        for row in range(lo, hi, BM):
            m = row + tl.arange(0, BM)
            live = m < hi
            x = tl.load(v + m.to(tl.int64)[:, None] * v_stride + d[None, :], live[:, None] & inside[None, :], other=0.0)
            acc = gram_rows(z, z_stride, m, live, x, acc, R, RP)
        if FRESH and i == first:
            tl.store(at, gram_of(acc, v.dtype.element_ty), mask)
        else:
            tl.atomic_add(at, gram_of(acc, v.dtype.element_ty), mask, sem="relaxed")
        more = i + 1 < last
        lo, hi = tl.load(spans + 2 * i + 2, more, other=0), tl.load(spans + 2 * i + 3, more, other=0)
    if SQUARES:
        if idle == 0:  # g comes from the second-level cache, where what was added to it lies
            tl.debug_barrier()
            now = tl.load(at, mask, other=0.0, cache_modifier=".cg")
            store_squares(squares, slot, tl.program_id(1) * BD, squares_of(now), D, BD)
    if is_lost(plan, seg_off, seg_slot, rank, rows, segments, slots):
        nan = tl.full([RP, BD], float("nan"), tl.float32)
        for start in range(0, tl.where(idle, D, BD), BD):  # an idle slot's other programs did not look
            tl.store(at + start, nan, used[:, None] & (start + d < D)[None, :])
            if SQUARES:
                store_squares(squares, slot, tl.program_id(1) * BD + start, squares_of(nan), D, BD)


def gram(g, z, v, seg_off, seg_slot, rank, plan, fresh=False, squares=None, short=0):
    """g fp32 [S,R,D] += z fp32 [M,R] and v [M,D], summed per slot. Last dimensions contiguous; plan: see plan.py.

    fresh: what g holds of the batch's slots is nothing. short: slots whose only segment has at most as many rows are done.
    squares fp64 [S,⌈D/SQUARED⌉], contiguous, or None: see tmem.reference.lora_gram_.
    """
    (rows, width), ranks, slots, segments = v.shape, z.shape[1], rank.shape[0], seg_slot.shape[0]
    if rows == 0 or width == 0 or ranks == 0:
        return
    c = config("gram of few slots" if slots <= FEW else "gram", v.dtype, g.dtype, ranks)
    gram_kernel[(slots, triton.cdiv(width, c.bd))](
        g, slot_stride(g), g.stride(1), z, row_stride(z), v, row_stride(v),
        plan, seg_off, seg_slot, rank, rows, slots, segments, tiles(rows, segments), g if squares is None else squares,
        FRESH=fresh, SHORT=short, SQUARES=squares is not None,
        D=width, R=ranks, RP=padded_rank(ranks), BM=c.rows, BD=c.bd, num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
