"""batched_rsvd: truncated singular value decompositions of many matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks, _svd

METHODS = ("krylov", "subspace", "exact")
DEFAULTS = {"krylov": (0, 6), "subspace": (8, 2), "exact": (0, 0)}
"""oversample and iters of each method."""
WORKSPACE = 256 << 20  # bytes
NOT_FINITE, CHOLESKY, SHIFTED, HOUSEHOLDER = -1, 0, 1, 2
"""info: what a matrix took. Shifted: the careful way, of shifted CholeskyQR3; Householder: where that failed too."""

_WIDTH = 16  # columns of a vector register and of a tile of tensor cores: blocks are multiples
_STEEP = 3e-3  # s_r/s_1 below which the squares in AᵀA lose too much in fp32
_LEAST_PIVOT = 1e-4  # of an equilibrated Gram matrix: the columns' condition number is then at most about 100
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


_Found = tuple[Tensor, Tensor, Tensor, int]  # u, s, v, info of one matrix


class SVD(NamedTuple):
    """A ≈ U diag(S) Vᵀ. U [m,r], S [r] descending, V [n,r] (None where not asked for), info: see batched_rsvd."""

    U: Tensor | None
    S: Tensor | None
    V: Tensor | None
    info: int

    @property
    def Vh(self) -> Tensor | None:
        """Vᵀ [r,n], as torch.linalg.svd gives it."""
        return None if self.V is None else self.V.mT


def batched_rsvd(
    matrices: Sequence[Tensor] | Tensor,
    rank: int,
    *,
    oversample: int | None = None,
    iters: int | None = None,
    method: str = "krylov",
    seed: int = 0,
    compute: Sequence[str] = ("U", "S", "V"),
    out_dtype: torch.dtype | None = None,
    check_finite: bool = True,
    on_error: str = "raise",
    workspace: int = WORKSPACE,
) -> list[SVD]:
    """The leading `rank` singular triples of every matrix, one SVD(U, S, V, info) each, in the order of the input.

        matrices   a list of [m,n] tensors of any shapes, strides and devices, or one [b,m,n]; bf16, fp16 and fp32 are
                   computed with in fp32, fp64 in fp64. Never copied or stacked.
        method     "krylov": Rayleigh-Ritz in the Krylov space of AᵀA from a random block of columns, with `iters`
                   multiplications (Musco & Musco 2015, arXiv 1504.05477), then one more half step on both sides. "subspace":
                   power iteration on one block, `iters` times (Halko, Martinsson & Tropp 2011, algorithms 4.4 and 5.1). A
                   block has rank + oversample columns, rounded up to a multiple of 16. "exact": LAPACK or its counterpart on
                   the GPU; also taken where the space of the others would not be smaller than the matrix.
        oversample, iters  defaults by method: krylov 0 and 6, subspace 8 and 2
        seed       of the random block, which depends on (seed, largest magnitude of the matrix, row, column) alone
        compute    which of "U", "S", "V" to return; the others are None
        out_dtype  of U and V; S, and by default all three, are fp32, or fp64 for fp64
        check_finite  False: the caller vouches that no matrix holds a NaN or an infinity, and a GPU is not waited for
        on_error   "raise": ValueError naming every matrix that is not finite. "info": NaN factors and info -1 for those
        workspace  bytes beyond matrices and results that may be in use; one matrix at a time is always worked on

    The same seed gives the same bits on the same device with as many threads, whatever else is in the list, in any order;
    random generators are not touched. The entry of largest magnitude in each column of V is positive. info: 0 CholeskyQR2
    sufficed; 1 a second, careful way was taken, with shifted CholeskyQR3, as columns were near to dependent or singular
    values fall steeply; 2 that needed Householder QR; -1 the matrix is not finite. U and V are orthonormal in every case,
    also of zero or rank-deficient matrices. Results may be views of what was computed together. Not differentiable. Raises
    ValueError or TypeError, naming the matrix and its shape, before anything is computed.
    """
    op = "batched_rsvd"
    matrices = _listed(op, matrices)
    oversample, iters = _settings(op, method, oversample, iters, compute, out_dtype, on_error, workspace, seed)
    for i, matrix in enumerate(matrices):
        _check(op, i, matrix, rank)
    if any(matrix.is_cuda for matrix in matrices):
        _svd.tell_if_slow_on_gpu()
    results: dict[int, _Found] = {}
    groups: dict[tuple, list[int]] = {}
    for i, matrix in enumerate(matrices):
        groups.setdefault((tuple(matrix.shape), matrix.dtype, matrix.device), []).append(i)
    most = {key: _svd.scan([matrices[i] for i in members]) for key, members in groups.items()}
    if check_finite:
        finite = {key: values.isfinite().tolist() for key, values in most.items()}
        bad = sorted(i for key, members in groups.items() for i, good in zip(members, finite[key]) if not good)
        if bad and on_error == "raise":
            named = ", ".join(f"matrices[{i}] of shape {list(matrices[i].shape)}" for i in bad)
            raise ValueError(
                f'{op}: {named} {"holds" if len(bad) == 1 else "hold"} NaN or infinity; repair it, or pass on_error="info"'
            )
    for key, members in groups.items():
        good = [j for j in range(len(members)) if not check_finite or finite[key][j]]
        for j in set(range(len(members))) - set(good):
            results[members[j]] = _not_finite(matrices[members[j]], rank)
        if good:
            some = [matrices[members[j]] for j in good]
            found = _group(some, most[key][good], rank, method, oversample, iters, seed, workspace)
            for j, result in zip(good, found):
                results[members[j]] = result
    return [_finished(results[i], compute, out_dtype) for i in range(len(matrices))]


def _listed(op: str, matrices) -> list[Tensor]:
    if not isinstance(matrices, (Tensor, Sequence)):
        raise TypeError(f"{op}: matrices must be a list of [m,n] or one [b,m,n], got {type(matrices).__name__}")
    if isinstance(matrices, Tensor):
        _checks.tensor(op, "matrices", matrices)
        if matrices.dim() != 3:
            raise ValueError(f"{op}: matrices must be a list of [m,n] or one [b,m,n], got one tensor {list(matrices.shape)}")
        return list(matrices.detach().unbind(0))
    for i, matrix in enumerate(matrices):
        _checks.tensor(op, f"matrices[{i}]", matrix)
    return [matrix.detach() for matrix in matrices]


def _settings(op, method, oversample, iters, compute, out_dtype, on_error, workspace, seed) -> tuple[int, int]:
    if method not in METHODS:
        raise ValueError(f"{op}: method must be one of {', '.join(METHODS)}, got {method!r}")
    if on_error not in ("raise", "info"):
        raise ValueError(f"{op}: on_error must be raise or info, got {on_error!r}")
    if not isinstance(compute, Sequence) or not set(compute) <= {"U", "S", "V"}:
        raise ValueError(f"{op}: compute must name some of U, S, V, got {compute!r}")
    if out_dtype is not None and out_dtype not in _DTYPES:
        raise TypeError(f"{op}: out_dtype must be one of {', '.join(map(str, _DTYPES))}, got {out_dtype}")
    given = {"oversample": oversample, "iters": iters}
    for (name, value), default in zip(given.items(), DEFAULTS[method]):
        given[name] = default if value is None else value
        if type(given[name]) is not int or given[name] < 0:
            raise ValueError(f"{op}: {name} must be a whole number, 0 or more, got {value!r}")
    if type(seed) is not int or not -(2**63) <= seed < 2**63:
        raise ValueError(f"{op}: seed must be a whole number of 64 bits, got {seed!r}")
    if type(workspace) is not int or workspace < 1:
        raise ValueError(f"{op}: workspace must be a positive number of bytes, got {workspace!r}")
    return given["oversample"], given["iters"]


def _check(op: str, i: int, matrix: Tensor, rank: int) -> None:
    name = f"matrices[{i}]"
    if hasattr(matrix, "placements"):
        raise TypeError(f"{op}: {name} is sharded (a DTensor); gather it first, as with full_tensor()")
    if matrix.dim() != 2:
        raise ValueError(f"{op}: {name} must have shape [m, n], got {list(matrix.shape)}")
    if matrix.dtype not in _DTYPES:
        raise TypeError(
            f"{op}: {name} of shape {list(matrix.shape)} must be float32, bfloat16, float16 or float64,"
            f" got {str(matrix.dtype).removeprefix('torch.')}"
        )
    if matrix.is_meta:
        raise ValueError(f"{op}: {name} of shape {list(matrix.shape)} is on the meta device and has no values")
    if type(rank) is not int or not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"{op}: rank must be in 1..{min(matrix.shape)} for {name} of shape {list(matrix.shape)}, got {rank!r}")


def _not_finite(w: Tensor, rank: int) -> _Found:
    dtype = _accumulator(w)
    sizes = (len(w), rank), (rank,), (w.shape[1], rank)
    u, s, v = (torch.full(size, float("nan"), dtype=dtype, device=w.device) for size in sizes)
    return u, s, v, NOT_FINITE


def _accumulator(w: Tensor) -> torch.dtype:
    return torch.float64 if w.dtype == torch.float64 else torch.float32


def _finished(found: _Found, compute: Sequence[str], out_dtype: torch.dtype | None) -> SVD:
    u, s, v, info = found
    u, v = u.to(out_dtype or u.dtype), v.to(out_dtype or v.dtype)
    return SVD(u if "U" in compute else None, s if "S" in compute else None, v if "V" in compute else None, info)


def _signed(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The sign rule, of one or of many."""
    sign = torch.where(v.gather(-2, v.abs().argmax(-2, keepdim=True)) < 0, -1, 1)
    return u * sign, v * sign


