"""What must hold of any implementation of the ops. Each check takes an object with the ops as attributes (tmem.ops, the
reference, or one with a fault put in) and raises AssertionError where the promise is broken."""

import itertools

import torch

from tmem import reference
from tmem.testing import TOLERANCES, Case, alone, assert_close, by_autograd, dense, make_case, renamed

NAN = float("nan")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = [*itertools.product(FLOATS, FLOATS), (torch.float64, torch.float64)]

BANK_DTYPES = [torch.float32, torch.float64]
COPY_DTYPES = [torch.bfloat16, torch.float16]


def cases(dtype=torch.float32, factor_dtype=None):
    """Ragged, empty, base-only and repeated segments, mixed ranks to 128, odd widths, one row, no rows, slots without rows."""
    kinds = {"dtype": dtype, "factor_dtype": factor_dtype}
    yield make_case([5, 0, 3, 9, 1, 17], [2, 0, -1, 0, 1, 2], [3, 8, 5, 1], stored=8, **kinds)
    yield make_case([5, 0, 3, 9, 1, 17], [2, 0, -1, 0, 1, 2], [3, 8, 5, 1], stored=8, shared_a=True, **kinds)
    yield make_case([1], [1], [1, 2], k=1, n=1, bias=False, seed=1, **kinds)
    yield make_case([4, 33], [1, 0], [16, 13], k=257, n=130, seed=2, **kinds)
    yield make_case([6, 41], [1, 0], [128, 65], k=50, n=70, seed=6, **kinds)
    yield make_case([2, 2], [-1, -1], [4], seed=3, **kinds)
    yield make_case([0, 0], [0, -1], [4, 4], seed=4, **kinds)
    yield make_case([], [], [4], seed=5, **kinds)


def values(ops) -> None:
    """Every op gives what the dense formula gives, for every pair of dtypes; what is not its own keeps its bits."""
    for dtype, factor_dtype in DTYPES:
        acc, tol = TOLERANCES[torch.float64 if dtype == torch.float64 else torch.float32], TOLERANCES[dtype]
        for case in cases(dtype, factor_dtype):
            ref = dense(case)
            z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
            assert_close("z", z, ref["z"], acc)
            assert_close("gram", ops.lora_gram(z, case.x, *case.seg), ref["gram"], acc)

            o = torch.randn(case.x.shape[0], case.w.shape[0]).to(dtype)
            expected = o.double() + ref["up"]
            kept, before = torch.repeat_interleave(case.seg_slot, case.seg_off.diff()) < 0, o.clone()
            assert ops.lora_expand_(o, z, case.bt, *case.seg) is None
            assert_close("o", o, expected, tol)
            assert torch.equal(o[kept], before[kept]), "rows without a slot changed"

            g = torch.randn(ref["gram"].shape).to(z.dtype)
            expected = g.double() + ref["gram"]
            untouched, before = ref["gram"] == 0, g.clone()
            assert ops.lora_gram_(g, z, case.x, *case.seg) is None
            assert_close("g", g, expected, acc)
            assert torch.equal(g[untouched], before[untouched]), "gradient beyond a slot's rank, or of an idle slot, changed"

            assert_close("y", ops.lora_linear(*case.linear), ref["y"], tol)


def several(ops) -> None:
    """lora_shrink_multi gives what lora_shrink gives for each of its factors, whatever their number."""
    for dtype, factor_dtype in DTYPES:
        acc = TOLERANCES[torch.float64 if dtype == torch.float64 else torch.float32]
        for case in cases(dtype, factor_dtype):
            for count in (1, 3, 4):
                factors = [(case.a.float() * (i + 1)).to(case.a.dtype) for i in range(count)]
                z = ops.lora_shrink_multi(case.x, factors, *case.seg, case.scale)
                assert z.shape == (count, case.x.shape[0], case.a.shape[1])
                for f, got in zip(factors, z):
                    want = reference.lora_shrink(case.x.double(), f.double(), *case.seg, case.scale)
                    assert_close("z", got, want, acc)


def backward(ops) -> None:
    """lora_backward_ adds what lora_gram_ adds and returns what lora_shrink returns; what is not its own keeps its bits."""
    for dtype, factor_dtype in DTYPES:
        acc = TOLERANCES[torch.float64 if dtype == torch.float64 else torch.float32]
        for case in cases(dtype, factor_dtype):
            dy = torch.randn(case.x.shape[0], case.w.shape[0]).to(dtype)
            z = reference.lora_shrink(case.x, case.a, *case.seg, case.scale)
            start = torch.randn(*case.bt.shape[:2], dy.shape[1]).to(z.dtype)
            g, want = start.clone(), start.double()
            dz = ops.lora_backward_(g, z, dy, case.bt, *case.seg, case.scale)
            want_dz = reference.lora_backward_(want, z.double(), dy.double(), case.bt.double(), *case.seg, case.scale)
            assert_close("dz", dz, want_dz, acc)
            assert_close("g", g, want, acc)
            untouched = reference.lora_gram(z.double(), dy.double(), *case.seg) == 0
            assert torch.equal(g[untouched], start[untouched]), "a gradient that is not the batch's changed"


