"""gram: g[slot,j,d] += Σ_{m in slot} z[m,j]·v[m,d].

A slot's segments are summed one by one, from zero, then added to g in the order of the batch: one program owns
(slot, BD columns). It adds where g lies, in the second-level cache, instead of waiting for g: a thread's additions to one
address happen in its order, and nobody else adds there.
"""

import triton
import triton.language as tl

from .configs import FEW, config, padded_rank
from .dot import dot
from .plan import TILE, is_lost, known_rank, row_stride, slot_stride, tiles


@triton.jit(do_not_specialize=["rows", "slots", "capacity"])
def gram_kernel(
    g, g_slot_stride, g_rank_stride, z, z_stride, v, v_stride,
    plan, seg_off, seg_slot, rank, rows, slots, capacity,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: (slot, BD columns). Idle slots and ranks beyond the slot's keep every bit."""
    slot = tl.program_id(0)
    slot_ptr, seg_order = plan + 2 + 2 * capacity, plan + 3 + 2 * capacity + slots
    lost = is_lost(plan, seg_off, seg_slot, rank, rows, capacity - (rows + BM - 1) // BM, slots)
    first, last = tl.load(slot_ptr + slot, lost == 0, other=0), tl.load(slot_ptr + slot + 1, lost == 0, other=-1)
    if first == last:
        return
    r = known_rank(slot, rank, slots, R)
    j = tl.arange(0, RP)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    used, inside = j < r, d < D
    at = g + slot.to(tl.int64) * g_slot_stride + j[:, None] * g_rank_stride + d[None, :]
    mask = used[:, None] & inside[None, :]
    for i in range(first, last):
        segment = tl.load(seg_order + i)
        lo, hi = tl.load(seg_off + segment), tl.load(seg_off + segment + 1)
        acc = tl.zeros([RP, BD], tl.float32)
        for row in range(lo, hi, BM):
            m = row + tl.arange(0, BM)
            live = m < hi
            x = tl.load(v + m.to(tl.int64)[:, None] * v_stride + d[None, :], live[:, None] & inside[None, :], other=0.0)
            zt = tl.load(z + m.to(tl.int64)[None, :] * z_stride + j[:, None], live[None, :] & used[:, None], other=0.0)
            acc = dot(zt, x, acc)
        tl.atomic_add(at, acc, mask, sem="relaxed")
    if last < 0:  # the plan is lost; said so without another register over the loops
        tl.store(at, tl.full([RP, BD], float("nan"), tl.float32), mask)


def gram(g, z, v, seg_off, seg_slot, rank, plan):
    """g fp32 [S,R,D] += z fp32 [M,R] and v [M,D], summed per slot. Last dimensions contiguous; plan: see plan.py."""
    (rows, width), ranks, slots = v.shape, z.shape[1], rank.shape[0]
    if rows == 0 or width == 0 or ranks == 0:
        return
    c = config("gram of few slots" if slots <= FEW else "gram", v.dtype, g.dtype, ranks)
    gram_kernel[(slots, triton.cdiv(width, c.bd))](
        g, slot_stride(g), g.stride(1), z, row_stride(z), v, row_stride(v),
        plan, seg_off, seg_slot, rank, rows, slots, tiles(rows, seg_slot.shape[0]),
        D=width, R=ranks, RP=padded_rank(ranks), BM=TILE, BD=c.bd,
        num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
