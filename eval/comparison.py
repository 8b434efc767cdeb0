"""Two systems on the same cases: the paired difference of every metric, its interval and tests, and what changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eval.bootstrap import mean_interval
from eval.paired import gaps, permutation_p, wilcoxon_p
from eval.scores import Scores, lower_is_better, read_scores
from eval.tables import Table, p_text, with_interval

MOST_CHANGED = 5  # cases listed a metric and side


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
            "changed": self.changed,
            "test": "p: sign-flip permutation of whole clusters; p_wilcoxon: Wilcoxon signed rank of the clusters' "
            "mean differences; both two-sided, not corrected for the number of metrics",
            "bootstrap": {"seed": self.seed, "resamples": self.resamples, "level": 0.95, "cluster": "patient or case"},
            "notes": self.scores.notes,
        }

    @cached_property
    def differences(self) -> dict[str, dict[str, Any]]:
        """Metric -> means, mean difference with its 95 % interval over clusters, p values, and how many cases each side
        wins.

        p: `permutation_p` of the clusters' sums of differences, p_wilcoxon: `wilcoxon_p` of their means, both
        two-sided. NaN for fewer than two clusters.
        """
        result = {}
        for metric in self.scores.values:
            a, b = self.paired(metric)
            clusters = [c for c, kept in zip(self.scores.clusters, self._finite(metric), strict=True) if kept]
            difference = a - b
            names, member = np.unique(clusters, return_inverse=True)
            sums = np.bincount(member, weights=difference, minlength=len(names))
            gain = -difference if lower_is_better(metric) else difference
            result[metric] = {
                "n": len(difference),
                "clusters": len(names),
                "lower_is_better": lower_is_better(metric),
                "mean_a": _mean(a),
                "mean_b": _mean(b),
                "difference": _mean(difference),
                "interval": mean_interval(difference, clusters, self.seed, self.resamples),
                "p": float(permutation_p(sums[:, None], seed=self.seed)[0]),
                "p_wilcoxon": wilcoxon_p(sums / np.bincount(member)) if len(names) > 1 else float("nan"),
                "a_better": int((gain > 0).sum()),
                "equal": int((gain == 0).sum()),
                "b_better": int((gain < 0).sum()),
            }
        return result

    @cached_property
    def changed(self) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Metric -> the cases that differ most, best first: "a_better" and "b_better", each up to MOST_CHANGED of
        {"case", "a", "b"}; a metric that is equal everywhere is left out."""
        changed = {}
        for metric, (a, b) in self.scores.values.items():
            gain = np.nan_to_num(gaps(a, b) * (-1 if lower_is_better(metric) else 1))
            order = np.argsort(-gain, kind="stable")
            sides = {"a_better": order[gain[order] > 0], "b_better": order[::-1][gain[order[::-1]] < 0]}
            if any(map(len, sides.values())):
                changed[metric] = {
                    side: [
                        {"case": self.scores.cases[case], "a": float(a[case]), "b": float(b[case])}
                        for case in cases[:MOST_CHANGED]
                    ]
                    for side, cases in sides.items()
                }
        return changed

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a metric and case, for differences.csv."""
        for metric, (a, b) in self.scores.values.items():
            for case, cluster, x, y in zip(
                self.scores.cases, self.scores.clusters, a.tolist(), b.tolist(), strict=True
            ):
                if not np.isnan(x):
                    yield {"metric": metric, "case": case, "cluster": cluster, "a": x, "b": y}

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
                p_text(one["p"]),
                p_text(one["p_wilcoxon"]),
                f"{one['a_better']} / {one['equal']} / {one['b_better']}",
            ]
            for metric, one in self.differences.items()
        ]
        notes = [
            f"Difference: {a} - {b}, paired by case, with its 95 % interval over patients or cases.",
            "p: two-sided, of whole patients or cases; not corrected for the number of metrics.",
            *self.scores.notes,
        ]
        columns = ["metric", "n", a, b, "difference", "p permutation", "p Wilcoxon", f"{a} better / equal / {b}"]
        changes = [
            [metric, name, one["case"], *(with_interval(one[side], None, 3) for side in ("a", "b"))]
            for metric, sides in self.changed.items()
            for name, side in ((a, "a_better"), (b, "b_better"))
            for one in sides[side]
        ]
        tables = [Table(f"{a} and {b}", columns, rows, notes)]
        if changes:
            note = f"Per metric and side the {MOST_CHANGED} cases that differ most; all of them are in differences.csv."
            tables.append(Table("Changed most", ["metric", "better", "case", a, b], changes, [note]))
        return tables

    def paired(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """(n,) values of A and of B, of the cases where both are finite."""
        a, b = self.scores.values[metric]
        finite = self._finite(metric)
        return a[finite], b[finite]

    def _finite(self, metric: str) -> np.ndarray:
        return np.isfinite(self.scores.values[metric]).all(axis=0)


def compare(first: str | Path, second: str | Path, seed: int = 0, resamples: int = 1000) -> Comparison:
    """Compare the systems that two result folders are about. Raises as `read_scores`."""
    return Comparison(read_scores([first, second], grouped=False, beside=False), seed, resamples)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
