"""Paired tests of systems on the same patients: Wilcoxon signed rank, sign-flip permutation, Holm's correction.

What is tested is one difference a cluster (patient or case), because cases of one patient are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.stats import wilcoxon

Alternative = Literal["two-sided", "greater"]
EXACT = 13  # clusters up to which all sign patterns are tried
FLIPS = 9999  # random sign patterns above it
BLOCK = 4_000_000  # signs held at a time


def gaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first - second, where two failed runs (infinite) are equal."""
    return np.subtract(first, second, out=np.zeros(first.shape), where=first != second)


def wilcoxon_p(differences: np.ndarray, alternative: Alternative = "two-sided") -> float:
    """p of the Wilcoxon signed rank test; zeros are dropped (Wilcoxon 1945), 1 where all are zero, NaN for none.

    An infinite difference (a failed run) counts as the largest.
    """
    if not len(differences):
        return float("nan")
    if not differences.any():
        return 1.0
    return float(wilcoxon(np.nan_to_num(differences), alternative=alternative).pvalue)


def permutation_p(differences: np.ndarray, alternative: Alternative = "two-sided", seed: int = 0) -> np.ndarray:
    """(tests,) p of differences (clusters, tests): share of the sign flips whose sum is as far from 0; NaN below two
    clusters.

    All flips for up to EXACT clusters, else FLIPS random ones, the observed one counted among them. Source: Good,
    Permutation, Parametric and Bootstrap Tests of Hypotheses (2005), section 3.7.
    """
    clusters, tests = differences.shape
    if clusters < 2:
        return np.full(tests, np.nan)
    observed = _distance(differences.sum(axis=0), alternative)
    observed = observed - 1e-9 * (1 + np.abs(observed))  # a tie must not depend on the order of summing
    if clusters <= EXACT:
        signs = 1.0 - 2 * ((np.arange(2**clusters)[:, None] >> np.arange(clusters)) & 1)
        return (_distance(signs @ differences, alternative) >= observed).mean(axis=0)
    generator = np.random.default_rng(seed)
    as_far, left = np.ones(tests), FLIPS
    while left:
        rows = min(left, max(1, BLOCK // clusters))
        signs = 2.0 * generator.integers(0, 2, (rows, clusters)) - 1
        as_far += (_distance(signs @ differences, alternative) >= observed).sum(axis=0)
        left -= rows
    return as_far / (FLIPS + 1)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """(n,) p values adjusted for n tests; NaN ones are no tests. Source: Holm, Scand. J. Statist. 6 (1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def _distance(sums: np.ndarray, alternative: Alternative) -> np.ndarray:
    return np.abs(sums) if alternative == "two-sided" else sums
