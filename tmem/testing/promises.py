"""What tmem.ops promises of many adapters in one batch, tried on any implementation that is given as two functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cases import TOLERANCES, Case, alone, assert_close, make_case, rel_rms, renamed
from .formula import by_autograd, dense

Forward = Callable[[Case], Tensor]
Gradients = Callable[[Case, Tensor], dict[str, Tensor | None]]
Promise = Callable[["_Tried"], "str | None"]

NAN = float("nan")
NOT_GIVEN = "not given"
GRADIENTS = ("dx", "da", "dbt")
LENGTHS, SLOTS = [7, 64, 3, 1, 300, 1, 2], [2, 0, -1, 5, 1, 3, 4]
RANKS = [16, 5, 16, 9, 16, 2, 4]
"""One segment of every slot but the last, which is idle. Libraries choose kernels by the number of rows: few and many."""


@dataclass(frozen=True)
class _Tried:
    """An implementation, and how its promises are tried."""

    forward: Forward
    gradients: Gradients | None
    dtype: torch.dtype
    tolerance: float
    device: str

    def case(self, *segments, **sizes) -> Case:
        return make_case(*segments, dtype=self.dtype, device=self.device, **sizes)

    def plain(self) -> Case:
        """The case for promises of bits. Zeros, and no NaN, lie beyond a slot's rank: `ranks` tries those."""
        case = self.case(LENGTHS, SLOTS, RANKS, k=193, n=300)
        return replace(case, a=case.a.nan_to_num(0.0), bt=case.bt.nan_to_num(0.0))

    def dy(self, case: Case) -> Tensor:
        """dy [M,N] in the case's dtype."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(case.x.shape[0], case.w.shape[0], generator=generator).to(case.x)

    def run(self, case: Case, dy: Tensor) -> dict[str, Tensor]:
        """Copies of y and the gradients that are given, of shapes that are held."""
        shapes = {"y": [*dy.shape], "dx": [*case.x.shape], "da": [*case.a.shape], "dbt": [*case.bt.shape]}
        found = {"y": self.forward(case).detach().clone()}
        for name, gradient in (self.gradients(case, dy) if self.gradients else {}).items():
            assert name in GRADIENTS, f"gradients gives {name!r}, expected dx, da or dbt"
            if gradient is not None:
                found[name] = gradient.detach().clone()
        for name, out in found.items():
            assert [*out.shape] == shapes[name], f"{name}: shape {[*out.shape]}, expected {shapes[name]}"
        return found

    def near(self, case: Case) -> None:
        """AssertionError unless y and the gradients are those of the dense formula; gradients may be off twice as far."""
        dy = self.dy(case)
        leaves = {name: getattr(case, name).double() for name in ("x", "a", "bt")}
        wanted = by_autograd(lambda c: dense(c)["y"])(replace(case, **leaves), dy.double())
        wanted["y"] = dense(case)["y"]
        for name, out in self.run(case, dy).items():
            assert_close(name, out, wanted[name], self.tolerance if name == "y" else 2 * self.tolerance)


def _same(what: str, out: Tensor, ref: Tensor) -> None:
    assert torch.equal(out, ref), f"{what}: other bits, {rel_rms(out, ref):.1g} off"


def values(tried: _Tried) -> None:
    """y and the gradients are those of the dense formula: ragged lengths, odd widths, several segments of one slot."""
    tried.near(tried.case([5, 3, 9, 1, 17], [2, 0, 0, 1, 2], [4, 4, 4], k=37, n=71))
    tried.near(tried.case([4, 33], [1, 0], [16, 16], k=257, n=130, seed=1))
    tried.near(tried.case([1], [0], [1], k=1, n=1, bias=False, seed=2))


def ranks(tried: _Tried) -> None:
    """Slots of one batch compute with their own ranks; what is stored beyond them, NaN here, is not used, its gradient 0."""
    tried.near(tried.case([5, 3, 9, 17], [2, 0, 1, 2], [3, 8, 5], stored=8))
    tried.near(tried.case([6], [0], [13], stored=16, seed=1))


def empty(tried: _Tried) -> None:
    """Segments without rows, slots without rows and a batch without rows are batches like others."""
    for what, lengths, slots in (
        ("segments without rows", [0, 5, 0, 3, 0], [1, 0, 2, 2, 0]),
        ("slots without rows", [5, 3], [1, 3]),
        ("no row", [0, 0], [0, -1]),
        ("no segment", [], []),
    ):
        try:
            tried.near(tried.case(lengths, slots, [4] * 5))
        except Exception as error:
            raise AssertionError(f"{what}: {_said(error)}") from error


def base(tried: _Tried) -> None:
    """Rows without a slot get the base alone, and only they do."""
    tried.near(tried.case([5, 3, 1, 9], [-1, 1, -1, 0], [4, 4]))
    tried.near(tried.case([2, 2], [-1, -1], [4], seed=1))


def idle(tried: _Tried) -> str | None:
    """The gradients of slots without rows are exactly zero, so that no optimizer moves what nothing was said about."""
    case = tried.case([5, 3], [1, 3], [4] * 5)
    found = tried.run(case, tried.dy(case))
    looked_at = [name for name in ("da", "dbt") if name in found]
    for name in looked_at:
        assert not found[name][[0, 2, 4]].any(), f"{name} of an idle slot is not zero"
    return None if looked_at else NOT_GIVEN


def company(tried: _Tried) -> None:
    """A segment's y and dx, and its slot's da and dbt, have the same bits alone and in any batch. Of the adapter's part
    alone, w = 0: the bits of a base product may change with the number of rows."""
    case = tried.plain()
    _accompanied(tried, replace(case, w=torch.zeros_like(case.w), bias=None))


def company_with_base(tried: _Tried) -> None:
    """The bits of the whole layer, alone and in a batch. Not in PROMISES: tmem.ops leaves the base to torch's product."""
    _accompanied(tried, tried.plain())


