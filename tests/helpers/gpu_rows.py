"""What must hold of the kernels that go over rows on a GPU, beyond checks.py: there nobody looks at values before a launch, and
rows are long. Each check takes an object with the ops as attributes, none of which checks its values."""

import checks
import torch

from tmem import reference
from tmem.testing import assert_close, make_case

NAN = float("nan")


def lost_rows(ops) -> None:
    """In decode too, a slot that is freed, out of range or above the stored rank shows as NaN, in its own rows alone."""
    case = make_case([1] * 5, [1, 0, 2, -1, 0], [4, 4, 4], k=50, n=60)
    *factors, slots, rank, scale = case.decode
    want = torch.zeros(5, 60)
    ops.lora_decode_(want, case.x, *case.decode)
    for slot, ranks in ((1, [4, 0, 4]), (7, [4, 4, 4]), (-3, [4, 4, 4]), (1, [4, 9, 4])):
        y, named = torch.zeros(5, 60), torch.tensor([slot, *slots[1:]], dtype=torch.int32)
        ops.lora_decode_(y, case.x, *factors, named, torch.tensor(ranks, dtype=torch.int32), scale)
        assert y[0].isnan().all() and torch.equal(y[1:], want[1:])


def sick_rows(ops) -> None:
    """A NaN in a row, in a factor, in a rank that is not used, or in a scale stays with the slot that has it."""
    case = make_case([1] * 5, [1, 0, 2, -1, 0], [4, 3, 4], k=50, n=60)
    x, a, bt, scale = (t.clone() for t in (case.x, case.a, case.bt, case.scale))
    a[0, 4:], bt[0, 4:], a[1, 3:], bt[1, 3:] = NAN, NAN, NAN, NAN
    y, want = torch.ones(5, 60), torch.ones(5, 60)
    ops.lora_decode_(want, case.x, *case.decode)
    ops.lora_decode_(y, x, a, bt, *case.decode[2:])
    assert torch.equal(y, want), "a rank beyond the slot's was read"
    x[3], a[2], scale[2] = NAN, NAN, NAN
    ops.lora_decode_(y, x, a, bt, *case.decode[2:4], scale)
    ops.lora_decode_(want, case.x, *case.decode)
    assert y[2].isnan().all() and torch.equal(y[[0, 1, 3, 4]], want[[0, 1, 3, 4]])
    infinite = torch.full((5, 60), float("inf"))
    ops.lora_decode_(infinite, case.x, *case.decode)
    assert infinite.isposinf().all()
    one = make_case([1], [0], [1], stored=4, k=50, n=60)
    large = torch.zeros(1, 60)
    ops.lora_decode_(large, one.x, one.a, one.bt, *one.decode[2:4], torch.tensor([float("inf")]))
    assert large.isinf().all(), "a rank that is not used took part in a product"


def wide_rows(ops) -> None:
    """A width of more slices than are added at once, not a multiple of anything."""
    for stored in (5, 64, 128):
        case = make_case([1] * 3, [1, 0, 1], [5, stored], stored=stored, k=9001, n=1031)
        y, want = torch.zeros(3, 1031), torch.zeros(3, 1031).double()
        ops.lora_decode_(y, case.x, *case.decode)
        reference.lora_decode_(want, *(t.double() for t in (case.x, case.a, case.bt)), *case.decode[2:])
        assert_close("y", y, want, 1e-6)


def one_read(ops) -> None:
    """Whether a segment's gradient and dz are made from one read of dy, as those of a slot without another segment, or from
    two: the same bits. Lengths on either side of every limit."""
    half = torch.bfloat16
    for factor_dtype in (half, torch.float32):
        lengths = [16, 17, 64, 65, 128, 129, 3]
        case = make_case(lengths, range(7), [5] * 7, stored=20, n=130, dtype=half, factor_dtype=factor_dtype)
        m, dy, start = sum(lengths), torch.randn(sum(lengths), 130).to(half), torch.randn(7, 20, 130)
        z, g = torch.randn(m, 20), start.clone()
        dz = ops.lora_backward_(g, z, dy, case.bt, *case.seg, case.scale)
        for i, (rows, _) in enumerate(case.parts):
            twice = torch.tensor([0, rows.stop - rows.start, rows.stop - rows.start + 1], dtype=torch.int32)
            seg, part = (twice, torch.tensor([i, i], dtype=torch.int32), case.rank), slice(rows.start, rows.stop)
            h, both = start.clone(), [torch.cat([x[part], 0 * x[:1]]) for x in (z, dy)]
            dz2 = ops.lora_backward_(h, *both, case.bt, *seg, case.scale)
            assert torch.equal(dz2[:-1], dz[part]) and torch.equal(h[i], g[i]), lengths[i]


