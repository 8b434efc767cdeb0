"""The page of scored answers: tables per type and stratum, calibration, agreement of numbers, and the worst answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np

from eval import plots
from eval.answer_file import read_answer_file
from eval.answers import AnswerResults
from eval.detection import Box
from eval.jsonl import read_jsonl
from eval.reading import ABSTAINED, ANSWERED, JUDGED, UNREADABLE, UNSCORED, Item
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
Progress = Callable[[int, int], None]

WORST_OF_TYPE = 4
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

    progress: called with (images done, images).
    """
    asked, answered = results.source["reference"], results.source["answers"]
    worst, pairs = worst_rows(results), number_pairs(results)
    wanted = {row["id"] for row in worst}
    given = read_given(answered, wanted, results.columns)
    metrics = results.metrics()
    systems = {results.name: metrics, **metrics["compared"]}
    return Page(
        f"Answers of {results.name}",
        [
            ("Answers", answered),
            ("Questions", asked),
            ("SHA-256 of the questions", results.source["reference_sha256"][:16]),
            ("Answerable questions", str(metrics["counts"]["n"])),
            ("Intervals", f"95 %, {results.resamples} bootstrap samples of whole patients"),
        ],
        [
            Section("Scores", tables=[*results.tables(), *_unit_tables(metrics)], plots=_score_plots(metrics)),
            Section("Confidence", plots=_confidence_plots(systems)),
            Section("Agreement of numbers", plots=_agreement_plots(pairs)),
            Section(
                "Worst answers",
                "Per type the wrong answers given most confidently. Reference in blue, answer in orange, the long axis "
                "in yellow, on the slice of the evidence.",
                examples=list(_examples(worst, read_records(asked, wanted), given, pictures, progress)),
            ),
        ],
    )


def worst_rows(results: AnswerResults) -> list[Row]:
    """Up to WORST_OF_TYPE rows of per_case.csv a type, those that are not right, the worst by `badness` first."""
    rows = []
    for kind in results.kinds.values():
        wrong = [
            (badness(item, score), place)
            for item, score, place in zip(kind.items, kind.figures.own.tolist(), kind.place.tolist(), strict=True)
            if item.state == UNSCORED or (item.state in SHOWN and score < 1)
        ]
        rows += [results.row(place) for _, place in nsmallest(WORST_OF_TYPE, wrong)]
    return rows


def badness(item: Item, score: float) -> tuple[float, ...]:
    """What sorts the worst first: answered before unreadable, abstained and unscored questions, then score, confidence
    and relative error."""
    error = 0.0
    if item.prediction is not None and item.reference.type in NUMERIC:
        error = abs(item.prediction - item.reference.answer) / max(abs(item.reference.answer), 1e-9)
    return SHOWN.index(item.state), 0.0 if item.state == UNSCORED else score, -(item.confidence or 0.0), -error


def number_pairs(results: AnswerResults) -> dict[tuple[str, str], np.ndarray]:
    """(type, unit) -> (n, 2) reference and answer of the measured and estimated numbers."""
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for name in ("measurement", "regression"):
        for item in results.kinds[name].items if name in results.kinds else ():
            if item.state == ANSWERED:
                own = pairs.setdefault((name, item.reference.unit or ""), [])
                own.append((item.reference.answer, item.prediction))
    return {key: np.array(own) for key, own in pairs.items()}


def read_given(path: str, wanted: set[str], columns: tuple[str | None, str | None]) -> dict[str, Row]:
    """The answers wanted, by id, the last of several; nothing where they did not come from a file.

    columns: those of `read_answer_file`.
    """
    if not Path(path).is_file():
        return {}
    answers = (answer for _, answer in read_answer_file(path, *columns, holding=wanted))
    return {str(answer["id"]): answer for answer in answers if str(answer["id"]) in wanted}


def read_records(path: str, wanted: set[str]) -> dict[str, Row]:
    """The questions wanted, by id; nothing where they did not come from a file."""
    return {str(record.get("id")): record for record in _lines(path, wanted) if str(record.get("id")) in wanted}


