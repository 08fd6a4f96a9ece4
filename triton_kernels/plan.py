"""plan: what the kernels need to know about a batch of segments, built on the device in one launch, shared by all layers.

Tiles of TILE rows start at a segment's first row and never straddle a segment, so what a tile computes depends on its own
segment alone. Slots own their segments: a slot's segments in the order of the batch, for sums that one program owns.

Memory, int32, one tensor: count [1] (tiles in use) | mark [1] | sizes [1] | 0 | tiles [T,4] | slot_ptr [S+1] | spans [G,2],
where T = ceil(M/TILE) + G bounds the tiles of any batch with M rows and G segments: grids are fixed, and tiles from `count`
on are empty. A tile is (slot, its first row, its segment's end, what it is), so that its rows are loaded after one load.
What: ONLY, if its slot has no other segment, + PLACE · min(2, its place in its segment) + SEGMENT · its segment. A span is
(first row, end) of a segment, in the order of slots and then of the batch; segments without rows, or whose slot is -1, out of
range or freed, are in no slot's list.

The values live on the device and reading them would wait for it, so no error is raised for them: offsets that do not run
from 0 to M without decreasing give count = -1 and tiles of a slot that nobody has, upon which every kernel writes NaN. A plan
of another batch is found out, too. Each tile is held against its segment after its sums, so that nothing waits for it: rows
of tiles that do not agree become NaN, and as tiles cover all rows once, the others are right. For a gradient, a segment
that no tile names would matter, so that `mark_of` the whole descriptor is held against the mark.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # rows of the smallest product that Hopper's matrix units take from shared memory
HEAD = tl.constexpr(4)  # elements before the tiles
ONLY, PLACE, SEGMENT = tl.constexpr(1), tl.constexpr(2), tl.constexpr(8)  # what a tile is


def tiles(rows: int, segments: int) -> int:
    """T: how many tiles a batch of `rows` rows in `segments` segments has at most."""
    return -(-rows // TILE) + segments


def size(rows: int, segments: int, slots: int) -> int:
    """Elements of the plan of such a batch."""
    return 5 + 4 * tiles(rows, segments) + slots + 2 * segments


def slot_stride(f: Tensor) -> int:
    """Elements from one slot's factor to the next; 0 where all slots share one."""
    return 0 if f.shape[0] == 1 else f.stride(0)


def row_stride(x: Tensor) -> int:
    """Elements from one row to the next; of a single row its width, as torch may give any number there, each a compilation."""
    return x.stride(0) if x.shape[0] > 1 else x.shape[1]


@triton.jit
def known_rank(slot, rank, slots, R: tl.constexpr):
    """The rank a segment's slot computes with: 0 for none, and for one that is freed, out of range or above the stored R."""
    r = tl.load(rank + slot, (slot >= 0) & (slot < slots), other=0)
    return tl.where((r > 0) & (r <= R), r, 0)


@triton.jit
def _mix(x):
    """A bijection of 32 bits that spreads every one of them (Wellons 2018, lowbias32)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def mark_of(seg_off, seg_slot, rank, rows, segments, slots, BLOCK: tl.constexpr):
    """What tells one descriptor from another, int32: all that a plan depends on goes into it. See tmem.reference.mark_of."""
    total = tl.zeros([BLOCK], tl.uint32)
    for first in range(0, segments, BLOCK):
        g = first + tl.arange(0, BLOCK)
        there = g < segments
        lo, hi = tl.load(seg_off + g, there, other=0), tl.load(seg_off + g + 1, there, other=0)
        slot = tl.load(seg_slot + g, there, other=-1)
        own = there & (slot >= 0) & (slot < slots)
        own = own & (tl.load(rank + slot, own, other=0) > 0)
        x = _mix(_mix(_mix(g.to(tl.uint32) + 1) + lo.to(tl.uint32)) + hi.to(tl.uint32))
        x = _mix(_mix(x + slot.to(tl.uint32)) + own.to(tl.uint32))
        total += tl.where(there, x, 0)
    x = _mix(_mix(tl.sum(total).to(tl.uint32) + rows.to(tl.uint32)) + slots.to(tl.uint32))
    return x.to(tl.int32, bitcast=True)


@triton.jit
def sizes_of(rows, segments, slots):
    """What tells a batch of other sizes, and memory that is no plan."""
    x = _mix(_mix(rows.to(tl.uint32) + 1) + segments.to(tl.uint32))
    return _mix(x + slots.to(tl.uint32)).to(tl.int32, bitcast=True)


@triton.jit
def is_lost(plan, seg_off, seg_slot, rank, rows, segments, slots):
    """Whether a plan says "bad" or is that of another batch."""
    mark = mark_of(seg_off, seg_slot, rank, rows, segments, slots, 128)
    return (tl.load(plan) < 0) | (tl.load(plan + 1) != mark) | (tl.load(plan + 2) != sizes_of(rows, segments, slots))


@triton.jit
def tile_of(plan, rank, rows, segments, slots, R: tl.constexpr, BM: tl.constexpr):
    """Tile t of program 0-axis t: its slot, the slot's rank, its first row, the rows that are left of its segment, what it is.

    Under a plan of other sizes tiles cover all rows, of a slot that nobody has.
    """
    t = tl.program_id(0)
    at, own = plan + HEAD + 4 * t, tl.load(plan + 2) == sizes_of(rows, segments, slots)
    slot, first, end, what = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    slot = tl.where(own, slot, -2)
    first = tl.minimum(tl.where(own, tl.maximum(first, 0), t * BM), rows)
    left = tl.where(own, tl.minimum(end, rows), rows) - first
    return slot, known_rank(slot, rank, slots, R), first, left, what


@triton.jit
def rows_of_z(z, z_stride, m, live, R: tl.constexpr, RP: tl.constexpr):
    """z[m, j] as [BM, RP], all stored ranks of it, as a mask by a slot's own would split 16 bytes into single numbers."""
    j = tl.arange(0, RP)
    at = z + m.to(tl.int64)[:, None] * z_stride + j[None, :]
    if R == RP:
        return tl.load(at, live, other=0.0)
    else:
        return tl.load(at, live & (j < R)[None, :], other=0.0)


