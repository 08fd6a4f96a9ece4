"""glu: o = f(gate + Δ0(x))·(up + Δ1(x)) with f(g) = g·σ(g), or GELU by tanh, which is g·σ(√(8/π)·(g + 0.044715·g³))."""

import torch
import triton
import triton.language as tl

from .configs import FACTOR, PIECE, padded_rank
from .decode import delta_of_row, shares, z_of_row
from .plan import known_rank, row_stride, slot_stride


@triton.jit
def gated(g, GELU: tl.constexpr):
    inner = g
    if GELU:
        inner = 1.5957691216057308 * (g + 0.044715 * g * g * g)  # √(8/π)
    return g / (1.0 + tl.exp(-inner))


@triton.jit(do_not_specialize=["slots"], do_not_specialize_on_alignment=["gate", "up", "x", "row_slot"])
def glu_kernel(
    o, gate, up, gate_stride, up_stride, x, x_stride, a0, a1, b0, b1, a_slot0, a_slot1, b_slot0, b_slot1,
    a_rank0, a_rank1, b_rank0, b_rank1, row_slot, rank, scale, slots,
    K: tl.constexpr, N: tl.constexpr, R: tl.constexpr, RP: tl.constexpr, BD: tl.constexpr, GELU: tl.constexpr,
):  # fmt: skip
    """One program: (row, its share of the columns). R is 0 without adapters."""
    row = tl.program_id(0).to(tl.int64)
    gate, up, o = gate + row * gate_stride, up + row * up_stride, o + row * N
    named = False
    if R > 0:
        slot = tl.load(row_slot + row)
        named = slot != -1
        r, s = known_rank(slot, rank, slots, R), slot.to(tl.int64)
        factor = tl.load(scale + slot, r > 0, other=0.0)
        x += row * x_stride
        z0 = z_of_row(x, a0 + s * a_slot0, a_rank0, r, K, RP, BD) * factor
        z1 = z_of_row(x, a1 + s * a_slot1, a_rank1, r, K, RP, BD) * factor
        b0, b1 = b0 + s * b_slot0, b1 + s * b_slot1
    for tile in range(tl.program_id(1), tl.cdiv(N, BD), tl.num_programs(1)):
        d = tile * BD + tl.arange(0, BD)
        g = tl.load(gate + d, d < N, other=0.0).to(tl.float32)
        u = tl.load(up + d, d < N, other=0.0).to(tl.float32)
        if R > 0:
            g = tl.where(named, g + delta_of_row(z0, b0, b_rank0, r, d, N, RP), g)
            u = tl.where(named, u + delta_of_row(z1, b1, b_rank1, r, d, N, RP), u)
        tl.store(o + d, (gated(g, GELU) * u).to(o.dtype.element_ty), d < N)


def glu(gate, up, gelu, x, a, bt, row_slot, rank, scale):
    """gate, up [M,N] -> o [M,N]. a, bt: the two adapters' [S or 1,R,K] and [S,R,N], or []. Last dimensions contiguous."""
    (rows, width), ranks = gate.shape, a[0].shape[1] if a else 0
    o = torch.empty(rows, width, dtype=gate.dtype, device=gate.device)
    if rows == 0 or width == 0:
        return o
    adapters = (gate, 0, *(gate,) * 4, *(0,) * 8, gate, gate, gate, 0)
    if ranks:
        each = *a, *bt
        strides = *(slot_stride(f) for f in each), *(f.stride(1) for f in each)
        adapters = (x, row_stride(x), *each, *strides, row_slot, rank, scale, rank.shape[0])
    padded = padded_rank(ranks) if ranks else 1
    columns = FACTOR // padded if ranks else PIECE
    glu_kernel[(rows, shares(rows, triton.cdiv(width, columns)))](
        o, gate, up, row_stride(gate), row_stride(up), *adapters,
        K=x.shape[1] if ranks else 0, N=width, R=ranks, RP=padded, BD=columns, GELU=gelu, num_warps=8,
    )  # fmt: skip
    return o
