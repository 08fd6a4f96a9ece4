"""Tile sizes, warps and pipeline stages of every kernel: the only place that tunes. Chosen by what keeps its value over a
run (architecture, dtypes, stored rank, slots of the bank), never by a batch: no recompilation, and no bit of a slot depends
on its neighbours."""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from . import winners

TUNED = Path(__file__).with_name("tuned")  # a file an architecture, left by `make gpu`, that goes before the tables below
FEW = 4  # slots whose programs, each of a slot and 128 columns, would leave most of a GPU without work
RANKS = (16, 32, 64, 128)  # stored ranks are padded to one of these: a matrix unit's smallest operand has 16 columns
HEADS = (64, 128, 256)  # and heads of attend


@dataclass(frozen=True)
class Config:
    """BD columns a step or a program, warps of a program, stages of the loop over global memory; rows of a step of gram, and
    as many of backward's larger tile, so that both sum in one order, or 0: backward is shrink and gram; `few`: with how many
    rows a segment of no more computes, as the smallest product has. Of attend: columns of the cache a step, and, as `rows`,
    of a part."""

    bd: int
    warps: int = 4
    stages: int = 4
    rows: int = 64
    few: int = 16


# kernel -> (bits of the activation, bits of the factor) -> one configuration for each of RANKS, or of HEADS. As wide as the
# registers of sm_90 allow without spilling, so that many bytes are in flight.
TABLE = {
    "shrink": {
        (16, 16): (Config(128), Config(128), Config(64), Config(64, stages=3)),
        (16, 32): (Config(128), Config(128, stages=3), Config(64), Config(64, stages=3)),
        (32, 16): (Config(64), Config(64), Config(32), Config(64, stages=3)),
        (32, 32): (Config(64), Config(32), Config(32), Config(32)),
    },
    "shrink of several factors": {  # which share a launch up to rank 64
        (16, 16): (Config(128), Config(128), Config(64)),
        (16, 32): (Config(64), Config(32), Config(32, 8)),
        (32, 16): (Config(64), Config(64), Config(32)),
        (32, 32): (Config(32), Config(32, 8), Config(32, 8)),
    },
    "expand": {
        (16, 16): (Config(128, stages=1), Config(128, stages=1), Config(128, stages=1), Config(64, stages=1)),
        (16, 32): (Config(128, stages=1), Config(128, stages=1), Config(128, stages=1), Config(64, stages=1)),
        (32, 16): (Config(64, stages=1), Config(64, stages=1), Config(64, stages=1), Config(32, stages=1)),
        (32, 32): (Config(64, stages=1), Config(64, stages=1), Config(32, stages=1), Config(32, 8, stages=1)),
    },
    "backward": {
        (16, 16): (Config(128, stages=3, rows=128), Config(128, stages=3), Config(64), Config(64, 8, 3)),
        (16, 32): (Config(64, rows=128), Config(64), Config(64, 8, 3), Config(32, 8, 3)),
    },
    "gram": {
        (16, 32): (Config(128, 8, 3, 128), Config(128, stages=2), Config(128, stages=2), Config(64, 8, 2)),
        (32, 32): (Config(64, stages=3), Config(32, stages=3), Config(32, 8, 2), Config(16, 8, 2)),
    },
    "gram of few slots": {
        (16, 32): (Config(32, rows=128), Config(32), Config(32), Config(32, 8, 3)),
        (32, 32): (Config(32, 8), Config(16), Config(16), Config(16, 8, 3)),
    },
    "attend": {
        (16, 16): (Config(64, stages=3, rows=256), Config(64, stages=3, rows=256), Config(32, stages=2, rows=256)),
        (32, 32): (Config(32, stages=2, rows=256), Config(32, 8, 2, rows=256)),  # fp32 heads of 256 would spill on sm_80
    },
}

# Of kernels without a matrix product, of 4 warps each.
FACTOR = 8192  # elements of a factor that a program of decode holds: 64 of 32 bits a thread
PROGRAMS = 256  # that share out what is computed of single rows, if there are as many tiles
PLANES = 16  # sums of slices that a program of decode adds at once
LINE = 1024  # columns whose squares a program takes at once
STRETCH = 8 * LINE  # columns whose squares one program sums
PIECE = 2048  # columns that one program moves
BYTES = 8192  # that one program copies

