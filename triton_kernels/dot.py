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