def decode(ops) -> None:
    """lora_decode_ gives every row its own adapter: what lora_linear adds to the base; -1 keeps every bit."""
    for dtype, factor_dtype in DTYPES:
        for shared_a in (False, True):
            slots = [2, 0, -1, 0, 1, 2, -1, 1, 0]
            case = make_case(
                [1] * 9, slots, [3, 8, 5], stored=8, k=1100, n=130, shared_a=shared_a, dtype=dtype,
                factor_dtype=factor_dtype,
            )  # fmt: skip
            y = torch.randn(9, 130).to(dtype)
            out, want = y.clone(), y.double() + dense(case)["up"]
            rest = case.decode
            assert ops.lora_decode_(out, case.x, *rest) is None
            assert_close("y", out, want, TOLERANCES[dtype])
            assert torch.equal(out[case.seg_slot < 0], y[case.seg_slot < 0]), "rows without a slot changed"
            for row in range(9):
                alone = y[row : row + 1].clone()
                ops.lora_decode_(alone, case.x[row : row + 1], *rest[:2], case.seg_slot[row : row + 1], *rest[3:])
                assert torch.equal(alone[0], out[row]), "a row depends on its neighbours"
    none = torch.zeros(0, 130)
    ops.lora_decode_(none, torch.zeros(0, 1100), *make_case([], [], [2], k=1100, n=130).decode)


def attend(ops) -> None:
    """Softmax attention of one token over what its row sees; the rest, NaN here, and the neighbours have no influence."""
    for dtype in {d for d, _ in DTYPES}:
        for heads, share, width in ((3, 3, 64), (1, 5, 20), (2, 1, 100), (2, 2, 128), (1, 4, 7)):
            lengths = torch.tensor([37, 1, 0, 16, 40, 5])
            mask = (torch.arange(40) < lengths[:, None]) & (torch.arange(40) % 7 != 3)
            q = 3 * torch.randn(6, heads * share, width)
            wide = torch.randn(2, 6, heads, 40, 2 * width)
            k, v = (x[..., ::2].to(dtype) if width == 20 else x[..., :width].to(dtype) for x in wide)  # strided, and not
            k, v = (torch.where(mask[:, None, :, None], x, NAN) for x in (k, v))
            q = q.to(dtype)
            got = ops.attend(q, k, v, mask, 0.3)
            want = reference.attend(q.double(), k.double(), v.double(), mask, 0.3)
            assert got.dtype == dtype
            assert_close("o", got, want, TOLERANCES[dtype])
            assert not got[2].any(), "a row that sees nothing is not zero"
            for row in range(6):
                end = max(1, int(lengths[row]))
                alone = [x[row : row + 1, ..., :end, :] for x in (k, v)]
                found = ops.attend(q[row : row + 1], *alone, mask[row : row + 1, :end], 0.3)
                assert torch.equal(found[0], got[row]), "a row depends on its neighbours or on what it does not see"
        far = torch.full((1, 1, 8), 30.0, dtype=dtype)  # scores of ±7200: no overflow, no NaN
        keys = torch.stack([far[0, 0], -far[0, 0]])[None, None]
        values = torch.tensor([[[[2.0] * 8, [5.0] * 8]]], dtype=dtype)
        assert torch.equal(ops.attend(far, keys, values, torch.ones(1, 2, dtype=torch.bool), 1.0), 0 * far + 2)


def alike(ops) -> None:
    """What rows begin with is read where another row has it, in whatever layout that can be told, and changes no bit."""
    pairs = torch.tensor([[0, 0], [0, 20], [2, 40], [0, 7], [2, 33], [4, 0], [2, 40]], dtype=torch.int32)
    mask = torch.arange(40) % 7 != torch.arange(7)[:, None]
    mask[6] = False
    for dtype in {d for d, _ in DTYPES}:
        q, own = torch.randn(7, 6, 20).to(dtype), torch.randn(2, 7, 2, 40, 20).to(dtype)
        for row, (source, columns) in enumerate(pairs.tolist()):
            own[:, row, :, :columns] = own[:, source, :, :columns]
        want = ops.attend(q, *own, mask, 0.3)
        lost = own.clone()
        for row, (source, columns) in enumerate(pairs.tolist()):
            if source != row:
                lost[:, row, :, :columns] = NAN
        for x in (own, lost):
            heads_second = x.transpose(2, 3).contiguous().transpose(2, 3)
            for k, v in (x, heads_second):
                assert torch.equal(ops.attend(q, k, v, mask, 0.3, pairs), want)
        columns_first = own.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4)
        for k, v in (columns_first, (own[0], own[1].transpose(1, 2).contiguous().transpose(1, 2)), (columns_first[0], own[1])):
            assert torch.equal(ops.attend(q, k, v, mask, 0.3, pairs), ops.attend(q, k, v, mask, 0.3))


