"""gemm: y = x Wᵀ + expand(z, bt), or dx = dy W + expand(dz, a), in one kernel, which reads and writes the result once less
than a GEMM and an expand after it.

An entrant of `make gpu`, not the dispatcher's choice: it pays where this GEMM reaches about 0.91 of the speed of the
vendor's. For Hopper and later, whose tensor memory accelerator (TMA) loads the operands; bf16 alone, without a bias.

Programs stay and take one tile after another. A tile may hold rows of several segments: each adds its product to the fp32 sum,
for its own rows alone. Rows are chosen after the product, as 0·NaN is NaN. The sum is rounded once, so that bits are others
than after two kernels.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .configs import padded_rank
from .dot import dot
from .plan import known_rank, row_stride, slot_stride


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a tile, warps, stages; in how many parts its columns are finished, so that few registers hold
    what a part adds; rows of tiles that follow one another, so that they share columns of W in the second-level cache."""

    bm: int = 128
    bn: int = 256
    bk: int = 64
    warps: int = 8
    stages: int = 3
    parts: int = 4
    group: int = 8


WIDE = (Tile(), Tile(group=4), Tile(stages=2))  # up to rank 16: above, these spill registers
NARROW = (Tile(bn=128, stages=4, parts=1), Tile(bn=128, stages=4, parts=1, group=4))


def tiles(ranks: int) -> tuple[Tile, ...]:
    """Those that may be tried for a stored rank."""
    return (*WIDE, *NARROW) if padded_rank(ranks) == 16 else NARROW


@triton.jit
def segment_of(row, seg_off, segments, BLOCK: tl.constexpr):
    """The last segment that begins at or before a row."""
    begun = 0
    for start in range(0, segments, BLOCK):
        g = start + tl.arange(0, BLOCK)
        begun += tl.sum((tl.load(seg_off + g, g < segments, other=2147483647) <= row).to(tl.int32))
    return begun - 1


@triton.jit
def plus_expand(
    acc, row, n, M, N, z, z_stride, f, f_slot_stride, f_rank_stride, seg_off, seg_slot, rank, slots, first, last,
    R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """acc + expand of the columns n, of rows from `row` on, which lie in the segments first..last."""
    m, j = row + tl.arange(0, BM), tl.arange(0, RP)
    for s in range(first, last + 1):
        lo, hi, slot = tl.load(seg_off + s), tl.load(seg_off + s + 1), tl.load(seg_slot + s)
        r = known_rank(slot, rank, slots, R)
        mine, used = (m >= lo) & (m < hi), j < r
        at = z + m.to(tl.int64)[:, None] * z_stride + j[None, :]
        low = tl.load(at, (mine & (m < M))[:, None] & used[None, :], other=0.0)
        at = f + slot.to(tl.int64) * f_slot_stride + j[:, None] * f_rank_stride + n[None, :]
        factor = tl.load(at, used[:, None] & (n < N)[None, :], other=0.0)
        more = dot(low, factor, tl.zeros([BM, n.shape[0]], tl.float32))
        lost = tl.where((r == 0) & (slot != -1), float("nan"), 0.0)  # a slot that is freed or does not exist
        acc += tl.where(mine[:, None], more + lost, 0.0)
    return acc


@triton.jit(do_not_specialize=["segments", "slots"])
def gemm_kernel(
    x, w, y, z, z_stride, f, f_slot_stride, f_rank_stride, seg_off, seg_slot, rank, M, N, K, segments, slots,
    TURNED: tl.constexpr,
    R: tl.constexpr, RP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x [M,K], w [N,K] (turned: [K,N]) and y [M,N] are descriptors of blocks [BM,BK], [BN,BK] ([BK,BN]) and [BM,BN/PARTS]."""
    W: tl.constexpr = BN // PARTS
    down, across = tl.cdiv(M, BM), tl.cdiv(N, BN)
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS):
        above = tile // (GROUP * across) * GROUP
        tall = tl.minimum(down - above, GROUP)
        row, column = (above + tile % (GROUP * across) % tall) * BM, tile % (GROUP * across) // tall * BN
        acc = tl.zeros([BM, BN], tl.float32)
        for k in range(0, K, BK):
            if TURNED:
                acc = tl.dot(x.load([row, k]), w.load([k, column]), acc)
            else:
                acc = tl.dot(x.load([row, k]), w.load([column, k]).T, acc)
        first = segment_of(row, seg_off, segments, BLOCK)
        last = segment_of(tl.minimum(row + BM, M) - 1, seg_off, segments, BLOCK)
        for part in tl.static_range(PARTS):
            if PARTS == 1:
                one = acc
            else:
                half = tl.split(tl.permute(tl.reshape(acc, (BM, 2, BN // 2)), (0, 2, 1)))
                if PARTS == 2:
                    one = half[part]
                else:
                    one = tl.split(tl.permute(tl.reshape(half[part // 2], (BM, 2, W)), (0, 2, 1)))[part % 2]
            n = column + part * W + tl.arange(0, W)
            one = plus_expand(
                one, row, n, M, N, z, z_stride, f, f_slot_stride, f_rank_stride, seg_off, seg_slot, rank, slots, first, last,
                R, RP, BM,
            )  # fmt: skip
            y.store([row, column + part * W], one.to(tl.bfloat16))


def programs(x) -> int:
    """One for each multiprocessor."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 3


def gemm(x, w, z, f, seg_off, seg_slot, rank, tile, turned=False):
    """x [M,K] and w [N,K], or w [K,N] if turned, bf16, contiguous, K and N multiples of 8; z fp32 [M,R]; f [S or 1,R,N] bf16
    or fp32, last dimension contiguous -> bf16 [M,N] = x wᵀ (x w) + expand(z, f). M > 0; segments cover all rows."""
    (rows, depth), columns, ranks = x.shape, w.shape[turned], z.shape[1]
    y = torch.empty(rows, columns, dtype=x.dtype, device=x.device)
    of_w = [tile.bk, tile.bn] if turned else [tile.bn, tile.bk]
    blocks = (x, [tile.bm, tile.bk]), (w, of_w), (y, [tile.bm, tile.bn // tile.parts])
    described = [TensorDescriptor(t, list(t.shape), list(t.stride()), block) for t, block in blocks]
    gemm_kernel[(programs(x),)](
        *described, z, row_stride(z), f, slot_stride(f), f.stride(1), seg_off, seg_slot, rank, rows, columns, depth,
        seg_slot.shape[0], rank.shape[0], TURNED=turned, R=ranks, RP=padded_rank(ranks), BM=tile.bm, BN=tile.bn, BK=tile.bk,
        PARTS=tile.parts, GROUP=tile.group, PROGRAMS=programs(x), BLOCK=128, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y
