"""Percentile bootstrap over clusters: questions of one patient are drawn together, because they are not independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

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
    if len(sizes) < 2:
        return
    members = np.split(np.argsort(member, kind="stable"), np.cumsum(sizes)[:-1])
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(0, len(members), len(members))
        yield np.concatenate([members[one] for one in drawn])
