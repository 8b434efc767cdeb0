"""Boxes against boxes: intersection over union in world millimetres, one-to-one matching, F1.

A box is axis-aligned in the RAS+ world and closed: `min_mm` and `max_mm` are its corners, outer voxel faces included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from seg_backbone.labels import canonical


@dataclass(frozen=True)
class Box:
    """min_mm, max_mm: (x, y, z) corners, mm, min <= max. label: canonical class name, or None where unnamed."""

    min_mm: tuple[float, float, float]
    max_mm: tuple[float, float, float]
    label: str | None = None

    @classmethod
    def from_json(cls, record: Any) -> Box:
        """From {"min_mm": [x, y, z], "max_mm": [x, y, z], "label": ...}. Raises ValueError where it is not a box."""
        try:
            low = tuple(float(value) for value in record["min_mm"])
            high = tuple(float(value) for value in record["max_mm"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"not a box with min_mm and max_mm: {record!r}") from None
        if len(low) != 3 or len(high) != 3 or not all(a <= b < float("inf") for a, b in zip(low, high, strict=True)):
            raise ValueError(f"min_mm above max_mm, or not three finite numbers each: {record!r}")
        label = record.get("label")
        return cls(low, high, canonical(str(label)) if label else None)


def box_iou(first: Sequence[Box], second: Sequence[Box]) -> np.ndarray:
    """(len(first), len(second)) intersection over union of volumes, 0..1; two boxes without volume have 0.

    Source: Everingham et al., The Pascal VOC challenge, IJCV 88 (2010), section 4.2, in three dimensions.
    """
    low_a, high_a = (np.array([getattr(b, k) for b in first]).reshape(-1, 1, 3) for k in ("min_mm", "max_mm"))
    low_b, high_b = (np.array([getattr(b, k) for b in second]).reshape(1, -1, 3) for k in ("min_mm", "max_mm"))
    shared = np.clip(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0, None).prod(-1)
    union = (high_a - low_a).prod(-1) + (high_b - low_b).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match_boxes(predicted: Sequence[Box], reference: Sequence[Box], iou_threshold: float) -> list[tuple[int, int]]:
    """One-to-one pairs (predicted index, reference index) with IoU >= the threshold.

    Boxes whose labels are both given and differ never pair. Hungarian assignment of the largest number of pairs, ties
    by IoU (as StarDist's `matching`, Schmidt et al. 2018); empty where either side is empty.
    """
    if not predicted or not reference:
        return []
    iou = box_iou(predicted, reference)
    for i, one in enumerate(predicted):
        for j, other in enumerate(reference):
            if one.label is not None and other.label is not None and one.label != other.label:
                iou[i, j] = 0
    return match(iou, iou_threshold)


def match(iou: np.ndarray, iou_threshold: float) -> list[tuple[int, int]]:
    """One-to-one pairs (row, column) of an IoU matrix with at least the threshold, which is above 0; see
    `match_boxes`."""
    hit = iou >= iou_threshold
    rows, columns = np.flatnonzero(hit.any(axis=1)), np.flatnonzero(hit.any(axis=0))
    if not len(rows):
        return []
    part, some = hit[np.ix_(rows, columns)], iou[np.ix_(rows, columns)]
    pairs = zip(*linear_sum_assignment(part + part * some / (2 * min(part.shape)), maximize=True), strict=True)
    return [(int(rows[i]), int(columns[j])) for i, j in pairs if part[i, j]]


def detection_counts(predicted: Sequence[Box], reference: Sequence[Box], iou_threshold: float) -> tuple[int, int, int]:
    """(true positives, false positives, false negatives) of one question."""
    true = len(match_boxes(predicted, reference, iou_threshold))
    return true, len(predicted) - true, len(reference) - true


def f1(true: float, false_positive: float, false_negative: float) -> float:
    """2 TP / (2 TP + FP + FN); NaN where all three are 0 (nothing to find and nothing found)."""
    total = 2 * true + false_positive + false_negative
    return 2 * true / total if total else float("nan")