def _group(w, most, rank, method, oversample, iters, seed, workspace) -> list[_Found]:
    """(u, s, v, info) of matrices of one shape, dtype and device, each worked on as if it were alone."""
    long, short = max(w[0].shape), min(w[0].shape)
    columns = -(-(rank + oversample) // _WIDTH) * _WIDTH
    space = columns * (iters + 1) if method == "krylov" else columns
    if method == "exact" or space >= short:
        return [_exact(one, rank) for one in w]
    size = 8 if w[0].dtype == torch.float64 else 4
    each = size * (short * (space + 4 * columns) + 3 * long * columns + 4 * space**2)  # basis, blocks, eigenproblem
    chunk = max(1, workspace // each)
    # A power of two that brings the largest magnitude into [1/2, 1); 2^±100 leaves room for sums at the ends of fp32.
    mantissa, exponent = torch.frexp(most)
    scale = torch.ldexp(torch.ones_like(most), -exponent.clamp(-100, 100))
    key = (mantissa.float() * 2**24).long()
    out = []
    for i in range(0, len(w), chunk):
        part = slice(i, i + chunk)
        out += _chunk(w[part], key[part], scale[part], columns, iters, method, rank, seed)
    return out


def _exact(w: Tensor, rank: int) -> _Found:
    u, s, vh = reference.dense_svd(w.to(_accumulator(w)))
    u, v = _signed(u[:, :rank], vh[:rank].mT)
    return u, s[:rank].clone(), v, CHOLESKY


def _chunk(w, key, scale, columns, iters, method, rank, seed) -> list[tuple]:
    """All matrices by CholeskyQR2; then again, the careful way, those for which that is not enough."""
    space = _krylov if method == "krylov" else _subspace
    wide = w[0].shape[0] < w[0].shape[1]
    start = _svd.sketch(key, seed, min(w[0].shape), columns).to(scale.dtype)

    def decompose(which: list[int], careful: bool) -> tuple:
        some, by = [w[i] for i in which], scale[which]
        levels: list[Tensor] = []
        pivots: list[Pivots] = []  # looked at when all is done: every look is work for a GPU

        def orth(y: Tensor, basis: Tensor | None = None) -> Tensor:
            if careful:
                q, level = _careful_qr(y, basis)
                levels.append(level)
            else:
                q, met = _cholesky_qr(y, basis)
                pivots.append(met)
            return q

        tall = [one.mT for one in some] if wide else some
        v = space(tall, by, start[which], iters, orth, careful)
        if wide:
            v = orth(_svd.product(tall, v, by))
        u, s, v = _both_sides(some, by, v, orth)
        steep = s[:, rank - 1] <= _STEEP * s[:, 0]
        level = torch.stack(levels).amax(0) if careful else torch.where(_well(pivots) & ~steep, CHOLESKY, HOUSEHOLDER)
        u, v = _signed(u[:, :, :rank], v[:, :, :rank])
        return u, s[:, :rank] / by[:, None], v, level.tolist()

    *factors, level = decompose(list(range(len(w))), careful=False)
    out = [(*each, CHOLESKY) for each in zip(*factors)]
    for i in (i for i in range(len(w)) if level[i] != CHOLESKY):  # one by one, as a whole basis takes room
        (out[i],) = zip(*decompose([i], careful=True))
    return out


def _krylov(w, scale, start, iters, orth, careful) -> Tensor:
    """The best vectors [b,n,l] for AᵀA, A [m,n] of w with m >= n, in the space of start, AᵀA·start, ..., (AᵀA)^iters·start:
    block Lanczos with the basis orthonormalised in full against itself, twice. Careful: the whole basis [b,n,l(iters+1)],
    for the next step to choose from: T, a square, does not hold what is small beside the largest singular value."""
    b, n, columns = start.shape
    basis = start.new_empty(b, n, columns * (iters + 1))
    t = start.new_zeros(b, columns * (iters + 1), columns * (iters + 1))
    q = orth(start)
    for j in range(iters + 1):
        end = (j + 1) * columns
        basis[:, :, end - columns : end] = q
        y = _svd.gram(w, q, scale)
        so_far = basis[:, :, :end]
        c = _svd.product([so_far.mT], y)
        t[:, :end, end - columns : end] = c
        if j < iters:
            q = orth(_svd.product([so_far], c, None, y), so_far)
    if careful:
        return basis
    t = t.triu() + t.triu(1).mT
    _, vectors = _svd.eigh(t, columns)
    return _svd.product([basis], vectors)


def _subspace(w, scale, start, iters, orth, careful) -> Tensor:
    q = orth(start)
    for _ in range(iters):
        q = orth(_svd.gram(w, q, scale))
    return q


def _both_sides(w, scale, v, orth) -> tuple[Tensor, Tensor, Tensor]:
    """P = orth(A v), B = Aᵀ P = Q R, R = X diag(s) Yᵀ: A ≈ P Bᵀ = (P Y) diag(s) (Q X)ᵀ. What AᵀA has lost of the small
    singular values, which it squares, is found again."""
    p = orth(_svd.product(w, v, scale))
    b = _svd.product([one.mT for one in w], p, scale)
    q = orth(b)
    x, s, y = _svd.small(_svd.product([q.mT], b))
    return _svd.product([p], y), s, _svd.product([q], x)


class Pivots(NamedTuple):
    """What tells whether CholeskyQR2 sufficed: the smallest pivots of its passes [b]; the squared lengths of the columns before
    the second [b,l], where a basis was taken from them."""

    first: Tensor
    second: Tensor
    lengths: Tensor | None


def _whitened(y: Tensor, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """One Cholesky QR: q, the smallest pivot, and the squared lengths of y's columns."""
    g = _svd.product([y.mT], y)
    inverse, pivot = _svd.factor(g, shift)
    return _svd.product([y], inverse), pivot, g.diagonal(dim1=1, dim2=2)


def _without(basis: Tensor, y: Tensor) -> Tensor:
    return _svd.product([basis], _svd.product([basis.mT], y), None, y)


def _cholesky_qr(y: Tensor, basis: Tensor | None) -> tuple[Tensor, Pivots]:
    """CholeskyQR2 of y [b,n,l], which `basis` was taken from once and is taken from again in between: orthonormal columns
    orthogonal to the basis, where its pivots are well."""
    q, first, _ = _whitened(y)
    if basis is not None:
        q = _without(basis, q)
    q, second, lengths = _whitened(q)
    return q, Pivots(first, second, None if basis is None else lengths)


def _well(pivots: Sequence[Pivots]) -> Tensor:
    """Whether every QR of a matrix was well conditioned [b]."""
    first, second = (torch.stack([getattr(p, which) for p in pivots]).amin(0) for which in ("first", "second"))
    well = (first > _LEAST_PIVOT) & (second > 0.5)
    lengths = [p.lengths for p in pivots if p.lengths is not None]
    return well & (torch.stack(lengths).amin((0, 2)) > 0.5) if lengths else well


def _careful_qr(y: Tensor, basis: Tensor | None) -> tuple[Tensor, Tensor]:
    """Shifted CholeskyQR3 (Fukaya et al. 2020), and Householder QR of [basis, y] for the matrices where it fails: q, and what
    each took [b]."""
    shift = 64 * y.shape[2] * torch.finfo(y.dtype).eps
    q, _, _ = _whitened(y, shift)
    if basis is not None:
        q = _without(basis, q)
    q, pivots = _cholesky_qr(q, basis)
    level = torch.where(_well([pivots]), SHIFTED, HOUSEHOLDER)
    for i in (level == HOUSEHOLDER).nonzero().flatten().tolist():
        size = y[i].abs().amax()
        column = y[i] / size if size > 0 else y[i]
        all_ = column if basis is None else torch.cat([basis[i], column], 1)
        q[i] = torch.linalg.qr(all_)[0][:, -y.shape[2] :]
    return q, level
