"""Tile sizes, warps and pipeline stages of every kernel: the only place that tunes. Chosen by what keeps its value over a
run (dtypes, stored rank, slots of the bank), never by a batch: no recompilation, and no bit of a slot depends on its
neighbours."""

from dataclasses import dataclass

import torch

FEW = 4  # slots whose programs, each of a slot and 128 columns, would leave most of a GPU without work
RANKS = (16, 32, 64)  # stored ranks are padded to one of these: a matrix unit's smallest operand has 16 columns


@dataclass(frozen=True)
class Config:
    """BD columns a step or a program, warps of a program, stages of the loop over global memory."""

    bd: int
    warps: int = 4
    stages: int = 4


# kernel -> (bits of the activation, bits of the factor) -> one configuration for each of RANKS. As wide as the registers
# allow without spilling, so that many bytes are in flight.
TABLE = {
    "shrink": {
        (16, 16): (Config(128), Config(128), Config(64)),
        (16, 32): (Config(128), Config(128, stages=3), Config(64)),
        (32, 16): (Config(64), Config(64), Config(32)),
        (32, 32): (Config(64), Config(32), Config(32)),
    },
    "shrink of several factors": {
        (16, 16): (Config(128), Config(128), Config(64)),
        (16, 32): (Config(64), Config(32), Config(32, 8)),
        (32, 16): (Config(64), Config(64), Config(32)),
        (32, 32): (Config(32), Config(32, 8), Config(32, 8)),
    },
    "expand": {
        (16, 16): (Config(128, stages=1), Config(128, stages=1), Config(128, stages=1)),
        (16, 32): (Config(128, stages=1), Config(128, stages=1), Config(128, stages=1)),
        (32, 16): (Config(64, stages=1), Config(64, stages=1), Config(64, stages=1)),
        (32, 32): (Config(64, stages=1), Config(64, stages=1), Config(32, stages=1)),
    },
    "gram": {
        (16, 32): (Config(128, stages=3), Config(128, stages=2), Config(128, stages=2)),
        (32, 32): (Config(64), Config(64, stages=3), Config(64, stages=2)),
    },
    "gram of few slots": {
        (16, 32): (Config(32), Config(32), Config(32)),
        (32, 32): (Config(32), Config(32), Config(32)),
    },
}

# Of kernels without a matrix product, of 4 warps each.
FACTOR = 8192  # elements of a factor that a program of decode holds: 64 of 32 bits a thread
PLANES = 16  # sums of slices that a program of decode adds at once
LINE = 1024  # columns whose squares a program takes at once
STRETCH = 8 * LINE  # columns whose squares one program sums
PIECE = 2048  # columns that one program moves
BYTES = 8192  # that one program copies


def padded_rank(ranks: int) -> int:
    """The smallest of RANKS that holds `ranks`. Raises ValueError above the largest."""
    for size in RANKS:
        if ranks <= size:
            return size
    raise ValueError(f"the Triton kernels hold stored ranks up to {RANKS[-1]}, got {ranks}; use a smaller rank")


def config(kernel: str, activation: torch.dtype, factor: torch.dtype, ranks: int) -> Config:
    """The configuration of `kernel` for these element types and this many stored ranks."""
    return TABLE[kernel][8 * activation.itemsize, 8 * factor.itemsize][RANKS.index(padded_rank(ranks))]
