"""The leading singular triples of matrices of one shape, by block Krylov or subspace iteration."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tmem.ops import _svd
from tmem.ops._lockstep import Steps

CHOLESKY, SHIFTED, HOUSEHOLDER = 0, 1, 2
"""What a matrix took. Shifted: the careful way, of shifted CholeskyQR3; Householder: where that failed too."""

_STEEP = 3e-3  # s_r/s_1 below which the squares in AᵀA lose too much in fp32
_LEAST_PIVOT = 1e-4  # of an equilibrated Gram matrix: the columns' condition number is then at most about 100


def decomposed(w, scale, start, iters, method, rank, careful) -> Steps:
    """(u [b,m,rank], s [b,rank], v [b,n,rank], what each took [b]) of matrices w [m,n], from random blocks start [b,·,l]."""
    space = _krylov if method == "krylov" else _subspace
    wide = w[0].shape[0] < w[0].shape[1]
    tall = [one.mT for one in w] if wide else w
    levels: list[Tensor] = []
    pivots: list[Pivots] = []

    def orth(y: Tensor, basis: Tensor | None = None) -> Steps:
        if careful:
            q, level = yield from _careful_qr(y, basis)
            levels.append(level)
        else:
            q, met = yield from _cholesky_qr(y, basis)
            pivots.append(met)
        return q

    v = yield from space(tall, scale, start, iters, orth, careful)
    if wide:
        v = yield from orth(_svd.product(tall, v, scale))
    u, s, v = yield from _both_sides(w, scale, v, orth)
    steep = s[:, rank - 1] <= _STEEP * s[:, 0]
    level = torch.stack(levels).amax(0) if careful else torch.where(_well(pivots) & ~steep, CHOLESKY, HOUSEHOLDER)
    u, v = signed(u[:, :, :rank], v[:, :, :rank])
    return u, s[:, :rank] / scale[:, None], v, level


def _krylov(w, scale, start, iters, orth, careful) -> Steps:
    """The best vectors [b,n,l] for AᵀA, A [m,n] of w with m >= n, in the space of start, AᵀA·start, ..., (AᵀA)^iters·start:
    block Lanczos with the basis orthonormalised in full against itself, twice. Careful: the whole basis [b,n,l(iters+1)],
    for the next step to choose from: T, a square, does not hold what is small beside the largest singular value."""
    b, n, columns = start.shape
    basis = start.new_empty(b, n, columns * (iters + 1))
    t = start.new_zeros(b, columns * (iters + 1), columns * (iters + 1))
    q = yield from orth(start)
    for j in range(iters + 1):
        end = (j + 1) * columns
        basis[:, :, end - columns : end] = q
        y = _svd.gram(w, q, scale)
        so_far = basis[:, :, :end]
        c = _svd.product([so_far.mT], y)
        t[:, :end, end - columns : end] = c
        if j < iters:
            q = yield from orth(_svd.product([so_far], c, None, y), so_far)
    if careful:
        return basis
    t = t.triu() + t.triu(1).mT
    _, vectors = yield _svd.eigh, t, columns
    return _svd.product([basis], vectors)


def _subspace(w, scale, start, iters, orth, careful) -> Steps:
    q = yield from orth(start)
    for _ in range(iters):
        q = yield from orth(_svd.gram(w, q, scale))
    return q


def _both_sides(w, scale, v, orth) -> Steps:
    """P = orth(A v), B = Aᵀ P = Q R, R = X diag(s) Yᵀ: A ≈ P Bᵀ = (P Y) diag(s) (Q X)ᵀ. What AᵀA has lost of the small
    singular values, which it squares, is found again."""
    p = yield from orth(_svd.product(w, v, scale))
    b = _svd.product([one.mT for one in w], p, scale)
    q = yield from orth(b)
    x, s, y = yield _svd.small, _svd.product([q.mT], b)
    return _svd.product([p], y), s, _svd.product([q], x)


class Pivots(NamedTuple):
    """What tells whether CholeskyQR2 sufficed: the smallest pivots of its passes [b]; the squared lengths of the columns before
    the second [b,l], where a basis was taken from them."""

    first: Tensor
    second: Tensor
    lengths: Tensor | None


def _whitened(y: Tensor, shift: float = 0.0) -> Steps:
    """One Cholesky QR: q, the smallest pivot, and the squared lengths of y's columns."""
    g = _svd.product([y.mT], y)
    inverse, pivot = yield _svd.factor, g, shift
    return _svd.product([y], inverse), pivot, g.diagonal(dim1=1, dim2=2)


def _without(basis: Tensor, y: Tensor) -> Tensor:
    return _svd.product([basis], _svd.product([basis.mT], y), None, y)


def _cholesky_qr(y: Tensor, basis: Tensor | None) -> Steps:
    """CholeskyQR2 of y [b,n,l], which `basis` was taken from once and is taken from again in between: orthonormal columns
    orthogonal to the basis, where its pivots are well."""
    q, first, _ = yield from _whitened(y)
    if basis is not None:
        q = _without(basis, q)
    q, second, lengths = yield from _whitened(q)
    return q, Pivots(first, second, None if basis is None else lengths)


def _well(pivots: Sequence[Pivots]) -> Tensor:
    """Whether every QR of a matrix was well conditioned [b]."""
    first, second = (torch.stack([getattr(p, which) for p in pivots]).amin(0) for which in ("first", "second"))
    well = (first > _LEAST_PIVOT) & (second > 0.5)
    lengths = [p.lengths for p in pivots if p.lengths is not None]
    return well & (torch.stack(lengths).amin((0, 2)) > 0.5) if lengths else well


def _careful_qr(y: Tensor, basis: Tensor | None) -> Steps:
    """Shifted CholeskyQR3 (Fukaya et al. 2020), and Householder QR of [basis, y] for the matrices where it fails: q, and what
    each took [b]."""
    shift = 64 * y.shape[2] * torch.finfo(y.dtype).eps
    q, _, _ = yield from _whitened(y, shift)
    if basis is not None:
        q = _without(basis, q)
    q, pivots = yield from _cholesky_qr(q, basis)
    level = torch.where(_well([pivots]), SHIFTED, HOUSEHOLDER)
    for i in (level == HOUSEHOLDER).nonzero().flatten().tolist():
        size = y[i].abs().amax()
        column = y[i] / size if size > 0 else y[i]
        all_ = column if basis is None else torch.cat([basis[i], column], 1)
        q[i] = torch.linalg.qr(all_)[0][:, -y.shape[2] :]
    return q, level


def signed(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The sign rule, of one or of many."""
    sign = torch.where(v.gather(-2, v.abs().argmax(-2, keepdim=True)) < 0, -1, 1)
    return u * sign, v * sign
