"""What must hold of the ops that a decoder's layer is made of for one new token of every row. As in checks.py, each check takes
an object with the ops as attributes."""

import torch

from tmem import reference
from tmem.testing import TOLERANCES, assert_close, make_case

NAN = float("nan")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [(FP32, FP32), (BF16, BF16), (BF16, FP32), (FP16, FP16), (FP32, BF16)]
SLOTS = [2, -1, 0, 1, 0]


def wide(x):
    """In fp64, and lists of it; the scale, which is fp32 everywhere, and whole numbers stay."""
    if isinstance(x, (list, tuple)):
        return [wide(one) for one in x]
    return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def adapted(dtype, factor_dtype, count, n=130, shared=False):
    """x, a, bt, row_slot, rank and scale of rows with SLOTS, and `count` pairs of factors; what is beyond a rank is NaN."""
    kinds = {"shared_a": shared, "dtype": dtype, "factor_dtype": factor_dtype}
    cases = [make_case([1] * 5, SLOTS, [3, 8, 20], stored=20, k=1100, n=n, seed=i, **kinds) for i in range(count)]
    return [cases[0].x, [c.a for c in cases], [c.bt for c in cases], *cases[0].decode[2:]]


def of_row(row, adapter):
    """The same adapters of one row alone."""
    x, a, bt, row_slot, rank, scale = adapter
    return x[row : row + 1].clone(), a, bt, row_slot[row : row + 1], rank, scale


def oracle(op, *arguments):
    """What the reference gives in fp64; the scale is the last argument."""
    return getattr(reference, op)(*map(wide, arguments[:-1]), arguments[-1])


def rows(*shape, dtype):
    return torch.randn(*shape).to(dtype)


def projections(ops) -> None:
    """One to three projections of one x: the values of lora_decode_, each into its own y, and a row's bits alone."""
    for dtype, factor_dtype in DTYPES:
        for count, shared in ((1, False), (2, True), (3, False)):
            adapter = adapted(dtype, factor_dtype, count, shared=shared)
            adapter[2] = [bt[..., : 130 - 17 * i] for i, bt in enumerate(adapter[2])]
            y = [rows(5, bt.shape[2], dtype=dtype) for bt in adapter[2]]
            want, before = [one.double() for one in y], [one.clone() for one in y]
            reference.lora_decode_multi_(want, *wide(adapter[:-1]), adapter[-1])
            assert ops.lora_decode_multi_(y, *adapter) is None
            for got, expected, old in zip(y, want, before):
                assert_close("y", got, expected, TOLERANCES[dtype])
                assert torch.equal(got[1], old[1]), "a row without a slot changed"
            for row in range(5):
                alone = [old[row : row + 1].clone() for old in before]
                ops.lora_decode_multi_(alone, *of_row(row, adapter))
                assert all(torch.equal(one[0], got[row]) for one, got in zip(alone, y)), "a row depends on its neighbours"
    none = torch.zeros(0, 130)
    ops.lora_decode_multi_([none], none.new_zeros(0, 1100), *adapted(FP32, FP32, 1)[1:3], torch.zeros(0).int(), *adapter[4:])


def norms(ops) -> None:
    """The adapter, the residual sum and its norm, with a norm before the sum or none, under an adapter or none."""
    for dtype, factor_dtype in DTYPES:
        for n, before, plus in ((130, False, 0.0), (1037, True, 1.0)):
            y, residual, (first, weight) = rows(5, n, dtype=dtype), rows(5, n, dtype=dtype), rows(2, n, dtype=dtype)
            residual[0] *= 100
            fixed = (first if before else None), weight, 1e-5, plus
            for adapter in (adapted(dtype, factor_dtype, 1, n), (None, [], [], None, None, None)):
                got = ops.lora_norm(y, residual, *fixed, *adapter)
                want = oracle("lora_norm", y, residual, *fixed, *adapter)
                for name, one, expected in zip(("h", "n"), got, want):
                    assert one.dtype == dtype
                    assert_close(name, one, expected, TOLERANCES[dtype])