def strided(ops) -> None:
    """Views of any stride: read right, and written through their strides without touching what lies between."""
    case = make_case([5, 3, 9], [1, -1, 0], [4, 3], k=24, n=40)
    wide = {name: torch.full((*t.shape, 2), NAN) for name, t in vars(case).items() if t is not None and t.is_floating_point()}
    for name, t in wide.items():
        t[..., 0] = getattr(case, name)
    every_other = Case(**{name: wide[name][..., 0] if name in wide else t for name, t in vars(case).items()})
    assert_close("y", ops.lora_linear(*every_other.linear), ops.lora_linear(*case.linear), 1e-6)
    z = ops.lora_shrink(every_other.x, every_other.a, *case.seg, every_other.scale)
    assert torch.equal(z, ops.lora_shrink(case.x, case.a, *case.seg, case.scale))

    for rows, view in [(torch.randn(40, 17), lambda t: t.T), (torch.randn(17, 80), lambda t: t[:, ::2])]:
        before, o = rows.clone(), view(rows)
        expected = o.clone()
        ops.lora_expand_(o, z, case.bt, *case.seg)
        ops.lora_expand_(expected, z, case.bt, *case.seg)
        assert torch.equal(o, expected)
        view(before).copy_(expected)
        assert torch.equal(rows, before), "elements outside the view changed"

    bank = torch.zeros(2, 4 * 64 + 64)
    ops.lora_gram_(bank[:, : 4 * 64].view(2, 4, 64)[:, :, :24], z, case.x, *case.seg)
    assert torch.equal(bank[:, : 4 * 64].view(2, 4, 64)[:, :, :24], ops.lora_gram(z, case.x, *case.seg))
    assert not bank[:, : 4 * 64].view(2, 4, 64)[:, :, 24:].any() and not bank[:, 4 * 64 :].any(), "padding was written"
    columns = torch.zeros(24, 4, 2).permute(2, 1, 0)
    ops.lora_gram_(columns, z, case.x, *case.seg)
    assert torch.equal(columns, ops.lora_gram(z, case.x, *case.seg))


def gradients(ops) -> None:
    """lora_linear's gradients in x, w, bias, a and bt are those of autograd through the dense formula in fp64."""
    for dtype, factor_dtype in DTYPES:
        for case in cases(dtype, factor_dtype):
            names = ["x", "w", "bias", "a", "bt"] if case.a.shape[0] == case.bt.shape[0] else ["x", "w", "bias", "bt"]
            names = [name for name in names if getattr(case, name) is not None]
            dy = torch.randn(case.x.shape[0], case.w.shape[0]).to(dtype)

            wide = Case(**{name: t.double() if name in names else t for name, t in vars(case).items()})
            got = by_autograd(lambda c: ops.lora_linear(*c.linear), names)(case, dy)
            want = by_autograd(lambda c: dense(c)["y"], names)(wide, dy.double())
            for name in names:
                assert got[f"d{name}"].dtype == getattr(case, name).dtype
                assert_close(f"d{name}", got[f"d{name}"], want[f"d{name}"], 2 * TOLERANCES[getattr(case, name).dtype])


def invariance(ops) -> None:
    """A segment's z, o and g have the same bits alone, in a batch, repeated, with slots renamed, on 1 or 2 threads."""
    for dtype, factor_dtype in DTYPES:
        lengths, slots, ranks = [7, 64, 1, 30, 5], [2, 0, -1, 1, 3], [16, 5, 16, 9]
        case = make_case(lengths, slots, ranks, k=193, n=300, dtype=dtype, factor_dtype=factor_dtype)
        o = torch.randn(sum(lengths), 300).to(dtype)

        def run(case, o):
            o = o.clone()
            z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
            ops.lora_expand_(o, z, case.bt, *case.seg)
            g = torch.zeros(4, case.a.shape[1], 300, dtype=z.dtype)
            dz = ops.lora_backward_(g, z, o, case.bt, *case.seg, case.scale)
            return z, o, ops.lora_gram(z, case.x, *case.seg), dz, g

        z, out, g, dz, db = run(case, o)
        threads = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                for name, got, want in zip(("z", "o", "g", "dz", "db"), run(case, o), (z, out, g, dz, db)):
                    assert torch.equal(got, want), f"{name} changed on another run with {count} threads"
        finally:
            torch.set_num_threads(threads)

        for i, (rows, slot) in enumerate(case.parts):
            z1, o1, g1, dz1, db1 = run(alone(case, i), o[rows])
            assert torch.equal(z1, z[rows]), "z of a segment depends on the batch"
            assert torch.equal(o1, out[rows]), "o of a segment depends on the batch"
            assert torch.equal(dz1, dz[rows]), "dz of a segment depends on the batch"
            assert slot < 0 or torch.equal(g1[slot], g[slot]), "g of a segment depends on the batch"
            assert slot < 0 or torch.equal(db1[slot], db[slot]), "db of a segment depends on the batch"

        new = torch.tensor([3, 1, 0, 2])
        z2, o2, g2, dz2, db2 = run(renamed(case, new), o)
        same = torch.equal(z2, z), torch.equal(o2, out), torch.equal(g2[new], g), torch.equal(dz2, dz)
        assert all(same) and torch.equal(db2[new], db), "bits depend on a slot's number"


