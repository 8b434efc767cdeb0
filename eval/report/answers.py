"""The page of scored answers: tables per type and stratum, calibration, agreement of numbers, and the worst answers."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval import plots
from eval.answers import ABSTAINED, ANSWERED, JUDGED, UNREADABLE, UNSCORED, AnswerResults
from eval.bootstrap import mean_interval
from eval.detection import Box
from eval.references import NUMERIC
from eval.report.page import Example, Page, Plot, Section
from eval.report.slices import Background, Folder, View, draw_slice
from eval.tables import Table, with_interval
from seg_backbone.errors import InputError
from seg_backbone.geometry import Grid, to_canonical
from seg_backbone.io import case_name, read_mask, read_volume
from seg_backbone.labels import canonical
from seg_backbone.volume import Mask, Volume, require_same_grid

Row = dict[str, Any]
Progress = Callable[[int, int, str], None]

WORST_OF_TYPE = 4
STRATA = ("property", "fact", "region", "modality", "dataset", "source", "wording")  # keys of a question
MOST_STRATA = 30  # different values; a key with more tells cases apart, not kinds
LEAST_POINTS = 5  # of an agreement plot
SHOWN = (ANSWERED, UNREADABLE, ABSTAINED, UNSCORED)


@dataclass(frozen=True, eq=False)
class Pictures:
    """What the worst answers are drawn from. labels: class -> id in the masks."""

    scans: Folder | None = None
    masks: Folder | None = None
    labels: Mapping[str, int] = field(default_factory=dict)


def answers_page(results: AnswerResults, pictures: Pictures | None = None, progress: Progress | None = None) -> Page:
    """Build the page. The files that were scored are read again for the words of the worst questions.

    progress: called with (pictures done, pictures, image).
    """
    rows = [row for row in results.rows() if row["reference"] != ""]
    own = [row for row in rows if row["system"] == results.name]
    chosen = worst(own)
    strata, questions = read_questions(results.source["reference"], {row["id"] for row in chosen})
    given = _read_answers(results.source["answers"], set(questions))
    metrics = results.metrics()
    tables = results.tables()
    return Page(
        f"Answers of {results.name}",
        [
            ("Answers", results.source["answers"]),
            ("Questions", results.source["reference"]),
            ("SHA-256 of the questions", results.source["reference_sha256"][:16]),
            ("Answerable questions", str(metrics["counts"]["n"])),
            ("Intervals", f"95 %, {results.resamples} bootstrap samples of whole patients"),
        ],
        [
            Section("Scores", tables=tables, plots=_score_plots(metrics)),
            Section(
                "By stratum",
                "The mean score of the questions of each kind, each its own share of the type's first figure.",
                tables=_strata_tables(own, strata, results),
            ),
            Section("Confidence", plots=_confidence_plots({results.name: metrics, **metrics["compared"]}, rows)),
            Section("Agreement of numbers", plots=_agreement_plots(own)),
            Section(
                "Worst answers",
                "Per type the wrong answers given most confidently. Boxes and outlines: reference in blue, answer in "
                "orange, on the slice of the evidence.",
                examples=list(_examples(chosen, questions, given, pictures or Pictures(), progress)),
            ),
        ],
    )


def worst(rows: Sequence[Row]) -> list[Row]:
    """Up to WORST_OF_TYPE rows a type that do not have the full score: answered before unreadable, abstained and
    unscored ones, then by score, confidence and relative error."""

    def badness(row: Row) -> tuple[float, ...]:
        score = 0.0 if row["state"] == UNSCORED else row["score"]
        return SHOWN.index(row["state"]), score, -_number(row["confidence"], 0.0), -_relative_error(row)

    chosen = []
    for kind in dict.fromkeys(row["type"] for row in rows):
        wrong = [
            row
            for row in rows
            if row["type"] == kind and row["state"] in SHOWN and (row["state"] == UNSCORED or row["score"] < 1)
        ]
        chosen += sorted(wrong, key=badness)[:WORST_OF_TYPE]
    return chosen


def risk_coverage(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(coverage, risk), (n,) each, of one system's rows: the n answers with a confidence, the most confident first.

    coverage: their share of the judged questions; risk: 1 - mean score so far. Answers of one confidence enter
    together.
    """
    judged = [row for row in rows if row["state"] in JUDGED]
    stated = [(row["confidence"], row["score"]) for row in judged if row["confidence"] != ""]
    confidence, score = np.array(sorted(stated, reverse=True), dtype=float).reshape(-1, 2).T
    last = np.flatnonzero(np.diff(confidence, append=-1.0))
    count = last + 1.0
    return count / max(len(judged), 1), 1 - np.cumsum(score)[last] / count


