"""dot: products of widened operands on the matrix units, summed in fp32."""

import triton
import triton.language as tl


@triton.jit
def dot(a, b, acc):
    """acc + a @ b with both operands widened to fp32 first.

    Two 16-bit operands: their products are exact in fp32. One of them fp32: it is split into two 16-bit parts, whose sum
    has 16 significant bits (relative error 2^-17). Both fp32: three tf32 products (2^-21).
    """
    if (a.dtype == tl.float32) and (b.dtype == tl.float32):
        return tl.dot(a, b, acc, input_precision="tf32x3")
    elif a.dtype == tl.float32:
        high = a.to(b.dtype)
        return tl.dot(high, b, tl.dot((a - high.to(tl.float32)).to(b.dtype), b, acc))
    elif b.dtype == tl.float32:
        high = b.to(a.dtype)
        return tl.dot(a, high, tl.dot(a, (b - high.to(tl.float32)).to(a.dtype), acc))
    else:
        return tl.dot(a, b, acc)


@triton.jit
def dot_in(a, b, acc, dtype: tl.constexpr):
    """acc + a @ b for a result that is rounded to the 16-bit `dtype`: both fp32 operands split into two parts of it, three
    products of parts (bf16: relative error 2^-16). tf32 would take six times the time of one product, this takes three."""
    a_high, b_high = a.to(dtype), b.to(dtype)
    acc = tl.dot((a - a_high.to(tl.float32)).to(dtype), b_high, acc)
    acc = tl.dot(a_high, (b - b_high.to(tl.float32)).to(dtype), acc)
    return tl.dot(a_high, b_high, acc)