def _accompanied(tried: _Tried, case: Case) -> None:
    dy = tried.dy(case)
    together = tried.run(case, dy)
    for g, (rows, slot) in enumerate(case.parts):
        for name, out in tried.run(alone(case, g), dy[rows]).items():
            if name in ("y", "dx"):
                _same(f"{name} alone", out, together[name][rows])
            elif slot >= 0:
                _same(f"{name} alone", out[slot], together[name][slot])


def numbers(tried: _Tried) -> None:
    """Slots under other numbers: the same bits."""
    case = tried.plain()
    dy, new = tried.dy(case), torch.tensor([3, 6, 1, 4, 0, 2, 5], device=tried.device)
    under_old, under_new = tried.run(case, dy), tried.run(renamed(case, new), dy)
    for name, out in under_new.items():
        _same(f"{name} renamed", out if name in ("y", "dx") else out[new], under_old[name])


def again(tried: _Tried) -> None:
    """The same batch twice: the same bits."""
    case = tried.plain()
    dy = tried.dy(case)
    first = tried.run(case, dy)
    for name, out in tried.run(case, dy).items():
        _same(f"{name} again", out, first[name])


def isolation(tried: _Tried) -> None:
    """A NaN in one slot's rows, factors or scale reaches no other slot's rows or gradients in any bit."""
    case = tried.plain()
    clean = tried.run(case, tried.dy(case))
    for what in ("rows", "factors", "scale"):
        for slot in (0, 6):  # one of the batch, and one that is idle; -1 read as an index is one of them as well
            ill = replace(case, x=case.x.clone(), a=case.a.clone(), bt=case.bt.clone(), scale=case.scale.clone())
            dy, well = tried.dy(case), torch.ones(len(case.x), dtype=torch.bool, device=tried.device)
            for rows, owner in case.parts:
                if owner == slot:
                    well[rows] = False
            if what == "rows":
                ill.x[~well], dy[~well] = NAN, NAN
            elif what == "factors":
                ill.a[slot], ill.bt[slot] = NAN, NAN
            else:
                ill.scale[slot] = NAN
            others = [s for s in range(len(case.rank)) if s != slot]
            for name, out in tried.run(ill, dy).items():
                kept = well if name in ("y", "dx") else others
                _same(f"{name}, NaN in another's {what}", out[kept], clean[name][kept])


PROMISES: dict[str, Promise] = {
    "values": values,
    "ranks": ranks,
    "empty": empty,
    "base": base,
    "idle": idle,
    "any company": company,
    "slot numbers": numbers,
    "again": again,
    "isolation": isolation,
}
"""By name, what check_promises tries. The docstring of each says what it promises, in one sentence."""


def check_promises(
    forward: Forward,
    gradients: Gradients | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    device: str = "cpu",
    promises: Mapping[str, Promise] = PROMISES,
) -> dict[str, str]:
    """Try every promise on an implementation: by name "" where it holds, else one sentence that says what broke.

    forward    of a Case to y [M,N]; the base layer and every segment's own adapter, as tmem.ops.lora_linear has it
    gradients  of a Case and dy [M,N] to {"dx": [M,K], "da": [S,R,K], "dbt": [S,R,N]}; what is missing or None is not
               looked at, and "not given" stands where nothing else was to be looked at. None: forward alone
    dtype      of x, w and bias: fp32, bf16 or fp64; the factors are fp32, or fp64 with fp64
    tolerance  relative RMS that y may be off the dense formula in fp64, gradients twice that; None: TOLERANCES[dtype]
    promises   what to try, by name
    An exception of the implementation becomes the sentence, its type and first line. Raises KeyError for another dtype.
    """
    tried = _Tried(forward, gradients, dtype, TOLERANCES[dtype] if tolerance is None else tolerance, device)
    return {name: _broken(promise, tried) for name, promise in promises.items()}


def _broken(promise: Promise, tried: _Tried) -> str:
    try:
        return promise(tried) or ""
    except Exception as error:
        return _said(error)


def _said(error: Exception) -> str:
    first = str(error).strip().split("\n")[0]
    return first if first and type(error) is AssertionError else f"{type(error).__name__}: {first}".rstrip(": ")