def clipped(ops) -> None:
    """A slot whose settings ask for a clip, which a step in gram cannot make, stays as it was, and its squares are NaN."""
    for adam in (True, False):
        case = make_case([5, 3], [1, 0], [3, 5], n=90)
        factor, before = (checks._factor(case, adam, torch.bfloat16) for _ in range(2))
        factor["hyper"][1, 5], sums = 1.0, torch.zeros(2, 6, dtype=torch.float64)
        rest = factor["step"], factor["hyper"], torch.randn(8, 5), torch.randn(8, 90), *case.seg, None, factor["copy"], sums
        ops.lora_gram_step_(factor["param"], factor["m"], factor["v"], *rest)
        for name in ("param", "m", "v", "copy") if adam else ("param", "copy"):
            now, then = factor[name].nan_to_num(9), before[name].nan_to_num(9)
            assert torch.equal(now[1], then[1]) and not torch.equal(now[0], then[0]), name
        assert sums.sum(1).isnan().tolist() == [False, True]


def bad_pairs(ops) -> None:
    """bank_copy_ leaves rows out of range alone, those of others around the bank too, and does what it can do."""
    whole = torch.arange(20.0).reshape(5, 4)
    want = whole.clone()
    want[3] = want[2]
    source, target = (torch.tensor(t, dtype=torch.int32) for t in ([1, -2, 3, 0, -1, -1], [2, 0, 0, 3, -1, 3]))
    ops.bank_copy_([whole[1:4]], source, target)
    assert torch.equal(whole, want)


def long_rows(ops) -> None:
    """Rows of several stretches and pieces, of an odd width, stepped once and copied: what the reference gives."""
    for adam in (True, False):
        bank, want = (checks._bank(width=20_001, adam=adam) for _ in range(2))
        active = torch.tensor([True, True, False, True])
        norms, expected = ops.bank_step_(*bank, active), reference.bank_step_(*want, active)
        for name, got, one in zip(("norms", "param", "grad", "m", "v", "step"), (norms, *bank[:5]), (expected, *want[:5])):
            if got is not None:
                assert_close(name, got, one, 1e-6)
        ops.bank_copy_(bank[:2], torch.tensor([1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32))
        assert torch.equal(bank[0][2], bank[0][1]) and torch.equal(bank[1][2], bank[1][1])


def settings(ops) -> None:
    """hyper in fp32 as in fp64; many steps of slow averages; a norm near 1e-6; no rows and no columns at all."""
    active = torch.ones(4, dtype=torch.bool)
    for adam in (True, False):
        double, single, want = (checks._bank(adam=adam) for _ in range(3))
        for bank in (double, single, want):
            bank[4].fill_(5_000)
            bank[5][:, 1:3] = torch.tensor([1 - 2**-13, 1 - 2**-14])
            bank[5][1, 5] = 2**-20
            bank[1][1] *= 1e-7
            bank[0][1] *= 1e-7
        double[5] = double[5].double()
        for bank, step in ((double, ops.bank_step_), (single, ops.bank_step_), (want, reference.bank_step_)):
            step(*bank, active)
        for got in (double, single):
            for s in range(4):
                assert_close("param", got[0][s], want[0][s], 1e-6)
            assert got[4].tolist() == [5_001] * 4
    for rows, width in ((0, 5), (4, 0)):
        bank = [torch.zeros(rows, width) for _ in range(4)]
        rest = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, 6), torch.ones(rows, dtype=torch.bool)
        assert ops.bank_step_(*bank, *rest).tolist() == [0.0] * rows


def rounds_once(ops, dtype=torch.bfloat16) -> None:
    """decode rounds y once, from the fp32 sum, in 16 bits; the factors may be of either size."""
    for factor_dtype in (dtype, torch.float32):
        case = make_case([1] * 4, [1, 0, -1, 1], [9, 64], stored=64, k=300, n=700, dtype=dtype, factor_dtype=factor_dtype)
        y = torch.randn(4, 700).to(dtype)
        exact = y.double()
        double = [t.double() for t in (case.x, case.a, case.bt)]
        reference.lora_decode_(exact, *double, *case.decode[2:])
        ops.lora_decode_(y, case.x, *case.decode)
        assert (y != exact.to(dtype)).float().mean() < 0.01


EMULATED = [lost_rows, sick_rows, wide_rows, bad_pairs, long_rows, settings, one_read]
ALL = [*EMULATED, clipped]  # on a GPU, where Triton steps in gram; a CPU refuses