def read_questions(path: str, wanted: set[str]) -> tuple[dict[str, dict[str, str]], dict[str, Row]]:
    """Stratum -> question id -> its value there, for the keys with few values; and the questions wanted, by id."""
    values: dict[str, dict[str, str]] = {key: {} for key in STRATA}
    questions = {}
    for question in _lines(path):
        key = str(question.get("id"))
        for stratum, of_id in values.items():
            if isinstance(question.get(stratum), str):
                of_id[key] = sys.intern(question[stratum])
        if key in wanted:
            questions[key] = question
    return {key: of_id for key, of_id in values.items() if len(set(of_id.values())) <= MOST_STRATA}, questions


def _score_plots(metrics: Mapping[str, Any]) -> list[Plot]:
    """The first figure of every type with its interval, this system's alone."""
    values = {}
    for kind, one in metrics["types"].items():
        figure = one["headline"]["figure"]
        if figure in one["metrics"]:
            values[f"{kind}: {figure}"] = (one["metrics"][figure]["value"], one["metrics"][figure]["interval"])
    if not values:
        return []
    return [
        Plot("First figure of each type", plots.inline_svg(plots.intervals(values, "value with its 95 % interval")))
    ]


def _strata_tables(own: Sequence[Row], strata: Mapping[str, Mapping[str, str]], results: AnswerResults) -> list[Table]:
    tables = []
    for key, of_id in strata.items():
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in own:
            if row["state"] in JUDGED and row["id"] in of_id:
                groups.setdefault((row["type"], of_id[row["id"]]), []).append(row)
        if len({stratum for _, stratum in groups}) < 2:
            continue
        lines = []
        for (kind, stratum), members in sorted(groups.items()):
            values = np.array([row["score"] for row in members], dtype=float)
            interval = mean_interval(values, [row["patient"] for row in members], results.seed, results.resamples)
            lines.append([kind, stratum, str(len(members)), with_interval(float(values.mean()), interval, 3)])
        tables.append(Table(f"By {key}", ["type", key, "n", "mean score"], lines))
    return tables


def _confidence_plots(systems: Mapping[str, Mapping[str, Any]], rows: Sequence[Row]) -> list[Plot]:
    bins = {name: one["calibration"]["bins"] for name, one in systems.items() if one.get("calibration")}
    if not bins:
        return []
    curves = {name: risk_coverage([row for row in rows if row["system"] == name]) for name in bins}
    return [
        Plot(
            "Reliability",
            plots.inline_svg(plots.reliability(bins)),
            "On the dashed line, confidence says how often answers are right; the area is the number of answers.",
        ),
        Plot(
            "Risk and coverage",
            plots.inline_svg(plots.risk_coverage(curves)),
            "What is risked where only the most confident answers are taken; a line ends where no more are given.",
        ),
    ]


def _agreement_plots(own: Sequence[Row]) -> list[Plot]:
    """Bland-Altman, one a type and unit with at least LEAST_POINTS answers."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in own:
        if row["type"] in ("measurement", "regression") and row["state"] == ANSWERED:
            pairs.setdefault((row["type"], row["unit"]), []).append((float(row["reference"]), float(row["prediction"])))
    made = []
    for (kind, unit), values in sorted(pairs.items()):
        if len(values) >= LEAST_POINTS:
            reference, prediction = np.array(values, dtype=float).T
            figure = plots.bland_altman(reference, prediction, unit)
            title = f"{kind.capitalize()}{f', {unit}' if unit else ''}: {len(values)} answers"
            note = "Bland-Altman: mean difference and limits of agreement (1.96 SD)."
            made.append(Plot(title, plots.inline_svg(figure), note))
    return made


def _examples(
    rows: Sequence[Row],
    questions: Mapping[str, Row],
    given: Mapping[str, Row],
    pictures: Pictures,
    progress: Progress | None,
) -> Iterator[Example]:
    drawn: dict[str, tuple[str, str]] = {}
    images: dict[str, list[str]] = {}
    for row in rows:
        images.setdefault(str(questions.get(row["id"], {}).get("image") or ""), []).append(row["id"])
    for done, (image, ids) in enumerate(images.items(), 1):  # each scan is read once
        if image and (pictures.scans or pictures.masks):
            scan, mask, why = _open(image, pictures)
            for key in ids:
                picture, note = _picture(questions[key], given.get(key, {}), scan, mask, pictures.labels)
                drawn[key] = picture, " ".join(filter(None, [note, why]))
        if progress is not None:
            progress(done, len(images), image)
    for row in rows:
        question, answer = questions.get(row["id"], {}), given.get(row["id"], {})
        facts = [
            ("question", str(question.get("question") or "")),
            ("image", str(question.get("image") or "")),
            ("reference", f"{row['reference']} {row['unit']}"),
            ("answer", str(answer.get("text") or "")),
            ("read as", f"{row['prediction']} {row['unit']}" if row["prediction"] != "" else ""),
            ("state", row["state"]),
            ("reason", row["note"]),
            ("confidence", f"{row['confidence']:.2f}" if row["confidence"] != "" else ""),
            ("score", f"{row['score']:.3g}" if row["state"] in JUDGED else ""),
            ("evidence", "; ".join(map(_evidence, _dicts(answer.get("evidence"))))),
        ]
        shown = [(name, value) for name, value in facts if value.strip()]
        yield Example(f"{row['type']}: {row['id']}", shown, *drawn.get(row["id"], ("", "")))


def _open(image: str, pictures: Pictures) -> tuple[Volume | None, Mask | None, str]:
    """The scan and the mask behind a question's image, and why one that was asked for is not there."""
    scan = mask = None
    try:
        if pictures.scans is not None:
            scan = read_volume(pictures.scans.require(image))
        if pictures.masks is not None:
            mask = read_mask(pictures.masks.require(case_name(image)))
        if scan is not None and mask is not None:
            require_same_grid(scan, mask)
    except InputError as error:
        return scan, None, str(error)
    return scan, mask, ""


