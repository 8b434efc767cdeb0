"""Lesions one by one: which were found, how well each was drawn, and how much was invented.

Two boolean arrays of one case enter, a `Lesions` leaves; `lesion_figures` sums many of them up. A lesion is a
26-connected component, as everywhere in this project.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import cc3d
import numpy as np

from eval.bootstrap import Statistic
from eval.brats import brats_scores
from eval.detection import f1, match

IOU_THRESHOLDS = (0.1, 0.3, 0.5)
SIZES_ML = (1.0, 10.0, 100.0)  # edges of the size classes; spheres of 12, 27 and 58 mm


@dataclass(frozen=True, eq=False)
class Lesions:
    """The lesions of one case and class, reference against prediction.

    reference: (r,), predicted: (p,) voxels of each lesion. shared: (p, r) voxels that two lesions have in common.
    false_positive_ml: volume of the predicted components that touch no reference voxel, false_negative_ml: of the
    reference components that touch no predicted one, both of 18-connected components (autoPET's definition: Gatidis et
    al., Results from the autoPET challenge, Nat. Mach. Intell. 6 (2024)). lesion_dsc, lesion_hd95_mm: BraTS's, see
    `brats_scores`; NaN without any lesion. missing: there is no prediction, which is no merit on a healthy scan: the
    shares of the case are 0.
    """

    reference: np.ndarray
    predicted: np.ndarray
    shared: np.ndarray
    voxel_ml: float
    false_positive_ml: float
    false_negative_ml: float
    lesion_dsc: float
    lesion_hd95_mm: float
    missing: bool = False

    @cached_property
    def iou(self) -> np.ndarray:
        """(p, r) intersection over union of two lesions, 0..1."""
        return self.shared / (self.predicted[:, None] + self.reference - self.shared)

    @cached_property
    def pairs(self) -> dict[float, list[tuple[int, int]]]:
        """IoU threshold -> one-to-one pairs (predicted, reference) with at least that IoU, by Hungarian matching."""
        return {threshold: match(self.iou, threshold) for threshold in IOU_THRESHOLDS}

    def counts(self, threshold: float) -> tuple[int, int, int]:
        """(true positives, false positives, false negatives) at an IoU threshold."""
        true = len(self.pairs[threshold])
        return true, len(self.predicted) - true, len(self.reference) - true

    @cached_property
    def segmented_iou(self) -> float:
        """Sum of the IoU above 0.5, the numerator of panoptic quality; such pairs are one to one by themselves."""
        return float(self.iou[self.iou > 0.5].sum())

    @cached_property
    def matched_dsc(self) -> list[float]:
        """DSC of each pair at IoU 0.5."""
        return [2 * float(self.iou[pair]) / (1 + float(self.iou[pair])) for pair in self.pairs[0.5]]

    @cached_property
    def own_dsc(self) -> np.ndarray:
        """(r,) DSC of each reference lesion with all predicted lesions that touch it, taken together; 0 if none
        does."""
        touching = self.predicted @ (self.shared > 0)
        return 2 * self.shared.sum(axis=0) / (touching + self.reference)

    @property
    def f1(self) -> float:
        """F1 at IoU 0.5; NaN without any lesion."""
        return 0.0 if self.missing else f1(*self.counts(0.5))

    @property
    def panoptic_quality(self) -> float:
        """See `panoptic_quality`; NaN without any lesion."""
        return 0.0 if self.missing else panoptic_quality(self.segmented_iou, len(self.predicted) + len(self.reference))

    @property
    def left_alone(self) -> float:
        """Of a healthy scan: 1 where no lesion is predicted, else 0; NaN where the reference has a lesion."""
        return float("nan") if len(self.reference) else float(not len(self.predicted) and not self.missing)


def compare_lesions(
    predicted: np.ndarray, reference: np.ndarray, spacing_mm: np.ndarray, missing: bool = False
) -> Lesions:
    """Split both masks into lesions and measure what they share.

    predicted, reference: boolean (i, j, k) of one shape, either may be empty. spacing_mm: (3,). missing: `predicted` is
    empty because there is no prediction.
    """
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    lesion_dsc, lesion_hd95_mm = brats_scores(predicted, reference, spacing_mm)
    ours, n_ours = _components(predicted, 26)
    truth, n_truth = _components(reference, 26)
    both = np.ravel_multi_index((ours[predicted & reference], truth[predicted & reference]), (n_ours + 1, n_truth + 1))
    shared = np.bincount(both, minlength=(n_ours + 1) * (n_truth + 1)).reshape(n_ours + 1, n_truth + 1)
    return Lesions(
        np.bincount(truth.ravel(), minlength=n_truth + 1)[1:],
        np.bincount(ours.ravel(), minlength=n_ours + 1)[1:],
        shared[1:, 1:],
        voxel_ml,
        _untouched(predicted, reference) * voxel_ml,
        _untouched(reference, predicted) * voxel_ml,
        0.0 if missing else lesion_dsc,
        lesion_hd95_mm,
        missing,
    )


def panoptic_quality(segmented_iou: float, lesions: float) -> float:
    """Sum of the IoU above 0.5 / (TP + FP / 2 + FN / 2), whose denominator is half of all lesions of both sides.

    Source: Kirillov et al., Panoptic segmentation, CVPR 2019, equation 1. NaN where there is no lesion.
    """
    return _ratio(2 * segmented_iou, lesions)


def lesion_figures(cases: list[Lesions]) -> Statistic:
    """Figures over cases, each a function of which cases are drawn; NaN where it has nothing to count.

    precision_, recall_, f1_iouNN: of all lesions of all cases, matched one to one at IoU >= NN % (CVPR 2025 text-guided
    segmentation challenge: F1 at 0.5). false_positives_per_scan_iouNN: predicted lesions without a match.
    panoptic_quality: of all lesions. matched_dsc: mean DSC of the pairs at 0.5. lesion_dsc, lesion_hd95_mm: mean over
    cases (see `brats_scores`). dsc_A_to_B_ml: mean `own_dsc` of the reference lesions of that size. false_positive_ml,
    false_negative_ml: mean over cases. specificity_on_healthy: share of the cases without a reference lesion in which
    none is predicted; false_positives_per_healthy_scan: predicted lesions in these.
    """
    counts = {t: np.array([case.counts(t) for case in cases]) for t in IOU_THRESHOLDS}
    matched = np.array([[case.segmented_iou, sum(case.matched_dsc)] for case in cases])
    sizes = np.array([[_of_size(case, low, high) for case in cases] for low, high in _size_classes()])
    per_case = {
        "lesion_dsc": np.array([case.lesion_dsc for case in cases]),
        "lesion_hd95_mm": np.array([case.lesion_hd95_mm for case in cases]),
        "false_positive_ml": np.array([case.false_positive_ml for case in cases]),
        "false_negative_ml": np.array([case.false_negative_ml for case in cases]),
        "specificity_on_healthy": np.array([case.left_alone for case in cases]),
        "false_positives_per_healthy_scan": np.array(
            [float("nan") if len(case.reference) else float(len(case.predicted)) for case in cases]
        ),
    }

    def statistic(index: np.ndarray) -> dict[str, float]:
        figures = {}
        for threshold, table in counts.items():
            true, false_positive, false_negative = table[index].sum(axis=0).tolist()
            name = f"iou{round(100 * threshold)}"
            figures[f"precision_{name}"] = _ratio(true, true + false_positive)
            figures[f"recall_{name}"] = _ratio(true, true + false_negative)
            figures[f"f1_{name}"] = f1(true, false_positive, false_negative)
            figures[f"false_positives_per_scan_{name}"] = false_positive / len(index)
        iou, dsc = matched[index].sum(axis=0).tolist()
        lesions = 2 * true + false_positive + false_negative  # at any threshold
        figures["panoptic_quality"] = panoptic_quality(iou, lesions)
        figures["matched_dsc"] = _ratio(dsc, true)  # of 0.5, the last threshold
        for (low, high), table in zip(_size_classes(), sizes, strict=True):
            figures[f"dsc_{low:g}_to_{high:g}_ml"] = _ratio(*table[index].sum(axis=0).tolist())
        for name, values in per_case.items():
            known = values[index][~np.isnan(values[index])]
            figures[name] = _ratio(float(known.sum()), len(known))
        return figures

    return statistic


def _components(mask: np.ndarray, connectivity: Literal[18, 26]) -> tuple[np.ndarray, int]:
    # cc3d 4.1 reserves too few labels for scattered voxels in a thin bool array and raises; for uint8 it does not
    return cc3d.connected_components(mask.astype(np.uint8), connectivity=connectivity, return_N=True)


def _untouched(mask: np.ndarray, other: np.ndarray) -> int:
    """Voxels of the components of `mask` that share none with `other`."""
    components, count = _components(mask, 18)
    voxels = np.bincount(components.ravel(), minlength=count + 1)
    voxels[np.unique(components[other & mask])] = 0
    return int(voxels[1:].sum())


def _size_classes() -> list[tuple[float, float]]:
    return list(zip((0.0, *SIZES_ML), (*SIZES_ML, float("inf")), strict=True))


def _of_size(case: Lesions, low: float, high: float) -> tuple[float, int]:
    """Sum of the DSC, and number, of the reference lesions of low <= volume < high ml."""
    volume_ml = case.reference * case.voxel_ml
    chosen = (low <= volume_ml) & (volume_ml < high)
    return float(case.own_dsc[chosen].sum()), int(chosen.sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
