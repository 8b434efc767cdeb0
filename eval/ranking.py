"""Several systems in order: FLARE's rank-then-aggregate, and how far the order can be trusted.

In every case and metric the systems are ranked (1 is best, ties share their mean rank); a system's rank is the mean
over the cases of each metric, then over the metrics. Stability follows challengeR: ranks again on bootstrap samples of
the cases, and one-sided paired tests between all systems.
Sources: Ma et al., Unleashing the strengths of unlabelled data in pan-cancer abdominal organ quantification: the
FLARE22 challenge (2023), ranking scheme; Wiesenfarth et al., Methods and open-source toolkit for analyzing and
visualizing challenge results, Sci. Rep. 11 (2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata, wilcoxon

from eval.bootstrap import clustered_samples
from eval.scores import Scores, lower_is_better
from eval.tables import Table

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Ranking:
    """scores: what is ranked. Everything else follows from it, the seed and the number of bootstrap samples."""

    scores: Scores
    seed: int = 0
    resamples: int = 1000

    @cached_property
    def mean_ranks(self) -> np.ndarray:
        """(systems,) mean rank, 1 is best."""
        return self._aggregated(np.ones(len(self.scores.cases)))

    @cached_property
    def places(self) -> np.ndarray:
        """(systems,) place in the leaderboard, from 1; equal mean ranks share the better place."""
        return rankdata(self.mean_ranks, method="min").astype(int)

    @cached_property
    def sampled_places(self) -> np.ndarray:
        """(samples, systems) places on bootstrap samples of the clusters; no rows for fewer than two clusters."""
        size = len(self.scores.cases)
        samples = clustered_samples(self.scores.clusters, self.seed, self.resamples)
        aggregated = [self._aggregated(np.bincount(index, minlength=size)) for index in samples]
        known = [ranks for ranks in aggregated if not np.isnan(ranks).any()]
        if not known:
            return np.empty((0, len(self.places)), dtype=int)
        return rankdata(known, method="min", axis=1).astype(int)

    def metrics(self) -> dict[str, Any]:
        """The content of leaderboard.json."""
        return {
            "kind": "ranking",
            "results": self.scores.kind,
            "rules": self.scores.rules,
            "folders": self.scores.folders,
            "cases": len(self.scores.cases),
            "clusters": len(set(self.scores.clusters)),
            "leaderboard": self.rows(),
            "kendall_tau": self.kendall_tau,
            "significance": {
                "test": "Wilcoxon signed rank, one-sided, row better than column, Holm over the pairs of a metric",
                "alpha": ALPHA,
                "systems": self.scores.systems,
                "p": {metric: matrix.tolist() for metric, matrix in self.p_values.items()},
            },
            "bootstrap": {"seed": self.seed, "resamples": self.resamples, "level": 0.95, "cluster": "patient or case"},
            "notes": self.scores.notes,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a system, best first: place and its bootstrap interval, share of samples won, mean rank, and mean
        score and mean rank of each metric."""
        low, high = self._place_intervals()
        first = (self.sampled_places == 1).mean(axis=0) if len(self.sampled_places) else np.full(len(low), np.nan)
        rows = []
        for system in np.argsort(self.mean_ranks, kind="stable"):
            row: dict[str, Any] = {
                "place": int(self.places[system]),
                "system": self.scores.systems[system],
                "mean_rank": float(self.mean_ranks[system]),
                "place_low": float(low[system]),
                "place_high": float(high[system]),
                "share_first": float(first[system]),
            }
            for metric, values in self.scores.values.items():
                known = ~np.isnan(values[0])
                row[metric] = float(values[system, known].mean())
                row[f"{metric} rank"] = float(self._ranks[metric][system, known].mean())
            rows.append(row)
        return rows

    def tables(self) -> list[Table]:
        """The leaderboard, then one matrix of p values a metric."""
        metrics = list(self.scores.values)
        board = [
            [
                str(row["place"]),
                row["system"],
                f"{row['mean_rank']:.2f}",
                "–" if np.isnan(row["place_low"]) else f"{row['place_low']:g} to {row['place_high']:g}",
                "–" if np.isnan(row["share_first"]) else f"{row['share_first']:.0%}",
                *(f"{row[metric]:.3f}" for metric in metrics),
            ]
            for row in self.rows()
        ]
        notes = ["Rank then aggregate: the mean over metrics of the mean rank over cases; 1 is best."]
        if tau := self.kendall_tau:
            low, high = tau["interval"]
            notes.append(
                f"Kendall's tau of {tau['samples']} bootstrap rankings with this one: {tau['mean']:.2f} "
                f"[{low:.2f}, {high:.2f}]. Places: 95 % of the samples."
            )
        columns = ["place", "system", "mean rank", "places", "first in", *metrics]
        tables = [Table(f"Leaderboard: {len(self.scores.cases)} cases", columns, board, notes + self.scores.notes)]
        for metric, matrix in self.p_values.items():
            rows = [
                [name, *("" if np.isnan(p) else f"{p:.4f}{' *' if p < ALPHA else ''}" for p in line)]
                for name, line in zip(self.scores.systems, matrix, strict=True)
            ]
            note = f"p that the row is no better than the column: Wilcoxon signed rank, Holm; * below {ALPHA:g}."
            tables.append(Table(f"Significance, {metric}", ["", *self.scores.systems], rows, [note]))
        return tables

    @cached_property
    def kendall_tau(self) -> dict[str, Any] | None:
        """Kendall's tau-b of each sample's places with the full ones: mean and 95 % interval; None where there is no
        order to compare (one place for all, or fewer than two clusters)."""
        if not len(self.sampled_places):
            return None
        orders, times = np.unique(self.sampled_places, axis=0, return_counts=True)
        taus = np.repeat([float(kendalltau(self.places, order).statistic) for order in orders], times)
        taus = taus[~np.isnan(taus)]
        if not len(taus):
            return None
        low, high = np.percentile(taus, [2.5, 97.5])
        return {"mean": float(taus.mean()), "interval": (float(low), float(high)), "samples": len(taus)}

    @cached_property
    def p_values(self) -> dict[str, np.ndarray]:
        """Metric -> (systems, systems): Holm-adjusted p that the row is no better than the column; NaN on the diagonal.

        Wilcoxon signed rank, one-sided, of the mean differences of the clusters, because cases of one patient are not
        independent. Systems that are equal everywhere have 1.
        """
        matrices = {}
        for metric, values in self.scores.values.items():
            gains = self._cluster_means(-values if lower_is_better(metric) else values)
            matrix = np.full((len(values), len(values)), np.nan)
            pairs = [(i, j) for i in range(len(values)) for j in range(len(values)) if i != j]
            raw = [_wilcoxon_greater(_difference(gains[i], gains[j])) for i, j in pairs]
            for pair, p in zip(pairs, holm(raw), strict=True):
                matrix[pair] = p
            matrices[metric] = matrix
        return matrices

    @cached_property
    def _ranks(self) -> dict[str, np.ndarray]:
        """Metric -> (systems, cases) rank in each case, NaN where the case does not have the metric."""
        return {
            metric: rankdata(values if lower_is_better(metric) else -values, axis=0)
            for metric, values in self.scores.values.items()
        }

    @cached_property
    def _stacked(self) -> tuple[np.ndarray, np.ndarray]:
        """(metrics, systems, cases) ranks, 0 where there is none; (metrics, cases) 1 where there is one."""
        ranks = np.array(list(self._ranks.values()))
        return np.nan_to_num(ranks), (~np.isnan(ranks[:, 0])).astype(float)

    def _aggregated(self, weights: np.ndarray) -> np.ndarray:
        """(systems,) mean rank where case c occurs weights[c] times; NaN where no metric has a case."""
        ranks, known = self._stacked
        counts = known @ weights
        if not counts.any():
            return np.full(ranks.shape[1], np.nan)
        means = (ranks @ weights)[counts > 0] / counts[counts > 0, None]
        return means.mean(axis=0).round(9)  # rounding noise must not break a tie

    def _place_intervals(self) -> tuple[np.ndarray, np.ndarray]:
        if not len(self.sampled_places):
            nothing = np.full(len(self.places), np.nan)
            return nothing, nothing
        low, high = np.percentile(self.sampled_places, [2.5, 97.5], axis=0, method="inverted_cdf")
        return low, high

    def _cluster_means(self, values: np.ndarray) -> np.ndarray:
        """(systems, clusters) mean of each cluster over the cases that have the metric."""
        known = ~np.isnan(values[0])
        names, member = np.unique(np.array(self.scores.clusters)[known], return_inverse=True)
        means = [np.bincount(member, weights=line, minlength=len(names)) for line in values[:, known]]
        return np.array(means) / np.bincount(member, minlength=len(names))


def holm(p_values: list[float]) -> np.ndarray:
    """(n,) p values adjusted for n tests. Source: Holm, Scand. J. Statist. 6 (1979)."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    return adjusted


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """first - second, where two failed runs (infinite) are equal."""
    return np.subtract(first, second, out=np.zeros(len(first)), where=first != second)


def _wilcoxon_greater(differences: np.ndarray) -> float:
    """One-sided p of the paired differences being positive; zeros are dropped (Wilcoxon 1945), 1 where all are zero."""
    if not differences.any():
        return 1.0
    return float(wilcoxon(np.nan_to_num(differences), alternative="greater").pvalue)
