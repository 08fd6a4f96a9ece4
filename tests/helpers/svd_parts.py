"""The promises of what batched_rsvd is made of, against fp64: kept by the C++ kernels (test_rsvd.py), the emulated CUDA kernels
(emulated_svd.py), and these on a GPU (test_gpu.py). `parts`: the ops, as torch.ops.tmem; all tensors on `device`."""

import torch
from torch import Tensor

from tmem import reference

SHAPES = [
    (577, 301, 16), (150, 33, 16), (130, 7, 5), (1, 1, 1), (3, 300, 17), (64, 64, 32), (16, 1100, 16), (5, 0, 3), (129, 40, 33),
]  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PRODUCT = dict.fromkeys(DTYPES, 1e-6)  # relative RMS error; on tensor cores, as of two bf16 numbers each, 1e-5
GRAMS = [(600, 40, 17), (70, 600, 16), (40, 1100, 33), (300, 520, 5), (1, 1, 1), (0, 4, 2)]
SCANS = [(2, 577, 301), (2, 70, 136), (1, 1, 1), (3, 1, 9000), (3, 9000, 1)]
ALL_DTYPES = True  # False: each shape in one of them
EIGH = [(1, 1), (7, 3), (32, 32), (112, 16), (160, 20)]
SMALL = [1, 5, 16, 32, 64]