# Where an architecture takes another, as it would spill or has less shared memory: (kernel, activation, factor, rank) -> it.
_MMA_SYNC = {  # operands of a product take registers, which wgmma and tcgen05 leave in shared memory
    ("shrink of several factors", 16, 16, 32): Config(64),
    ("shrink of several factors", 16, 16, 64): Config(32),
    ("shrink of several factors", 32, 16, 64): Config(16),
    ("shrink of several factors", 32, 32, 32): Config(16, 8),
    ("shrink of several factors", 32, 32, 64): Config(16, 8, stages=1),
    ("expand", 16, 16, 64): Config(32, stages=1),
    ("expand", 16, 32, 64): Config(32, stages=1),
    ("gram", 16, 32, 64): Config(64, 8, 3),
    ("gram of few slots", 16, 32, 64): Config(16),
    ("shrink", 32, 32, 64): Config(32, 8),
    ("shrink", 16, 32, 128): Config(64, 8, stages=3),
    ("shrink", 32, 16, 128): Config(32, 8, stages=3),
    ("shrink", 32, 32, 128): Config(32, 8, stages=3),
    ("expand", 16, 16, 128): Config(16, 8, stages=1),
    ("expand", 16, 32, 128): Config(16, 8, stages=1),
    ("expand", 32, 32, 128): Config(16, 8, stages=1),
    ("gram", 32, 32, 64): Config(16, 8, stages=2),
    ("gram", 32, 32, 128): Config(16, 8, stages=2),
}
OVERRIDES = {
    "sm_80": {
        **_MMA_SYNC,
        ("expand", 32, 32, 128): Config(16, stages=1),
        ("attend", 16, 16, 64): Config(64, 8, 3, rows=256),
        ("attend", 32, 32, 64): Config(32, 8, 2, rows=256),
    },
    "sm_89": {
        **_MMA_SYNC,
        ("gram", 16, 32, 64): Config(32, 8, 3),
        ("gram", 32, 32, 32): Config(32, stages=2),
        ("gram of few slots", 32, 32, 16): Config(16),
        ("attend", 16, 16, 128): Config(64, 8, 2, rows=256),
    },
    "sm_90": {("gram", 32, 32, 32): Config(32, 8, 3)},
    "sm_100": {
        ("backward", 16, 32, 128): Config(16, 8, 3),
        ("gram of few slots", 32, 32, 16): Config(16, 8),
        ("gram", 32, 32, 32): Config(32, 8, 3),
        ("gram of few slots", 16, 32, 16): Config(64, rows=128),
        ("gram of few slots", 32, 32, 64): Config(16, 8, 2),
    },
    "sm_120": {
        **_MMA_SYNC,
        ("shrink of several factors", 32, 32, 64): Config(16, 8),
        ("gram", 32, 32, 128): Config(32, 8, 1),
    },
    "gfx9": {
        ("backward", 16, 32, 64): Config(32, 8, 3),
        ("backward", 16, 32, 128): Config(16, 8, stages=2),
        ("gram", 32, 32, 64): Config(16, 8, stages=2),
        ("expand", 32, 32, 128): Config(16, 8, stages=1),
        ("gram of few slots", 16, 32, 128): Config(64, 8, stages=2),
        ("gram of few slots", 32, 32, 128): Config(16, 8, stages=2),
    },
    "gfx11": {
        ("backward", 16, 16, 64): Config(16, 16, 2, few=64),
        ("backward", 16, 32, 64): Config(16, 16, 2, few=64),
        ("gram", 16, 32, 16): Config(16, 4, 2),
        ("expand", 16, 16, 128): Config(16, 16, stages=1),
        ("expand", 16, 32, 128): Config(16, 16, stages=1),
        ("expand", 32, 16, 128): Config(16, 16, stages=1),
        ("expand", 32, 32, 128): Config(16, 16, stages=1),
        ("shrink of several factors", 32, 32, 64): Config(16, 16, stages=2),
        ("gram", 16, 32, 64): Config(32, 16, stages=2),
        ("gram of few slots", 16, 32, 64): Config(32, 16, stages=2),
    },
}
# From which compute capability on a row holds. sm_86 and what is not known have 99 KiB, as sm_89.
_SINCE = ((120, "sm_120"), (100, "sm_100"), (90, "sm_90"), (81, "sm_89"), (80, "sm_80"), (0, "sm_89"))


def architecture(target: GPUTarget) -> str:
    """The name in OVERRIDES whose configurations a GPU takes: its own, or the nearest one that asks for no more than it has."""
    if target.backend == "hip":
        return "gfx9" if target.warp_size == 64 else "gfx11"
    return next(name for since, name in _SINCE if target.arch >= since)


