"""Two systems on the same cases: the paired difference of every metric, its interval and its p value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import permutation_test

from eval.bootstrap import clustered_intervals
from eval.scores import Scores, lower_is_better, read_scores
from eval.tables import Table, with_interval
from seg_backbone.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Comparison:
    """scores: of two systems, A and B. Differences are A - B, over the cases that both have a finite value for."""

    scores: Scores
    seed: int = 0
    resamples: int = 1000

    def metrics(self) -> dict[str, Any]:
        """The content of comparison.json."""
        return {
            "kind": "comparison",
            "results": self.scores.kind,
            "rules": self.scores.rules,
            "a": self.scores.systems[0],
            "b": self.scores.systems[1],
            "folders": self.scores.folders,
            "metrics": self.differences,
            "test": "two-sided sign-flip permutation of whole clusters; not corrected for the number of metrics",
            "bootstrap": {"seed": self.seed, "resamples": self.resamples, "level": 0.95, "cluster": "patient or case"},
            "notes": self.scores.notes,
        }

    @cached_property
    def differences(self) -> dict[str, dict[str, Any]]:
        """Metric -> means, mean difference with its 95 % interval over clusters, p, and how many cases each side wins.

        p: share of the sign flips of whole clusters whose sum of differences is as far from 0, two-sided; all flips
        where they are at most 9,999, else so many random ones (Good, Permutation, Parametric and Bootstrap Tests of
        Hypotheses, 2005). NaN for fewer than two clusters.
        """
        result = {}
        for metric in self.scores.values:
            a, b, clusters = self._paired(metric)
            difference = a - b

            def mean(index: np.ndarray, values: np.ndarray = difference) -> dict[str, float]:
                return {"difference": float(values[index].mean())}

            intervals = clustered_intervals(mean, clusters, self.seed, self.resamples)
            gain = -difference if lower_is_better(metric) else difference
            result[metric] = {
                "n": len(difference),
                "clusters": len(set(clusters)),
                "lower_is_better": lower_is_better(metric),
                "mean_a": _mean(a),
                "mean_b": _mean(b),
                "difference": _mean(difference),
                "interval": intervals.get("difference"),
                "p": self._p_value(difference, clusters),
                "a_better": int((gain > 0).sum()),
                "equal": int((gain == 0).sum()),
                "b_better": int((gain < 0).sum()),
            }
        return result

    def rows(self) -> list[dict[str, Any]]:
        """One row a metric and case, for differences.csv."""
        rows = []
        for metric, (a, b) in self.scores.values.items():
            for case, cluster, x, y in zip(
                self.scores.cases, self.scores.clusters, a.tolist(), b.tolist(), strict=True
            ):
                if not np.isnan(x):
                    rows.append({"metric": metric, "case": case, "cluster": cluster, "a": x, "b": y})
        return rows

    def tables(self) -> list[Table]:
        """One row a metric."""
        a, b = self.scores.systems
        rows = [
            [
                metric + (" (lower is better)" if one["lower_is_better"] else ""),
                str(one["n"]),
                with_interval(one["mean_a"], None, 3),
                with_interval(one["mean_b"], None, 3),
                with_interval(one["difference"], one["interval"], 3),
                with_interval(one["p"], None, 4),
                f"{one['a_better']} / {one['equal']} / {one['b_better']}",
            ]
            for metric, one in self.differences.items()
        ]
        notes = [
            f"Difference: {a} - {b}, paired by case, with its 95 % interval over patients or cases.",
            "p: two-sided permutation of whole patients or cases; not corrected for the number of metrics.",
            *self.scores.notes,
        ]
        return [
            Table(f"{a} and {b}", ["metric", "n", a, b, "difference", "p", f"{a} better / equal / {b}"], rows, notes)
        ]

    def _paired(self, metric: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
        a, b = self.scores.values[metric]
        finite = np.isfinite(a) & np.isfinite(b)
        return a[finite], b[finite], [c for c, kept in zip(self.scores.clusters, finite, strict=True) if kept]

    def _p_value(self, difference: np.ndarray, clusters: list[str]) -> float:
        names, member = np.unique(clusters, return_inverse=True)
        if len(names) < 2:
            return float("nan")
        sums = np.bincount(member, weights=difference)
        flips = permutation_test(
            (sums,), np.sum, permutation_type="samples", n_resamples=9999, vectorized=True, rng=self.seed
        )
        return float(flips.pvalue)


def compare(first: str | Path, second: str | Path, seed: int = 0, resamples: int = 1000) -> Comparison:
    """Compare two result folders of one system each. Raises as `read_scores`, and ConfigError for more systems."""
    scores = read_scores([first, second], grouped=False)
    if len(scores.systems) != 2:
        raise ConfigError("A B", "one system in each folder", ", ".join(scores.systems), "score each system apart")
    return Comparison(scores, seed, resamples)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
