"""One case: two label maps in, a score of every class out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np

from eval.lesionwise import Lesions, compare_lesions
from eval.mask_files import Case, some
from eval.overlap import Crop, border_dice, dice, surface_scores, union
from eval.protocols import Z_LIMITED, Protocol, tolerance_of
from seg_backbone.errors import GridError, InputError, LabelError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_image, read_mask
from seg_backbone.io.image import require_real
from seg_backbone.io.nifti import SUFFIXES as NIFTI
from seg_backbone.labels import is_lesion
from seg_backbone.volume import Mask, require_same_grid

# States of a (case, class) pair. Only the first four carry a score.
SCORED, BOTH_EMPTY, MISSING, INVALID = "scored", "both empty", "missing prediction", "other label values"
NOT_ANNOTATED, UNDEFINED = "not annotated", "undefined"
# What a script passes over in silence, told in the notes with the names of the cases.
OTHER_GRID = "Header differs from the reference, arrays compared as stored, as the official script does"
OTHER_VALUES = "Label values outside the protocol, {}, as the official script does"
CAST = "NaN, fractions or values that the script's integers cannot hold, cast to {} as it does"
NO_LABEL = "NaN, fractions or negative values, equal to no label, as in the official script"
ONE_SLICE = "One-slice reference, which the official z range empties; left out"


@dataclass(frozen=True)
class MaskScore:
    """One case and class. dsc, nsd: 0..1, NaN where the state carries no score. Volumes are of the whole mask, ml.

    `predicted_ml` is NaN where there is no prediction. border_nsd, hd95_mm: under a detailed protocol; hd95_mm is NaN
    where either side is empty. lesions: of a lesion class that the case annotates, under a detailed protocol.
    """

    case: str
    label: str
    state: str
    dsc: float
    nsd: float
    tolerance_mm: float
    reference_ml: float
    predicted_ml: float
    border_nsd: float = float("nan")
    hd95_mm: float = float("nan")
    lesions: Lesions | None = None

    @property
    def volume_error_ml(self) -> float:
        """Predicted minus reference volume; NaN where there is no prediction or the class is not annotated."""
        return float("nan") if self.state == NOT_ANNOTATED else self.predicted_ml - self.reference_ml


@dataclass(frozen=True)
class CaseScores:
    """scores: one a class. remarks: (what was passed over, where)."""

    scores: list[MaskScore]
    remarks: list[tuple[str, str]]


@dataclass(frozen=True)
class Rules:
    """A protocol with the labels and tolerances of one run. tolerances_mm: class -> mm, in place of the protocol's."""

    protocol: Protocol
    ref_labels: dict[str, int]
    pred_labels: dict[str, int]
    tolerances_mm: dict[str, float] = field(default_factory=dict)

    def tolerance_of(self, label: str) -> float:
        """NSD tolerance of a class, mm."""
        return self.tolerances_mm.get(label, self.protocol.tolerance_mm or tolerance_of(label))


def score_case(case: Case, rules: Rules) -> CaseScores | InputError:
    """Read both label maps of a case and score every class of the references; the error where the rules refuse it.

    An official protocol compares the arrays as stored. `corrected` first turns the prediction to the reference's axis
    order (flips and transposes lose nothing) and then requires one grid. Axial slices lie along `Grid.axial_axis`.
    """
    remarks: list[tuple[str, str]] = []
    reference: Mask
    prediction: Mask | None
    try:
        if rules.protocol.official:
            reference, prediction, remarks = _read_as_stored(case, rules)
        else:
            reference, prediction = _read_checked(case, rules)
        scores = list(_score_classes(case, reference, prediction, rules))
    except InputError as error:
        return error
    if undefined := [score.label for score in scores if score.state == UNDEFINED]:
        remarks.append((ONE_SLICE, f"{case.name} ({some(undefined)})"))
    return CaseScores(scores, remarks)


def turned_like(mask: Mask, other: Mask) -> Mask:
    """`mask` with its array axes flipped and transposed to the orientation of `other`; the world stays as it is."""
    have, want = nib.io_orientation(mask.grid.affine), nib.io_orientation(other.grid.affine)
    turn = nib.orientations.ornt_transform(have, want)
    array = nib.apply_orientation(mask.array, turn)
    affine = mask.grid.affine @ nib.orientations.inv_ornt_aff(turn, mask.grid.shape)
    return replace(mask, array=array, grid=Grid(array.shape, affine))


def _read_checked(case: Case, rules: Rules) -> tuple[Mask, Mask | None]:
    reference = read_mask(case.reference, rules.ref_labels)
    if case.prediction is None:
        return reference, None
    prediction = turned_like(read_mask(case.prediction, rules.pred_labels), reference)
    require_same_grid(reference, prediction)
    return reference, prediction


def _read_as_stored(case: Case, rules: Rules) -> tuple[Mask, Mask, list[tuple[str, str]]]:
    """Both masks as an official script has them in memory, and what it does not mention."""
    assert case.prediction is not None, "no official script scores a missing prediction"
    protocol, remarks, masks = rules.protocol, [], []
    for side, path, labels in (
        ("reference", case.reference, rules.ref_labels),
        ("prediction", case.prediction, rules.pred_labels),
    ):
        image = read_image(path)
        array, changed = _cast(require_real(image.array, path), protocol.stored_as)
        mask = Mask(array, image.grid, labels, str(path))
        masks.append(mask)
        if changed:
            what = CAST.format(protocol.stored_as) if protocol.stored_as else NO_LABEL
            remarks.append((what, f"{case.name} ({changed} voxels of the {side})"))
        if others := sorted(set(mask.boxes) - set(labels.values())):
            if protocol.only_label is not None and side == "reference":
                todo = "the official script adds such values up; keep the lesion alone"
                raise LabelError(path, f"0 and {protocol.only_label}, as {protocol.name} has them", f"{others}", todo)
            how = "taken as background" if protocol.only_label is None else "which score the case 0"
            remarks.append((OTHER_VALUES.format(how), f"{case.name} ({side}: {some(map(str, others))})"))
    reference, prediction = masks
    if prediction.grid.shape != reference.grid.shape:
        expected = f"the shape {reference.grid.shape} of {reference.source}"
        raise GridError(prediction.source, expected, f"{prediction.grid.shape}", "resample it")
    if not prediction.grid.same_as(reference.grid):
        remarks.append((OTHER_GRID, case.name))
    return reference, prediction, remarks