def products(ops) -> None:
    """The gated product of both kinds, of small and of large gates, under adapters or none."""
    for dtype, factor_dtype in DTYPES:
        gate, up = 3 * rows(5, 530, dtype=dtype), rows(5, 530, dtype=dtype)
        gate[:, :3] = torch.tensor([-200.0, 200.0, 1e-6])
        for gelu in (False, True):
            for adapter in (adapted(dtype, factor_dtype, 2, 530), (None, [], [], None, None, None)):
                got = ops.lora_glu(gate, up, gelu, *adapter)
                assert got.dtype == dtype
                assert_close("o", got, oracle("lora_glu", gate, up, gelu, *adapter), TOLERANCES[dtype])


def rotations(ops) -> None:
    """q and k are rotated, normed first where they have weights; k and v lie in the row's column, and nothing else changes."""
    for dtype in {d for d, _ in DTYPES}:
        for size, heads, groups, normed in ((20, 6, 2, True), (64, 4, 4, False), (6, 3, 1, True)):
            q, k, v = (rows(5, h * size, dtype=dtype) for h in (heads, groups, groups))
            q[1], v[1] = NAN, NAN
            cos, sin = rows(2, 5, size, dtype=dtype)
            weights = rows(2, size, dtype=dtype).unbind() if normed else (None, None)
            cache, at = rows(2, 5, groups, 9, 2 * size, dtype=dtype)[..., :size], torch.tensor([3, 0, 8, 9, -1])
            want, before = cache.double(), cache.clone()
            rest = q, k, v, cos, sin
            expected = reference.rope_write_(*want, *map(wide, rest), at, *map(wide, weights), 1e-6, 1.0)
            got = ops.rope_write_(*cache, *rest, at, *weights, 1e-6, 1.0)
            assert got.shape == (5, heads, size) and got.dtype == dtype
            assert got[[1, 3, 4]].isnan().all(), "a row whose column is not there does not show"
            assert_close("q", got[[0, 2]], expected[[0, 2]], TOLERANCES[dtype])
            here = (torch.arange(9) == at[:, None])[:, None, :, None]
            assert torch.equal(torch.where(here, 0, cache), torch.where(here, 0, before)), "another column changed"
            assert_close("keys", cache[0, [0, 1, 2], :, at[:3]], want[0, [0, 1, 2], :, at[:3]], TOLERANCES[dtype])
            assert torch.equal(cache[1, [0, 2], :, at[[0, 2]]], v.view(5, groups, size)[[0, 2]])


def lengths(ops) -> None:
    """attend over several parts: holes, windows, rows of one column and of all; a row's bits with fewer columns, alone."""
    for dtype in (FP32, BF16):
        length, column = 600, torch.arange(600)
        window, apart = (column >= 500) & (column < 513), (column < 9) | (column == 555)
        mask = torch.stack([column < 37, column < 1, column < 0, window, column >= 0, apart]) & (column % 7 != 3)
        for heads, share, width in ((2, 3, 64), (1, 17, 20)):
            q = (3 * torch.randn(6, heads * share, width)).to(dtype)
            k, v = (torch.where(mask[:, None, :, None], torch.randn(6, heads, length, width), NAN).to(dtype) for _ in range(2))
            k[0, :, 4], v[5, :, 555] = NAN, NAN  # which are seen
            got, want = ops.attend(q, k, v, mask, 0.3), reference.attend(*map(wide, (q, k, v)), mask, 0.3)
            assert got[0].isnan().all() and got[5].isnan().all() and not got[2].any()
            assert_close("o", got[1:5], want[1:5], TOLERANCES[dtype])
            for row, end in ((1, 16), (3, 520), (4, 600)):
                alone = [x[row : row + 1, :, :end].clone() for x in (k, v)]
                found = ops.attend(q[row : row + 1].clone(), *alone, mask[row : row + 1, :end].clone(), 0.3)
                assert torch.equal(found[0], got[row]), "a row depends on its neighbours or on what it does not see"


