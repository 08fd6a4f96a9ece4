"""copy: row target[i] of a matrix becomes its row source[i], or zero where source[i] is -1. Bytes, whatever they mean."""

import triton
import triton.language as tl

from .configs import BYTES
from .plan import row_stride


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["source", "target"])
def copy_kernel(matrix, stride, source, target, rows, pieces, width, BYTES: tl.constexpr):
    """One program: BYTES of a pair of rows. Rows out of range are left alone."""
    pair, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    s, t = tl.load(source + pair).to(tl.int64), tl.load(target + pair).to(tl.int64)
    if (t >= 0) & (t < rows) & (s >= -1) & (s < rows):
        d = piece.to(tl.int64) * BYTES + tl.arange(0, BYTES)
        inside = d < width
        tl.store(matrix + t * stride + d, tl.load(matrix + s * stride + d, inside & (s >= 0), other=0), inside)


def copy(matrix, source, target):
    """matrix uint8 [S,B], last dimension contiguous; source and target int32 [n]."""
    (rows, width), count = matrix.shape, source.shape[0]
    if width == 0 or count == 0:
        return
    pieces = triton.cdiv(width, BYTES)
    copy_kernel[(count * pieces,)](matrix, row_stride(matrix), source, target, rows, pieces, width, BYTES=BYTES, num_warps=4)
