"""Bench `gemm`: a frozen layer's product with expand inside one kernel, against the vendor's GEMM and an expand after it.

Played on a GPU from Hopper on, as one entrant of `make gpu`: a tile that wins here by more than noise is worth a place in
the layer. `base` is the vendor's GEMM alone, and `one kernel, no adapters` says how near to it this GEMM comes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import lora_expand_, lora_plan
from ..testing import segments
from .measure import Provider, Settings, check, measured

RATIO_TO = "base"
WIDTH = 4096
SINCE = (9, 0)  # the compute capability that has TMA


@dataclass(frozen=True)
class GemmCase:
    """y = x Wᵀ + expand(z, B), or (backward) dx = dy W + expand(dz, A) with one A for all; segments of a slot each."""

    lengths: tuple[int, ...]
    rank: int
    backward: bool = False
    d: int = WIDTH
    dtype: torch.dtype = torch.bfloat16

    @property
    def name(self) -> str:
        what = "dX" if self.backward else "y"
        return f"{what} r={self.rank} {len(self.lengths)} segments of {max(self.lengths)}"

    @property
    def flops(self) -> int:
        return 2 * sum(self.lengths) * self.d * (self.d + self.rank)

    @property
    def bytes(self) -> int:
        """Rows read and written, W, z in fp32, factors in 16 bits."""
        factors = 1 if self.backward else len(self.lengths)
        rows = sum(self.lengths)
        return 2 * (2 * rows * self.d + self.d**2 + factors * self.rank * self.d) + 4 * rows * self.rank


def cases(quick: bool) -> list[GemmCase]:
    if quick:
        return [GemmCase((5, 1, 33), 4, backward, d=64) for backward in (False, True)]
    return [
        GemmCase((rows,) * count, rank, backward)
        for rank in (16, 64)
        for count, rows in ((64, 128), (256, 16), (8, 128))
        for backward in (False, True)
    ]


def providers(case: GemmCase, device: str, tiles=None) -> dict[str, Provider]:
    """tiles: other ones than a GPU's."""
    from ..triton_kernels import gemm

    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int, size=1.0, dtype=case.dtype) -> Tensor:
        return (torch.randn(*shape, generator=generator, device=device) * size).to(dtype)

    rows, slots = sum(case.lengths), len(case.lengths)
    x, w = random(rows, case.d), random(case.d, case.d, size=case.d**-0.5)
    z, f = random(rows, case.rank, dtype=torch.float32), random(1 if case.backward else slots, case.rank, case.d, size=0.1)
    off, slot = segments(case.lengths, range(slots), device)
    rank = torch.full((slots,), case.rank, dtype=torch.int32, device=device)
    seg, nobody = (off, slot, rank), (off[[0, -1]].contiguous(), slot.new_full((1,), -1), rank)
    plan = lora_plan(*seg, rows) if device == "cuda" else None

    def base() -> Tensor:
        return x @ w if case.backward else x @ w.T

    def two() -> Tensor:
        y = base()
        lora_expand_(y, z, f, *seg, plan)
        return y

    def one(tile, seg) -> Tensor:
        return gemm.gemm(x, w, z, f, *seg, tile, turned=case.backward)

    plain = x.double() @ (w.double() if case.backward else w.double().T)
    ends = off.tolist()
    parts = [z[s:e].double() @ f[min(i, len(f) - 1)].double() for i, (s, e) in enumerate(zip(ends, ends[1:]))]
    full = plain + torch.cat(parts)
    found = {"base": _provider(base, plain), "two kernels": _provider(two, full)}
    for tile in tiles or gemm.tiles(case.rank):
        name = f"{tile.bm}x{tile.bn}x{tile.bk} warps={tile.warps} stages={tile.stages} parts={tile.parts} group={tile.group}"
        found[f"one kernel, {name}"] = _provider(lambda tile=tile: one(tile, seg), full)
        found[f"one kernel, no adapters, {name}"] = _provider(lambda tile=tile: one(tile, nobody), plain)
    return found


def _provider(call, oracle: Tensor) -> Provider:
    return Provider(call, lambda: {"y": call()}, {"y": oracle})


def measure_gemm(device: str, settings: Settings, watch, quick: bool = False, tiles=None) -> dict:
    """{"rows": as of `measured`, "dropped": case and tile -> why it was not timed}."""
    every, found, dropped = cases(quick), [], {}
    for done, case in enumerate(every):
        watch(f"gemm {case.name}", done, len(every))
        some = providers(case, device, tiles)
        for name in list(some):
            try:
                check("gemm", case, name, some[name])
            except Exception as error:  # compilers and drivers have many; the next tile may be better
                if name == RATIO_TO:
                    raise
                dropped[f"{case.name}, {name}"] = f"{type(error).__name__}: {error}"[:300]
                del some[name]
        found += measured("gemm", case, some, RATIO_TO, settings, device)
    return {"rows": found, "dropped": dropped}
