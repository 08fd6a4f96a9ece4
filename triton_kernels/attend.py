"""attend: o[b,h] = Σ_c softmax_c(scale·q[b,h]·k[b,g,c]) v[b,g,c] over the columns that mask[b] shows, g = h // (H/G).

Two launches. `parts` takes a row, a key head and a part of the columns, and reads keys and values from its first visible column
to its last; a part that shows none costs one look at its mask. `whole` weighs the parts and adds them in order. Parts are cut
by column numbers alone: a row's bits depend on what it sees and where it stands, neither on the columns' number nor on its
neighbours.
"""

import torch
import triton
import triton.language as tl

from .configs import PLANES, config, padded_head
from .dot import dot


@triton.jit(do_not_specialize=["columns", "parts", "mask_stride", "scale"], do_not_specialize_on_alignment=["q", "mask"])
def parts_kernel(
    most, total, sums, q, k, v, mask, q_row, q_head, k_row, k_head, k_column, v_row, v_head, v_column,
    mask_stride, columns, parts, scale,
    H: tl.constexpr, S: tl.constexpr, SP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BC: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """One program: (row, key head, part), for the S query heads that share the key head: the largest score in powers of two,
    Σ p and Σ p·v. A part that shows no column says so by Σ p = 0."""
    row, group, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(2)
    h, d, c = tl.arange(0, SP), tl.arange(0, DP), tl.arange(0, BC)
    head = group * S + h
    to = (row * H + head) * parts + part
    mine = part * PART + tl.arange(0, PART)
    seen = tl.load(mask + row * mask_stride + mine, mine < columns, other=0) != 0
    first, end = tl.min(tl.where(seen, mine, columns)), tl.max(tl.where(seen, mine + 1, 0))
    m = tl.full([SP], float("-inf"), tl.float32)
    weight = tl.zeros([SP], tl.float32)
    acc = tl.zeros([SP, DP], tl.float32)
    x = tl.load(q + row * q_row + head[:, None] * q_head + d[None, :], (h < S)[:, None] & (d < D)[None, :], other=0.0)
    k, v = k + row * k_row + group * k_head, v + row * v_row + group * v_head
    for start in range(first // BC * BC, end, BC):
        column = start + c
        within = (column // PART == part) & (column < columns)  # a step may be wider than a part
        shown = tl.load(mask + row * mask_stride + column, within, other=0) != 0
        at = column.to(tl.int64)
        key = tl.load(k + at[None, :] * k_column + d[:, None], shown[None, :] & (d < D)[:, None], other=0.0)
        value = tl.load(v + at[:, None] * v_column + d[None, :], shown[:, None] & (d < D)[None, :], other=0.0)
        score = dot(x, key, tl.zeros([SP, BC], tl.float32)) * (scale * 1.4426950408889634)  # log2 e
        score = tl.where(shown[None, :], score, float("-inf"))
        now = tl.maximum(m, tl.max(score, 1))
        base = tl.where(now == float("-inf"), 0.0, now)
        p = tl.exp2(score - base[:, None])
        old = tl.exp2(m - base)
        weight = weight * old + tl.sum(p, 1)
        acc = dot(p, value, acc * old[:, None])
        m = now
    tl.store(total + to, weight, h < S)
    if first < end:
        tl.store(most + to, m, h < S)
        tl.store(sums + to[:, None] * D + d[None, :], acc, (h < S)[:, None] & (d < D)[None, :])


@triton.jit(do_not_specialize=["parts"])
def whole_kernel(o, most, total, sums, parts, D: tl.constexpr, DP: tl.constexpr, BP: tl.constexpr):
    """One program: a head of a row."""
    at = tl.program_id(0).to(tl.int64)
    most, total, sums = most + at * parts, total + at * parts, sums + at * parts * D
    d, i = tl.arange(0, DP), tl.arange(0, BP)
    top = tl.full([BP], float("-inf"), tl.float32)
    for start in range(0, parts, BP):
        part = start + i
        used = tl.load(total + part, part < parts, other=0.0) != 0.0
        top = tl.maximum(top, tl.load(most + part, used, other=float("-inf")))
    top = tl.max(top)
    top = tl.where(top == float("-inf"), 0.0, top)
    weights, acc = tl.zeros([BP], tl.float32), tl.zeros([BP, DP], tl.float32)
    for start in range(0, parts, BP):
        part = start + i
        own = tl.load(total + part, part < parts, other=0.0)
        used = own != 0.0  # NaN is used, and shows
        w = tl.exp2(tl.load(most + part, used, other=float("-inf")) - top)
        weights += tl.where(used, own * w, 0.0)
        x = tl.load(sums + part.to(tl.int64)[:, None] * D + d[None, :], used[:, None] & (d < D)[None, :], other=0.0)
        acc += tl.where(used[:, None], x * w[:, None], 0.0)
    weight = tl.sum(weights)
    out = tl.where(weight == 0.0, 0.0, tl.sum(acc, 0) / weight)
    tl.store(o + at * D + d, out.to(o.dtype.element_ty), d < D)


def attend(q, k, v, mask, scale):
    """q [B,H,D], k and v [B,G,L,D], mask bool [B,L] -> [B,H,D]. Last dimensions contiguous."""
    (rows, heads, size), groups, columns = q.shape, k.shape[1], k.shape[2]
    o = torch.empty(rows, heads, size, dtype=q.dtype, device=q.device)
    if columns == 0:
        return o.zero_()
    if rows == 0 or heads == 0 or size == 0:
        return o
    padded = padded_head(size)
    c = config("attend", q.dtype, k.dtype, padded)
    parts, share = triton.cdiv(columns, c.rows), heads // groups
    most, total = (torch.empty(rows, heads, parts, dtype=torch.float32, device=q.device) for _ in range(2))
    sums = torch.empty(rows, heads, parts, size, dtype=torch.float32, device=q.device)
    parts_kernel[(rows, groups, parts)](
        most, total, sums, q, k, v, mask.view(torch.uint8), *q.stride()[:2], *k.stride()[:3], *v.stride()[:3],
        mask.stride(0), columns, parts, scale, H=heads, S=share, SP=max(16, triton.next_power_of_2(share)), D=size, DP=padded,
        BC=c.bd, PART=c.rows, num_warps=c.warps, num_stages=c.stages,
    )  # fmt: skip
    whole_kernel[(rows * heads,)](o, most, total, sums, parts, D=size, DP=padded, BP=PLANES, num_warps=2)
    return o