def _cast(stored: np.ndarray, to: str) -> tuple[np.ndarray, int]:
    """The array as small unsigned integers, and how many voxels that changed.

    to: the script's integer type; "" where it compares values, so that whatever is no whole number from 0 to 65535 is
    equal to no label and becomes 0 here. A cast truncates fractions, wraps what is too large and, on the machines that
    FLARE scores on, turns NaN into 0; a negative label is equal to none either.
    """
    if stored.dtype.kind in "iu" and stored.min() >= 0 and stored.max() <= 127:
        return stored.astype(np.uint8), 0
    with np.errstate(invalid="ignore"):
        array = stored.astype(to or np.uint16)
    changed = array != stored
    if not to:
        array[changed] = 0
    elif to == "int8":
        array = np.maximum(array, 0).astype(np.uint8)
    return array, int(np.count_nonzero(changed))


def _score_classes(case: Case, reference: Mask, prediction: Mask | None, rules: Rules) -> Iterator[MaskScore]:
    protocol, nan = rules.protocol, float("nan")
    spacing_mm, axial = reference.grid.spacing_mm, reference.grid.axial_axis
    if protocol.official:
        spacing_mm, axial = _header_spacing_mm(case.reference, reference.grid), 2
    voxel_ml = reference.grid.voxel_volume_ml
    highest = max(prediction.boxes, default=0) if prediction is not None else 0
    invalid = protocol.only_label is not None and highest > protocol.only_label
    for name, reference_id in rules.ref_labels.items():
        prediction_id = rules.pred_labels.get(name, 0)
        annotated = case.annotated is None or name in case.annotated
        ours, truth = _cropped(prediction, prediction_id, reference, reference_id)
        n_reference, n_prediction = int(truth.sum()), int(ours.sum())
        tolerance_mm = rules.tolerance_of(name)
        dsc, nsd, border_nsd, hd95_mm = 0.0, 0.0, 0.0, nan
        lesions = None
        if protocol.detailed and annotated and is_lesion(name):
            lesions = compare_lesions(ours, truth, spacing_mm, missing=prediction is None)
        if not annotated:
            state, dsc, nsd, border_nsd = NOT_ANNOTATED, nan, nan, nan
        elif prediction is None:
            state = MISSING
        elif invalid:
            state = INVALID
        elif not n_reference and not n_prediction:
            state, dsc, nsd, border_nsd = BOTH_EMPTY, *[protocol.empty_score] * 3
        elif not n_reference or not n_prediction:
            state = SCORED
        else:
            if protocol.z_limited and name in Z_LIMITED:
                inside = _z_range(truth, axial, protocol.drop_top_slice)
                ours, truth = ours[inside], truth[inside]
            state, dsc = SCORED, dice(ours, truth)
            if np.isnan(dsc):
                state, nsd = UNDEFINED, nan
            elif dsc >= protocol.nsd_floor:
                if protocol.border_nsd or protocol.detailed:
                    border_nsd = border_dice(ours, truth, spacing_mm, tolerance_mm)
                if protocol.border_nsd:
                    nsd = border_nsd
                else:
                    nsd, hd95_mm = surface_scores(ours, truth, spacing_mm, tolerance_mm)
        if protocol.digits is not None:
            dsc, nsd = round(dsc, protocol.digits), round(nsd, protocol.digits)
        yield MaskScore(
            case.name,
            name,
            state,
            dsc,
            nsd,
            tolerance_mm,
            n_reference * voxel_ml,
            n_prediction * voxel_ml if prediction is not None else nan,
            border_nsd,
            hd95_mm,
            lesions,
        )


def _header_spacing_mm(path: Path, grid: Grid) -> np.ndarray:
    """(3,) spacing as the scripts read it: a NIfTI header's own float32 numbers, from which the affine's may differ in
    the last digit and so move a distance across a tolerance."""
    if not path.name.lower().endswith(NIFTI):
        return grid.spacing_mm
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Pair)
    return np.array(image.header.get_zooms()[:3], dtype=np.float64)


def _cropped(
    prediction: Mask | None, prediction_id: int, reference: Mask, reference_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where each side has its id, boolean, inside the smallest box around both; one voxel where neither has it."""
    sides = ((prediction, prediction_id), (reference, reference_id))
    found = [mask.boxes[value] for mask, value in sides if mask is not None and value in mask.boxes]
    box = union(found) if found else (slice(0, 1),) * 3
    shape = [side.stop - side.start for side in box]
    ours, truth = (
        np.zeros(shape, dtype=bool) if mask is None or value not in mask.boxes else mask.array[box] == value
        for mask, value in sides
    )
    return ours, truth


def _z_range(truth: np.ndarray, axis: int, drop_top: bool) -> Crop:
    """The slices along `axis` that `truth`, which is not empty, occupies; without the last one if drop_top."""
    rows = np.flatnonzero(truth.any(axis=tuple(i for i in range(truth.ndim) if i != axis)))
    inside = slice(int(rows[0]), int(rows[-1]) + 1 - drop_top)
    return tuple(inside if i == axis else slice(None) for i in range(truth.ndim))
