"""Boxes against boxes: intersection over union in world millimetres, one-to-one matching, F1, hits by score.

A box is axis-aligned in the RAS+ world and closed: `min_mm` and `max_mm` are its corners, outer voxel faces included.
A box of a 2D image, in pixels, is a box of thickness 1, so that its overlap is that of the areas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from seg_backbone.labels import canonical

_canonical = lru_cache(maxsize=4096)(canonical)
_LISTS = ("bbox", "box", "bbox_2d", "bbox_3d", "coordinates")  # keys that hold the corners in one list


@dataclass(frozen=True, slots=True)
class Box:
    """min_mm, max_mm: (x, y, z) corners, mm, min <= max. label: canonical class name, or None where unnamed.

    score: how sure the system is, any finite number, higher is surer; 1 where it says nothing.
    """

    min_mm: tuple[float, float, float]
    max_mm: tuple[float, float, float]
    label: str | None = None
    score: float = 1.0

    @classmethod
    def from_json(cls, record: Any) -> Box:
        """From {"min_mm": [x, y, z], "max_mm": [x, y, z], "label": ..., "score": ...}, or a list of both corners: 6
        numbers in 3D, 4 (pixels) in 2D, bare or under `bbox`. Raises ValueError where it is not a box."""
        label, score, corners = None, 1.0, record
        try:
            if isinstance(record, dict):
                label = record.get("label")
                score = 1.0 if record.get("score") is None else float(record["score"])
                corners = next((record[key] for key in _LISTS if key in record), None)
                if corners is None and len(record["min_mm"]) == len(record["max_mm"]) == 3:
                    corners = [*record["min_mm"], *record["max_mm"]]
            flat = [float(value) for value in corners]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"not a box with min_mm and max_mm of three numbers: {record!r:.120}") from None
        if len(flat) == 4:
            flat = [flat[0], flat[1], 0.0, flat[2], flat[3], 1.0]
        if len(flat) != 6 or not all(map(math.isfinite, [*flat, score])):
            raise ValueError(f"not a box of finite numbers: {record!r:.120}")
        low, high = (flat[0], flat[1], flat[2]), (flat[3], flat[4], flat[5])
        if any(a > b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"min_mm above max_mm: {record!r:.120}")
        return cls(low, high, _canonical(str(label)) if label else None, score)


@dataclass(frozen=True)
class Overlaps:
    """All pairs of boxes of one question that share any volume, over many questions at once.

    question, predicted, reference: (p,) the question's number and the boxes' places in its two lists. iou: (p,), 0..1;
    pairs whose labels are both given and differ are not here. n_predicted, n_reference: (questions,).
    """

    question: np.ndarray
    predicted: np.ndarray
    reference: np.ndarray
    iou: np.ndarray
    n_predicted: np.ndarray
    n_reference: np.ndarray


def box_iou(first: Sequence[Box], second: Sequence[Box]) -> np.ndarray:
    """(len(first), len(second)) intersection over union of volumes, 0..1; two boxes without volume have 0.

    Source: Everingham et al., The Pascal VOC challenge, IJCV 88 (2010), section 4.2, in three dimensions.
    """
    a, b = _corners(first)[:, None], _corners(second)[None, :]
    return _iou(a, b)


def overlaps(predicted: Sequence[Sequence[Box]], reference: Sequence[Sequence[Box]], labelled: bool = True) -> Overlaps:
    """Every pair of boxes, question by question. predicted, reference: the boxes of each question.

    labelled: whether boxes whose labels are both given and differ are kept apart.
    """
    n_predicted = np.array([len(some) for some in predicted], dtype=int)
    n_reference = np.array([len(some) for some in reference], dtype=int)
    pairs = n_predicted * n_reference
    question = np.repeat(np.arange(len(pairs)), pairs)
    place = np.arange(len(question)) - np.repeat(np.cumsum(pairs) - pairs, pairs)  # of the pair in its question
    i, j = place // np.maximum(n_reference[question], 1), place % np.maximum(n_reference[question], 1)
    flat_p = [box for some in predicted for box in some]
    flat_r = [box for some in reference for box in some]
    at_p = (np.cumsum(n_predicted) - n_predicted)[question] + i
    at_r = (np.cumsum(n_reference) - n_reference)[question] + j
    iou = _iou(_corners(flat_p)[at_p], _corners(flat_r)[at_r])
    codes: dict[str | None, int] = {None: 0}
    names_p, names_r = (np.array([codes.setdefault(b.label, len(codes)) for b in f], int) for f in (flat_p, flat_r))
    differ = (names_p[at_p] != names_r[at_r]) & (names_p[at_p] > 0) & (names_r[at_r] > 0)
    kept = (iou > 0) & ~(differ & labelled)
    return Overlaps(question[kept], i[kept], j[kept], iou[kept], n_predicted, n_reference)


def true_positives(pairs: Overlaps, iou_threshold: float) -> np.ndarray:
    """(questions,) the largest number of one-to-one pairs with IoU >= the threshold, as `match_boxes` finds them."""
    hit = pairs.iou >= iou_threshold
    found = np.bincount(pairs.question[hit], minlength=len(pairs.n_predicted))
    for question, (i, j, iou) in _contested(pairs, hit).items():
        table = np.zeros((pairs.n_predicted[question], pairs.n_reference[question]))
        table[i, j] = iou
        found[question] = len(match(table, iou_threshold))
    return found


def hits_by_score(pairs: Overlaps, scores: Sequence[np.ndarray], iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(question, predicted) of the boxes that are hits when, question by question, the surest box chooses first.

    scores: one array a question. Each box takes the free reference box of highest IoU, if that is at least the
    threshold. Source: the evaluation of COCO (Lin et al., ECCV 2014).
    """
    hit = pairs.iou >= iou_threshold
    contested = _contested(pairs, hit)
    clear = hit & ~np.isin(pairs.question, list(contested))
    questions, places = list(pairs.question[clear]), list(pairs.predicted[clear])
    for question, (i, j, iou) in contested.items():
        taken: set[int] = set()
        for place in np.argsort(-scores[question], kind="stable"):
            own = sorted(((-o, r) for p, r, o in zip(i, j, iou, strict=True) if p == place and r not in taken))
            if own:
                taken.add(own[0][1])
                questions.append(question)
                places.append(place)
    return np.array(questions, dtype=int), np.array(places, dtype=int)


