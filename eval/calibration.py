"""Whether confidence says how often answers are right, and what is gained by leaving the least sure ones unanswered."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from eval.bootstrap import Pooled, pooled_intervals, pooled_values

BINS = 10  # of confidence, equally wide
COVERAGES = tuple(np.arange(1, 21) / 20)  # points of the curve
DIGITS, COARSE_DIGITS = 4, 3  # decimals of confidence that are told apart, as answers state it; for intervals


def calibration(
    confidence: np.ndarray, score: np.ndarray, clusters: np.ndarray, seed: int = 0, resamples: int = 1000
) -> dict[str, Any]:
    """n, mean confidence, mean score, ece with ece_interval, and bins; empty where no confidence was stated.

    confidence: (n,) of each answered question, NaN where none was stated. score: (n,) its share of the headline, 0..1.
    clusters: (n,) the number of its patient. ece: expected calibration error, the sum over BINS equally wide bins of
    n_bin / n |mean score - mean confidence| (Guo et al., ICML 2017, equation 3). bins: those with answers, each
    {"low", "high", "n", "confidence", "score"}, the data of a reliability diagram; a confidence on a border belongs to
    the bin below.
    """
    stated = ~np.isnan(confidence)
    if not stated.any():
        return {}
    confidence, score, clusters = confidence[stated], score[stated], clusters[stated]
    place = np.clip(np.ceil(np.round(confidence, 9) * BINS).astype(int) - 1, 0, BINS - 1)
    n, rows = len(place), np.arange(len(place))
    table = [sparse.csr_array((values, (rows, place)), shape=(n, BINS)) for values in (np.ones(n), confidence, score)]
    sums = [np.asarray(one.sum(axis=0)).ravel() for one in table]
    bins = [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "n": int(count),
            "confidence": float(said / count),
            "score": float(right / count),
        }
        for number, (count, said, right) in enumerate(zip(*sums, strict=True))
        if count
    ]

    def ece(sums: np.ndarray) -> dict[str, np.ndarray]:
        gap = np.abs(sums[BINS : 2 * BINS] - sums[2 * BINS :]).sum(axis=0)
        return {"ece": gap / np.maximum(sums[:BINS].sum(axis=0), 1)}

    family, everything = [Pooled(sparse.hstack(table).tocsr(), ece)], np.ones(n, dtype=bool)
    return {
        "n": n,
        "confidence": float(confidence.mean()),
        "score": float(score.mean()),
        "ece": pooled_values(family, everything)["ece"],
        "ece_interval": pooled_intervals(family, clusters, everything, seed, resamples).get("ece"),
        "bins": bins,
    }


def abstention(
    confidence: np.ndarray,
    score: np.ndarray,
    answered: np.ndarray,
    clusters: np.ndarray,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """coverage: share of the judged questions that were answered; risk: 1 - mean score of these; and where confidence
    was stated: aurc with aurc_interval, and curve, a list of {"coverage", "risk", "confidence"}.

    confidence, score, answered, clusters: (n,) of the judged questions, as in `calibration`; answered is boolean. The
    curve says what risk would remain if only the surest answers were given, down to that confidence, for coverages of
    the answers with a confidence in steps of 1/20; aurc is the mean of the risk over all such coverages (Geifman and
    El-Yaniv, NeurIPS 2017, section 2; Geifman et al., ICLR 2019, section 4). Answers of equal confidence go together.
    Empty where nothing was judged.
    """
    if not len(score):
        return {}
    risk = 1 - score[answered].mean() if answered.any() else None
    result: dict[str, Any] = {"coverage": float(answered.mean()), "risk": None if risk is None else float(risk)}
    stated = answered & ~np.isnan(confidence)
    if not stated.any():
        return result
    exact = _curve(confidence[stated], 1 - score[stated], DIGITS)
    family = replace(exact, coarse=_curve(confidence[stated], 1 - score[stated], COARSE_DIGITS))
    n, everything = int(stated.sum()), np.ones(int(stated.sum()), dtype=bool)
    level = -np.unique(-np.round(confidence[stated], DIGITS))
    count, wrong = np.cumsum(np.asarray(exact.contributions.sum(axis=0)).reshape(2, -1), axis=1)
    ends = np.searchsorted(count, np.ceil(np.array(COVERAGES) * n - 1e-9))
    return {
        **result,
        "aurc": pooled_values([family], everything)["aurc"],
        "aurc_interval": pooled_intervals([family], clusters[stated], everything, seed, resamples).get("aurc"),
        "curve": [
            {
                "coverage": float(count[end] / len(score)),
                "risk": float(wrong[end] / count[end]),
                "confidence": float(level[end]),
            }
            for end in dict.fromkeys(ends.tolist())
        ],
    }


def _curve(confidence: np.ndarray, wrong: np.ndarray, digits: int) -> Pooled:
    """aurc of answers whose confidence is told apart to that many decimals; its sums are, for each confidence from the
    surest down, the answers and then what is wrong in them."""
    level, column = np.unique(-np.round(confidence, digits), return_inverse=True)
    rows, shape, k = np.arange(len(wrong)), (len(wrong), len(level)), len(level)
    table = [sparse.csr_array((values, (rows, column)), shape=shape) for values in (np.ones(len(wrong)), wrong)]

    def area(sums: np.ndarray) -> dict[str, np.ndarray]:
        count, lost = np.cumsum(sums[:k], axis=0), np.cumsum(sums[k:], axis=0)
        return {"aurc": (sums[:k] * lost / np.maximum(count, 1)).sum(axis=0) / np.maximum(count[-1], 1)}

    return Pooled(sparse.hstack(table).tocsr(), area)
