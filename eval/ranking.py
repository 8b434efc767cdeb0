"""Several systems in order: FLARE's rank-then-aggregate, and how far the order can be trusted.

In every case and metric the systems are ranked (1 is best, ties share their mean rank); a system's rank is the mean
over the cases of each metric, then over the metrics. Stability follows challengeR: ranks again on bootstrap samples of
the cases, and one-sided paired tests between all systems.
Sources: Ma et al., Unleashing the strengths of unlabelled data in pan-cancer abdominal organ quantification: the
FLARE22 challenge (2023), ranking scheme; Wiesenfarth et al., Methods and open-source toolkit for analyzing and
visualizing challenge results, Sci. Rep. 11 (2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata

from eval.bootstrap import drawn_clusters, mean_interval
from eval.paired import gaps, holm, permutation_p, wilcoxon_p
from eval.scores import Scores, lower_is_better
from eval.tables import Table, p_text, with_interval

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
        return self._aggregated(np.arange(len(self._sums[1][0])))

    @cached_property
    def order(self) -> np.ndarray:
        """(systems,) numbers of the systems, best first."""
        return np.argsort(self.mean_ranks, kind="stable")

    @cached_property
    def places(self) -> np.ndarray:
        """(systems,) place in the leaderboard, from 1; equal mean ranks share the better place."""
        return rankdata(self.mean_ranks, method="min").astype(int)

    @cached_property
    def sampled_places(self) -> np.ndarray:
        """(samples, systems) places on bootstrap samples of the clusters; no rows for fewer than two clusters."""
        draws = drawn_clusters(len(self._sums[1][0]), self.seed, self.resamples)
        aggregated = [self._aggregated(drawn) for drawn in draws]
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
                "test": "one-sided, row better than column, Holm over the pairs of a metric",
                "alpha": ALPHA,
                "systems": self.scores.systems,
                "wilcoxon": {metric: matrix.tolist() for metric, matrix in self.p_values.items()},
                "permutation": {metric: matrix.tolist() for metric, matrix in self.permutation_p_values.items()},
            },
            "bootstrap": {"seed": self.seed, "resamples": self.resamples, "level": 0.95, "cluster": "patient or case"},
            "notes": self.scores.notes,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a system, best first: place and its bootstrap interval, share of samples won, mean rank, and the
        mean score with its interval and the mean rank of each metric."""
        low, high = self._place_intervals()
        first = (self.sampled_places == 1).mean(axis=0) if len(self.sampled_places) else np.full(len(low), np.nan)
        rows = []
        for system in self.order:
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
                row[f"{metric} low"], row[f"{metric} high"] = self._score_interval(metric, int(system))
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
                *(with_interval(row[metric], _interval(row, metric), 3) for metric in metrics),
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
        note = (
            "p that the row is no better than the column: Wilcoxon signed rank / sign-flip permutation of whole "
            f"patients or cases, both after Holm; * where both are below {ALPHA:g}."
        )
        names = [self.scores.systems[system] for system in self.order]
        for metric, matrix in self.p_values.items():
            both = np.stack([matrix, self.permutation_p_values[metric]], axis=-1)[np.ix_(self.order, self.order)]
            rows = [[name, *map(_printed, line)] for name, line in zip(names, both, strict=True)]
            tables.append(Table(f"Significance, {metric}", ["row better than", *names], rows))
        tables[-1].notes.append(note)
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

        Wilcoxon signed rank, one-sided, of the mean differences of the clusters. Systems that are equal everywhere
        have 1, a failed run is the largest difference.
        """
        return self._matrices(lambda gains: [wilcoxon_p(column, "greater") for column in gains.T])

    @cached_property
    def permutation_p_values(self) -> dict[str, np.ndarray]:
        """As `p_values`, by sign flips of the clusters' mean differences; a failed run is left out."""

        def test(gains: np.ndarray) -> np.ndarray:
            return permutation_p(np.where(np.isfinite(gains), gains, 0), "greater", self.seed)

        return self._matrices(test)

    def _matrices(self, test: Callable[[np.ndarray], Sequence[float] | np.ndarray]) -> dict[str, np.ndarray]:
        """Metric -> (systems, systems) adjusted p of `test`, (clusters, pairs) gains -> (pairs,) p."""
        count = len(self.scores.systems)
        first, second = np.nonzero(~np.eye(count, dtype=bool))
        matrices = {}
        for metric, values in self.scores.values.items():
            means = self._cluster_means(-values if lower_is_better(metric) else values)
            matrices[metric] = np.full((count, count), np.nan)
            matrices[metric][first, second] = holm(test(gaps(means[first], means[second]).T))
        return matrices

    @cached_property
    def _ranks(self) -> dict[str, np.ndarray]:
        """Metric -> (systems, cases) rank in each case, NaN where the case does not have the metric."""
        return {
            metric: rankdata(values if lower_is_better(metric) else -values, axis=0)
            for metric, values in self.scores.values.items()
        }

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """(metrics, systems, clusters) sum of the ranks of each cluster's cases, (metrics, clusters) number of them."""
        names, member = np.unique(self.scores.clusters, return_inverse=True)
        ranks = np.array(list(self._ranks.values()))
        known = ~np.isnan(ranks[:, 0])
        sums = [[np.bincount(member, line, len(names)) for line in systems] for systems in np.nan_to_num(ranks)]
        return np.array(sums), np.array([np.bincount(member, weights=line, minlength=len(names)) for line in known])

    def _aggregated(self, drawn: np.ndarray) -> np.ndarray:
        """(systems,) mean rank over the cases of the clusters drawn; NaN where no metric has a case."""
        sums, counts = self._sums
        total = counts[:, drawn].sum(axis=1)
        if not total.any():
            return np.full(sums.shape[1], np.nan)
        means = sums[:, :, drawn].sum(axis=2)[total > 0] / total[total > 0, None]
        return means.mean(axis=0).round(9)  # rounding noise must not break a tie

    def _score_interval(self, metric: str, system: int) -> tuple[float, float]:
        """95 % interval of a mean score; NaN where there is none: one cluster, or a run that failed."""
        values = self.scores.values[metric][system]
        known = ~np.isnan(values)
        if not np.isfinite(values[known]).all():
            return float("nan"), float("nan")
        clusters = np.array(self.scores.clusters)[known]
        return mean_interval(values[known], clusters, self.seed, self.resamples) or (float("nan"), float("nan"))

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


def _interval(row: dict[str, Any], metric: str) -> tuple[float, float] | None:
    """What `rows` says of a score's interval; None where it says nothing."""
    low, high = row[f"{metric} low"], row[f"{metric} high"]
    return None if np.isnan(low) else (low, high)


def _printed(p_values: np.ndarray) -> str:
    """Two p values of one pair; nothing on the diagonal."""
    if np.isnan(p_values).all():
        return ""
    return " / ".join(map(p_text, p_values)) + (" *" if (p_values < ALPHA).all() else "")
