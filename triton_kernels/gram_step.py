"""gram_step: the optimizer's step of a factor by the gradient that gram sums, which stays in registers.

A program owns (slot, BD columns) from the first product to the last store, so the step happens once, when its sum is
complete. A slot's segments are summed one by one and added in the order of the batch, in gram's own steps of rows. What it
holds besides one segment's sum is the sum of those before, and parameter and moments at the end: fewer columns than gram's,
so few that it needs no others for few slots.
"""

import torch
import triton
import triton.language as tl

from .configs import config, lanes, padded_rank
from .gram import gram_of, gram_rows, gram_zeros, squares_of, store_squares
from .plan import HEAD, is_lost, known_rank, row_stride, slot_stride, tiles
from .step import SCALARS, setting, stepped, store_scalars

NUMBERS = 16  # of a program's tile for each of its threads, at most


@triton.jit
def settings_kernel(scalars, step, hyper, hyper_stride, ADAM: tl.constexpr, COUNT: tl.constexpr):
    """One program: a slot's scalars. Nobody knows the norm that a clip would need: with one, its gradient becomes NaN."""
    slot = tl.program_id(0).to(tl.int64)
    at = hyper + slot * hyper_stride
    clip = tl.where(setting(at, 5) > 0, float("nan"), 1.0)
    store_scalars(scalars + slot * COUNT, at, clip, tl.load(step + slot) + 1, ADAM)


@triton.jit(do_not_specialize=["rows", "slots", "segments", "capacity"])
def gram_step_kernel(
    param, p_slot_stride, p_rank_stride, mean, m_slot_stride, m_rank_stride, variance, v_slot_stride, v_rank_stride,
    copy, copy_slot_stride, copy_rank_stride, scalars, z, z_stride, v, v_stride,
    plan, seg_off, seg_slot, rank, rows, slots, segments, capacity,
    squares, ADAM: tl.constexpr, COPY: tl.constexpr, SQUARES: tl.constexpr, COUNT: tl.constexpr,
    D: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """One program: (slot, BD columns). Idle slots and ranks beyond the slot's keep every bit, and so does an element whose
    gradient is not finite. Under a plan of another batch no gradient is, and of an idle slot one entry of squares says so."""
    slot = tl.program_id(0)
    slot_ptr = plan + HEAD + 4 * capacity
    spans = slot_ptr + slots + 1
    first, last = tl.maximum(tl.load(slot_ptr + slot), 0), tl.minimum(tl.load(slot_ptr + slot + 1), segments)
    some = first < last
    if (some == 0) & (tl.program_id(1) > 0):
        return
    lo, hi = tl.load(spans + 2 * first, some, other=0), tl.load(spans + 2 * first + 1, some, other=0)
    r = known_rank(slot, rank, slots, R)
    j = tl.arange(0, RP)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    inside = d < D
    total = gram_zeros(v.dtype.element_ty, RP, BD)
    for i in range(first, last):
        lo, hi = tl.maximum(lo, 0), tl.minimum(hi, rows)
        acc = gram_zeros(v.dtype.element_ty, RP, BD)
        for row in range(lo, hi, BM):
            m = row + tl.arange(0, BM)
            live = m < hi
            x = tl.load(v + m.to(tl.int64)[:, None] * v_stride + d[None, :], live[:, None] & inside[None, :], other=0.0)
            acc = gram_rows(z, z_stride, m, live, x, acc, R, RP)
        total += acc
        more = i + 1 < last
        lo, hi = tl.load(spans + 2 * i + 2, more, other=0), tl.load(spans + 2 * i + 3, more, other=0)
    lost = is_lost(plan, seg_off, seg_slot, rank, rows, segments, slots)
    mask = (j < r)[:, None] & inside[None, :]
    s = scalars + slot * COUNT
    g = tl.where(lost, float("nan"), tl.load(s) * gram_of(total, v.dtype.element_ty))
    if SQUARES:
        if some | lost:
            store_squares(squares, slot, tl.program_id(1) * BD, squares_of(tl.where(mask, g, 0.0)), D, BD)
    if some & (lost == 0):
        whole, finite = slot.to(tl.int64), tl.abs(g) < float("inf")
        at = param + whole * p_slot_stride + j[:, None] * p_rank_stride + d[None, :]
        p = tl.load(at, mask, other=0.0)
        if ADAM:
            of_m = mean + whole * m_slot_stride + j[:, None] * m_rank_stride + d[None, :]
            of_v = variance + whole * v_slot_stride + j[:, None] * v_rank_stride + d[None, :]
            m_before, v_before = tl.load(of_m, mask, other=0.0), tl.load(of_v, mask, other=0.0)
            now, m_now, v_now = stepped(p, g, m_before, v_before, s, ADAM)
            tl.store(of_m, tl.where(finite, m_now, m_before), mask)
            tl.store(of_v, tl.where(finite, v_now, v_before), mask)
        else:
            now, _, _ = stepped(p, g, p, p, s, ADAM)
        tl.store(at, tl.where(finite, now, p), mask)
        if COPY:
            to = copy + whole * copy_slot_stride + j[:, None] * copy_rank_stride + d[None, :]
            tl.store(to, now.to(copy.dtype.element_ty), mask & finite)


def gram_step(param, m, v, count, hyper, z, dy, seg_off, seg_slot, rank, plan, copy=None, squares=None):
    """param, m, v fp32 [S,R,D], m and v both or neither, copy bf16 or fp16 [S,R,D] or None: stepped by gram(z fp32 [M,R],
    dy [M,D]). count int32 [S]; hyper fp32 or fp64 [S,6]. Last dimensions contiguous; plan: see plan.py; squares fp64
    [S,⌈D/SQUARED⌉], contiguous, or None: see tmem.reference.lora_gram_."""
    (rows, width), ranks, slots, segments = dy.shape, z.shape[1], rank.shape[0], seg_slot.shape[0]
    if rows == 0 or width == 0 or ranks == 0:
        return
    adam, scalars = m is not None, torch.empty(slots, SCALARS, dtype=torch.float32, device=param.device)
    settings_kernel[(slots,)](scalars, count, hyper, row_stride(hyper), ADAM=adam, COUNT=SCALARS, num_warps=1)
    c, padded = config("gram", dy.dtype, param.dtype, ranks), padded_rank(ranks)
    # Products of fp32 take more registers; those of fp16, which is split, still more.
    warps = c.warps if dy.dtype == torch.bfloat16 else max(8, c.warps)
    stages = min(2, c.stages) if dy.dtype == torch.float16 else c.stages
    columns = min(c.bd, NUMBERS * lanes() * warps // padded)
    matrices = (param, m if adam else param, v if adam else param, param if copy is None else copy)
    strided = [x for matrix in matrices for x in (matrix, slot_stride(matrix), matrix.stride(1))]
    gram_step_kernel[(slots, triton.cdiv(width, columns))](
        *strided, scalars, z, row_stride(z), dy, row_stride(dy),
        plan, seg_off, seg_slot, rank, rows, slots, segments, tiles(rows, segments), param if squares is None else squares,
        ADAM=adam, COPY=copy is not None, SQUARES=squares is not None, COUNT=SCALARS,
        D=width, R=ranks, RP=padded, BM=c.rows, BD=columns, num_warps=warps, num_stages=stages,
    )  # fmt: skip
