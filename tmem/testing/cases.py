"""Random ragged inputs, what may be done to them, and one way to compare with a tolerance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}
"""Relative RMS an output of this dtype may be off the fp64 oracle, given the same inputs: some tens of roundings in
fp64 and fp32; in bf16 two of them, each about 2^-9.3 RMS (fp16: 2^-12.3), whatever was summed before them in fp32."""


def rel_rms(out: Tensor, ref: Tensor) -> float:
    """‖out - ref‖ / ‖ref‖ in fp64; 0 for two empty or two zero tensors, NaN as soon as either has a NaN."""
    out, ref = out.double(), ref.double()
    off, size = (out - ref).norm().item(), ref.norm().item()
    return off if off == 0 or off != off else off / size if size else float("inf")


def assert_close(name: str, out: Tensor, ref: Tensor, tol: float) -> None:
    """AssertionError naming `name` unless shapes agree and rel_rms(out, ref) <= tol. A NaN anywhere fails."""
    assert out.shape == ref.shape, f"{name}: shape {list(out.shape)}, expected {list(ref.shape)}"
    off = rel_rms(out, ref)
    assert off <= tol, f"{name}: relative RMS {off:.3g}, allowed {tol:.3g}"


@dataclass
class Case:
    """Arguments of lora_linear (see tmem.ops), from which those of the other ops are taken.

    x [M,K], w [N,K], bias [N] or None: one dtype, fp32, bf16, fp16 or fp64. a [S,R,K] or [1,R,K], bt [S,R,N]: fp32, bf16 or
    fp16, any strides. seg_off int32 [G+1], seg_slot int32 [G], rank int32 [S], scale fp32 [S]. What lies beyond a slot's
    rank is not used.
    """

    x: Tensor
    w: Tensor
    bias: Tensor | None
    a: Tensor
    bt: Tensor
    seg_off: Tensor
    seg_slot: Tensor
    rank: Tensor
    scale: Tensor

    @property
    def decode(self) -> tuple[Tensor, ...]:
        """What lora_decode_ takes after y and x, where every segment is one row."""
        return self.a, self.bt, self.seg_slot, self.rank, self.scale

    @property
    def seg(self) -> tuple[Tensor, Tensor, Tensor]:
        """What every op takes of the segments: seg_off, seg_slot and rank."""
        return self.seg_off, self.seg_slot, self.rank

    @property
    def parts(self) -> list[tuple[slice, int]]:
        """Rows and slot of every segment."""
        offsets = self.seg_off.tolist()
        return [(slice(*pair), slot) for *pair, slot in zip(offsets, offsets[1:], self.seg_slot.tolist())]

    @property
    def linear(self) -> tuple:
        """What lora_linear takes."""
        return self.x, self.w, self.bias, self.a, self.bt, *self.seg, self.scale


def segments(lengths: Sequence[int], slots: Sequence[int], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """seg_off int32 [G+1] and seg_slot int32 [G] of segments with these lengths and slots."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return offsets.to(device, torch.int32), torch.tensor(slots, dtype=torch.int32, device=device)


def make_case(
    lengths: Sequence[int],
    slots: Sequence[int],
    ranks: Sequence[int],
    *,
    k: int = 40,
    n: int = 72,
    stored: int | None = None,
    dtype: torch.dtype = torch.float32,
    factor_dtype: torch.dtype | None = None,
    shared_a: bool = False,
    bias: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Case:
    """Random inputs: segment i has lengths[i] rows of slot slots[i] (-1 = none), slot s has rank ranks[s] of `stored`.

    factor_dtype is fp32 unless told, fp64 for fp64. a and bt are views of a padded bank row, as the product lays them
    out; what lies beyond a slot's rank is NaN, so that using it shows. The adapter's part is as large as the base's.
    """
    generator = torch.Generator().manual_seed(seed)
    factor_dtype = factor_dtype or (torch.float64 if dtype == torch.float64 else torch.float32)
    stored, count, rows = stored or max(ranks), len(ranks), sum(lengths)

    def random(*shape, like=dtype):
        return torch.randn(*shape, generator=generator).to(device, like)

    def factor(copies, width):
        padded = -(-width // 64) * 64
        bank = random(copies, stored * padded + 64, like=factor_dtype) * width**-0.5
        view = bank[:, : stored * padded].view(copies, stored, padded)[:, :, :width]
        if copies == count:
            for slot, r in enumerate(ranks):
                view[slot, r:] = float("nan")
        return view

    return Case(
        random(rows, k), random(n, k) * k**-0.5, random(n) if bias else None,
        factor(1 if shared_a else count, k), factor(count, n) * (n / max(stored, 1)) ** 0.5,
        *segments(lengths, slots, device),
        torch.tensor(ranks, dtype=torch.int32, device=device),
        (0.5 + torch.rand(count, generator=generator)).to(device),
    )  # fmt: skip


def alone(case: Case, g: int) -> Case:
    """Segment g of a case, by itself."""
    lo, hi = case.seg_off[g : g + 2].tolist()
    off, _ = segments([hi - lo], [0], case.x.device)
    return replace(case, x=case.x[lo:hi].clone(), seg_off=off, seg_slot=case.seg_slot[g : g + 1])


def renamed(case: Case, new: Tensor) -> Case:
    """The same rows with the same adapters under other numbers: slot s becomes new[s], int64 [S]. Every slot has its own a."""
    old = new.argsort()
    slots = torch.where(case.seg_slot < 0, -1, new[case.seg_slot.clamp(min=0).long()]).int()
    return replace(case, a=case.a[old], bt=case.bt[old], seg_slot=slots, rank=case.rank[old], scale=case.scale[old])
