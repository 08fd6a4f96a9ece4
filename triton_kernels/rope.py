"""rope: q and k of one new token a row are normed, if they have weights, and rotated; k and v go to their column of the cache.

Rotated: x·cos + turn(x)·sin with turn(x) = (-x[D/2:], x[:D/2]). One launch; a program is a head of a row.
"""

import torch
import triton
import triton.language as tl

from .plan import row_stride


@triton.jit
def rotated(x, weight, cos, sin, eps, plus, D: tl.constexpr, DP: tl.constexpr, NORM: tl.constexpr):
    """One head: x, weight, cos and sin point at its D numbers."""
    d = tl.arange(0, DP)
    inside = d < D
    other = tl.where(d < D // 2, d + D // 2, d - D // 2)
    own, turned = tl.load(x + d, inside, other=0.0).to(tl.float32), tl.load(x + other, inside, other=0.0).to(tl.float32)
    if NORM:
        inverse = 1.0 / tl.sqrt_rn(tl.sum(own * own) / D + eps)
        own *= inverse * (plus + tl.load(weight + d, inside, other=0.0).to(tl.float32))
        turned *= inverse * (plus + tl.load(weight + other, inside, other=0.0).to(tl.float32))
    turned = tl.where(d < D // 2, -turned, turned)
    c, s = tl.load(cos + d, inside, other=0.0).to(tl.float32), tl.load(sin + d, inside, other=0.0).to(tl.float32)
    return own * c + turned * s


@triton.jit(do_not_specialize=["columns", "eps", "plus"], do_not_specialize_on_alignment=["q", "k", "v", "cos", "sin", "at"])
def rope_kernel(
    o, q, k, v, q_stride, k_stride, v_stride, cos, sin, cos_stride, sin_stride, at, q_weight, k_weight, eps, plus,
    keys, values, key_row, key_head, key_column, value_row, value_head, value_column, columns,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Heads 0..H are of q, the next G of k, the last G of v. A column that is not there is not written, and q becomes NaN."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.load(at + row).to(tl.int64)
    there = (column >= 0) & (column < columns)
    d = tl.arange(0, DP)
    cos, sin = cos + row * cos_stride, sin + row * sin_stride
    if head < H:
        turned = rotated(q + row * q_stride + head * D, q_weight, cos, sin, eps, plus, D, DP, NORM)
        turned = tl.where(there, turned, float("nan"))
        tl.store(o + (row * H + head) * D + d, turned.to(o.dtype.element_ty), d < D)
    elif head < H + G:
        g = (head - H).to(tl.int64)
        key = rotated(k + row * k_stride + g * D, k_weight, cos, sin, eps, plus, D, DP, NORM)
        tl.store(keys + row * key_row + g * key_head + column * key_column + d, key.to(keys.dtype.element_ty), (d < D) & there)
    else:
        g = (head - H - G).to(tl.int64)
        value = tl.load(v + row * v_stride + g * D + d, d < D, other=0.0)
        to = values + row * value_row + g * value_head + column * value_column + d
        tl.store(to, value.to(values.dtype.element_ty), (d < D) & there)


def rope(keys, values, q, k, v, cos, sin, at, q_weight, k_weight, eps, plus):
    """q [M,H·D], k and v [M,G·D], cos and sin [M,D], at int [M], weights [D] or None -> [M,H,D]; keys and values [M,G,L,D] are
    written. Last dimensions contiguous."""
    (rows, groups, columns, size), heads = keys.shape, q.shape[1] // keys.shape[3]
    o = torch.empty(rows, heads, size, dtype=q.dtype, device=q.device)
    if rows == 0:
        return o
    normed = q_weight is not None
    rope_kernel[(rows, heads + 2 * groups)](
        o, q, k, v, *map(row_stride, (q, k, v)), cos, sin, row_stride(cos), row_stride(sin), at,
        q_weight if normed else q, k_weight if normed else k, eps, plus,
        keys, values, *keys.stride()[:3], *values.stride()[:3], columns,
        H=heads, G=groups, D=size, DP=triton.next_power_of_2(size), NORM=normed, num_warps=1,
    )  # fmt: skip
    return o