def _picture(
    question: Row, answer: Row, scan: Volume | None, mask: Mask | None, labels: Mapping[str, int]
) -> tuple[str, str]:
    """The <svg> of the slice that the evidence names, else through the middle of the first box, and its caption."""
    shown = scan or mask
    if shown is None:
        return "", ""
    grid = shown.grid
    _, turned = to_canonical(np.empty(grid.shape, dtype=bool), grid)
    evidence = _dicts(answer.get("evidence"))
    boxes = [
        ("reference" if side is question else "prediction", *_in_voxels(box, turned))
        for side, key in ((question, "answer"), (answer, "boxes"))
        for box in _boxes(side.get(key))
    ]
    number = _slice_number(evidence, grid, turned)
    if number is None and boxes:
        number = round(float(boxes[0][1][2] + boxes[0][2][2]) / 2)
    if number is None or not 0 <= number < turned.shape[2]:
        return "", "No slice is named."
    view = View(
        turned.spacing_mm[:2],
        number + 1,
        turned.shape[2],
        boxes=[(side, low[:2], high[:2]) for side, low, high in boxes if low[2] <= number <= high[2]],
    )
    if mask is not None:
        ids = [
            value
            for name, value in labels.items()
            if canonical(name) in {canonical(str(e.get("label"))) for e in evidence}
        ]
        outlined = to_canonical(mask.array, mask.grid)[0][:, :, number]
        view = replace(view, prediction=np.isin(outlined, ids))
    if scan is not None:
        view = Background.of(scan).behind(view)
    return draw_slice(view), f"Slice {view.number} of {view.of}."


def _slice_number(evidence: Sequence[Row], grid: Grid, turned: Grid) -> int | None:
    """The slice of the first evidence, counted on canonical axes; None where none is named."""
    for one in evidence:
        named = one.get("slice")
        if isinstance(named, dict) and isinstance(named.get("index"), int):
            index = (np.array(grid.shape) - 1) / 2
            index[grid.axial_axis] = named["index"]
            return round(float(turned.world_to_voxel(grid.voxel_to_world(index))[2]))
    return None


def _in_voxels(box: Box, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(3,) lowest and highest continuous voxel index of a box; the grid's axes are nearly the world's."""
    corners = grid.world_to_voxel(np.array([box.min_mm, box.max_mm]))
    return corners.min(axis=0), corners.max(axis=0)


def _boxes(records: Any) -> list[Box]:
    """Those that are boxes."""
    boxes = []
    for record in _dicts(records):
        try:
            boxes.append(Box.from_json(record))
        except ValueError:
            continue
    return boxes


def _evidence(one: Row) -> str:
    """ "tumour, long axis 84.2 mm, 120.4 ml" of one instance."""
    parts = [str(one.get("label") or "")]
    for key, text in (("long_axis_mm", "long axis {:.1f} mm"), ("volume_ml", "{:.1f} ml")):
        if isinstance(one.get(key), int | float):
            parts.append(text.format(one[key]))
    return ", ".join(filter(None, parts))


def _read_answers(path: str, wanted: set[str]) -> dict[str, Row]:
    """The answers wanted, by id; the last of several. Nothing where they did not come from a file."""
    return {str(answer.get("id")): answer for answer in _lines(path) if str(answer.get("id")) in wanted}


def _lines(path: str) -> Iterator[Row]:
    """The objects of a JSON-lines file or the rows of a CSV, one at a time; a broken line was reported before."""
    if not Path(path).is_file():
        return
    with open(path, encoding="utf-8-sig", newline="" if path.endswith(".csv") else None) as file:
        if path.endswith(".csv"):
            yield from csv.DictReader(file)
            return
        for line in file:
            if line.strip():
                yield json.loads(line)


def _dicts(value: Any) -> list[Row]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _number(value: Any, otherwise: float) -> float:
    return otherwise if value == "" else float(value)


def _relative_error(row: Row) -> float:
    """|error| / |reference| of a number, 0 for everything else."""
    if row["type"] not in NUMERIC or row["prediction"] == "":
        return 0.0
    reference, prediction = float(row["reference"]), float(row["prediction"])
    return abs(prediction - reference) / max(abs(reference), 1e-9)