def close(name: str, got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape, f"{name}: shape {list(got.shape)}, expected {list(want.shape)}"
    error = float((got.double().cpu() - want.double().cpu()).norm() / (want.double().norm().cpu() or 1))
    assert error <= tolerance, f"{name}: relative RMS error {error:.1e} > {tolerance:.0e}"


def equal(name: str, one: Tensor, other: Tensor) -> None:
    assert torch.equal(one, other), f"{name}: other bits"


def normal(*shape: int, seed: int = 0, device="cpu") -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def views(w: Tensor) -> list[list[Tensor]]:
    """The same matrices [b,m,n] as they may come."""
    wide = torch.full((w.shape[0], 2 * w.shape[1], 2 * w.shape[2]), float("nan"), dtype=w.dtype, device=w.device)
    wide[:, ::2, ::2] = w
    turned = w.mT.contiguous().mT
    return [[w], list(w), [turned], list(turned), [wide[:, ::2, ::2]], list(wide[:, ::2, ::2])]


def products(parts, device="cpu") -> None:
    """Every shape, dtype and view; the same bits however the matrices lie and whatever else is in the list."""
    cases = [(shape, dtype) for i, shape in enumerate(SHAPES) for dtype in (DTYPES if ALL_DTYPES else [DTYPES[i % 3]])]
    for (m, n, columns), dtype in cases:
        name = f"product {m}x{n}, {columns} columns, {dtype}"
        w = normal(3, m, n, seed=m, device=device).to(dtype)
        x, minus = normal(3, n, columns, seed=1, device=device), normal(3, m, columns, seed=2, device=device)
        scale = torch.tensor([1.0, 0.25, 2.0], device=device)
        right = scale[:, None, None].double() * (w.double() @ x.double())
        tolerance = PRODUCT[dtype]
        first = parts.svd_product([w], x, scale)
        close(name, first, right, tolerance)
        for some in views(w):
            equal(f"{name}, a view", parts.svd_product(some, x, scale), first)
        difference = parts.svd_product([w], x, scale, minus)
        close(f"{name}, minus", difference, minus.double() - right, tolerance)
        order = [2, 0, 1]
        permuted = parts.svd_product([w[i] for i in order], x[order], scale[order], minus[order])
        equal(f"{name}, order", permuted, difference[order])
        equal(f"{name}, alone", parts.svd_product([w[1:2]], x[1:2]) * 0.25, first[1:2])
        close(f"{name}, turned", parts.svd_product([w.mT], minus), w.double().mT @ minus.double(), tolerance)
        equal(f"{name}, x with strides", parts.svd_product([w], x.mT.contiguous().mT, scale), first)
        gram = scale[:, None, None].double() * (w.double().mT @ right)
        close(f"{name}, gram", parts.svd_gram(list(w), x, scale), gram, 2 * tolerance)


def grams(parts, device="cpu") -> None:
    """scale²·WᵀW x of W in slices of columns and ranges of rows; the same bits as in products."""
    for i, (m, n, columns) in enumerate(GRAMS):
        dtype = (torch.bfloat16, torch.float16)[i % 2]
        name = f"gram {m}x{n}, {columns} columns, {dtype}"
        w, x = normal(3, m, n, seed=m, device=device).to(dtype), normal(3, n, columns, seed=1, device=device)
        scale = torch.tensor([1.0, 0.25, 2.0], device=device)
        want = scale.square()[:, None, None].double() * (w.double().mT @ (w.double() @ x.double()))
        first = parts.svd_gram([w], x, scale)
        close(name, first, want, 2 * PRODUCT[dtype])
        for some in views(w):
            equal(f"{name}, a view", parts.svd_gram(some, x, scale), first)
        equal(f"{name}, order", parts.svd_gram([w[i] for i in (2, 0, 1)], x[[2, 0, 1]], scale[[2, 0, 1]]), first[[2, 0, 1]])
        equal(f"{name}, alone", parts.svd_gram([w[1:2]], x[1:2], scale[1:2]), first[1:2])


def long_lists(parts, device="cpu") -> None:
    """More matrices than one launch takes, and a length that is summed in pieces."""
    w, x = normal(200, 9, 11, device=device), normal(200, 11, 4, seed=1, device=device)
    close("200 matrices", parts.svd_product([w], x), w.double() @ x.double(), 1e-6)
    gram = parts.svd_gram(list(w[:20].bfloat16()), x[:20], torch.ones(20, device=device))
    equal("Gram steps of 20", gram[9:11], parts.svd_gram([w[9:11].bfloat16()], x[9:11], torch.ones(2, device=device)))
    equal("200 in a list", parts.svd_product(list(w), x), parts.svd_product([w], x))
    equal("scan of 200", parts.svd_scan(list(w)), w.abs().amax((1, 2)))
    w, x = normal(1, 140, 4500, device=device), normal(1, 4500, 16, seed=1, device=device)
    close("a sum in pieces", parts.svd_product([w], x), w.double() @ x.double(), 1e-6)


def not_finite(parts, device="cpu") -> None:
    """What is not finite stays in its matrix, and in its row."""
    for dtype in DTYPES:
        w, x = normal(3, 40, 50, device=device).to(dtype), normal(3, 50, 16, seed=1, device=device)
        want, gram = parts.svd_product([w], x), parts.svd_gram([w], x, torch.ones(3, device=device))
        for bad in ("nan", "inf"):
            spoilt = w.clone()
            spoilt[1, 39, 49] = float(bad)
            got = parts.svd_product([spoilt], x)
            equal("neighbours", got[::2], want[::2])
            equal("other rows", got[1, :-1], want[1, :-1])
            assert not got[1, -1].isfinite().any(), bad
            equal("neighbours of a Gram step", parts.svd_gram([spoilt], x, torch.ones(3, device=device))[::2], gram[::2])
            most = parts.svd_scan(list(spoilt))
            assert most[1].isnan() if bad == "nan" else most[1].isinf(), most
            equal("scan of neighbours", most[::2], w.float().abs().amax((1, 2))[::2])
        for large in (float("inf"), torch.finfo(torch.float32).max):  # the latter rounds to infinity in bf16
            spoilt, small = x.clone(), w * 2**-6
            spoilt[1, 7, 3] = large
            got, want = parts.svd_product([small], spoilt).double(), small.double() @ spoilt.double()
            assert torch.equal(got.isposinf(), want.isposinf()) and torch.equal(got.isneginf(), want.isneginf()), large
            close(f"{dtype}, {large:.0e} in x", got[want.isfinite()], want[want.isfinite()], 1e-4)


def scans(parts, device="cpu") -> None:
    for shape in SCANS:
        for dtype in DTYPES:
            w = normal(*shape, seed=shape[2], device=device).to(dtype)
            for some in views(w):
                equal(f"scan {shape} {dtype}", parts.svd_scan(some), w.float().abs().amax((1, 2)))
    equal("scan of zeros", parts.svd_scan([torch.zeros(2, 5, 5, device=device)]), torch.zeros(2, device=device))


def sketches(parts, device="cpu") -> None:
    key = torch.tensor([5, 2**50 + 3, 0, -7], device=device)
    for seed, rows, columns in ((0, 577, 16), (2**40 + 9, 33, 18), (-1, 1, 1), (3, 0, 4)):
        equal("sketch", parts.svd_sketch(key, seed, rows, columns), reference.svd_sketch(key, seed, rows, columns))


def factors(parts, device="cpu") -> None:
    """y·inverse has orthonormal columns; the pivot tells when not."""
    for columns in (1, 5, 16, 33, 128):
        y = normal(3, 300, columns, seed=columns, device=device) * torch.logspace(-6, 6, columns, device=device)
        g = y.mT @ y
        inverse, pivot = parts.svd_factor(g, 0.0)
        _, want = reference.svd_factor(g.double())
        q = y.double() @ inverse.double()
        eye = torch.eye(columns, dtype=torch.float64, device=device).expand(3, -1, -1)
        close(f"whitened, {columns}", q.mT @ q, eye, 2e-5)
        close(f"pivot, {columns}", pivot, want, 1e-4)
        assert (inverse.tril(-1) == 0).all(), "not upper triangular"
        if columns % 16 == 0:  # as batched_rsvd has them; LAPACK's bits of others depend on where they lie
            equal("alone", parts.svd_factor(g[1:2], 0.0)[0], inverse[1:2])
        shifted = parts.svd_factor(g, 0.1)
        for one, other in zip(shifted, reference.svd_factor(g.double(), 0.1)):
            close(f"shifted, {columns}", one, other, 1e-4)
    bad = torch.eye(4, device=device).repeat(5, 1, 1)
    bad[1] = 0
    bad[2, 3, 3] = -1
    bad[3, 0, 1] = bad[3, 1, 0] = float("nan")
    bad[4] = 1  # rank 1
    inverse, pivot = parts.svd_factor(bad, 0.0)
    want, _ = reference.svd_factor(bad)
    assert pivot[0] == 1 and (pivot[1:4] == 0).all() and pivot[4] < 1e-6, pivot
    close("where it fails", inverse[:4], want[:4], 1e-6)


def eigenproblems(parts, device="cpu") -> None:
    for columns, count in EIGH:
        q = torch.linalg.qr(normal(2, columns, columns, seed=columns).double())[0].to(device)
        values = torch.linspace(1, 3, columns, dtype=torch.float64, device=device).flip(0) ** 4
        t = (q * values @ q.mT).float()
        found, vectors = parts.svd_eigh(t, count)
        close(f"eigenvalues {columns}", found, values[:count].expand(2, -1), 1e-5)
        eye = torch.eye(count, dtype=torch.float64, device=device).expand(2, -1, -1)
        close("orthonormal", vectors.double().mT @ vectors.double(), eye, 1e-5)
        close("vectors", t.double() @ vectors.double(), vectors.double() * found.double()[:, None], 1e-5)
        equal("alone", parts.svd_eigh(t[1:], count)[1], vectors[1:])
    values, vectors = parts.svd_eigh(torch.zeros(1, 6, 6, device=device), 2)
    assert (values == 0).all()
    close("of zero", vectors.mT @ vectors, torch.eye(2, device=device)[None], 1e-6)


def small_ones(parts, device="cpu") -> None:
    """Upper triangular, with singular values over ten decades, zero, and of rank 2."""
    for columns in SMALL:
        q = [torch.linalg.qr(normal(columns, columns, seed=s).double())[0].to(device) for s in range(2)]
        steep = q[0] * torch.logspace(0, -10, columns, dtype=torch.float64, device=device) @ q[1].T
        r = torch.linalg.qr(torch.stack([normal(columns, columns, seed=3, device=device).double(), steep]))[1].float()
        r = torch.cat([r, torch.zeros(1, columns, columns, device=device)])
        if columns > 2:
            r[2, 0, 1], r[2, 1, 2] = 3, 4
        u, s, v = parts.svd_small(r)
        eye = torch.eye(columns, device=device).expand(3, -1, -1)
        close(f"U {columns}", u.mT @ u, eye, 1e-5)
        close(f"V {columns}", v.mT @ v, eye, 1e-5)
        close(f"U S Vᵀ {columns}", u * s[:, None] @ v.mT, r, 1e-5)
        assert (s[:, :-1] >= s[:, 1:]).all() and (s >= 0).all(), s
        close("values", s[0], torch.linalg.svdvals(r[0].double()), 1e-5)
        if columns > 2:
            close("of rank 2", s[2, :3], torch.tensor([4.0, 3, 0]), 1e-6)


ALL = (products, grams, long_lists, not_finite, scans, sketches, factors, eigenproblems, small_ones)
