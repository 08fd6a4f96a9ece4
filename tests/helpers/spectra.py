"""Matrices with known singular values, and what a decomposition of them is held against: fp64 LAPACK."""

import torch
from torch import Tensor

RANK = 16


def of_spectrum(values: Tensor, m: int, n: int, seed: int = 0) -> Tensor:
    """A random fp64 matrix [m,n] with these singular values; those that are not given are zero."""
    generator = torch.Generator().manual_seed(seed)
    count = min(m, n, len(values))
    u, v = (torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))[0] for size in (m, n))
    return u * values[:count].double() @ v.T


def weight_like(m: int, n: int, seed: int = 0) -> Tensor:
    """As weights of language models have it: a few larger values, then nearly flat, s17/s16 = 0.995."""
    i = torch.arange(1, min(m, n) + 1, dtype=torch.float64)
    return of_spectrum(3 * i.pow(-1.5) + 0.995**i + 0.05, m, n, seed)


def _i(count: int = 200) -> Tensor:
    return torch.arange(count, dtype=torch.float64)


def matrices() -> dict[str, Tensor]:
    """fp64; what fp32 holds of them is decomposed."""
    generator = torch.Generator().manual_seed(1)

    def normal(m, n):
        return torch.randn(m, n, generator=generator, dtype=torch.float64)

    one = torch.zeros(300, 250, dtype=torch.float64)
    one[17, 201] = -3
    outlier = normal(300, 250)
    outlier[:, 33] *= 1000
    rows = normal(100, 250)
    return {
        "2^-i": of_spectrum(2.0 ** -_i(), 300, 250),
        "10^-i": of_spectrum(10.0 ** -_i(), 300, 250),
        "i^-0.5": of_spectrum((_i() + 1) ** -0.5, 300, 250),
        "i^-1": of_spectrum((_i() + 1) ** -1.0, 300, 250),
        "i^-2": of_spectrum((_i() + 1) ** -2.0, 300, 250),
        "gap": of_spectrum(torch.where(_i() < RANK, 1.0, 0.1), 300, 250),
        "weight-like": weight_like(577, 301),
        "weight-like, wide": weight_like(301, 577),
        "clustered": of_spectrum(torch.tensor([4.0] * 4 + [2.0] * 8 + [1.0] * 8 + [0.5] * 180), 300, 250),
        "rank 16": of_spectrum(1 + _i(16), 300, 250),
        "rank 3": of_spectrum(1 + _i(3), 300, 250),
        "rank 1": of_spectrum(1 + _i(1), 300, 250),
        "zero": torch.zeros(300, 250, dtype=torch.float64),
        "one entry": one,
        "condition 1e12": of_spectrum(torch.logspace(0, -12, 250), 300, 250),
        "1e-30": 1e-30 * weight_like(300, 250, 1),
        "1e-20": 1e-20 * weight_like(300, 250, 2),
        "1e20": 1e20 * weight_like(300, 250, 3),
        "1e36": 1e36 * weight_like(300, 250, 4),
        "outlier column": outlier,
        "duplicated rows": torch.cat([rows, rows, rows]),
        "orthogonal": torch.linalg.qr(normal(200, 200))[0],
        "tall": weight_like(4096, 64),
        "wide": weight_like(64, 4096),
        "odd": weight_like(577, 277),
        "full rank": weight_like(300, RANK),
        "vector": normal(300, 1),
        "row": normal(1, 300),
        "7 x 7": normal(7, 7),
    }
