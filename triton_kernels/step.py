"""step: one optimizer step of every active row in three launches. `squares` sums stretches of the gradients, where gram has not
left their sums; `scalars` adds the sums of a row in order and makes its scalars in fp64, `move` moves the rows in fp32.

A stretch's bounds depend on the width alone, and every sum has one owner and one order: so do the bits of a row. An idle
row costs a look at its flag. Formula: see tmem.reference.bank_step_.
"""

import torch
import triton
import triton.language as tl

from .configs import LINE, PIECE, STRETCH
from .plan import row_stride

SCALARS = 8  # of a row: clip, keep, rate, 1 - beta1, beta2, 1 - beta2, √(1 - beta2ᵗ), eps


@triton.jit
def squares_kernel(partial, grad, stride, active, stretches, width, STRETCH: tl.constexpr, LINE: tl.constexpr):
    """One program: partial[row, k] = Σ grad² over stretch k, fp64."""
    row, k = tl.program_id(0) // stretches, tl.program_id(0) % stretches
    if tl.load(active + row):
        d = k.to(tl.int64) * STRETCH + tl.arange(0, LINE)
        sum = tl.zeros([LINE], tl.float64)
        for line in tl.static_range(STRETCH // LINE):
            at = d + line * LINE
            g = tl.load(grad + row.to(tl.int64) * stride + at, at < width, other=0.0).to(tl.float64)
            sum += g * g
        tl.store(partial + row.to(tl.int64) * stretches + k, tl.sum(sum))


@triton.jit
def power(x, n):
    """x^n of fp64 and a whole number n >= 0, by squaring."""
    result = x * 0 + 1
    for bit in tl.static_range(31):
        result = tl.where((n >> bit) & 1 != 0, result * x, result)
        x = x * x
    return result


@triton.jit
def scalars_kernel(
    norms, scalars, partial, step, hyper, hyper_stride, active, stretches,
    ADAM: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: a row's norm and its scalars, computed in fp64 and rounded once; its step is counted if it moves."""
    row = tl.program_id(0).to(tl.int64)
    norm = tl.full([], 0.0, tl.float64)
    moves = tl.load(active + row)
    if moves:
        sums = tl.zeros([BLOCK], tl.float64)
        for first in range(0, stretches, BLOCK):
            k = first + tl.arange(0, BLOCK)
            sums += tl.load(partial + row * stretches + k, k < stretches, other=0.0)
        norm = tl.sqrt(tl.sum(sums))
    tl.store(norms + row, norm.to(tl.float32))
    if moves & (norm.to(tl.float32) < float("inf")):  # which a NaN is not
        at = hyper + row * hyper_stride
        clip = setting(at, 5)
        t = tl.load(step + row) + 1
        tl.store(step + row, t)
        limit = clip / (norm + 1e-6)
        store_scalars(scalars + row * COUNT, at, tl.where((clip > 0) & (limit < 1), limit, 1.0), t, ADAM)


@triton.jit
def store_scalars(to, at, clip, t, ADAM: tl.constexpr):
    """A row's scalars of its t-th step, from its settings `at`."""
    lr, decay = setting(at, 0), setting(at, 4)
    tl.store(to, clip.to(tl.float32))
    tl.store(to + 1, (1 - lr * decay).to(tl.float32))
    if ADAM:
        beta1, beta2, eps = setting(at, 1), setting(at, 2), setting(at, 3)
        tl.store(to + 2, (lr / (1 - power(beta1, t))).to(tl.float32))
        tl.store(to + 3, (1 - beta1).to(tl.float32))
        tl.store(to + 4, beta2.to(tl.float32))
        tl.store(to + 5, (1 - beta2).to(tl.float32))
        tl.store(to + 6, tl.sqrt(1 - power(beta2, t)).to(tl.float32))
        tl.store(to + 7, eps.to(tl.float32))
    else:
        tl.store(to + 2, lr.to(tl.float32))


@triton.jit
def setting(at, column: tl.constexpr):
    return tl.load(at + column).to(tl.float64)


@triton.jit
def stepped(p, g, first, second, s, ADAM: tl.constexpr):
    """p, m and v after a step by g, times its clip, with the scalars s. Of SGD what is given as moments comes back."""
    if ADAM:
        first += tl.load(s + 3) * (g - first)
        second = tl.load(s + 4) * second + tl.load(s + 5) * (g * g)
        g = tl.div_rn(first, tl.div_rn(tl.sqrt_rn(second), tl.load(s + 6)) + tl.load(s + 7))
    return tl.load(s + 1) * p - tl.load(s + 2) * g, first, second


@triton.jit
def move_kernel(
    param, param_stride, grad, grad_stride, m, m_stride, v, v_stride, copy, copy_stride, norms, scalars, active, pieces, width,
    ADAM: tl.constexpr, COPY: tl.constexpr, CLEAR: tl.constexpr, COUNT: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """One program: PIECE columns of a row. Of a row whose norm is not finite only the gradient may be zeroed."""
    row, piece = (tl.program_id(0) // pieces).to(tl.int64), tl.program_id(0) % pieces
    if tl.load(active + row):
        d = piece.to(tl.int64) * PIECE + tl.arange(0, PIECE)
        inside = d < width
        of_grad = grad + row * grad_stride + d
        if tl.load(norms + row) < float("inf"):
            s, at = scalars + row * COUNT, param + row * param_stride + d
            p, g = tl.load(at, inside), tl.load(s) * tl.load(of_grad, inside)
            if ADAM:
                of_m, of_v = m + row * m_stride + d, v + row * v_stride + d
                p, first, second = stepped(p, g, tl.load(of_m, inside), tl.load(of_v, inside), s, ADAM)
                tl.store(of_m, first, inside)
                tl.store(of_v, second, inside)
            else:
                p, _, _ = stepped(p, g, p, p, s, ADAM)
            tl.store(at, p, inside)
            if COPY:
                tl.store(copy + row * copy_stride + d, p.to(copy.dtype.element_ty), inside)
        if CLEAR:
            tl.store(of_grad, tl.zeros([PIECE], tl.float32), inside)


def step(param, grad, m, v, count, hyper, active, copy, clear=True, sums=None):
    """param, grad, m, v fp32 [S,P], m and v both or neither; count int32 and active bool [S]; hyper fp32 or fp64 [S,6];
    copy bf16 or fp16 [S,P] or None; sums fp64 [S,T], contiguous: the squares of the gradients, or None -> norms fp32 [S]. Last
    dimensions contiguous; all but hyper, active and sums are written."""
    rows, width = param.shape
    norms = torch.empty(rows, dtype=torch.float32, device=param.device)
    if rows == 0:
        return norms
    pieces = triton.cdiv(width, PIECE)
    stretches = triton.cdiv(width, STRETCH) if sums is None else sums.shape[1]
    partial = torch.empty(rows, stretches, dtype=torch.float64, device=param.device) if sums is None else sums
    scalars = torch.empty(rows, SCALARS, dtype=torch.float32, device=param.device)
    adam, copied = m is not None, copy is not None
    m, v, copy = m if adam else param, v if adam else param, copy if copied else param  # of what is not given, nothing is read
    if width and sums is None:
        squares_kernel[(rows * stretches,)](
            partial, grad, row_stride(grad), active, stretches, width, STRETCH=STRETCH, LINE=LINE, num_warps=4
        )
    scalars_kernel[(rows,)](
        norms, scalars, partial, count, hyper, row_stride(hyper), active, stretches,
        ADAM=adam, COUNT=SCALARS, BLOCK=256, num_warps=1,  # which reads a step count before it writes the next
    )  # fmt: skip
    if width:
        move_kernel[(rows * pieces,)](
            param, row_stride(param), grad, row_stride(grad), m, row_stride(m), v, row_stride(v), copy, row_stride(copy),
            norms, scalars, active, pieces, width, ADAM=adam, COPY=copied, CLEAR=clear, COUNT=SCALARS, PIECE=PIECE, num_warps=4,
        )  # fmt: skip
    return norms
