"""batched_rsvd: truncated singular value decompositions of many matrices."""

from collections.abc import Sequence

from torch import Tensor

from tmem import reference
from tmem.ops import _checks


def batched_rsvd(
    matrices: Sequence[Tensor], rank: int, *, oversample: int = 8, iters: int = 2, seed: int = 0
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The leading `rank` singular triples of each floating-point matrix [m,n]: fp32 (U [m,rank], S [rank], V [n,rank]).

    A ≈ U diag(S) Vᵀ, singular values descending; the entry of largest magnitude in each column of V is positive.
    Randomized, with `oversample` extra directions and `iters` power iterations; deterministic in `seed`, the same for a
    matrix alone or among others; global random generators are left alone. Raises ValueError if a matrix is not 2-D or
    has fewer than `rank` rows or columns.
    """
    for i, matrix in enumerate(matrices):
        _checks.shape("batched_rsvd", f"matrices[{i}]", matrix, None, None)
        if not 1 <= rank <= min(matrix.shape):
            raise ValueError(
                f"batched_rsvd: rank must be in 1..{min(matrix.shape)} for matrices[{i}] of shape"
                f" {list(matrix.shape)}, got {rank}"
            )
    return reference.batched_rsvd(matrices, rank, oversample, iters, seed)
