"""The page of scored masks: tables, distributions, size against DSC, every case, and the worst ones outlined."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eval import plots
from eval.bootstrap import mean_interval
from eval.mask_results import MaskResults
from eval.report.page import Example, Page, Plot, Section
from eval.report.slices import Background, Folder, draw_slice, worst_slice
from eval.tables import Table, with_interval
from seg_backbone.errors import InputError
from seg_backbone.geometry import from_canonical, to_canonical
from seg_backbone.io import read_mask, read_volume
from seg_backbone.labels import display
from seg_backbone.volume import Mask, require_same_grid

Row = dict[str, Any]
Progress = Callable[[int, int], None]

WORST_OF_CLASS = 3
MOST_EXAMPLES = 24
MOST_ROWS = 500  # of the table of every case
SIZES_ML = (1.0, 10.0, 100.0)  # edges of the size strata
MOST_PANEL = 24  # classes in one figure


def masks_page(results: MaskResults, scans: Folder | None = None, progress: Progress | None = None) -> Page:
    """Build the page. scans: for the pictures; without them the masks alone are drawn.

    progress: called with (cases done, cases).
    """
    rows = results.rows()
    scored = [row for row in rows if _known(row["dsc"])]
    return Page(
        f"Masks, protocol {results.metrics()['protocol']}",
        _facts(results, rows),
        [
            Section("Scores", tables=results.tables(), plots=_score_plots(results)),
            Section(
                "By size",
                "Sizes are those of the reference; a structure that the reference lacks has none.",
                tables=_by_size(results, scored),
                plots=_size_plots(scored),
            ),
            Section(
                "Worst cases",
                "The lowest DSC of every class. Reference in blue, prediction in orange, on the axial slice where they "
                "differ most.",
                examples=list(_examples(results, worst(scored), scans, progress)),
            ),
            Section("Every case", "A click on a column's head sorts.", tables=[_every_case(rows)] if rows else []),
        ],
    )


def worst(scored: Sequence[Row]) -> list[Row]:
    """Up to WORST_OF_CLASS rows a class with the lowest DSC below 1, and MOST_EXAMPLES in all: first the worst of every
    class, then their second worst; among equal ones the larger volume."""

    def badness(row: Row) -> tuple[float, float]:
        volumes = (row["reference_ml"], row["predicted_ml"])
        return row["dsc"], -max((volume for volume in volumes if _known(volume)), default=0.0)

    ranked: list[tuple[int, tuple[float, float], Row]] = []
    for name in dict.fromkeys(row["class"] for row in scored):
        own = sorted((row for row in scored if row["class"] == name and row["dsc"] < 1), key=badness)
        ranked += [(place, badness(row), row) for place, row in enumerate(own[:WORST_OF_CLASS])]
    ranked.sort(key=lambda one: one[:2])
    return [row for *_, row in ranked[:MOST_EXAMPLES]]


def _facts(results: MaskResults, rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [
        ("Predictions", results.pred_dir),
        ("Reference", results.ref_dir),
        ("Cases", str(results.cases)),
        ("Without a prediction", str(len(results.missing))),
        ("Classes", str(len(dict.fromkeys(row["class"] for row in rows)))),
        ("Intervals", f"95 %, {results.resamples} bootstrap samples of whole patients or cases"),
    ]


def _score_plots(results: MaskResults) -> list[Plot]:
    """Means with intervals, and distributions, of DSC and NSD."""
    rows, classes = results.rows(), results.metrics()["classes"]
    made = []
    for metric in ("dsc", "nsd"):
        means = {
            display(name): (one[metric]["mean"], one[metric]["interval"])
            for name, one in classes.items()
            if _known(one[metric]["mean"])
        }
        if not means:
            continue
        upper = metric.upper()
        figure = plots.intervals(means, f"mean {upper} with its 95 % interval")
        made.append(Plot(f"{upper} of each class", plots.inline_svg(figure)))
        spread = {
            display(name): np.array([row[metric] for row in rows if row["class"] == name], dtype=float)
            for name in list(classes)[:MOST_PANEL]
        }
        known = {name: values for name, values in spread.items() if np.isfinite(values).any()}
        figure = plots.violins({upper: known})
        made.append(Plot(f"{upper} of each case", plots.inline_svg(figure), "A point is a case, the line the median."))
    return made


def _by_size(results: MaskResults, scored: Sequence[Row]) -> list[Table]:
    """One table: class and size of the reference -> DSC and NSD with intervals; nothing where no class spans two."""
    edges = [0.0, *SIZES_ML, math.inf]
    present = [row for row in scored if row["reference_ml"] > 0]
    lines = []
    for name in dict.fromkeys(row["class"] for row in present):
        strata = []
        for low, high in pairwise(edges):
            own = [row for row in present if row["class"] == name and low <= row["reference_ml"] < high]
            if own:
                size = f"{low:g} to {high:g} ml" if high < math.inf else f"from {low:g} ml"
                strata.append(
                    [display(name), size, str(len(own)), *(_mean_of(own, m, results) for m in ("dsc", "nsd"))]
                )
        lines += strata if len(strata) > 1 else []
    return [Table("By size of the reference", ["class", "size", "n", "DSC", "NSD"], lines)] if lines else []


def _mean_of(rows: Sequence[Row], metric: str, results: MaskResults) -> str:
    known = [row for row in rows if _known(row[metric])]
    values = np.array([row[metric] for row in known], dtype=float)
    clusters = [row["patient"] for row in known]
    interval = mean_interval(values, clusters, results.seed, results.resamples) if known else None
    return with_interval(float(values.mean()) if known else None, interval, 3)


def _size_plots(scored: Sequence[Row]) -> list[Plot]:
    classes = {}
    for name in dict.fromkeys(row["class"] for row in scored):
        own = [row for row in scored if row["class"] == name and row["reference_ml"] > 0]
        if own:
            volume, dsc = (np.array([row[key] for row in own], dtype=float) for key in ("reference_ml", "dsc"))
            classes[display(name)] = volume, dsc
    if not classes:
        return []
    svg = plots.inline_svg(plots.size_dice(dict(list(classes.items())[:MOST_PANEL])))
    return [Plot("Size and DSC", svg, "A point is a structure of a case.")]


def _every_case(rows: Sequence[Row]) -> Table:
    """The rows of per_case.csv, lowest DSC first; columns that hold nothing are left out."""
    columns = [key for key in rows[0] if any(row.get(key, "") != "" and _known(row[key]) for row in rows)]
    if all(row["patient"] == row["case"] for row in rows):
        columns.remove("patient")
    order = sorted(rows, key=lambda row: row["dsc"] if _known(row["dsc"]) else math.inf)
    lines = [[_cell(row.get(key, "")) for key in columns] for row in order[:MOST_ROWS]]
    left = len(order) - len(lines)
    notes = [f"The {MOST_ROWS} lowest; {left} more are in per_case.csv."] if left else []
    return Table("Every case", [column.replace("_", " ") for column in columns], lines, notes)


def _examples(
    results: MaskResults, rows: Sequence[Row], scans: Folder | None, progress: Progress | None
) -> Iterator[Example]:
    predictions, references = Folder(Path(results.pred_dir)), Folder(Path(results.ref_dir))
    pictures: dict[tuple[str, str], tuple[str, str]] = {}
    cases = list(dict.fromkeys(row["case"] for row in rows))
    for done, case in enumerate(cases, 1):  # each case is read once
        own = [row for row in rows if row["case"] == case]
        try:
            reference = read_mask(references.require(case))
            predicted = any(_known(row["predicted_ml"]) for row in own)
            prediction = _on_grid(read_mask(predictions.require(case)), reference) if predicted else None
            scan, why = _background(scans, case, reference)
            for row in own:
                picture, note = _picture(results, row["class"], reference, prediction, scan)
                pictures[case, row["class"]] = picture, " ".join(filter(None, [note, why]))
        except InputError as error:  # a file that went away since it was scored
            pictures.update({(case, row["class"]): ("", f"No picture: {error}") for row in own})
        if progress is not None:
            progress(done, len(cases))
    for row in rows:
        facts = [
            (key.replace("_", " "), _cell(value))
            for key, value in row.items()
            if key not in ("case", "patient", "class") and value != "" and _known(value)
        ]
        yield Example(f"{row['case']}: {display(row['class'])}", facts, *pictures[row["case"], row["class"]])


def _on_grid(mask: Mask, reference: Mask) -> Mask:
    """The mask with its axes turned as the reference's; where its header puts it elsewhere, its array as it is stored,
    which is how the official protocols score it. Raises GridError where the shapes differ too."""
    array, grid = to_canonical(mask.array, mask.grid)
    _, wanted = to_canonical(reference.array, reference.grid)
    if grid.same_as(wanted):
        return replace(mask, array=from_canonical(array, reference.grid), grid=reference.grid)
    if mask.grid.shape != reference.grid.shape:
        require_same_grid(reference, mask)
    return replace(mask, grid=reference.grid)


def _background(scans: Folder | None, case: str, reference: Mask) -> tuple[Background | None, str]:
    """The scan behind a case's masks, or why one that was asked for is not there."""
    if scans is None:
        return None, ""
    try:
        scan = read_volume(scans.require(case))
        require_same_grid(reference, scan)
    except InputError as error:
        return None, f"Without the scan: {error}"
    return Background.of(scan), ""


def _picture(
    results: MaskResults, name: str, reference: Mask, prediction: Mask | None, scan: Background | None
) -> tuple[str, str]:
    """The <svg> and its caption."""
    truth = reference.array == results.rules.ref_labels[name]
    ours = None if prediction is None else replace(prediction, labels=results.rules.pred_labels).of(name)
    view = worst_slice(truth, ours, reference.grid)
    if view is None:
        return "", "Nothing to draw."
    return draw_slice(scan.behind(view) if scan else view), f"Slice {view.number} of {view.of}."


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if _known(value) else "–"
    return str(value)