@triton.jit
def place_of(what):
    """Whether a tile comes first in its segment (0), second (1), or later (2)."""
    return what // PLACE % (SEGMENT // PLACE)


@triton.jit
def is_few(what, left, FEW: tl.constexpr):
    """Whether a tile is all of a segment of few rows: the segment alone decides with how many rows its tiles compute."""
    return (place_of(what) == 0) & (left <= FEW)


@triton.jit
def is_stale(seg_off, seg_slot, segments, slot, first, left, what, BM: tl.constexpr):
    """Whether a tile is not of its segment, as the descriptor has it."""
    g = what // SEGMENT
    there = (g >= 0) & (g < segments)
    lo, hi = tl.load(seg_off + g, there, other=0), tl.load(seg_off + g + 1, there, other=-1)
    before = first - lo
    same = (hi == first + left) & (before >= 0) & (before % BM == 0) & (tl.load(seg_slot + g, there, other=-1) == slot)
    return same == 0


@triton.jit(do_not_specialize=["rows", "segments", "slots", "capacity"])
def plan_kernel(plan, seg_off, seg_slot, rank, rows, segments, slots, capacity, BLOCK: tl.constexpr, BM: tl.constexpr):
    """Program i counts the tiles before segment i and the segments of lower slots: a prefix sum by every program."""
    i = tl.program_id(0)
    tile, slot_ptr = plan + HEAD, plan + HEAD + 4 * capacity
    spans = slot_ptr + slots + 1
    mine = tl.load(seg_slot + i, i < segments, other=-1)
    before = tl.zeros([BLOCK], tl.int32)  # tiles of earlier segments
    place = tl.zeros([BLOCK], tl.int32)  # owned segments that come before mine among the spans
    lower = tl.zeros([BLOCK], tl.int32)  # owned segments of slots below i
    same = tl.zeros([BLOCK], tl.int32)  # owned segments of my slot
    bad = tl.zeros([BLOCK], tl.int32)
    for first in range(0, segments, BLOCK):
        g = first + tl.arange(0, BLOCK)
        there = g < segments
        lo, hi = tl.load(seg_off + g, there, other=0), tl.load(seg_off + g + 1, there, other=0)
        bad += (there & ((lo < 0) | (lo > hi) | (hi > rows) | ((g == 0) & (lo != 0)))).to(tl.int32)
        before += tl.where(g < i, (hi - lo + BM - 1) // BM, 0)
        slot = tl.load(seg_slot + g, there, other=-1)
        own = (slot >= 0) & (slot < slots)
        own = own & (tl.load(rank + slot, own, other=0) > 0) & (hi > lo)
        place += (own & ((slot < mine) | ((slot == mine) & (g < i)))).to(tl.int32)
        lower += (own & (slot < i)).to(tl.int32)
        same += (own & (slot == mine)).to(tl.int32)
    valid = (tl.sum(bad) == 0) & (tl.load(seg_off + segments) == rows)
    start = tl.sum(before)
    if i <= slots:
        tl.store(slot_ptr + i, tl.where(valid, tl.sum(lower), 0))
    if i == segments:
        tl.store(plan, tl.where(valid, start, -1))
        tl.store(plan + 1, mark_of(seg_off, seg_slot, rank, rows, segments, slots, BLOCK))
        tl.store(plan + 2, sizes_of(rows, segments, slots))
        tl.store(plan + 3, 0)
        # Without a descriptor that holds, tiles cover all rows, of a slot that nobody has.
        for t in range(tl.where(valid, start, 0), capacity):
            lost = (t * BM < rows) & (valid == 0)
            tl.store(tile + 4 * t, tl.where(lost, -2, -1))
            tl.store(tile + 4 * t + 1, tl.where(lost, t * BM, 0))
            tl.store(tile + 4 * t + 2, tl.where(lost, rows, 0))
            tl.store(tile + 4 * t + 3, 0)
    if valid & (i < segments):
        lo, hi = tl.load(seg_off + i), tl.load(seg_off + i + 1)
        owned = (mine >= 0) & (mine < slots)
        owned = owned & (tl.load(rank + mine, owned, other=0) > 0)
        if owned & (hi > lo):
            tl.store(spans + 2 * tl.sum(place), lo)
            tl.store(spans + 2 * tl.sum(place) + 1, hi)
        only = owned & (tl.sum(same) == 1)
        for k in range(0, (hi - lo + BM - 1) // BM):
            at = tile + 4 * (start + k)
            tl.store(at, mine)
            tl.store(at + 1, lo + k * BM)
            tl.store(at + 2, hi)
            tl.store(at + 3, tl.where(only, ONLY, 0) + tl.minimum(k, 2) * PLACE + i * SEGMENT)


def plan(seg_off: Tensor, seg_slot: Tensor, rank: Tensor, rows: int) -> Tensor:
    """seg_off int32 [G+1], seg_slot int32 [G], rank int32 [S], contiguous -> int32 [5 + 4T + S + 2G], laid out as above."""
    segments, slots = seg_slot.shape[0], rank.shape[0]
    out = torch.empty(size(rows, segments, slots), dtype=torch.int32, device=seg_off.device)
    plan_kernel[(max(segments, slots) + 1,)](
        out, seg_off, seg_slot, rank, rows, segments, slots, tiles(rows, segments), BLOCK=256, BM=TILE, num_warps=4
    )
    return out