def match_boxes(predicted: Sequence[Box], reference: Sequence[Box], iou_threshold: float) -> list[tuple[int, int]]:
    """One-to-one pairs (predicted index, reference index) with IoU >= the threshold.

    Boxes whose labels are both given and differ never pair. Hungarian assignment of the largest number of pairs, ties
    by IoU (as StarDist's `matching`, Schmidt et al. 2018); empty where either side is empty.
    """
    pairs = overlaps([predicted], [reference])
    table = np.zeros((len(predicted), len(reference)))
    table[pairs.predicted, pairs.reference] = pairs.iou
    return match(table, iou_threshold) if table.size else []


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


def f1(true: float, false_positive: float, false_negative: float) -> float:
    """2 TP / (2 TP + FP + FN); NaN where all three are 0 (nothing to find and nothing found)."""
    total = 2 * true + false_positive + false_negative
    return 2 * true / total if total else float("nan")


def _contested(pairs: Overlaps, hit: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Question -> predicted, reference and IoU of its hits, for questions in which a box has more than one."""
    question, i, j, iou = (values[hit] for values in (pairs.question, pairs.predicted, pairs.reference, pairs.iou))
    several = set()
    for place in (i, j):
        order = np.lexsort((place, question))
        same = (np.diff(question[order]) == 0) & (np.diff(place[order]) == 0)
        several |= set(question[order][1:][same].tolist())
    starts = np.searchsorted(question, sorted(several), "left")
    ends = np.searchsorted(question, sorted(several), "right")
    return {q: (i[a:b], j[a:b], iou[a:b]) for q, a, b in zip(sorted(several), starts, ends, strict=True)}


def _corners(boxes: Sequence[Box]) -> np.ndarray:
    """(n, 2, 3) lower and upper corners."""
    return np.array([(box.min_mm, box.max_mm) for box in boxes], dtype=float).reshape(-1, 2, 3)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., 2, 3) corners, broadcast against each other -> (...) IoU."""
    low, high = np.maximum(a[..., 0, :], b[..., 0, :]), np.minimum(a[..., 1, :], b[..., 1, :])
    shared = np.clip(high - low, 0, None).prod(-1)
    union = (a[..., 1, :] - a[..., 0, :]).prod(-1) + (b[..., 1, :] - b[..., 0, :]).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