def _score_plots(metrics: Mapping[str, Any]) -> list[Plot]:
    """The first figure of every type with its interval, this system's alone."""
    values = {}
    for kind, one in metrics["types"].items():
        figure = one["headline"]["figure"]
        if figure in one["metrics"]:
            values[f"{kind}: {figure}"] = (one["metrics"][figure]["value"], one["metrics"][figure]["interval"])
    if not values:
        return []
    svg = plots.inline_svg(plots.intervals(values, "value with its 95 % interval"))
    return [Plot("First figure of each type", svg)]


def _unit_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """The first figure of every type for each unit, this system's alone; nothing where no type has several."""
    lines = []
    for kind, one in metrics["types"].items():
        for unit, part in one.get("by_unit", {}).items():
            figure = part["headline"]["figure"]
            printed = with_interval(part["figures"].get(figure), part["intervals"].get(figure), 3)
            lines.append([kind, unit or "–", figure, str(part["n"]), printed])
    return [Table("By unit", ["type", "unit", "figure", "n", "value"], lines)] if lines else []


def _confidence_plots(systems: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    bins = {name: one["calibration"]["bins"] for name, one in systems.items() if one["calibration"]}
    curves = {
        name: (np.array([point["coverage"] for point in curve]), np.array([point["risk"] for point in curve]))
        for name, one in systems.items()
        if (curve := one["abstention"].get("curve"))
    }
    made = []
    if bins:
        svg = plots.inline_svg(plots.reliability(bins))
        note = "On the dashed line, confidence says how often answers are right; the area is the number of answers."
        made.append(Plot("Reliability", svg, note))
    if curves:
        svg = plots.inline_svg(plots.risk_coverage(curves))
        note = "What is risked where only the most confident answers are taken; a line ends where no more are given."
        made.append(Plot("Risk and coverage", svg, note))
    return made


def _agreement_plots(pairs: Mapping[tuple[str, str], np.ndarray]) -> list[Plot]:
    """Bland-Altman, one a type and unit with at least LEAST_POINTS answers."""
    made = []
    for (kind, unit), values in sorted(pairs.items()):
        reference, prediction = values.T
        if len(reference) >= LEAST_POINTS:
            svg = plots.inline_svg(plots.bland_altman(reference, prediction, unit))
            title = f"{kind.capitalize()}{f', {unit}' if unit else ''}: {len(reference)} answers"
            made.append(Plot(title, svg, "Bland-Altman: mean difference and limits of agreement (1.96 SD)."))
    return made


def _examples(
    rows: Sequence[Row],
    questions: Mapping[str, Row],
    given: Mapping[str, Row],
    pictures: Pictures | None,
    progress: Progress | None,
) -> Iterator[Example]:
    drawn: dict[str, tuple[str, str]] = {}
    images: dict[str, list[str]] = {}
    for row in rows:
        images.setdefault(str(questions.get(row["id"], {}).get("image") or ""), []).append(row["id"])
    for done, (image, ids) in enumerate(images.items(), 1):  # each scan is read once
        if image and pictures is not None:
            scan, mask, why = _open(image, pictures)
            for key in ids:
                picture, note = _picture(questions[key], given.get(key, {}), scan, mask, pictures.labels)
                drawn[key] = picture, " ".join(filter(None, [note, why]))
        if progress is not None:
            progress(done, len(images))
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
            ("confidence", f"{float(row['confidence']):.2f}" if row["confidence"] != "" else ""),
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
    lines = [turned.world_to_voxel(ends) for ends in map(_long_axis, evidence) if ends is not None]
    view = View(
        turned.spacing_mm[:2],
        number + 1,
        turned.shape[2],
        boxes=[(side, low[:2], high[:2]) for side, low, high in boxes if low[2] <= number <= high[2]],
        lines=[ends[:, :2] for ends in lines if round(float(ends[:, 2].mean())) == number],
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


def _long_axis(one: Row) -> np.ndarray | None:
    """(2, 3) world ends of the long axis that an instance states; None where there are none."""
    try:
        ends = np.array(one.get("long_axis_points_mm"), dtype=float)
    except (TypeError, ValueError):
        return None
    return ends if ends.shape == (2, 3) and np.isfinite(ends).all() else None


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


def _lines(path: str, holding: set[str]) -> Iterator[Row]:
    """The objects of a JSON-lines file that hold one of the words; nothing where it is no file."""
    if Path(path).is_file():
        yield from (record for _, record in read_jsonl(path, holding))


def _dicts(value: Any) -> list[Row]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
