"""Each kernel alone, with the least bytes of its task: what `make gpu` tells of a GPU, and what a tournament is played over."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import bank_copy_, lora_backward_, lora_expand_, lora_gram_, lora_plan, lora_shrink_multi
from ..testing import segments
from . import attend, decode, step, token
from .attend import AttendCase
from .cases import RAGGED, StepCase
from .decode import RowsCase
from .measure import Provider, Settings, measured
from .token import TokenCase

RATIO_TO = "tmem"
KERNELS = ("shrink", "expand", "backward", "gram")
ROWS, RANKS, SEGMENTS = (256, 1024, 4096, 8192), (8, 16, 64), ("16", "128", "ragged")
WIDTH = 4096


def lengths(rows: int, kind: str) -> tuple[int, ...]:
    """Segments of `kind` rows each, or "ragged", that are `rows` rows together; the last is cut."""
    sizes = RAGGED if kind == "ragged" else (int(kind),)
    found: list[int] = []
    while (left := rows - sum(found)) > 0:
        found.append(min(sizes[len(found) % len(sizes)], left))
    return tuple(found)


@dataclass(frozen=True)
class KernelCase:
    """One kernel of a layer of width d over segments of these lengths, each of a slot of its own.

    kernel  one of KERNELS, or "shrink of 3"
    factor  dtype of the factor that shrink, expand and backward read; that of shrink is shared by all slots, as A is
    """

    kernel: str
    rank: int
    segments: str
    lengths: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    factor: torch.dtype = torch.bfloat16
    d: int = WIDTH

    @property
    def name(self) -> str:
        return f"{self.kernel} r={self.rank} {sum(self.lengths)} rows, {self.segments}"

    @property
    def shape(self) -> str:
        return f"{sum(self.lengths)} in {self.segments}"

    @property
    def factors(self) -> int:
        return 3 if self.kernel == "shrink of 3" else 1

    @property
    def flops(self) -> int:
        """A product of two per row, column and rank; backward has two products."""
        return 2 * sum(self.lengths) * self.d * self.rank * self.factors * (2 if self.kernel == "backward" else 1)

    @property
    def bytes(self) -> int:
        """Rows read once, by expand also written; z fp32, which backward reads and writes; factors read, gradients stored."""
        rows, each = sum(self.lengths), self.rank * self.d
        z, factor = 4 * rows * self.rank * self.factors, self.factor.itemsize * each * self.factors
        moved = rows * self.d * self.dtype.itemsize * (2 if self.kernel == "expand" else 1)
        slots = len(self.lengths)
        return moved + {
            "expand": z + slots * factor, "gram": z + 4 * slots * each, "backward": 2 * z + slots * (factor + 4 * each),
        }.get(self.kernel, z + factor)  # fmt: skip


@dataclass(frozen=True)
class CopyCase:
    """`pairs` rows of a bank, each copied to another row: `width` fp32 numbers."""

    pairs: int
    width: int
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        return f"copy of {self.pairs} rows of {4 * self.width / 2**20:g} MiB"

    @property
    def flops(self) -> int:
        return 0

    @property
    def bytes(self) -> int:
        return 2 * 4 * self.pairs * self.width


Case = KernelCase | CopyCase | StepCase | RowsCase | AttendCase | TokenCase


def cases(quick: bool) -> list[Case]:
    """All kernels that a GPU has; quick: small shapes of each."""
    if quick:
        small = [KernelCase(k, 4, "ragged", (5, 1, 17), d=96) for k in (*KERNELS, "shrink of 3")]
        of_a_token = [*attend.cases(True)[1:], *token.cases(True)]
        return [*small, StepCase(2, 4, (64,)), RowsCase(3, 64, 4), CopyCase(2, 100), *of_a_token]
    layer = [
        KernelCase(kernel, rank, kind, lengths(rows, kind))
        for kernel in KERNELS
        for rank in RANKS
        for rows in ROWS
        for kind in SEGMENTS
    ]
    copies = [CopyCase(pairs, 1 << 20) for pairs in (1, 64)]
    of_a_token = [*attend.cases(False, "cuda"), *token.cases(False, "cuda")]
    return [*layer, *step.cases(False, "cuda"), *(RowsCase(n) for n in (1, 256, 512)), *copies, *of_a_token]


def providers(case: Case, device: str) -> dict[str, Provider]:
    if isinstance(case, StepCase):
        return {RATIO_TO: step.bank_provider(case, device, step.oracle(case, device))}
    if isinstance(case, RowsCase):
        return {RATIO_TO: decode.providers(case, device)["tmem lora_decode_"]}
    if isinstance(case, AttendCase | TokenCase):
        ways = attend if isinstance(case, AttendCase) else token
        return {RATIO_TO: ways.providers(case, device)["tmem"]}
    return {RATIO_TO: _copy(case, device) if isinstance(case, CopyCase) else _layer(case, device)}


def _copy(case: CopyCase, device: str) -> Provider:
    bank = torch.randn(2 * case.pairs, case.width, generator=torch.Generator(device).manual_seed(0), device=device)
    source = torch.arange(case.pairs, dtype=torch.int32, device=device)

    def call():
        bank_copy_([bank], source, source + case.pairs)

    def results():
        bank[case.pairs :] = float("nan")
        call()
        return {"rows": bank[case.pairs :]}

    return Provider(call, results, {"rows": bank[: case.pairs].double()})


class _Layer:
    """What a case computes with: rows v [M, D], factors f of D columns [S or 1, R, D], z [M, R]."""

    def __init__(self, case: KernelCase, device: str):
        generator = torch.Generator(device).manual_seed(0)
        rows, slots = sum(case.lengths), len(case.lengths)

        def random(*shape, size=1.0, dtype=torch.float32) -> Tensor:
            return (torch.randn(*shape, generator=generator, device=device) * size).to(dtype)

        own = 1 if case.kernel.startswith("shrink") else slots
        self.v, self.z = random(rows, case.d, dtype=case.dtype), random(rows, case.rank)
        self.f = [random(own, case.rank, case.d, size=case.d**-0.5, dtype=case.factor) for _ in range(case.factors)]
        off, slot = segments(case.lengths, range(slots), device)
        self.rank = torch.full((slots,), case.rank, dtype=torch.int32, device=device)
        self.seg = off, slot, self.rank
        self.scale = torch.full((slots,), 2.0, device=device)
        self.plan = lora_plan(*self.seg, rows) if device == "cuda" else None
        ends = off.tolist()
        self.parts = [(slice(*ends[i : i + 2]), i % own) for i in range(slots)]

    def shrunk(self, f: Tensor) -> Tensor:
        return torch.cat([2 * self.v[rows].double() @ f[slot].double().T for rows, slot in self.parts])

    def summed(self) -> Tensor:
        return torch.stack([self.z[rows].double().T @ self.v[rows].double() for rows, _ in self.parts])


def _layer(case: KernelCase, device: str) -> Provider:
    data = _Layer(case, device)
    v, z, f, seg, plan = data.v, data.z, data.f, data.seg, data.plan
    if case.factors > 1 or case.kernel == "shrink":

        def call():
            return lora_shrink_multi(v, f, *seg, data.scale, plan)

        return Provider(call, lambda: {"z": call()}, {"z": torch.stack([data.shrunk(one) for one in f])})
    if case.kernel == "expand":
        o = torch.zeros_like(v)

        def expand():
            lora_expand_(o, z, f[0], *seg, plan)

        def from_zero():
            o.zero_()
            expand()
            return {"o": o.clone()}

        added = torch.cat([z[rows].double() @ f[0][slot].double() for rows, slot in data.parts])
        return Provider(expand, from_zero, {"o": added})
    g = torch.full((len(case.lengths), case.rank, case.d), float("nan"), device=device)
    if case.kernel == "gram":

        def gram():
            lora_gram_(g, z, v, *seg, plan, fresh=True)

        return Provider(gram, lambda: (gram(), {"g": g})[1], {"g": data.summed()})

    def backward():
        return lora_backward_(g, z, v, f[0], *seg, data.scale, plan, fresh=True)

    return Provider(backward, lambda: {"dz": backward(), "g": g}, {"dz": data.shrunk(f[0]), "g": data.summed()})


def measure_alone(device: str, settings: Settings, watch, quick: bool = False) -> list[dict]:
    """The rows of `measured` of every kernel alone, each with its "kernel". Raises WrongNumbers."""
    every, found = cases(quick), []
    for done, case in enumerate(every):
        watch(f"kernels {case.name}", done, len(every))
        rows = measured("kernels", case, providers(case, device), RATIO_TO, settings, device)
        found += [{**row, "kernel": _OTHERS.get(type(case)) or case.kernel} for row in rows]
    return found


_OTHERS = {StepCase: "step", RowsCase: "decode", CopyCase: "copy", AttendCase: "attend"}