@functools.cache
def _architecture(active, device: int) -> str:
    return architecture(active.get_current_target())


def lanes() -> int:
    """Threads of a warp of the current GPU."""
    return 32 if knobs.runtime.interpret else _lanes(driver.active, driver.active.get_current_device())


@functools.cache
def _lanes(active, device: int) -> int:
    return active.get_current_target().warp_size


def padded_rank(ranks: int) -> int:
    """The smallest of RANKS that holds `ranks`. Raises ValueError above the largest."""
    for size in RANKS:
        if ranks <= size:
            return size
    raise ValueError(f"the Triton kernels hold stored ranks up to {RANKS[-1]}, got {ranks}; use a smaller rank")


def padded_head(size: int) -> int:
    """The smallest of HEADS that holds a head of this width. Raises ValueError above the largest."""
    for padded in HEADS:
        if size <= padded:
            return padded
    raise ValueError(f"the Triton kernels hold heads up to {HEADS[-1]}, got {size}")


def sizes(kernel: str) -> tuple[int, ...]:
    """Of what a kernel has one configuration each."""
    return HEADS if kernel == "attend" else RANKS


@functools.cache
def chosen(architecture: str, kernel: str, activation: int, factor: int, rank: int) -> Config:
    """The configuration of `kernel` for elements of these many bits, and one of its sizes. Raises ValueError if the file of the
    architecture is damaged."""
    place = kernel, activation, factor, rank
    own = _tried.get(place) or tuned(architecture).get(place)
    return own or _built_in(architecture, *place)


_tried: dict[tuple, Config] = {}


@contextlib.contextmanager
def instead(rows: dict[tuple, Config]) -> Iterator[None]:
    """Within the block these configurations hold, by (kernel, activation, factor, rank), so that a tournament can try them.
    For one thread at a time."""
    before = dict(_tried)
    _tried.update(rows)
    chosen.cache_clear()
    try:
        yield
    finally:
        _tried.clear()
        _tried.update(before)
        chosen.cache_clear()


@functools.cache
def tuned(architecture: str) -> dict[tuple, Config]:
    """What the file of an architecture says, by (kernel, activation, factor, rank)."""
    return winners.read(TUNED / f"{architecture}.json", _all_built_in(architecture))


def accepted(architecture: str, rows: list[dict]) -> dict[tuple, Config]:
    """What a file with these records would say. Raises ValueError for one that would be damaged."""
    return winners.accepted(rows, _all_built_in(architecture))


def forget() -> None:
    """Read the file of an architecture anew when it is next asked for."""
    tuned.cache_clear()
    chosen.cache_clear()


def places() -> list[tuple[str, int, int, int]]:
    """(kernel, activation, factor, rank) of every configuration."""
    rows = ((kernel, bits, len(row)) for kernel, table in TABLE.items() for bits, row in table.items())
    return [(kernel, *bits, size) for kernel, bits, count in rows for size in sizes(kernel)[:count]]


def _all_built_in(architecture: str) -> dict[tuple, Config]:
    return {place: _built_in(architecture, *place) for place in places()}


def _built_in(architecture: str, kernel: str, activation: int, factor: int, rank: int) -> Config:
    own = OVERRIDES[architecture].get((kernel, activation, factor, rank))
    if own:
        return own
    c = TABLE[kernel][activation, factor][sizes(kernel).index(rank)]
    if architecture.startswith("gfx"):
        c = replace(c, stages=min(c.stages, 2))  # of 64 KiB of shared memory
    if architecture == "gfx11":
        # Of 256 registers, sums among them.
        rows = c.rows if kernel == "attend" else 64
        c = replace(c, bd=max(16, c.bd // 4), warps=4 if rank == 16 else 8, rows=rows, few=64)
    return c


def _bits(dtype: torch.dtype, other: torch.dtype) -> int:
    """Of an element beside one of another dtype: fp16 is split there, as fp32 is."""
    return 16 if dtype == torch.bfloat16 or dtype == other == torch.float16 else 32


def config(kernel: str, activation: torch.dtype, factor: torch.dtype, ranks: int) -> Config:
    """The configuration of `kernel` on the current GPU for these element types and this many stored ranks; of attend, for heads
    of this width."""
    size = padded_head(ranks) if kernel == "attend" else padded_rank(ranks)
    where = "sm_90" if knobs.runtime.interpret else _architecture(driver.active, driver.active.get_current_device())
    return chosen(where, kernel, _bits(activation, factor), _bits(factor, activation), size)
