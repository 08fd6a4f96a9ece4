"""plan: what the kernels need to know about a batch of segments, built on the device in one launch, shared by all layers.

Tiles of TILE rows start at a segment's first row and never straddle a segment, so what a tile computes depends on its own
segment alone. Slots own their segments: a slot's segments in the order of the batch, for sums that one program owns.

Memory, int32, one tensor: count [1] (tiles in use) | mark [1] | tile_seg [T] | tile_row [T] | slot_ptr [S+1] | seg_order [G],
where T = ceil(M/TILE) + G bounds the tiles of any batch with M rows and G segments: grids are fixed, programs beyond `count`
have nothing to do. Segments without rows, or whose slot is -1, out of range or freed, are in no slot's list.

The values live on the device and reading them would wait for it, so no error is raised for them: offsets that do not run
from 0 to M without decreasing give count = -1, upon which every kernel writes NaN. So does a plan of another batch: every
program marks the descriptor it was given, as `mark_of` does, and compares that with the mark in the plan.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # rows of the smallest product that Hopper's matrix units take from shared memory


def tiles(rows: int, segments: int) -> int:
    """T: how many tiles a batch of `rows` rows in `segments` segments has at most."""
    return -(-rows // TILE) + segments


def size(rows: int, segments: int, slots: int) -> int:
    """Elements of the plan of such a batch."""
    return 3 + 2 * tiles(rows, segments) + slots + segments


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
def is_lost(plan, seg_off, seg_slot, rank, rows, segments, slots):
    """Whether a plan says "bad" or is that of another batch."""
    mark = mark_of(seg_off, seg_slot, rank, rows, segments, slots, 128)
    return (tl.load(plan) < 0) | (tl.load(plan + 1) != mark)


@triton.jit
def tile_of(plan, seg_off, seg_slot, rank, rows, slots, capacity, R: tl.constexpr, BM: tl.constexpr):
    """Of the tile of program 0-axis t: its rows m [BM] and which of them are live, its slot, the slot's rank.

    Beyond the last tile no row is live. Under a plan that is lost, tiles cover all rows, with a slot that is not known.
    """
    t, count = tl.program_id(0), tl.load(plan)
    bad = is_lost(plan, seg_off, seg_slot, rank, rows, capacity - (rows + BM - 1) // BM, slots)
    here = (t < count) & (bad == 0)
    segment = tl.load(plan + 2 + t, here, other=0)
    first = tl.load(plan + 2 + capacity + t, here, other=0)
    end = tl.load(seg_off + segment + 1, here, other=0)
    slot = tl.load(seg_slot + segment, here, other=-1)
    m = tl.where(bad, t * BM, first) + tl.arange(0, BM)
    live = m < tl.where(bad, rows, end)
    slot = tl.where(bad, -2, slot)
    return m, live, slot, known_rank(slot, rank, slots, R)


@triton.jit(do_not_specialize=["rows", "segments", "slots", "capacity"])
def plan_kernel(plan, seg_off, seg_slot, rank, rows, segments, slots, capacity, BLOCK: tl.constexpr, BM: tl.constexpr):
    """Program i counts the tiles before segment i and the segments of lower slots: a prefix sum by every program."""
    i = tl.program_id(0)
    tile_seg, tile_row = plan + 2, plan + 2 + capacity
    slot_ptr, seg_order = plan + 2 + 2 * capacity, plan + 3 + 2 * capacity + slots
    mine = tl.load(seg_slot + i, i < segments, other=-1)
    before = tl.zeros([BLOCK], tl.int32)  # tiles of earlier segments
    place = tl.zeros([BLOCK], tl.int32)  # owned segments that come before mine in seg_order
    lower = tl.zeros([BLOCK], tl.int32)  # owned segments of slots below i
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
    valid = (tl.sum(bad) == 0) & (tl.load(seg_off + segments) == rows)
    start = tl.sum(before)
    if i <= slots:
        tl.store(slot_ptr + i, tl.where(valid, tl.sum(lower), 0))
    if i == segments:
        tl.store(plan, tl.where(valid, start, -1))
        tl.store(plan + 1, mark_of(seg_off, seg_slot, rank, rows, segments, slots, BLOCK))
    if valid & (i < segments):
        lo, hi = tl.load(seg_off + i), tl.load(seg_off + i + 1)
        owned = (mine >= 0) & (mine < slots)
        owned = owned & (tl.load(rank + mine, owned, other=0) > 0)
        if owned & (hi > lo):
            tl.store(seg_order + tl.sum(place), i)
        for k in range(0, (hi - lo + BM - 1) // BM):
            tl.store(tile_seg + start + k, i)
            tl.store(tile_row + start + k, lo + k * BM)


def plan(seg_off: Tensor, seg_slot: Tensor, rank: Tensor, rows: int) -> Tensor:
    """seg_off int32 [G+1], seg_slot int32 [G], rank int32 [S], contiguous -> int32 [3 + 2T + S + G], laid out as above."""
    segments, slots = seg_slot.shape[0], rank.shape[0]
    out = torch.empty(size(rows, segments, slots), dtype=torch.int32, device=seg_off.device)
    plan_kernel[(max(segments, slots) + 1,)](
        out, seg_off, seg_slot, rank, rows, segments, slots, tiles(rows, segments), BLOCK=256, BM=TILE, num_warps=4
    )
    return out
