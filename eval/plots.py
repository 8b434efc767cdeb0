"""Figures of results, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from seg_backbone.io.atomic import replacing

if TYPE_CHECKING:
    from eval.efficiency import Efficiency
    from eval.ranking import Ranking


def plot_memory(results: Efficiency, path: str | Path) -> Path:
    """Memory over time: host, and GPU where it was read, one panel each; below them the phases where known."""
    curves = {"host, MB": results.rss_mb}
    if results.gpu_mb is not None:
        curves["GPU, MB"] = results.gpu_mb
    panels = len(curves) + bool(results.spans)
    figure = Figure(figsize=(8, 2.6 * panels), layout="constrained")
    for place, (name, mb) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(panels, 1, place)
        axes.fill_between(results.seconds, mb, alpha=0.3)
        axes.plot(results.seconds, mb)
        axes.set(ylabel=name, xlim=(0, results.wall_seconds), ylim=(0, None))
    if results.spans:
        axes = figure.add_subplot(panels, 1, panels)
        names = list(dict.fromkeys(name for name, _, _ in results.spans))
        for name, start, end in results.spans:
            axes.broken_barh([(start, end - start)], (names.index(name) - 0.4, 0.8))
        axes.set_yticks(range(len(names)), names)
        axes.set(xlim=(0, results.wall_seconds), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("seconds since the start")
    return _save(figure, path)


def plot_places(ranking: Ranking, path: str | Path) -> Path:
    """Blob plot: how often each system takes each place in the bootstrap samples, by area; a cross is its place.

    Source: Wiesenfarth et al., Sci. Rep. 11 (2021).
    """
    count = len(ranking.places)
    order = np.argsort(ranking.mean_ranks, kind="stable")
    figure = Figure(figsize=(2 + 0.8 * count, 2 + 0.6 * count), layout="constrained")
    axes = figure.add_subplot()
    for x, system in enumerate(order):
        places, times = np.unique(ranking.sampled_places[:, system], return_counts=True)
        axes.scatter(np.full(len(places), x), places, s=900 * times / max(times.sum(), 1), alpha=0.5)
    axes.scatter(range(count), ranking.places[order], marker="x", color="black")
    axes.set_xticks(range(count), [ranking.scores.systems[system] for system in order], rotation=30, ha="right")
    axes.set(ylabel="place", yticks=range(1, count + 1), xlim=(-0.6, count - 0.4), ylim=(0.4, count + 0.6))
    return _save(figure, path)


def _save(figure: Figure, path: str | Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)