def neighbours(ops) -> None:
    """A row's h, n and gated product have the bits that they have alone. In kernels: torch's own depend on where a row lies."""
    for dtype, factor_dtype in DTYPES[:2]:
        y, other = rows(5, 530, dtype=dtype), rows(5, 530, dtype=dtype)
        for count in (0, 2):
            adapter = adapted(dtype, factor_dtype, 2, 530) if count else (None, [], [], None, None, None)

            weights = y[0].clone(), other[0].clone()

            def computed(first, second, x, a, bt, *named, weights=weights):
                normed = ops.lora_norm(first, second, *weights, 1e-6, 1.0, x, a[:1], bt[:1], *named)
                return *normed, ops.lora_glu(first, second, False, x, a, bt, *named)

            together = computed(y, other, *adapter)
            for row in range(5):
                part = of_row(row, adapter) if count else adapter
                alone = computed(y[row : row + 1].clone(), other[row : row + 1].clone(), *part)
                assert all(torch.equal(one[0], all_[row]) for one, all_ in zip(alone, together))


def few_rows(ops) -> None:
    """row_linear of every tail of the depth, of outputs and rows that fill no tile, strided; a row's bits alone, beside NaN."""
    for dtype in (FP32, BF16, FP16, torch.float64):
        for m, k, n in ((1, 5, 3), (3, 33, 9), (5, 64, 1), (7, 1100, 130), (16, 95, 22), (4, 32, 0), (0, 3, 3)):
            x, w, bias = rows(m, 2 * k, dtype=dtype)[:, :k], rows(n, k + 3, dtype=dtype)[:, 3:], rows(n, dtype=dtype)
            for b in (None, bias):
                got = ops.row_linear(x, w, b)
                assert got.dtype == dtype and got.is_contiguous()
                assert_close("y", got, reference.row_linear(*wide((x, w, b))), TOLERANCES[dtype])
            for row in range(m):
                among = torch.full((9, k), NAN).to(dtype)
                among[4] = x[row]
                assert torch.equal(ops.row_linear(among, w, b)[4], got[row]), "a row depends on its neighbours"
                assert torch.equal(ops.row_linear(x[row : row + 1].clone(), w, b)[0], got[row])


def _of_rows(ops, among, adapter, sums, norm, heads, cache, turned):
    """What every op makes of the rows `among` these, written columns too."""
    x, a, bt, row_slot, rank, scale = adapter
    x, row_slot, first, second, *heads = (t[among].clone() for t in (x, row_slot, *sums, *heads))
    named, kept, made = (row_slot, rank, scale), cache[:, among].clone(), [first.clone(), second.clone()]
    ops.lora_decode_multi_(made, x, a, bt, *named)
    normed = ops.lora_norm(first, second, *norm, 1e-6, 1.0, x, a[:1], bt[:1], *named)
    glu = ops.lora_glu(first, second, True, x, a, bt, *named)
    out = ops.rope_write_(*kept, *heads, *turned, 1e-6, 0.0)
    return [t.nan_to_num(9) for t in (*made, *normed, glu, out, *kept)]


def alone(ops) -> None:
    """What a row gives, written columns too, has the bits that it has by itself, on 1 or 2 threads. Wide enough for two."""
    threads, n = torch.get_num_threads(), 1537
    for dtype, factor_dtype in ((FP32, FP32), (BF16, FP32), (torch.float64, torch.float64)):
        heads = [rows(5, width, dtype=dtype) for width in (16 * 96, 4 * 96, 4 * 96, 96, 96)]
        heads.append(torch.tensor([3, 0, 8, 9, -1]))
        cache, turned = rows(2, 5, 4, 9, 96, dtype=dtype), rows(2, 96, dtype=dtype)
        given = adapted(dtype, factor_dtype, 2, n), rows(2, 5, n, dtype=dtype), rows(2, n, dtype=dtype), heads, cache, turned
        together = _of_rows(ops, slice(0, 5), *given)
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                again = _of_rows(ops, slice(0, 5), *given)
                assert all(map(torch.equal, again, together)), f"bits changed with {count} threads"
                for row in range(5):
                    for one, all_ in zip(_of_rows(ops, slice(row, row + 1), *given), together):
                        assert torch.equal(one[0], all_[row]), "a row depends on its neighbours"
        finally:
            torch.set_num_threads(threads)


