"""The pages of several systems: a ranking, and a comparison of two with the cases that changed."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from eval import plots
from eval.comparison import Comparison
from eval.ranking import ALPHA, Ranking
from eval.report.answers import read_records
from eval.report.page import Page, Plot, Section
from eval.tables import Table

MOST_PANELS = 6  # metrics that are drawn


def ranking_page(ranking: Ranking) -> Page:
    """The leaderboard, how far it can be trusted, and the scores behind it."""
    scores = ranking.scores
    leaderboard, *tests = ranking.tables()
    stability = plots.inline_svg(plots.places(ranking))
    return Page(
        f"Leaderboard of {len(scores.systems)} systems",
        [
            ("Results", scores.kind),
            ("Scored by", scores.rules),
            ("Cases", str(len(scores.cases))),
            ("Patients or cases drawn together", str(len(set(scores.clusters)))),
            ("Bootstrap", f"{ranking.resamples} samples, seed {ranking.seed}"),
        ],
        [
            Section(
                "Leaderboard",
                tables=[leaderboard],
                plots=[
                    Plot("Places", stability, "Area: share of the bootstrap samples; cross: the place in the ranking.")
                ]
                if len(ranking.sampled_places)
                else [],
            ),
            Section(
                "Scores",
                plots=[
                    Plot(
                        metric,
                        plots.inline_svg(plots.violins({metric: one})),
                        "Points are cases, the line the median; discs the share of cases.",
                    )
                    for metric, one in plots.spread(ranking).items()
                ],
            ),
            Section(
                "Significance",
                "Filled: the row is better than the column (one-sided Wilcoxon signed rank, Holm).",
                tables=tests,
                plots=[
                    Plot(metric, plots.inline_svg(plots.significance(ranking, [metric], ALPHA)))
                    for metric in list(scores.values)[:MOST_PANELS]
                ],
            ),
        ],
    )


def comparison_page(comparison: Comparison) -> Page:
    """The differences, each case under both systems, and the questions or cases that changed most.

    The words of changed answers are read from the two folders and from the question file that they name, where it is
    still there.
    """
    scores = comparison.scores
    a, b = scores.systems
    differences, *changed = comparison.tables()
    if scores.kind == "answers" and changed:
        changed = [_changed_answers(comparison)]
    shares = {
        metric: (one["difference"], one["interval"])
        for metric, one in comparison.differences.items()
        if one["n"] and np.nanmax(scores.values[metric]) <= 1
    }
    forest = [Plot("Differences", plots.inline_svg(plots.intervals(shares, f"{a} - {b}", zero=True)))] if shares else []
    pairs = []
    clearest = sorted(scores.values, key=lambda metric: np.nan_to_num(comparison.differences[metric]["p"], nan=2))
    for metric in clearest[:MOST_PANELS]:
        one, other = comparison.paired(metric)
        if len(one):
            figure = plots.against(one, other, a, b, metric)
            pairs.append(
                Plot(
                    metric,
                    plots.inline_svg(figure),
                    "A dot is a case, or several of one pair of scores; on the dashed line both are equal.",
                )
            )
    return Page(
        f"{a} and {b}",
        [
            ("A", scores.folders[a]),
            ("B", scores.folders[b]),
            ("Scored by", scores.rules),
            ("Cases", str(len(scores.cases))),
            ("Bootstrap", f"{comparison.resamples} samples, seed {comparison.seed}"),
        ],
        [
            Section("Differences", tables=[differences], plots=forest),
            Section("Case by case", "The metrics of the smallest p.", plots=pairs),
            Section("Changed most", tables=changed),
        ],
    )


def _changed_answers(comparison: Comparison) -> Table:
    """The changed questions in words."""
    a, b = comparison.scores.systems
    listed = [
        (metric, name, one)
        for metric, sides in comparison.changed.items()
        for name, side in ((a, "a_better"), (b, "b_better"))
        for one in sides[side]
    ]
    wanted = {one["case"] for *_, one in listed}
    (first, questions), (second, _) = (_words(Path(folder), wanted) for folder in comparison.scores.folders.values())
    lines = [
        [
            metric,
            name,
            one["case"],
            str(questions.get(one["case"], {}).get("question") or "–"),
            _said(first.get(one["case"]), "reference"),
            *(_said(rows.get(one["case"]), "prediction") for rows in (first, second)),
        ]
        for metric, name, one in listed
    ]
    return Table("Changed most", ["type", "better", "id", "question", "reference", a, b], lines)


def _words(folder: Path, wanted: set[str]) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Any]]]:
    """The rows of per_case.csv about the system that a folder is about, and the questions, both by id."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    rows: dict[str, dict[str, str]] = {}
    with (folder / "per_case.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["id"] in wanted:
                rows.setdefault(row["id"], row)  # the systems beside it come later in the file
    return rows, read_records(str(metrics.get("reference")), wanted)


def _said(row: dict[str, str] | None, column: str) -> str:
    """A cell with its unit; the state where there is none."""
    if row is None:
        return "missing"
    return f"{row[column]} {row['unit']}".strip() if row[column] else row["state"]
