"""Folders of label maps against a reference folder: DSC, NSD and more per case and class, by a named protocol.

The official FLARE scripts have habits a careful scorer would not choose. `flare23` and `flare24` keep them, so that a
figure compares with a published one; `corrected` mends them; `automsc` is task 2 of FLARE26. Every result names its
protocol. A class a case does not annotate, a missing file and a class neither side has are states, not numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.ndimage import find_objects

from eval.bootstrap import clustered_intervals
from eval.jsonl import read_jsonl
from eval.lesionwise import Lesions, compare_lesions, lesion_figures
from eval.overlap import border_dice, dice, surface_scores
from eval.tables import Table, with_interval
from seg_backbone.errors import ConfigError, GridError, InputError, LabelError
from seg_backbone.geometry import Grid
from seg_backbone.io.nifti import SUFFIXES, read_mask
from seg_backbone.labels import FLARE23_LABELS, FLARE24_LABELS, LESIONS, canonical, read_labels
from seg_backbone.volume import Mask, require_same_grid

Crop = tuple[slice, ...]

# NSD tolerances in mm of the FLARE challenges; any other class has DEFAULT_TOLERANCE_MM.
TOLERANCES_MM = {
    "liver": 5.0,
    "kidney_right": 3.0,
    "kidney_left": 3.0,
    "spleen": 3.0,
    "pancreas": 5.0,
    "aorta": 2.0,
    "inferior_vena_cava": 2.0,
    "adrenal_gland_right": 2.0,
    "adrenal_gland_left": 2.0,
    "gallbladder": 2.0,
    "esophagus": 3.0,
    "stomach": 5.0,
    "duodenum": 7.0,
    "tumour": 2.0,
}
DEFAULT_TOLERANCE_MM = 2.0
# Tubes whose ends are a convention: scored only on the axial slices where the reference has them.
Z_LIMITED = ("aorta", "inferior_vena_cava", "ivc", "postcava", "esophagus")


@dataclass(frozen=True)
class Protocol:
    """How a folder is scored. `description` goes into every result.

    labels: ids that the protocol fixes, None where the user gives them. official: compare arrays as stored, whatever
    the headers say, and round each score to 4 decimals, as the challenge's scripts do. empty_score: score where neither
    side has the class (NaN: left out). nsd_floor: a DSC below it forces NSD to 0. z_limited: the classes of Z_LIMITED
    count only in the reference's z range; drop_top_slice: without its last slice (the official off-by-one).
    only_label: any value but 0 and this one scores the case 0. over_predictions: cases are the files in the prediction
    folder, so a missing one goes unpenalised. missing_raises: a missing prediction ends the run. border_nsd: NSD over
    border voxels at `tolerance_mm`, else over surface elements with the tolerance of each class. detailed: also HD95
    and, for lesion classes, each lesion by itself.
    """

    name: str
    description: str
    labels: dict[str, int] | None = None
    official: bool = False
    empty_score: float = float("nan")
    nsd_floor: float = 0.0
    z_limited: bool = False
    drop_top_slice: bool = False
    only_label: int | None = None
    over_predictions: bool = False
    missing_raises: bool = False
    border_nsd: bool = False
    tolerance_mm: float | None = None
    detailed: bool = False


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "flare23",
            "FLARE23's script: 14 fixed ids; both empty 1, one empty 0; DSC < 0.1 forces NSD 0; aorta, inferior vena "
            "cava and esophagus in the reference's z range without its last slice; a missing case ends the run; "
            "arrays compared as stored; scores rounded to 4 decimals",
            labels=FLARE23_LABELS,
            official=True,
            empty_score=1.0,
            nsd_floor=0.1,
            z_limited=True,
            drop_top_slice=True,
            missing_raises=True,
        ),
        Protocol(
            "flare24",
            "FLARE24 task 1's script: lesion is 1, any other value scores the case 0; both empty 1, one empty 0; "
            "DSC < 0.2 forces NSD 0; runs over prediction files, so missing cases go unpenalised; arrays compared as "
            "stored; scores rounded to 4 decimals",
            labels=FLARE24_LABELS,
            official=True,
            empty_score=1.0,
            nsd_floor=0.2,
            only_label=1,
            over_predictions=True,
        ),
        Protocol(
            "corrected",
            "every reference case counts and a missing prediction scores 0 for each annotated class; both empty is "
            "left out, one empty 0; unannotated classes are skipped; aorta, inferior vena cava and esophagus in the "
            "reference's whole z range; another grid or an unnamed label value is an error; FLARE tolerances, 2 mm for "
            "other classes; HD95 over the cases where both sides have the class; lesions as 26-connected components",
            z_limited=True,
            detailed=True,
        ),
        Protocol(
            "automsc",
            "FLARE26 task 2: DSC, and NSD over border voxels at 1 mm; both empty is left out, one empty 0; a missing "
            "prediction scores 0",
            border_nsd=True,
            tolerance_mm=1.0,
        ),
    )
}

# Of per_case.csv, for lesion classes under a detailed protocol.
LESION_COLUMNS = (
    "reference_lesions",
    "predicted_lesions",
    "lesion_f1",
    "panoptic_quality",
    "lesion_dsc",
    "false_positive_ml",
    "false_negative_ml",
)

# States of a (case, class) pair. Only the first four carry a score.
SCORED, BOTH_EMPTY, MISSING, INVALID = "scored", "both empty", "missing prediction", "other label values"
NOT_ANNOTATED, UNDEFINED = "not annotated", "undefined"


@dataclass(frozen=True)
class MaskScore:
    """One case and class. dsc, nsd: 0..1, NaN where the state carries no score. Volumes are of the whole mask, ml.

    `predicted_ml` is NaN where there is no prediction. hd95_mm: NaN where either side is empty and where NSD is not
    over surface elements. lesions: of a lesion class that the case annotates, under a detailed protocol.
    """

    case: str
    label: str
    state: str
    dsc: float
    nsd: float
    tolerance_mm: float
    reference_ml: float
    predicted_ml: float
    hd95_mm: float = float("nan")
    lesions: Lesions | None = None


@dataclass(frozen=True)
class MaskResults:
    """Scores of a folder. cases: how many were looked at. missing: reference cases without a prediction. notes: what a
    reader of the figures must know, one sentence each. labels, pred_labels: class -> id in the reference and in the
    predictions."""

    protocol: Protocol
    labels: dict[str, int]
    scores: list[MaskScore]
    cases: int
    missing: list[str]
    notes: list[str]
    pred_dir: str
    ref_dir: str
    pred_labels: dict[str, int]
    seed: int = 0
    resamples: int = 1000

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json. Means are over cases with a score; intervals bootstrap the cases."""
        return self._metrics

    @cached_property
    def _metrics(self) -> dict[str, Any]:
        classes = {name: self._of_class(name) for name in self.labels}
        groups = {
            "organs": [name for name in self.labels if name not in LESIONS],
            "lesions": [name for name in self.labels if name in LESIONS],
            "all": list(self.labels),
        }
        return {
            "kind": "masks",
            "protocol": self.protocol.name,
            "protocol_description": self.protocol.description,
            "predictions": self.pred_dir,
            "reference": self.ref_dir,
            "cases": self.cases,
            "missing_predictions": self.missing,
            "classes": classes,
            "mean": {
                group: {
                    metric: self._mean([classes[name][metric]["mean"] for name in names]) for metric in ("dsc", "nsd")
                }
                for group, names in groups.items()
                if names
            },
            "lesionwise": self._lesionwise(),
            "bootstrap": {"seed": self.seed, "resamples": self.resamples, "level": 0.95, "cluster": "case"},
            "notes": self.notes,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a case and class, for per_case.csv; with HD95 and lesions under a detailed protocol."""
        return [
            {
                "case": score.case,
                "class": score.label,
                "state": score.state,
                "dsc": score.dsc,
                "nsd": score.nsd,
                "tolerance_mm": score.tolerance_mm,
                "reference_ml": score.reference_ml,
                "predicted_ml": score.predicted_ml,
                **(_details(score) if self.protocol.detailed else {}),
            }
            for score in self.scores
        ]

    def tables(self) -> list[Table]:
        """One row a class and one a mean over classes; under a detailed protocol also the figures of the lesions."""
        metrics = self.metrics()
        scores = {
            "dsc": ("DSC", 3),
            "nsd": ("NSD", 3),
            **({"hd95_mm": ("HD95 mm", 1)} if self.protocol.detailed else {}),
        }
        counts = ("scored", "both_empty", "not_annotated", "missing", "false_positive")
        rows = []
        for name, values in metrics["classes"].items():
            printed = [
                with_interval(values[key]["mean"], values[key]["interval"], digits)
                for key, (_, digits) in scores.items()
            ]
            rows.append([name, *printed, f"{values['tolerance_mm']:g}", *(str(values[key]) for key in counts)])
        for name, values in metrics["mean"].items():
            printed = [with_interval(values.get(key), None, digits) for key, (_, digits) in scores.items()]
            rows.append([f"mean {name}", *printed, *[""] * 6])
        columns = [
            "class",
            *(head for head, _ in scores.values()),
            "tolerance mm",
            "n",
            "both empty",
            "not annotated",
            "missing",
            "false positives",
        ]
        title = f"Masks, protocol {self.protocol.name}: {self.cases} cases"
        tables = [Table(title, columns, rows, [self.protocol.description + ".", *self.notes])]
        for name, own in metrics["lesionwise"].items():
            counted = f"{own['reference']} in the reference, {own['predicted']} predicted, {own['cases']} cases"
            figures = [[key, with_interval(one["value"], one["interval"], 3)] for key, one in own["figures"].items()]
            tables.append(Table(f"Lesions, {name}: {counted}", ["figure", "value"], figures))
        return tables

    def _of_class(self, name: str) -> dict[str, Any]:
        scores = [score for score in self.scores if score.label == name]
        counted = [score for score in scores if not np.isnan(score.dsc)]
        keys = ("dsc", "nsd", "hd95_mm") if self.protocol.detailed else ("dsc", "nsd")
        values = {key: np.array([getattr(score, key) for score in counted]) for key in keys}
        intervals = clustered_intervals(
            lambda index: {key: _known_mean(array[index]) for key, array in values.items()},
            [score.case for score in counted],
            self.seed,
            self.resamples,
        )
        states = [score.state for score in scores]
        return {
            **{
                key: {"mean": self._mean(array.tolist()), "interval": intervals.get(key)}
                for key, array in values.items()
            },
            "tolerance_mm": self.protocol.tolerance_mm or tolerance_of(name),
            "scored": len(counted),
            "both_empty": states.count(BOTH_EMPTY),
            "not_annotated": states.count(NOT_ANNOTATED),
            "missing": states.count(MISSING),
            "invalid": states.count(INVALID),
            "undefined": states.count(UNDEFINED),
            "false_positive": sum(s.state == SCORED and s.reference_ml == 0 and s.predicted_ml > 0 for s in scores),
        }

    def _lesionwise(self) -> dict[str, Any]:
        """Lesion class -> counts and the figures of `lesion_figures`; empty unless the protocol is detailed."""
        classes = {}
        for name in self.labels:
            own = {s.case: s.lesions for s in self.scores if s.label == name and s.lesions is not None}
            if own:
                lesions = list(own.values())
                statistic = lesion_figures(lesions)
                intervals = clustered_intervals(statistic, list(own), self.seed, self.resamples)
                classes[name] = {
                    "cases": len(own),
                    "reference": sum(len(one.reference) for one in lesions),
                    "predicted": sum(len(one.predicted) for one in lesions),
                    "figures": {
                        key: {"value": value, "interval": intervals.get(key)}
                        for key, value in statistic(np.arange(len(lesions))).items()
                        if not np.isnan(value)
                    },
                }
        return classes

    def _mean(self, values: list[float]) -> float:
        mean = _known_mean(np.array(values))
        return round(mean, 4) if self.protocol.official else mean


def evaluate_masks(
    pred_dir: str | Path,
    ref_dir: str | Path,
    protocol: str = "corrected",
    labels: dict[str, int] | None = None,
    *,
    pred_labels: dict[str, int] | None = None,
    annotated: dict[str, list[str]] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> MaskResults:
    """Score every CASE.nii.gz of `pred_dir` against the file of that name in `ref_dir`.

    labels: reference class -> id; None for the protocol's own or a dataset.json in or beside `ref_dir`.
    pred_labels: the prediction's class -> id; None for PRED_DIR/labels.json, else the same as `labels`. Classes are
    matched by canonical name: one the prediction does not know counts as empty there (noted), one the reference does
    not know is ignored. The flare protocols fix the ids, so labels that say otherwise raise.
    annotated: case -> classes drawn in it (protocol `corrected` only); a case not listed has them all (noted).
    progress: called with (cases done, cases, case). Axial slices lie along `Grid.axial_axis` of the reference.

    `corrected` and `automsc` first turn the prediction to the reference's axis order (flips and transposes lose
    nothing) and then require one grid. `flare23` and `flare24` compare the arrays as stored and only note differing
    headers.
    Raises ConfigError (unknown protocol), LabelError, GridError, ScanError, InputError (no case, a missing one in
    flare23).
    """
    if protocol not in PROTOCOLS:
        raise ConfigError("--protocol", f"one of {', '.join(PROTOCOLS)}", repr(protocol), "name one of them")
    rules = PROTOCOLS[protocol]
    if annotated is not None and protocol != "corrected":
        raise ConfigError(
            "--manifest",
            "protocol corrected",
            f"protocol {protocol}",
            "leave the manifest out: no other protocol skips classes",
        )
    predictions, references = case_files(pred_dir), case_files(ref_dir)
    ref_labels = _reference_labels(rules, labels, Path(ref_dir))
    if pred_labels is None and (Path(pred_dir) / "labels.json").is_file():
        pred_labels = read_labels(Path(pred_dir) / "labels.json")
    pred_labels = _prediction_labels(rules, pred_labels, ref_labels, Path(pred_dir))
    cases = list(predictions if rules.over_predictions else references)
    if not cases:
        folder = pred_dir if rules.over_predictions else ref_dir
        raise InputError(folder, "masks CASE.nii.gz", "none", "name the folder that holds them")
    missing = [case for case in references if case not in predictions]
    if missing and rules.missing_raises:
        raise InputError(
            pred_dir, "a mask for every reference case", f"none for {_some(missing)}", "predict them first"
        )
    unmatched = [case for case in predictions if case not in references]
    if unmatched and rules.over_predictions:
        raise InputError(
            ref_dir, "a mask for every prediction", f"none for {_some(unmatched)}", "remove the extra files"
        )
    if len(missing) == len(references):
        raise InputError(pred_dir, f"masks named as in {ref_dir}", "not one of them", "check the two folders")

    notes = _notes(rules, missing, unmatched, ref_labels, pred_labels, annotated, cases)
    scores: list[MaskScore] = []
    foreign: list[str] = []
    for done, case in enumerate(cases, 1):
        reference = read_mask(references[case], None if rules.name == "flare23" else ref_labels)
        prediction = None
        if case in predictions:
            prediction = read_mask(predictions[case], None if rules.official else pred_labels)
            prediction = replace(prediction, labels=pred_labels)
            if rules.official:
                foreign += _require_same_shape(prediction, reference)
            else:
                prediction = turned_like(prediction, reference)
                require_same_grid(reference, prediction)
        drawn = ref_labels if annotated is None else {canonical(name) for name in annotated.get(case, ref_labels)}
        scores += _score_case(case, replace(reference, labels=ref_labels), prediction, set(drawn), rules)
        if progress is not None:
            progress(done, len(cases), case)
    if foreign:
        notes.append(f"Header differs from the reference, arrays compared as stored: {_some(foreign)}.")
    undefined = [f"{score.case} {score.label}" for score in scores if score.state == UNDEFINED]
    if undefined:
        notes.append(f"One-slice reference, which the official z range empties; left out: {_some(undefined)}.")
    return MaskResults(
        rules,
        ref_labels,
        scores,
        len(cases),
        missing,
        notes,
        str(pred_dir),
        str(ref_dir),
        pred_labels,
        seed=seed,
        resamples=resamples,
    )


def case_files(folder: str | Path) -> dict[str, Path]:
    """Case name -> file of every .nii.gz and .nii in a folder, sorted. Raises InputError: no folder, a name twice."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            folder, "a folder of masks", "a file" if folder.exists() else "no such folder", "check the path"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
        if suffix is None or path.name.startswith("."):
            continue
        case = path.name.removesuffix(suffix)
        if case in files:
            raise InputError(folder, "one mask a case", f"{files[case].name} and {path.name}", "remove one of them")
        files[case] = path
    return dict(sorted(files.items()))


