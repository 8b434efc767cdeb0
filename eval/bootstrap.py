"""Percentile bootstrap over clusters: questions of one patient are drawn together, because they are not independent.

`clustered_intervals` takes any statistic of drawn items; `pooled_intervals` statistics of sums over items, which is
what a million answers need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import sparse

DRAWN = 2000  # clusters that are drawn one by one; more are drawn in groups
BATCH = 1 << 22  # numbers in the arrays of samples that are held at a time

Statistic = Callable[[np.ndarray], dict[str, float]]


def clustered_intervals(
    statistic: Statistic, clusters: Sequence[str], seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Interval of every value of `statistic`, by drawing whole clusters with replacement.

    statistic: (m,) indices into the items, with repeats -> name -> value; a NaN value is left out of its interval.
    clusters: (n,) the cluster of each item. Deterministic for a seed.
    Returns name -> (low, high); empty for fewer than two clusters, where nothing can be said about the spread.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13 (percentile interval); Field and
    Welsh, Bootstrapping clustered data, J. R. Stat. Soc. B 69 (2007), section 2 (cluster bootstrap).
    """
    samples: dict[str, list[float]] = {}
    for drawn in clustered_samples(clusters, seed, resamples):
        for name, value in statistic(drawn).items():
            samples.setdefault(name, []).append(value)
    tails = [50 * (1 - level), 50 * (1 + level)]
    intervals = {}
    for name, values in samples.items():
        finite = [value for value in values if not np.isnan(value)]
        if finite:
            low, high = np.percentile(finite, tails)
            intervals[name] = (float(low), float(high))
    return intervals


def drawn_clusters(count: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """(count,) numbers of the clusters drawn, `resamples` times; nothing for fewer than two clusters."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples if count > 1 else 0):
        yield generator.integers(0, count, count)


def mean_interval(
    values: np.ndarray, clusters: Sequence[str] | np.ndarray, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of the mean of (n,) values, as `clustered_intervals`, from the sums of the clusters alone: its cost does
    not grow with the items of a cluster. None for fewer than two clusters."""
    _, member, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    sums = np.bincount(member, weights=values, minlength=len(sizes))
    means = [sums[drawn].sum() / sizes[drawn].sum() for drawn in drawn_clusters(len(sizes), seed, resamples)]
    if not means:
        return None
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def clustered_samples(clusters: Sequence[str], seed: int, resamples: int) -> Iterator[np.ndarray]:
    """(m,) indices of the items of as many clusters as there are, drawn with replacement, `resamples` times.

    Nothing for fewer than two clusters.
    """
    _, member, sizes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True, return_counts=True)
    members = np.split(np.argsort(member, kind="stable"), np.cumsum(sizes)[:-1])
    for drawn in drawn_clusters(len(members), seed, resamples):
        yield np.concatenate([members[one] for one in drawn])


@dataclass(frozen=True)
class Pooled:
    """Figures that depend on the items only through sums over them, so that patients are drawn again by one product.

    contributions: (n, k) sparse, what each item adds to each of k sums. figures: (k, b) sums of b samples -> name ->
    (b,) values, NaN where one is undefined. coarse: the same from fewer sums, as good as exact for an interval, where
    the sums are very many.
    """

    contributions: sparse.csr_array
    figures: Callable[[np.ndarray], dict[str, np.ndarray]]
    coarse: Pooled | None = None


def pooled_values(families: Sequence[Pooled], chosen: np.ndarray) -> dict[str, float]:
    """Every figure over the chosen items; those that are NaN are left out. chosen: (n,) boolean."""
    values: dict[str, float] = {}
    for family in families:
        sums = family.contributions.T @ chosen.astype(float)
        values |= {name: float(value[0]) for name, value in family.figures(sums[:, None]).items()}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def pooled_intervals(
    families: Sequence[Pooled],
    clusters: np.ndarray,
    chosen: np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """As `clustered_intervals`, of every figure over the chosen items, for any number of items.

    clusters: (n,) the number of each item's cluster. More than DRAWN clusters are dealt at random into that many groups
    of about equal size, and groups are drawn: the variance is estimated without bias, as by the method of random groups
    (Wolter, Introduction to Variance Estimation, 2007, ch. 2), its own error being below that of 1000 samples.
    """
    names, own = np.unique(clusters[chosen], return_inverse=True)
    count = len(names)
    if count < 2 or not families:
        return {}
    if count > DRAWN:
        own = np.random.default_rng(seed).permutation(count)[own] % DRAWN
        count = DRAWN
    families = [family.coarse or family for family in families]
    rows = np.flatnonzero(chosen)
    membership = sparse.csr_array((np.ones(len(rows)), (own, rows)), shape=(count, len(chosen)))
    summed = [(membership @ family.contributions).T.tocsr() for family in families]  # (k, clusters)
    widest = max(count, *(one.shape[0] for one in summed))
    batch = max(1, min(resamples, BATCH // widest))
    samples: dict[str, list[np.ndarray]] = {}
    for start in range(0, resamples, batch):
        times = _times_drawn(count, min(batch, resamples - start), seed, start)
        for family, one in zip(families, summed, strict=True):
            for name, values in family.figures(one @ times).items():
                samples.setdefault(name, []).append(values)
    return {name: interval for name, parts in samples.items() if (interval := _percentiles(parts, level)) is not None}


@lru_cache(maxsize=8)
def _times_drawn(count: int, size: int, seed: int, start: int) -> np.ndarray:
    """(count, size) how often each cluster is in each of `size` samples."""
    drawn = size * np.random.default_rng((seed, start)).integers(0, count, (count, size)) + np.arange(size)
    return np.bincount(drawn.ravel(), minlength=count * size).reshape(count, size).astype(float)


def _percentiles(parts: list[np.ndarray], level: float) -> tuple[float, float] | None:
    values = np.concatenate(parts)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
