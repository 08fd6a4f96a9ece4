"""Intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def bootstrap(
    values: Sequence[float], clusters: Sequence[Hashable], n: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high): the mean of `values` with its 95 % percentile interval over `n` resamples of whole clusters.

    clusters[i] names the cluster, such as the episode, of values[i]: questions of one episode are not independent, so
    episodes are drawn, with all their questions. The same arguments give the same interval. A single cluster cannot
    show any spread: its interval is its mean twice. Raises ValueError for no values, unequal lengths, or a value
    that is not finite.
    """
    if len(values) != len(clusters) or not len(values):
        raise ValueError(f"bootstrap: {len(values)} values and {len(clusters)} clusters, expected as many of both, not 0")
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        raise ValueError(f"bootstrap: value {int(np.argmin(np.isfinite(data)))} is not finite")
    index: dict[Hashable, int] = {}
    member = np.array([index.setdefault(cluster, len(index)) for cluster in clusters])
    sums, sizes = np.bincount(member, data), np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(index), size=(n, len(index)))
    low, high = np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), [2.5, 97.5])
    return float(data.mean()), float(low), float(high)
