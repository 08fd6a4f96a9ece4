"""batched_rsvd: truncated singular value decompositions of many matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tmem import reference
from tmem.ops import _checks, _decompose, _svd
from tmem.ops._decompose import CHOLESKY
from tmem.ops._lockstep import in_lockstep

METHODS = ("krylov", "subspace", "exact")
DEFAULTS = {"krylov": (0, 6), "subspace": (8, 2), "exact": (0, 0)}
"""oversample and iters of each method."""
WORKSPACE = 256 << 20  # bytes
NOT_FINITE = -1
"""info of a matrix that holds NaN or infinity; what others took is in _decompose."""

_WIDTH = 16  # columns of a vector register and of a tile of tensor cores: blocks are multiples
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
    groups = _grouped(matrices)
    found: dict[int, _Found] = {}
    if check_finite:
        bad = _not_finite_ones(groups)
        if bad and on_error == "raise":
            named = ", ".join(f"matrices[{i}] of shape {list(matrices[i].shape)}" for i in bad)
            raise ValueError(
                f'{op}: {named} {"holds" if len(bad) == 1 else "hold"} NaN or infinity; repair it, or pass on_error="info"'
            )
        found = {i: _not_finite(matrices[i], rank) for i in bad}
        kept = [(group, [i for i in group.members if i not in found]) for group in groups]
        groups = [group.of(members) for group, members in kept if members]
    columns = -(-(rank + oversample) // _WIDTH) * _WIDTH
    space = columns * (iters + 1) if method == "krylov" else columns
    sketched = []
    for group in groups:
        if method == "exact" or space >= min(group.shape):
            found |= {i: _exact(one, rank) for i, one in zip(group.members, group.w)}
        else:
            sketched.append(group)
    found |= _sketched(_waves(sketched, columns, space, workspace), columns, iters, method, rank, seed)
    return [_finished(found[i], compute, out_dtype) for i in range(len(matrices))]


class _Group:
    """Matrices of one shape, dtype and device, and where they stand in the list.

    members [b]; most [b], the largest magnitudes; scale [b], a power of two that brings them into [1/2, 1), but 2^±100 at
    most (2^±1000 of fp64), which leaves room for sums at the ends of its range; key [b] of the sketch.
    """

    def __init__(self, w: Sequence[Tensor], members: list[int], most: Tensor | None = None):
        self.w, self.members, self.shape = list(w), members, tuple(w[0].shape)
        self.most = _svd.scan(self.w) if most is None else most
        mantissa, exponent = torch.frexp(self.most)
        end = 1000 if self.most.dtype == torch.float64 else 100
        self.scale = torch.exp2(-exponent.clamp(-end, end).to(self.most.dtype))
        self.key = (mantissa.float() * 2**24).long()

    def of(self, members: list[int]) -> _Group:
        """Some of its matrices."""
        places = [self.members.index(i) for i in members]
        return self if members == self.members else _Group([self.w[j] for j in places], members, self.most[places])

    def workspace(self, columns: int, space: int) -> int:
        """Bytes for one matrix: basis, blocks and eigenproblem."""
        long, short = max(self.shape), min(self.shape)
        return self.scale.element_size() * (short * (space + 4 * columns) + 3 * long * columns + 4 * space**2)


def _grouped(matrices: list[Tensor]) -> list[_Group]:
    alike: dict[tuple, list[int]] = {}
    for i, matrix in enumerate(matrices):
        alike.setdefault((tuple(matrix.shape), matrix.dtype, matrix.device), []).append(i)
    return [_Group([matrices[i] for i in members], members) for members in alike.values()]


def _waves(groups: Sequence[_Group], columns: int, space: int, workspace: int) -> list[list[_Group]]:
    """The groups, cut so that the matrices of a wave fit into the workspace together, or are one."""
    waves: list[list[_Group]] = [[]]
    left = workspace
    for group in groups:
        each = group.workspace(columns, space)
        members = group.members
        while members:
            count = min(len(members), left // each)
            if not count and waves[-1]:
                waves.append([])
                left = workspace
                continue
            count = max(1, count)
            waves[-1].append(group.of(members[:count]))
            members, left = members[count:], max(0, left - count * each)
    return waves if waves[0] else []


def _told(values: Sequence[Tensor]) -> list[list]:
    """The numbers of each, with one wait for a device."""
    out: list[list] = [[] for _ in values]
    for device in dict.fromkeys(value.device for value in values):
        here = [i for i, value in enumerate(values) if value.device == device]
        numbers = iter(torch.cat([values[i] for i in here]).tolist())
        for i in here:
            out[i] = [next(numbers) for _ in range(len(values[i]))]
    return out


def _not_finite_ones(groups: Sequence[_Group]) -> list[int]:
    finite = _told([group.most.isfinite() for group in groups])
    return sorted(i for group, told in zip(groups, finite) for i, good in zip(group.members, told) if not good)


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


def _exact(w: Tensor, rank: int) -> _Found:
    u, s, vh = reference.dense_svd(w.to(_accumulator(w)))
    u, v = _decompose.signed(u[:, :rank], vh[:rank].mT)
    return u, s[:rank].clone(), v, CHOLESKY


def _sketched(waves: Sequence[list[_Group]], columns, iters, method, rank, seed) -> dict[int, _Found]:
    """All matrices by CholeskyQR2; then again, the careful way, those for which that is not enough.

    What a matrix took is looked at when all is done, as every look is a wait for a GPU.
    """

    def decomposed(groups: list[_Group], careful: bool) -> list[tuple]:
        works = []
        for group in groups:
            start = _svd.sketch(group.key, seed, min(group.shape), columns).to(group.scale.dtype)
            works.append(_decompose.decomposed(group.w, group.scale, start, iters, method, rank, careful))
        return in_lockstep(works)

    groups = [group for wave in waves for group in wave]
    took = [one for wave in waves for one in decomposed(wave, careful=False)]
    out = {i: (*one, CHOLESKY) for group, (*factors, _) in zip(groups, took) for i, one in zip(group.members, zip(*factors))}
    levels = _told([level for *_, level in took])
    again = [group.of([i]) for group, told in zip(groups, levels) for i, level in zip(group.members, told) if level != CHOLESKY]
    took = [decomposed([group], careful=True)[0] for group in again]  # one by one, as a whole basis takes room
    for group, (*factors, _), (level,) in zip(again, took, _told([level for *_, level in took])):
        out[group.members[0]] = (*(x[0] for x in factors), level)
    return out