def dtypes(ops) -> None:
    """Weights, angles and the cache of other dtypes than the rows, fp64 among them."""
    every = FP32, BF16, FP16, torch.float64
    for dtype in every:
        for other in every:
            tolerance = max(TOLERANCES[dtype], TOLERANCES[other])
            y, residual, weights = rows(3, 37, dtype=dtype), rows(3, 37, dtype=dtype), rows(2, 37, dtype=other)
            fixed = *weights, 1e-5, 1.0, None, [], [], None, None
            for one, expected in zip(ops.lora_norm(y, residual, *fixed, None), oracle("lora_norm", y, residual, *fixed, None)):
                assert one.dtype == dtype
                assert_close("normed", one, expected, TOLERANCES[dtype])
            q, k, v = (rows(3, heads * 38, dtype=dtype) for heads in (4, 2, 2))
            cos, sin, turned, cache = *rows(2, 3, 38, dtype=other), rows(2, 38, dtype=other), rows(2, 3, 2, 5, 38, dtype=other)
            at, want = torch.tensor([4, 0, 2]), cache.double()
            expected = reference.rope_write_(*want, *wide([q, k, v, cos, sin]), at, *wide(turned.unbind()), 1e-6, 1.0)
            got = ops.rope_write_(*cache, q, k, v, cos, sin, at, *turned, 1e-6, 1.0)
            assert got.dtype == dtype
            assert_close("q", got, expected, TOLERANCES[dtype])
            assert_close("keys", cache[0], want[0], tolerance)
            assert torch.equal(cache[1], want[1].to(other)), "values are not those that came"


TOKEN = [projections, norms, products, rotations]


def lost(ops) -> None:
    """On a GPU no value is read: a slot that is freed, out of range or above the stored rank shows as NaN in its rows alone."""
    y, gate = torch.randn(5, 130), torch.randn(5, 130)
    for slot, ranks in ((1, [3, 0, 20]), (7, [3, 8, 20]), (-3, [3, 8, 20]), (1, [3, 21, 20])):
        good = adapted(FP32, FP32, 2)
        bad = [*good[:3], torch.tensor([2, -1, 0, slot, 0]).int(), torch.tensor(ranks).int(), good[5]]
        found = []
        for x, a, bt, *named in (good, bad):
            sums = [y.clone()]
            ops.lora_decode_multi_(sums, x, a[:1], bt[:1], *named)
            h, n = ops.lora_norm(y, gate, None, y[0], 1e-6, 0.0, x, a[:1], bt[:1], *named)
            found.append((sums[0], h, n, ops.lora_glu(gate, y, False, x, a, bt, *named)))
        for want, got in zip(*found):
            assert got[3].isnan().all() and torch.equal(got[[0, 1, 2, 4]], want[[0, 1, 2, 4]])


def sick(ops) -> None:
    """A NaN in one row's input, residual, factors or scale stays in that row, or in the rows of that slot."""
    y, gate = torch.randn(5, 130), torch.randn(5, 130)
    good = adapted(FP32, FP32, 2)
    for what in ("x", "y", "a", "bt", "scale"):
        x, a, bt, row_slot, rank, scale = (list(t) if isinstance(t, list) else t.clone() for t in good)
        row = 3 if what != "y" else 1  # slot 1 has row 3 alone; row 1 has none
        mine, his = y.clone(), gate.clone()
        if what == "x":
            x[3, 5], x[1] = NAN, NAN  # that of a row without a slot is not looked at
        elif what == "y":
            mine[1, 2], his[1, 2] = NAN, NAN
        elif what == "scale":
            scale[1] = NAN
        else:
            factors = a if what == "a" else bt
            factors[:] = [f.clone() for f in factors]
            for f in factors:
                f[1, 0, 7] = NAN
        found = []
        for first, second, adapter in ((y, gate, good), (mine, his, (x, a, bt, row_slot, rank, scale))):
            xs, fa, fb, *named = adapter
            sums = [first.clone()]
            ops.lora_decode_multi_(sums, xs, fa[:1], fb[:1], *named)
            normed = ops.lora_norm(first, second, None, y[0], 1e-6, 0.0, xs, fa[:1], fb[:1], *named)
            found.append((sums[0], *normed, ops.lora_glu(second, first, True, xs, fa, fb, *named)))
        others = [i for i in range(5) if i != row]
        for want, got in zip(*found):
            assert got[row].isnan().any() and torch.equal(got[others], want[others]), what


CPU = [sick, lengths, neighbours, alone, dtypes, few_rows]
GPU = [lost, sick, lengths, neighbours]