def rows_alone(ops) -> None:
    """A row's z and o do not even depend on the length of its segment (decode sees what training saw)."""
    case = make_case([11], [0], [7], k=193, n=300)
    z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
    o = torch.zeros(11, 300)
    ops.lora_expand_(o, z, case.bt, *case.seg)
    seg = torch.tensor([0, 1], dtype=torch.int32), *case.seg[1:]
    for m in range(11):
        z1, o1 = ops.lora_shrink(case.x[m : m + 1], case.a, *seg, case.scale), torch.zeros(1, 300)
        ops.lora_expand_(o1, z1, case.bt, *seg)
        assert torch.equal(z1[0], z[m]) and torch.equal(o1[0], o[m]), "a row's bits depend on its segment's length"


def accumulation(ops) -> None:
    """Segments of one slot in one lora_gram_ call, or in one call after another: the same bits."""
    for dtype in FLOATS:
        case = make_case([9, 4, 21, 2], [1, 0, 1, 1], [4, 6], k=100, dtype=dtype)
        z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
        start = torch.randn(2, 6, 100)
        once, each = start.clone(), start.clone()
        ops.lora_gram_(once, z, case.x, *case.seg)
        for g in range(4):
            part = alone(case, g)
            ops.lora_gram_(each, z[case.seg_off[g] : case.seg_off[g + 1]], part.x, *part.seg)
        assert torch.equal(once, each), "g depends on how its segments are shared out to calls"


def fresh(ops) -> None:
    """A fresh gradient is what it is after zeros, whatever was there; what is not the batch's keeps its bits."""
    for dtype, factor_dtype in DTYPES:
        for case in cases(dtype, factor_dtype):
            dy = torch.randn(case.x.shape[0], case.w.shape[0]).to(dtype)
            z = reference.lora_shrink(case.x, case.a, *case.seg, case.scale)
            mine = reference.lora_gram(torch.ones_like(z), torch.ones_like(dy), *case.seg) != 0
            zero = torch.randn(*case.bt.shape[:2], dy.shape[1]).to(z.dtype)
            poisoned = zero.masked_fill(mine, NAN)
            zero = zero.masked_fill(mine, 0)
            got, want = [poisoned.clone(), poisoned.clone()], [zero.clone(), zero.clone()]
            for (gram, backward), is_fresh in ((got, True), (want, False)):
                ops.lora_gram_(gram, z, dy, *case.seg, None, is_fresh)
                ops.lora_backward_(backward, z, dy, case.bt, *case.seg, case.scale, None, is_fresh)
            assert all(map(torch.equal, got, want)), "a fresh gradient is not what it would be after zeros"