def read_annotated(manifest: str | Path, ref_dir: str | Path) -> dict[str, list[str]]:
    """Case -> classes drawn in it, from a manifest.jsonl with `case`, `annotated` and optional `dataset` on each line.

    Where one case name occurs in several datasets, the lines count whose dataset is a folder on the path of `ref_dir`.
    Names come back canonical; a line whose `annotated` is not a list says nothing and is passed over.
    Raises QuestionError (broken line) or InputError (no case, two answers for a case).
    """
    parts = Path(ref_dir).resolve().parts
    lines = read_jsonl(manifest)
    own = [(number, line) for number, line in lines if line.get("dataset") in parts]
    table: dict[str, list[str]] = {}
    for number, line in own or lines:
        where = f"{manifest}, line {number}"
        if not isinstance(line.get("case"), str):
            raise InputError(where, "a case name", json.dumps(line)[:80], "complete the line")
        if not isinstance(line.get("annotated"), list):
            continue
        classes = sorted({canonical(str(name)) for name in line["annotated"]})
        if table.setdefault(line["case"], classes) != classes:
            raise InputError(
                where, "one list a case", f"a second one for {line['case']}", "give each dataset its manifest"
            )
    return table


def find_manifest(ref_dir: str | Path) -> Path | None:
    """The manifest.jsonl in `ref_dir`, beside it, or beside the dataset folder that holds it."""
    folder = Path(ref_dir).resolve()
    candidates = (place / "manifest.jsonl" for place in (folder, *folder.parents[:2]))
    return next((path for path in candidates if path.is_file()), None)


