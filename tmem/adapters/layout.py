"""Where a bank's layers lie in a row."""

from __future__ import annotations

from collections.abc import Sequence

PAD = 64  # elements: every stride of a factor, every offset and P are multiples of it


def padded(n: int) -> int:
    return -(-n // PAD) * PAD


def lay_out(elements: Sequence[int], experts: Sequence[int]) -> tuple[list[int], int]:
    """Where each layer's part begins, and the elements of a row, P.

        elements  of each layer, of one expert where it has several; multiples of 64
        experts   how many each layer has, 1 for a linear one; layers with more than one have the same number E

    A row is E blocks of P/E elements. Block e begins with what is expert e's of all layers, whose offsets are those in a block.
    So a bank [slots, P] is also a matrix [slots · E, P/E], in whose row slot · E + e lies expert e of a slot. Linear layers
    fill up the blocks, the emptiest first; without experts they lie one after another.
    """
    count = max(experts)
    ends, offsets, own = [0] * count, [0] * len(elements), 0
    for i, size in enumerate(elements):
        if experts[i] > 1:
            offsets[i], own = own, own + size
    places = {}
    for i, size in enumerate(elements):
        if experts[i] == 1:
            block = ends.index(min(ends))
            places[i] = block, ends[block]
            ends[block] += size
    width = own + max(ends)
    for i, (block, at) in places.items():
        offsets[i] = block * width + own + at
    return offsets, count * width
