"""dot: products of widened operands on the matrix units, summed in fp32."""

import triton
import triton.language as tl
from triton.language.target_info import is_hip


@triton.constexpr_function
def _fp32():
    """How two fp32 operands are multiplied: three tf32 products (relative error 2^-21); exactly where AMD's units do that."""
    return "ieee" if is_hip() else "tf32x3"


_LARGEST = tl.constexpr(2.0**128 - 2.0**120)  # finite bf16


@triton.jit
def split(x):
    """x as the sum of two bf16 parts, the larger first: 16 significant bits of fp32, all 11 of fp16, and the range of either.
    The first is finite, so that what is infinite is in the second alone, and their sum is x again: infinity less infinity is
    NaN."""
    x = x.to(tl.float32)
    high = tl.minimum(tl.maximum(x, -_LARGEST), _LARGEST).to(tl.bfloat16)
    return high, (x - high.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def dot(a, b, acc):
    """acc + a @ b with both operands widened to fp32 first.

    Of one 16-bit dtype: their products are exact in fp32. Of bf16 and another: that one is split into two bf16 parts
    (relative error 2^-17, fp16 exact). Of fp16 and fp32: see dot_in, as fp16 has not the range of fp32. Both fp32: three tf32
    products (2^-21), on AMD's GPUs fp32 ones.
    """
    if (a.dtype == tl.float32) and (b.dtype == tl.float32):
        return tl.dot(a, b, acc, input_precision=_fp32())
    elif a.dtype == b.dtype:
        return tl.dot(a, b, acc)
    elif b.dtype == tl.bfloat16:
        high, low = split(a)
        return tl.dot(high, b, tl.dot(low, b, acc))
    elif a.dtype == tl.bfloat16:
        high, low = split(b)
        return tl.dot(a, high, tl.dot(a, low, acc))
    else:
        return dot_in(a, b, acc)


@triton.jit
def dot_in(a, b, acc):
    """acc + a @ b with both operands split into two bf16 parts, three products of parts (relative error 2^-16): for a
    result that is rounded to 16 bits, and for fp16 beside fp32. tf32 would take six times the time of one product, this takes
    three."""
    a_high, a_low = split(a)
    b_high, b_low = split(b)
    acc = tl.dot(a_low, b_high, acc)
    acc = tl.dot(a_high, b_low, acc)
    return tl.dot(a_high, b_high, acc)
