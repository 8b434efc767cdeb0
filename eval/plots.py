"""Figures of results, as PNG."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from eval.efficiency import Efficiency
from seg_backbone.io.atomic import replacing


def plot_memory(results: Efficiency, path: str | Path) -> Path:
    """Memory over time: host, and GPU where it was read, one panel each."""
    curves = {"host, MB": results.rss_mb}
    if results.gpu_mb is not None:
        curves["GPU, MB"] = results.gpu_mb
    figure = Figure(figsize=(8, 2.6 * len(curves)), layout="constrained")
    for place, (name, mb) in enumerate(curves.items(), 1):
        axes = figure.add_subplot(len(curves), 1, place)
        axes.fill_between(results.seconds, mb, alpha=0.3)
        axes.plot(results.seconds, mb)
        axes.set(ylabel=name, xlim=(0, results.wall_seconds), ylim=(0, None))
    axes.set_xlabel("seconds since the start")
    return _save(figure, path)


def _save(figure: Figure, path: str | Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)