def tolerance_of(label: str) -> float:
    """NSD tolerance of a class, mm."""
    return TOLERANCES_MM.get(label, DEFAULT_TOLERANCE_MM)


def turned_like(mask: Mask, other: Mask) -> Mask:
    """`mask` with its array axes flipped and transposed to the orientation of `other`; the world stays as it is."""
    have, want = nib.io_orientation(mask.grid.affine), nib.io_orientation(other.grid.affine)
    turn = nib.orientations.ornt_transform(have, want)
    array = nib.apply_orientation(mask.array, turn)
    affine = mask.grid.affine @ nib.orientations.inv_ornt_aff(turn, mask.grid.shape)
    return replace(mask, array=array, grid=Grid(array.shape, affine))


def _score_case(
    case: str, reference: Mask, prediction: Mask | None, annotated: set[str], rules: Protocol
) -> Iterator[MaskScore]:
    voxel_ml, nan = reference.grid.voxel_volume_ml, float("nan")
    reference_boxes = find_objects(reference.array)
    prediction_boxes = find_objects(prediction.array) if prediction is not None else []
    invalid = rules.only_label is not None and prediction is not None and prediction.array.max() > rules.only_label
    for name, reference_id in reference.labels.items():
        prediction_id = prediction.labels.get(name, 0) if prediction is not None else 0
        reference_box, prediction_box = _box(reference_boxes, reference_id), _box(prediction_boxes, prediction_id)
        box = _union(reference_box, prediction_box)
        truth = _cut(reference if reference_box else None, box, reference_id)
        ours = _cut(prediction if prediction_box else None, box, prediction_id)
        n_reference, n_prediction = int(truth.sum()), int(ours.sum())
        tolerance = rules.tolerance_mm or tolerance_of(name)
        dsc, nsd, hd95 = 0.0, 0.0, nan
        one_by_one = rules.detailed and name in LESIONS and name in annotated
        lesions = compare_lesions(ours, truth, voxel_ml) if one_by_one else None
        if name not in annotated:
            state, dsc, nsd = NOT_ANNOTATED, nan, nan
        elif prediction is None:
            state = MISSING
        elif invalid:
            state = INVALID
        elif not n_reference and not n_prediction:
            state, dsc, nsd = BOTH_EMPTY, rules.empty_score, rules.empty_score
        elif not n_reference or not n_prediction:
            state = SCORED
        else:
            if rules.z_limited and name in Z_LIMITED:
                inside = _z_range(truth, reference.grid.axial_axis, rules.drop_top_slice)
                ours, truth = ours[inside], truth[inside]
            state, dsc = SCORED, dice(ours, truth)
            if np.isnan(dsc):
                state, nsd = UNDEFINED, nan
            elif dsc >= rules.nsd_floor:
                if rules.border_nsd:
                    nsd = border_dice(ours, truth, reference.grid.spacing_mm, tolerance)
                else:
                    nsd, hd95 = surface_scores(ours, truth, reference.grid.spacing_mm, tolerance)
        if rules.official:
            dsc, nsd = round(dsc, 4), round(nsd, 4)
        predicted_ml = n_prediction * voxel_ml if prediction is not None else nan
        yield MaskScore(case, name, state, dsc, nsd, tolerance, n_reference * voxel_ml, predicted_ml, hd95, lesions)


