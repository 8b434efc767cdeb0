"""Figures of results: each function draws one matplotlib Figure; `save_png` writes it, `inline_svg` puts it in a page.

Names come from files, so text is never read as mathematics. INK becomes the page's own text colour in `inline_svg`;
the other colours are legible on white and on black.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import FuncFormatter, LogLocator

from seg_backbone.io.atomic import replacing

if TYPE_CHECKING:
    from eval.efficiency import Efficiency
    from eval.ranking import Ranking

INK = "#1f2329"
COLOURS = ("#3d8fd1", "#e08a1e", "#2fa36b", "#d4526e", "#8e6fd8", "#8a8f98", "#1fa3a3", "#b07a3a")
WIDTH = 5.4  # inches; a page shows it as wide as a phone without shrinking the text
MOST_POINTS = 3000  # of a cloud; more are thinned out evenly
STYLE: Any = {  # of matplotlib; every function below draws in it
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "eval",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
    ),
}


@rc_context(STYLE)
def memory(results: Efficiency) -> Figure:
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
    return figure


@rc_context(STYLE)
def places(ranking: Ranking) -> Figure:
    """Blob plot: how often each system takes each place in the bootstrap samples, by area; a cross is its place.

    Source: Wiesenfarth et al., Sci. Rep. 11 (2021).
    """
    count, order = len(ranking.places), ranking.order
    figure, axes = _panel(1.2 + 0.42 * count)
    for y, system in enumerate(order):
        taken, times = np.unique(ranking.sampled_places[:, system], return_counts=True)
        axes.scatter(taken, np.full(len(taken), y), s=500 * times / max(times.sum(), 1), alpha=0.6)
    axes.scatter(ranking.places[order], range(count), marker="x", color=INK)
    _name_rows(axes, [ranking.scores.systems[system] for system in order])
    axes.set(xlabel="place", xlim=(0.4, count + 0.6), xticks=range(1, count + 1))
    return figure


def spread(ranking: Ranking) -> dict[str, dict[str, np.ndarray]]:
    """Metric -> system -> (n,) values of the cases, best system first, for `violins`."""
    return {
        metric: {ranking.scores.systems[system]: values[system] for system in ranking.order}
        for metric, values in ranking.scores.values.items()
    }


@rc_context(STYLE)
def violins(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Distribution of values, one panel a metric: metric -> name -> (n,) values; NaN and infinite ones are left out.

    Each violin with its cases as points and its median as a line; where there are only two values, right and wrong, a
    disc for each, its area the share of cases.
    """
    rows = [max(len(named), 1) for named in panels.values()]
    figure = Figure(figsize=(WIDTH, sum(0.9 + 0.42 * count for count in rows)), layout="constrained")
    ratios = [0.9 + 0.42 * count for count in rows]
    for axes, (metric, named) in zip(
        np.atleast_1d(figure.subplots(len(panels), 1, height_ratios=ratios)), panels.items(), strict=True
    ):
        for y, values in enumerate(named.values()):
            known = np.asarray(values, dtype=float)
            known = np.sort(known[np.isfinite(known)])
            colour = COLOURS[y % len(COLOURS)]
            distinct, times = np.unique(known, return_counts=True)
            if len(distinct) <= 2:
                axes.scatter(distinct, np.full(len(distinct), y), s=400 * times / len(known), color=colour, alpha=0.6)
                continue
            known = thinned(known)
            body = axes.violinplot([known], positions=[y], orientation="horizontal", widths=0.8, showextrema=False)
            body["bodies"][0].set(facecolor=colour, edgecolor="none", alpha=0.35)  # type: ignore[index]
            jitter = np.random.default_rng(0).uniform(-0.12, 0.12, len(known))
            axes.scatter(known, y + jitter, s=6, color=colour, alpha=0.7, linewidths=0)
            axes.plot([np.median(known)] * 2, [y - 0.3, y + 0.3], color=INK, linewidth=1.5)
        _name_rows(axes, list(named))
        axes.set_xlabel(metric)
    return figure


@rc_context(STYLE)
def significance(ranking: Ranking, metrics: Sequence[str], alpha: float) -> Figure:
    """Significance map, one panel a metric, best system first: the Wilcoxon p that the row is no better than the
    column. Cells with p < alpha are filled.

    Source: Wiesenfarth et al., Sci. Rep. 11 (2021), figure 6.
    """
    count = len(ranking.order)
    names = [ranking.scores.systems[system] for system in ranking.order]
    side = 1.4 + 0.5 * count
    figure = Figure(figsize=(WIDTH, side * len(metrics)), layout="constrained")
    colours = ListedColormap(["#00000000", COLOURS[0]])
    for axes, metric in zip(np.atleast_1d(figure.subplots(len(metrics), 1)), metrics, strict=True):
        matrix = ranking.p_values[metric][np.ix_(ranking.order, ranking.order)]
        axes.imshow(matrix < alpha, cmap=colours, vmin=0, vmax=1, alpha=0.6)
        if count <= 12:
            for (row, column), p in np.ndenumerate(matrix):
                text = "" if np.isnan(p) else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
                axes.text(column, row, text, ha="center", va="center", fontsize=8)
        axes.set_xticks(range(count), [_short(name, 14) for name in names], rotation=30, ha="right")
        axes.set_yticks(range(count), [_short(name, 20) for name in names])
        axes.set_title(f"{metric}: row better than column, p < {alpha:g}", fontsize=10)
    return figure


