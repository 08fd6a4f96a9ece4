"""norm: h = residual + y + Δ(x) and n = h·(mean(h²) + eps)^-1/2·(plus + weight), a row a program.

A residual sum, the RMSNorm of what comes next, and the adapter of the projection that gave y, in one launch. With `before`, y
and its adapter have a norm of their own before the sum.
"""

import torch
import triton
import triton.language as tl

from .configs import FACTOR, PIECE, padded_rank
from .decode import delta_of_row, z_of_row
from .plan import known_rank, row_stride, slot_stride


@triton.jit
def inverse_rms(squares, N: tl.constexpr, eps):
    return 1.0 / tl.sqrt_rn(tl.sum(squares) / N + eps)


@triton.jit(do_not_specialize=["slots", "eps", "plus"], do_not_specialize_on_alignment=["y", "residual", "x", "row_slot"])
def norm_kernel(
    h, n, y, y_stride, residual, residual_stride, before, weight, eps, plus,
    x, x_stride, a, bt, a_slot, bt_slot, a_rank, bt_rank, row_slot, rank, scale, slots,
    K: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BD: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """R is 0 without an adapter. What a program wrote it reads again behind a barrier."""
    row = tl.program_id(0).to(tl.int64)
    y, residual, h, n = y + row * y_stride, residual + row * residual_stride, h + row * N, n + row * N
    named = False
    if R > 0:
        slot = tl.load(row_slot + row)
        named = slot != -1
        r, s = known_rank(slot, rank, slots, R), slot.to(tl.int64)
        z = z_of_row(x + row * x_stride, a + s * a_slot, a_rank, r, K, RP, BD) * tl.load(scale + slot, r > 0, other=0.0)
        bt += s * bt_slot
    squares = tl.zeros([BD], tl.float32)
    for start in range(0, N, BD):
        d = start + tl.arange(0, BD)
        inside = d < N
        sum = tl.load(y + d, inside, other=0.0).to(tl.float32)
        if R > 0:
            sum = tl.where(named, sum + delta_of_row(z, bt, bt_rank, r, d, N, RP), sum)
        if not BEFORE:
            sum += tl.load(residual + d, inside, other=0.0).to(tl.float32)
        rounded = sum.to(h.dtype.element_ty)
        tl.store(h + d, rounded, inside)
        squares += tl.where(inside, rounded.to(tl.float32) * rounded.to(tl.float32), 0.0)
    tl.debug_barrier()
    if BEFORE:
        inverse, squares = inverse_rms(squares, N, eps), tl.zeros([BD], tl.float32)
        for start in range(0, N, BD):
            d = start + tl.arange(0, BD)
            inside = d < N
            own = tl.load(h + d, inside, other=0.0).to(tl.float32) * inverse
            own *= plus + tl.load(before + d, inside, other=0.0).to(tl.float32)
            rounded = (own + tl.load(residual + d, inside, other=0.0).to(tl.float32)).to(h.dtype.element_ty)
            tl.store(h + d, rounded, inside)
            squares += tl.where(inside, rounded.to(tl.float32) * rounded.to(tl.float32), 0.0)
        tl.debug_barrier()
    inverse = inverse_rms(squares, N, eps)
    for start in range(0, N, BD):
        d = start + tl.arange(0, BD)
        inside = d < N
        own = tl.load(h + d, inside, other=0.0).to(tl.float32) * inverse
        own *= plus + tl.load(weight + d, inside, other=0.0).to(tl.float32)
        tl.store(n + d, own.to(n.dtype.element_ty), inside)


def norm(y, residual, before, weight, eps, plus, x, a, bt, row_slot, rank, scale):
    """y, residual [M,N] -> h, n [M,N]. a [S or 1,R,K], bt [S,R,N] of row_slot's slots, or None. Last dimensions contiguous."""
    (rows, width), ranks = y.shape, 0 if a is None else a.shape[1]
    h, n = (torch.empty(rows, width, dtype=y.dtype, device=y.device) for _ in range(2))
    if rows == 0 or width == 0:
        return h, n
    adapter = (y, 0, y, y, 0, 0, 0, 0, y, y, y, 0)
    if ranks:
        adapter = (
            x, row_stride(x), a, bt, slot_stride(a), slot_stride(bt), a.stride(1), bt.stride(1), row_slot, rank, scale,
            rank.shape[0],
        )  # fmt: skip
    padded = padded_rank(ranks) if ranks else 1
    norm_kernel[(rows,)](
        h, n, y, row_stride(y), residual, row_stride(residual), weight if before is None else before, weight, eps, plus,
        *adapter, K=x.shape[1] if ranks else 0, N=width, R=ranks, RP=padded, BD=FACTOR // padded if ranks else PIECE,
        BEFORE=before is not None, num_warps=8,
    )  # fmt: skip
    return h, n