def _box(boxes: list[Crop | None], value: int) -> Crop | None:
    """The box of one id; None where it is absent, and for id 0 (a class the labels lack)."""
    return boxes[value - 1] if 0 < value <= len(boxes) else None


def _union(first: Crop | None, second: Crop | None) -> Crop:
    """The smallest box around those that are there, one voxel where none is. No margin: outside the array counts as
    background in both surface measures."""
    if first is None or second is None:
        return first or second or (slice(0, 1),) * 3
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def _cut(mask: Mask | None, box: Crop, value: int) -> np.ndarray:
    """Where one id is inside a box, boolean; nowhere without a mask."""
    if mask is None:
        return np.zeros([side.stop - side.start for side in box], dtype=bool)
    return mask.array[box] == value


def _z_range(truth: np.ndarray, axis: int, drop_top: bool) -> Crop:
    """The slices along `axis` that `truth`, which is not empty, occupies; without the last one if drop_top."""
    rows = np.flatnonzero(truth.any(axis=tuple(i for i in range(truth.ndim) if i != axis)))
    inside = slice(int(rows[0]), int(rows[-1]) + 1 - drop_top)
    return tuple(inside if i == axis else slice(None) for i in range(truth.ndim))


def _details(score: MaskScore) -> dict[str, Any]:
    """Further columns of per_case.csv. The shares of a missing prediction are 0, as its DSC is."""
    lesions, values = score.lesions, [float("nan")] * len(LESION_COLUMNS)
    if lesions is not None:
        shares = [lesions.f1, lesions.panoptic_quality, lesions.lesion_dsc]
        if score.state == MISSING:
            shares = [0.0] * len(shares)
        counts = [len(lesions.reference), len(lesions.predicted)]
        values = [*counts, *shares, lesions.false_positive_ml, lesions.false_negative_ml]
    return {"hd95_mm": score.hd95_mm, **dict(zip(LESION_COLUMNS, values, strict=True))}