def squares(ops) -> None:
    """What is left of a gradient's squares adds up to those of the gradient as it is then; other slots' keep their bits."""
    for dtype, factor_dtype in DTYPES:
        for case in cases(dtype, factor_dtype):
            rows, width, slots = case.x.shape[0], case.w.shape[0], len(case.rank)
            dy, g = torch.randn(rows, width).to(dtype), torch.zeros(*case.bt.shape[:2], width)
            z = reference.lora_shrink(case.x, case.a, *case.seg, case.scale)
            g = g.to(z.dtype)
            reference.lora_gram_(g, z, dy, *case.seg)  # nothing beyond a slot's rank
            lengths = case.seg_off.diff().tolist()
            mine = [any(s == slot and n for s, n in zip(case.seg_slot.tolist(), lengths)) for slot in range(slots)]
            for is_fresh in (True, False):
                for backward in (True, False):
                    now, sums = g.clone(), torch.full((slots, -(-width // reference.SQUARED)), 7.0, dtype=torch.float64)
                    sums[mine] = NAN
                    if backward:
                        ops.lora_backward_(now, z, dy, case.bt, *case.seg, case.scale, None, is_fresh, sums)
                    else:
                        ops.lora_gram_(now, z, dy, *case.seg, None, is_fresh, sums)
                    want = now.double().square().sum((1, 2))
                    for slot in range(slots):
                        if mine[slot]:
                            assert_close("squares", sums[slot].sum(), want[slot], 1e-12)
                        else:
                            assert (sums[slot] == 7).all(), "the squares of a slot without rows changed"


STEPPED = 0.0  # how far a step in gram may be off from a step after gram: the same bits


def _factor(case: Case, adam: bool, half: torch.dtype | None) -> dict:
    """What lora_gram_step_ writes, with NaN in what a slot does not use, and settings that idle slots must not follow."""
    dtype = torch.float64 if case.x.dtype == torch.float64 else torch.float32
    slots, shape = len(case.rank), (*case.bt.shape[:2], case.w.shape[0])
    param, m, v = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3))
    for slot, r in enumerate(case.rank.tolist()):
        param[slot, r:], m[slot, r:] = NAN, NAN
    hyper = HYPERS[torch.arange(slots) % 4]
    hyper[:, 5] = 0
    steps = torch.arange(slots, dtype=torch.int32)
    moments = {"m": m, "v": v.square() + 0.5} if adam else {"m": None, "v": None}
    return {"param": param, **moments, "step": steps, "hyper": hyper, "copy": None if half is None else param.to(half)}


def _mine(case: Case) -> list[bool]:
    """Whether each slot has rows."""
    segments = list(zip(case.seg_slot.tolist(), case.seg_off.diff().tolist()))
    return [any(s == slot and n for s, n in segments) for slot in range(len(case.rank))]


def gram_step(ops) -> None:
    """A step in gram moves what a fresh gram and a step move, once, whatever a slot's segments, and is near the formula in
    fp64. Slots without rows, ranks beyond the slot's and step counts keep every bit."""
    for (dtype, factor_dtype), adam in itertools.product(DTYPES, (True, False)):
        if factor_dtype not in (torch.float32, torch.float64):
            continue
        half, acc = COPY_DTYPES[adam], TOLERANCES[torch.float64 if dtype == torch.float64 else torch.float32]
        for case in cases(dtype, factor_dtype):
            dy = torch.randn(case.x.shape[0], case.w.shape[0]).to(dtype)
            z, slots = reference.lora_shrink(case.x, case.a, *case.seg, case.scale), len(case.rank)
            got, wide = _factor(case, adam, half), _factor(case, adam, half)
            for name in ("param", "m", "v"):
                wide[name] = None if wide[name] is None else wide[name].double()
            two, before, mine = _factor(case, adam, half), _factor(case, adam, half), _mine(case)
            sums = torch.full((slots, -(-dy.shape[1] // reference.SQUARED)), 7.0, dtype=torch.float64)
            g = torch.zeros_like(two["param"])
            ops.lora_gram_(g, z, dy, *case.seg, None, True)
            rows = [None if two[x] is None else two[x].flatten(1).nan_to_num_(0) for x in ("param", "m", "v")]
            copy = two["copy"].flatten(1)
            ops.bank_step_(rows[0], g.flatten(1), *rows[1:], two["step"], two["hyper"], torch.tensor(mine), copy, False)
            rest = got["step"], got["hyper"], z, dy, *case.seg, None, got["copy"], sums
            assert ops.lora_gram_step_(got["param"], got["m"], got["v"], *rest) is None
            exact = wide["step"], wide["hyper"], z.double(), dy.double(), *case.seg, None, wide["copy"]
            reference.lora_gram_step_(wide["param"], wide["m"], wide["v"], *exact)
            assert torch.equal(got["step"], before["step"]), "a step was counted"
            for slot, r in enumerate(case.rank.tolist()):
                used = slice(r if mine[slot] else 0)
                for name in ("param", "m", "v", "copy"):
                    if got[name] is None:
                        continue
                    now, then = got[name][slot], before[name][slot]
                    kept = slice(used.stop, None)
                    assert torch.equal(now[kept].nan_to_num(9), then[kept].nan_to_num(9)), f"{name} of an idle slot changed"
                    assert_close(name, now[used], two[name].view(got["param"].shape)[slot, used], STEPPED)
                    if name != "copy":
                        assert_close(name, now[used], wide[name][slot, used], 4 * acc)
                    elif STEPPED == 0:
                        assert torch.equal(now[used], got["param"][slot, used].to(half)), "the copy is not the parameters"
                if mine[slot]:
                    assert_close("squares", sums[slot].sum(), g[slot, :r].double().square().sum(), max(STEPPED, 1e-12))
                else:
                    assert (sums[slot] == 7).all(), "the squares of a slot without rows changed"


def gram_step_not_finite(ops) -> None:
    """An element whose gradient is not finite keeps all it has, and squares tell; the others and other slots move."""
    for adam, bad in itertools.product((True, False), (NAN, float("inf"))):
        case = make_case([5, 3, 4, 2], [1, 0, 1, 2], [3, 5, 2], n=90)
        dy, z = torch.randn(14, 90), torch.randn(14, 5)
        clean, ill, before = (_factor(case, adam, torch.bfloat16) for _ in range(3))
        spoilt, sums = dy.clone(), torch.zeros(3, 6, dtype=torch.float64)
        spoilt[9, 70] = bad  # of slot 1
        for found, rows, squares in ((clean, dy, None), (ill, spoilt, sums)):
            rest = found["step"], found["hyper"], z, rows, *case.seg, None, found["copy"], squares
            ops.lora_gram_step_(found["param"], found["m"], found["v"], *rest)
        there = torch.zeros(3, 5, 90, dtype=torch.bool)
        there[1, :, 70] = True
        for name in ("param", "m", "v", "copy"):
            if clean[name] is not None:
                want = torch.where(there, before[name], clean[name])
                assert torch.equal(ill[name].nan_to_num(9), want.nan_to_num(9)), f"{name}: a NaN changed what it must not"
        assert sums.sum(1).isfinite().tolist() == [True, False, True], "squares do not tell"


def gram_step_alone(ops) -> None:
    """A slot's step has the same bits in any company, on 1 or 2 threads, through views of a bank and of any other stride."""
    lengths, slots = [7, 64, 1, 30, 5], [2, 0, -1, 1, 3]
    case = make_case(lengths, slots, [16, 5, 16, 9], k=193, n=300)
    dy, z = torch.randn(107, 300), torch.randn(107, 16)

    def run(case, dy, z, factor, view=lambda x: x):
        written = {name: view(factor[name]) for name in ("param", "m", "v", "copy")}
        rest = factor["step"], factor["hyper"], z, dy, *case.seg, None, written["copy"]
        ops.lora_gram_step_(written["param"], written["m"], written["v"], *rest)
        return written

    def same(one, other, slot):
        return all(torch.equal(one[name][slot].nan_to_num(9), x[slot].nan_to_num(9)) for name, x in other.items())

    def in_a_bank(x):
        whole = torch.full((4, 16 * 320 + 64), 7, dtype=x.dtype)
        part = whole[:, 64:].view(4, 16, 320)[:, :, :300]
        part.copy_(x)
        return part

    def every_other(x):
        return torch.stack([x, x], -1)[..., 0]

    together, threads = run(case, dy, z, _factor(case, True, torch.float16)), torch.get_num_threads()
    try:
        for count, view in itertools.product((1, 2), (lambda x: x, in_a_bank, every_other)):
            torch.set_num_threads(count)
            again = run(case, dy, z, _factor(case, True, torch.float16), view)
            assert all(same(again, together, s) for s in range(4)), "bits depend on threads or strides"
            assert (again["param"]._base is None) or view is not in_a_bank or (again["param"]._base[:, :64] == 7).all()
    finally:
        torch.set_num_threads(threads)
    for i, (rows, slot) in enumerate(case.parts):
        if slot >= 0:
            one = run(alone(case, i), dy[rows], z[rows], _factor(case, True, torch.float16))
            assert same(one, together, slot), "a slot's step depends on the batch"


def isolation(ops) -> None:
    """A NaN in one slot's rows, factors or scale reaches no other slot's output or gradient, in any bit."""
    lengths, slots, ranks = [6, 3, 11, 4], [0, -1, 1, 2], [4, 8, 6]
    clean = make_case(lengths, slots, ranks, k=50, n=90)
    ill = Case(**{name: t.clone() for name, t in vars(clean).items()})
    lo, hi = int(ill.seg_off[2]), int(ill.seg_off[3])
    ill.x[lo:hi], ill.a[1], ill.bt[1], ill.scale[1] = NAN, NAN, NAN, NAN

    def run(case):
        x, a, bt = (t.clone().requires_grad_() for t in (case.x, case.a, case.bt))
        z = ops.lora_shrink(case.x, case.a, *case.seg, case.scale)
        o = torch.ones(24, 90)
        ops.lora_expand_(o, z, case.bt, *case.seg)
        y = ops.lora_linear(x, case.w, case.bias, a, bt, *case.seg, case.scale)
        y.backward(torch.ones_like(y))
        by_row = {"z": z, "o": o, "y": y.detach(), "dx": x.grad}
        by_slot = {"gram": ops.lora_gram(z, case.x, *case.seg), "da": a.grad, "dbt": bt.grad}
        return by_row, by_slot

    (rows, factors), (ill_rows, ill_factors) = run(clean), run(ill)
    well = torch.ones(24, dtype=torch.bool)
    well[lo:hi] = False
    for name, want in rows.items():
        assert torch.equal(ill_rows[name][well], want[well]), f"a NaN in one slot reached {name} of another"
        assert ill_rows[name][~well].isnan().any(), f"the slot with NaN hides it in {name}"
    for name, want in factors.items():
        assert torch.equal(ill_factors[name][[0, 2]], want[[0, 2]]), f"a NaN in one slot reached {name} of another"


HYPERS = torch.tensor(
    [
        [2**-7, 0.875, 0.9375, 2**-20, 0.125, 0.0],
        [2**-5, 0.5, 0.75, 2**-10, 0.0, 0.5],
        [2**-6, 0.75, 0.96875, 2**-14, 0.25, 64.0],
        [2**-7, 0.875, 0.9375, 2**-20, 0.5, 1.0],
    ]
)
"""Rows of settings without, with a biting, and with a slack clip; every value exact in fp32."""


def _bank(dtype=torch.float32, width=1003, adam=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    param, grad = (torch.randn(4, width, generator=generator).to(dtype) for _ in range(2))
    moments = [torch.zeros(4, width, dtype=dtype) for _ in range(2)] if adam else [None, None]
    return [param, grad, *moments, torch.zeros(4, dtype=torch.int32), HYPERS.clone()]


def step(ops) -> None:
    """Five steps give what torch.optim and clip_grad_norm_ give row by row; grads end as zero; each row counts."""
    for dtype in BANK_DTYPES:
        tol = 2e-6 if dtype == torch.float32 else 1e-13
        for adam in (True, False):
            bank = _bank(dtype, adam=adam)
            rows = [torch.nn.Parameter(bank[0][s].clone()) for s in range(4)]
            optims = []
            for row, (lr, beta1, beta2, eps, decay, _) in zip(rows, HYPERS.tolist()):
                if adam:
                    optims.append(torch.optim.AdamW([row], lr, (beta1, beta2), eps, weight_decay=decay))
                else:
                    optims.append(torch.optim.SGD([row], lr, weight_decay=decay))
            for k in range(5):
                bank[1].copy_(torch.randn(bank[1].shape, generator=torch.Generator().manual_seed(k)))
                active = torch.tensor([True, k % 2 == 0, True, False])
                want = torch.zeros(4)
                for s in active.nonzero().flatten().tolist():
                    rows[s].grad = bank[1][s].clone()
                    clip = float(HYPERS[s, 5]) or float("inf")
                    want[s] = torch.nn.utils.clip_grad_norm_([rows[s]], clip)
                    optims[s].step()
                norms = ops.bank_step_(*bank, active)
                assert norms.dtype == torch.float32
                assert_close("norm", norms, want, 1e-6)
                assert not bank[1][active].any(), "a gradient was left behind"
            assert bank[4].tolist() == [5, 3, 5, 0], "a row's step count is its own"
            for s, row in enumerate(rows):
                assert_close(f"row {s}", bank[0][s], row.detach(), tol)


def idle(ops) -> None:
    """An inactive row keeps every bit of parameter, gradient, moments and step count, whatever its settings say."""
    bank = _bank()
    for t in bank[2:4]:
        t.copy_(torch.rand(t.shape))
    before = [t.clone() for t in bank]
    norms = ops.bank_step_(*bank, torch.tensor([True, False, True, False]))
    for name, now, then in zip(["param", "grad", "m", "v", "step", "hyper"], bank, before):
        assert torch.equal(now[[1, 3]], then[[1, 3]]), f"{name} of an idle slot changed"
    assert not norms[[1, 3]].any()
    assert not torch.equal(bank[0][[0, 2]], before[0][[0, 2]])


def step_keeps(ops) -> None:
    """A step that does not clear leaves every gradient as it was, finite or not, and moves all else as one that does."""
    for adam in (True, False):
        cleared, kept = _bank(adam=adam), _bank(adam=adam)
        for bank in (cleared, kept):
            bank[1][2, 5] = NAN
        before, active = kept[1].clone(), torch.tensor([True, False, True, True])
        norms = ops.bank_step_(*cleared, active, None, True), ops.bank_step_(*kept, active, None, False)
        assert torch.equal(kept[1].nan_to_num(7), before.nan_to_num(7)), "a gradient that was to stay changed"
        assert not cleared[1][[0, 2, 3]].any() and torch.equal(cleared[1][1], before[1])
        assert torch.equal(*(n.nan_to_num(7) for n in norms))
        for name, one, other in zip(["param", "m", "v", "step"], (*cleared[:1], *cleared[2:5]), (*kept[:1], *kept[2:5])):
            assert one is None or torch.equal(one, other), f"{name} moved otherwise"


def step_summed(ops) -> None:
    """A step that is given the squares of its gradients moves rows as one that sums them, and does not sum them itself."""
    for dtype, adam in itertools.product(BANK_DTYPES, (True, False)):
        given, summed, active = _bank(dtype, adam=adam), _bank(dtype, adam=adam), torch.tensor([True, False, True, True])
        sums = given[1].double().square()
        norms = ops.bank_step_(*given, active, None, True, sums), ops.bank_step_(*summed, active)
        assert_close("norms", *norms, 1e-6)
        for name, one, other in zip(["param", "m", "v"], (given[0], *given[2:4]), (summed[0], *summed[2:4])):
            assert one is None or assert_close(name, one, other, 1e-6) is None
        assert torch.equal(given[4], summed[4]) and not given[1][active].any()
        told, sums[2, 0], sums[3, 1] = _bank(dtype, adam=adam), NAN, float("inf")
        before = told[0].clone()
        norms = ops.bank_step_(*told, active, None, True, 4 * sums)
        assert norms.isfinite().tolist() == [True, True, False, False], "squares that are not finite moved a row"
        assert_close("norm", norms[:1], 2 * summed[1].new_tensor([float(_bank(dtype)[1][0].norm())]), 1e-6)
        assert torch.equal(told[0][1:], before[1:]) and not torch.equal(told[0][0], before[0])


def step_alone(ops) -> None:
    """A row's step has the same bits whichever other rows step with it, and where in the bank it lies."""
    everyone = torch.ones(4, dtype=torch.bool)
    together = _bank(width=40_003)
    norms = ops.bank_step_(*together, everyone)
    for s in range(4):
        bank = _bank(width=40_003)
        alone = ops.bank_step_(*bank, torch.arange(4) == s)
        assert alone[s] == norms[s], "a norm depends on the other rows"
        assert all(torch.equal(now[s], then[s]) for now, then in zip(bank, together)), "a step depends on the other rows"
    whole = _bank(width=640)
    whole[3], whole[5][:, 1:3], whole[5][:, 5] = whole[1].square() + 0.5, torch.tensor([0.9, 0.999]), 0
    for width in (21, 37, 320):
        part = [t[:, :width].clone() for t in whole[:4]]
        ops.bank_step_(*part, whole[4].clone(), whole[5], everyone)
        full = [t.clone() for t in whole[:4]]
        ops.bank_step_(*full, whole[4].clone(), whole[5], everyone)
        same = (torch.equal(now, then[:, :width]) for now, then in zip(part, full))
        assert all(same), "an element's step depends on its place in the row"
    order = torch.tensor([2, 0, 3, 1])
    bank = [t[order].clone() for t in _bank(width=40_003)]
    assert torch.equal(ops.bank_step_(*bank, everyone), norms[order])
    assert all(torch.equal(now, then[order]) for now, then in zip(bank, together)), "a step depends on a slot's number"


def not_finite(ops) -> None:
    """A row with a NaN or Inf in its gradient keeps everything but the gradient; its norm reports it; others step."""
    for adam in (True, False):
        bank, clean = _bank(adam=adam), _bank(adam=adam)
        bank[1][1, 5], bank[1][2, 7] = NAN, float("inf")
        before = [None if t is None else t.clone() for t in bank]
        norms = ops.bank_step_(*bank, torch.ones(4, dtype=torch.bool))
        ops.bank_step_(*clean, torch.ones(4, dtype=torch.bool))
        assert norms.isfinite().tolist() == [True, False, False, True]
        assert not bank[1].any(), "a gradient was left behind"
        for i in (0, 2, 3, 4):
            if bank[i] is not None:
                assert torch.equal(bank[i][[1, 2]], before[i][[1, 2]]), "a row without a finite norm was stepped"
                assert torch.equal(bank[i][[0, 3]], clean[i][[0, 3]]), "a NaN in one row changed another"


def step_copy(ops) -> None:
    """The 16-bit copy of a row follows its parameters, rounded to nearest even; a row that does not move keeps its copy."""
    for dtype, half in itertools.product(BANK_DTYPES, COPY_DTYPES):
        for adam in (True, False):
            bank, plain = _bank(dtype, adam=adam), _bank(dtype, adam=adam)
            for b in (bank, plain):
                b[1][3, 11] = NAN
            bank[0][0, :4] = plain[0][0, :4] = torch.tensor([1e-7, 65519.0, 7e4, -(2.0**-25)])  # fp16: beyond its range
            copy = torch.full((4, 1003), 7.0, dtype=half)
            active = torch.tensor([True, False, True, True])
            norms = ops.bank_step_(*bank, active, copy)
            assert torch.equal(norms.nan_to_num(), ops.bank_step_(*plain, active).nan_to_num())
            assert all(torch.equal(a, b) for a, b in zip(bank, plain) if a is not None), "the copy changes the step"
            assert torch.equal(copy[[0, 2]], bank[0][[0, 2]].to(half)), "the copy is not the parameters"
            assert (copy[[1, 3]] == 7).all(), "the copy of a row that did not move changed"


def step_strided(ops) -> None:
    """A bank whose rows are not contiguous steps like one whose rows are, and nothing between is touched."""
    for adam in (True, False):
        plain, active = _bank(width=50, adam=adam), torch.tensor([True, True, False, True])
        wide = [None if t is None else torch.full((4, 50, 2), 7.0) for t in plain[:4]]
        for w, t in zip(wide, plain):
            if w is not None:
                w[..., 0] = t
        views = [None if w is None else w[..., 0] for w in wide]
        norms = ops.bank_step_(*views, plain[4].clone(), plain[5], active)
        assert torch.equal(norms, ops.bank_step_(*plain, active))
        for w, t in zip(wide, plain):
            assert w is None or torch.equal(w[..., 0], t), "a strided bank steps otherwise"
            assert w is None or (w[..., 1] == 7).all(), "what lies between the elements of a matrix changed"


def copy(ops) -> None:
    """Rows are copied and zeroed in every matrix, of any dtype and strides; all others keep every bit."""
    wide = torch.randn(5, 301, 2)
    matrices = [torch.randn(5, 70), torch.randn(5, 70).bfloat16(), torch.arange(5, dtype=torch.int32), wide[:, :, 0]]
    matrices[0][2, 3] = NAN
    want = [m.clone() for m in matrices]
    for m in want:
        m[4], m[0] = m[2], 0
    other = wide[:, :, 1].clone()
    assert ops.bank_copy_(matrices, torch.tensor([2, -1]).int(), torch.tensor([4, 0]).int()) is None
    for got, expected in zip(matrices, want):
        assert torch.equal(got.nan_to_num(9), expected.nan_to_num(9))
    assert torch.equal(wide[:, :, 1], other), "what lies between the elements of a matrix changed"
    ops.bank_copy_(matrices, torch.zeros(0).int(), torch.zeros(0).int())


ATTENTION = [attend]
ADAPTERS = [values, several, backward, decode, strided, gradients, invariance, accumulation, fresh, squares, isolation]
ADAPTERS += [gram_step, gram_step_not_finite, gram_step_alone]
BANK = [step, step_strided, step_keeps, step_summed, idle, step_alone, not_finite, step_copy, copy]
ALL = ADAPTERS + ATTENTION + BANK


def report(ops, chosen) -> dict[str, str]:
    """check -> what went wrong, "" if nothing, with outputs poisoned: what runs in a process of its own hands this back."""
    import inspect
    import traceback

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN: an output left unwritten shows
    found = {}
    for check in chosen:
        torch.manual_seed(0)
        try:
            check(ops) if inspect.signature(check).parameters else check()
            found[check.__name__] = ""
        except Exception:
            found[check.__name__] = traceback.format_exc()
    return found
