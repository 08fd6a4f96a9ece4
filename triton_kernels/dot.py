"""dot: products of widened operands on the matrix units, summed in fp32."""

import triton
import triton.language as tl
from triton.language.target_info import is_hip


@triton.constexpr_function
def _largest(dtype):
    """The largest finite number of a 16-bit dtype."""
    return 2.0**128 - 2.0**120 if dtype == tl.bfloat16 else 65504.0


@triton.constexpr_function
def _fp32():
    """How two fp32 operands are multiplied: three tf32 products (relative error 2^-21); exactly where AMD's units do that."""
    return "ieee" if is_hip() else "tf32x3"


@triton.jit
def split(x, dtype: tl.constexpr):
    """fp32 x as the sum of two parts of the 16-bit `dtype`, the larger first. It is finite, so that what is infinite is in the
    smaller alone, and their sum is x again: infinity less infinity is NaN."""
    high = tl.minimum(tl.maximum(x, -_largest(dtype)), _largest(dtype)).to(dtype)
    return high, (x - high.to(tl.float32)).to(dtype)


@triton.jit
def dot(a, b, acc):
    """acc + a @ b with both operands widened to fp32 first.

    Two 16-bit operands: their products are exact in fp32. One of them fp32: it is split into two 16-bit parts, whose sum
    has 16 significant bits (relative error 2^-17). Both fp32: three tf32 products (2^-21), on AMD's GPUs fp32 ones.
    """
    if (a.dtype == tl.float32) and (b.dtype == tl.float32):
        return tl.dot(a, b, acc, input_precision=_fp32())
    elif a.dtype == tl.float32:
        high, low = split(a, b.dtype)
        return tl.dot(high, b, tl.dot(low, b, acc))
    elif b.dtype == tl.float32:
        high, low = split(b, a.dtype)
        return tl.dot(a, high, tl.dot(a, low, acc))
    else:
        return tl.dot(a, b, acc)


@triton.jit
def gram_zeros(dtype: tl.constexpr, RP: tl.constexpr, BD: tl.constexpr):
    """What `gram_dot` sums onto for rows of this dtype."""
    if dtype == tl.float32:
        return tl.zeros([RP, BD], tl.float32)
    else:
        return tl.zeros([BD, RP], tl.float32)


@triton.jit
def gram_dot(z, x, acc):
    """acc + zᵀ @ x, as `dot`; for 16-bit rows its transpose, acc + xᵀ @ z. Matrix units take 16-bit memory either way, so that
    there z need not be turned over, and x, which is wide, has the 64 rows that wgmma wants."""
    if x.dtype == tl.float32:
        return dot(tl.trans(z), x, acc)
    else:
        return dot(tl.trans(x), z, acc)


@triton.jit
def gram_of(acc, dtype: tl.constexpr):
    """[RP, BD] of what `gram_dot` has summed."""
    if dtype == tl.float32:
        return acc
    else:
        return tl.trans(acc)


@triton.jit
def dot_in(a, b, acc, dtype: tl.constexpr):
    """acc + a @ b for a result that is rounded to the 16-bit `dtype`: both fp32 operands split into two parts of it, three
    products of parts (bf16: relative error 2^-16). tf32 would take six times the time of one product, this takes three."""
    a_high, a_low = split(a, dtype)
    b_high, b_low = split(b, dtype)
    acc = tl.dot(a_low, b_high, acc)
    acc = tl.dot(a_high, b_low, acc)
    return tl.dot(a_high, b_high, acc)