def _known_mean(values: np.ndarray) -> float:
    """Mean of the numbers among the values; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _require_same_shape(prediction: Mask, reference: Mask) -> list[str]:
    """The prediction's file where its header puts the same array elsewhere, else nothing. Raises GridError on
    shapes."""
    if prediction.grid.shape != reference.grid.shape:
        found = f"{prediction.grid.shape}"
        raise GridError(
            prediction.source, f"the shape {reference.grid.shape} of {reference.source}", found, "resample it"
        )
    return [] if prediction.grid.same_as(reference.grid) else [Path(prediction.source).name]


def _reference_labels(rules: Protocol, labels: dict[str, int] | None, ref_dir: Path) -> dict[str, int]:
    if labels is not None:
        labels = {canonical(name): value for name, value in labels.items() if value != 0}
    if rules.labels is not None:
        _require_fixed(rules, labels or {}, "--labels")
        return rules.labels
    if labels is None:
        files = [place / "dataset.json" for place in (ref_dir, ref_dir.resolve().parent)]
        found = next((path for path in files if path.is_file()), None)
        if found is None:
            raise LabelError(ref_dir, "a dataset.json in or beside it", "none", "pass --labels FILE")
        labels = read_labels(found)
    if not labels:
        raise LabelError("--labels", "at least one class", "none but background", "name the classes to score")
    return labels


def _prediction_labels(
    rules: Protocol, given: dict[str, int] | None, ref_labels: dict[str, int], pred_dir: Path
) -> dict[str, int]:
    if given is None:
        return ref_labels
    given = {canonical(name): value for name, value in given.items() if value != 0}
    if rules.labels is not None:
        _require_fixed(rules, given, str(pred_dir / "labels.json"))
        return rules.labels
    if not set(given) & set(ref_labels):
        raise LabelError(
            pred_dir,
            f"one of the classes {_some(ref_labels)}",
            _some(given) or "none",
            "check --labels and --pred-labels",
        )
    return given


def _require_fixed(rules: Protocol, labels: dict[str, int], source: str) -> None:
    fixed = rules.labels or {}
    wrong = [f"{name} = {value}" for name, value in labels.items() if name in fixed and fixed[name] != value]
    if wrong:
        todo = f"segment with --labels {rules.name}, or use protocol corrected"
        raise LabelError(source, f"the ids that {rules.name} fixes", _some(wrong), todo)


def _notes(
    rules: Protocol,
    missing: list[str],
    unmatched: list[str],
    ref_labels: dict[str, int],
    pred_labels: dict[str, int],
    annotated: dict[str, list[str]] | None,
    cases: list[str],
) -> list[str]:
    notes = []
    if missing:
        how = "left out, as the official script does" if rules.over_predictions else "scored 0 for each annotated class"
        notes.append(f"{len(missing)} reference cases have no prediction ({how}): {_some(missing)}.")
    if unmatched:
        notes.append(f"{len(unmatched)} predictions have no reference and were not used: {_some(unmatched)}.")
    unknown = [name for name in ref_labels if name not in pred_labels]
    if unknown:
        notes.append(f"The prediction's labels lack these classes, which count as empty: {_some(unknown)}.")
    if annotated is not None:
        unlisted = [case for case in cases if case not in annotated]
        if unlisted:
            notes.append(f"No classes in the manifest, taken as fully annotated: {_some(unlisted)}.")
    return notes


def _some(names: Any, most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
