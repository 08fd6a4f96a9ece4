"""gram: g[slot,j,d] += Σ_{m in slot} z[m,j]·v[m,d]; in backward also dz[m,j] = Σ_d v[m,d]·f[slot,j,d] from the same read of v.

A slot's segments are summed one by one, from zero, then added to g in the order of the batch: one program owns
(slot, BD columns). dz is a sum over all columns: every program writes its part to a plane of its own, `reduce` adds the
planes in order.
"""

import torch
import triton
import triton.language as tl

from .configs import config, padded_rank
from .dot import dot
from .plan import TILE, known_rank, row_stride, slot_stride, tile_of, tiles


@triton.jit(do_not_specialize=["rows", "slots", "capacity"])
def gram_kernel(
    g, g_slot_stride, g_rank_stride, z, z_stride, v, v_stride, f, f_slot_stride, f_rank_stride, planes,
    plan, seg_off, rank, rows, slots, capacity,
    DZ: tl.constexpr, D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: (slot, BD columns). Idle slots and ranks beyond the slot's keep every bit."""
    slot = tl.program_id(0)
    slot_ptr, seg_order = plan + 1 + 2 * capacity, plan + 2 + 2 * capacity + slots
    first, last = tl.load(slot_ptr + slot), tl.load(slot_ptr + slot + 1)
    lost = tl.load(plan) < 0
    if (first == last) & (lost == 0):
        return
    r = known_rank(slot, rank, slots, R)
    j = tl.arange(0, RP)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    used, inside = j < r, d < D
    at = g + slot.to(tl.int64) * g_slot_stride + j[:, None] * g_rank_stride + d[None, :]
    mask = used[:, None] & inside[None, :]
    if DZ:
        where = f + slot.to(tl.int64) * f_slot_stride + j[None, :] * f_rank_stride + d[:, None]
        y = tl.load(where, used[None, :] & inside[:, None], other=0.0)
        plane = planes + (tl.program_id(1).to(tl.int64) * rows) * RP
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
            if DZ:
                part = dot(x, y, tl.zeros([BM, RP], tl.float32))
                tl.store(plane + m.to(tl.int64)[:, None] * RP + j[None, :], part, live[:, None])
        tl.store(at, tl.load(at, mask, other=0.0) + acc, mask)
        tl.debug_barrier()  # the next segment's load may be another thread's
    if lost:
        tl.store(at, tl.full([RP, BD], float("nan"), tl.float32), mask)


@triton.jit(do_not_specialize=["rows", "slots", "capacity"])
def reduce_kernel(
    dz, planes, plan, seg_off, seg_slot, rank, scale, rows, slots, capacity,
    PLANES: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """dz[m,j] = scale[slot]·Σ_p planes[p,m,j], planes in order, for j < rank[slot], else 0. One program: one tile."""
    m, live, slot, r = tile_of(plan, seg_off, seg_slot, rank, rows, slots, capacity, R, BM)
    j = tl.arange(0, RP)
    acc = tl.zeros([BM, RP], tl.float32)
    if r > 0:
        at = planes + m.to(tl.int64)[:, None] * RP + j[None, :]
        for p in range(PLANES):
            acc += tl.load(at + p * rows.to(tl.int64) * RP, live[:, None], other=0.0)
    factor = tl.load(scale + slot, r > 0, other=0.0)
    nothing = tl.where((r == 0) & (slot != -1), float("nan"), 0.0)
    out = tl.where((j < r)[None, :], acc * factor, nothing)
    tl.store(dz + m.to(tl.int64)[:, None] * R + j[None, :], out, live[:, None] & (j < R)[None, :])


def gram(g, z, v, seg_off, seg_slot, rank, plan):
    """g fp32 [S,R,D] += z fp32 [M,R] and v [M,D], summed per slot. Last dimensions contiguous; plan: see plan.py."""
    _gram("gram", g, z, v, g, g, seg_off, seg_slot, rank, plan)


def backward(g, z, v, f, seg_off, seg_slot, rank, scale, plan):
    """`gram` and, from the same read of v, dz fp32 [M,R] = scale·v fᵀ with f [S,R,D]; returns dz."""
    (rows, width), ranks = v.shape, z.shape[1]
    dz = torch.empty(rows, ranks, dtype=torch.float32, device=v.device)
    if rows == 0 or ranks == 0:
        return dz
    padded, capacity = padded_rank(ranks), tiles(rows, seg_slot.shape[0])
    planes = triton.cdiv(width, config("backward", v.dtype, f.dtype, ranks).bd)
    partial = torch.empty(planes, rows, padded, dtype=torch.float32, device=v.device)
    _gram("backward", g, z, v, f, partial, seg_off, seg_slot, rank, plan)
    reduce_kernel[(capacity,)](
        dz, partial, plan, seg_off, seg_slot, rank, scale, rows, rank.shape[0], capacity,
        PLANES=planes, R=ranks, RP=padded, BM=TILE, num_warps=4,
    )  # fmt: skip
    return dz


def _gram(kernel, g, z, v, f, planes, seg_off, seg_slot, rank, plan):
    (rows, width), ranks, slots = v.shape, z.shape[1], rank.shape[0]
    if rows == 0 or width == 0 or ranks == 0:
        return
    c = config(kernel, v.dtype, f.dtype, ranks)
    gram_kernel[(slots, triton.cdiv(width, c.bd))](
        g, slot_stride(g), g.stride(1), z, row_stride(z), v, row_stride(v), f, slot_stride(f), f.stride(1), planes,
        plan, seg_off, rank, rows, slots, tiles(rows, seg_slot.shape[0]),
        DZ=kernel == "backward", D=width, R=ranks, RP=padded_rank(ranks), BM=TILE, BD=c.bd,
        num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