@rc_context(STYLE)
def intervals(values: Mapping[str, tuple[float, tuple[float, float] | None]], label: str, zero: bool = False) -> Figure:
    """Values with their intervals, one row each: name -> (value, (low, high) or None). zero: with a line at 0."""
    figure, axes = _panel(0.9 + 0.3 * len(values))
    for y, (value, interval) in enumerate(values.values()):
        if interval is not None:
            axes.plot(interval, [y, y], color=COLOURS[0], linewidth=2, alpha=0.6, solid_capstyle="butt")
        axes.plot([value], [y], "o", color=COLOURS[0], markersize=5)
    if zero:
        axes.axvline(0, color=INK, linewidth=0.8)
    _name_rows(axes, list(values))
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel(label)
    return figure


@rc_context(STYLE)
def reliability(systems: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Stated confidence against score, one line a system: name -> bins of `eval.answers.calibration`; area is n.

    Source: Guo et al., ICML 2017, figure 1.
    """
    figure, axes = _panel(4.2)
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle="--")
    for name, bins in systems.items():
        x, y, n = (np.array([one[key] for one in bins], dtype=float) for key in ("confidence", "score", "n"))
        (line,) = axes.plot(x, y, linewidth=1, alpha=0.7)
        axes.scatter(x, y, s=20 + 200 * n / n.sum(), color=line.get_color(), alpha=0.6, label=_short(name))
    axes.set(xlabel="stated confidence", ylabel="mean score", xlim=(-0.04, 1.04), ylim=(-0.04, 1.04), aspect="equal")
    axes.legend(loc="upper left", fontsize=9, markerscale=0.6)
    return figure


@rc_context(STYLE)
def risk_coverage(systems: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Risk against coverage, one line a system: name -> (coverage, risk), both (n,) in 0..1.

    Source: Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017.
    """
    figure, axes = _panel(3.6)
    for name, (coverage, risk) in systems.items():
        axes.plot(coverage, risk, marker=".", label=_short(name))
    axes.set(xlabel="coverage: questions answered, most confident first", ylabel="risk: 1 - mean score")
    axes.set(xlim=(0, 1.02), ylim=(-0.02, 1.02))
    axes.legend(fontsize=9)
    return figure


@rc_context(STYLE)
def size_dice(classes: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """DSC against reference volume, one colour a class: name -> (volume in ml, dsc), both (n,); volume on a log axis.

    References of 0 ml are left out.
    """
    figure, axes = _panel(3.8)
    for number, (name, (volume_ml, dsc)) in enumerate(classes.items()):
        shown = thinned(np.flatnonzero((volume_ml > 0) & np.isfinite(dsc)))
        marker = "osD^v"[number // len(COLOURS) % 5]  # once the colours are used up
        axes.scatter(volume_ml[shown], dsc[shown], s=16, marker=marker, alpha=0.65, linewidths=0, label=_short(name))
    axes.set(xlabel="reference volume, ml", ylabel="DSC", ylim=(-0.03, 1.03), xscale="log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if len(classes) > 1:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, markerscale=1.3)
    return figure


@rc_context(STYLE)
def bland_altman(reference: np.ndarray, predicted: np.ndarray, unit: str) -> Figure:
    """Difference against mean of two measurements, (n,) each, with the mean difference and its limits of agreement.

    The limits are mean +- 1.96 SD. Source: Bland and Altman, Lancet 327 (1986).
    """
    figure, axes = _panel(3.4)
    difference, mean = predicted - reference, (predicted + reference) / 2
    shown = thinned(np.arange(len(mean)))
    axes.scatter(mean[shown], difference[shown], s=14, alpha=0.6, linewidths=0)
    centre, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    for y, style in ((centre, "-"), (centre - spread, "--"), (centre + spread, "--")):
        axes.axhline(y, color=COLOURS[3], linestyle=style, linewidth=1)
        axes.annotate(f"{y:.3g}", (1, y), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.axhline(0, color=INK, linewidth=0.6)
    in_unit = f", {unit}" if unit else ""
    axes.set(xlabel=f"mean of reference and answer{in_unit}", ylabel=f"answer - reference{in_unit}")
    return figure


@rc_context(STYLE)
def against(a: np.ndarray, b: np.ndarray, name_a: str, name_b: str, metric: str) -> Figure:
    """The score of each case under A (down) and B (up), (n,) each; a case on the diagonal is equal.
    Equal pairs are one dot, larger by their number."""
    figure, axes = _panel(3.6)
    pairs, times = np.unique(np.stack([a, b], axis=1), axis=0, return_counts=True)
    shown = thinned(np.arange(len(pairs)))
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle="--")
    axes.scatter(pairs[shown, 0], pairs[shown, 1], s=12 + 500 * (times[shown] - 1) / len(a), alpha=0.5, linewidths=0)
    axes.set(xlabel=f"{_short(name_a)}: {metric}", ylabel=_short(name_b), aspect="equal")
    return figure


def save_png(figure: Figure, path: str | Path) -> Path:
    """Write a figure on white, 150 dots an inch, atomically."""
    with replacing(path) as temporary, rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks
        figure.savefig(temporary, format="png", dpi=150)
    return Path(path)


def inline_svg(figure: Figure) -> str:
    """A figure as an <svg> element for a page: no background, INK in the page's text colour, its text as text."""
    file = io.StringIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    width, height = figure.get_size_inches() * 72
    svg = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {width:g} {height:g}" role="img">', svg, count=1)
    return svg.replace(INK, "currentColor").replace("'DejaVu Sans'", "sans-serif")


def thinned(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """At most `most` of the values, evenly spaced."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).astype(int)]


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _name_rows(axes: Axes, names: list[str]) -> None:
    """Names down the left side, the first on top."""
    axes.set_yticks(range(len(names)), [_short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)


def _short(name: str, most: int = 28) -> str:
    """A name that leaves room for the plot: its end counts more than its start where it is a path."""
    if len(name) <= most:
        return name
    return f"…{name[1 - most :]}" if "/" in name else f"{name[: most - 1]}…"
