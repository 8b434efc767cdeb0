"""DSC, NSD and HD95 of two boolean arrays on one grid.

The surface measures are those of DeepMind's surface-distance, whose tables and sums are used. Its distances, however,
come from a distance map of the whole box, which takes most of the time of scoring an organ; here each surface point
looks up its nearest neighbour, and a map is made only where many points are far from the other surface. The results are
the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import distance_transform_edt, minimum_filter
from scipy.spatial import cKDTree

with warnings.catch_warnings():  # the package still imports from scipy's old namespaces
    warnings.simplefilter("ignore", DeprecationWarning)
    from surface_distance import compute_robust_hausdorff, compute_surface_dice_at_tolerance, lookup_tables

Crop = tuple[slice, ...]

NEAR_MM = 20.0
# A point far from a surface may be as far from thousands of its points: looking its neighbour up then costs as much as
# a distance map of so many voxels.
VOXELS_PER_FAR_POINT = 2_000


def dice(predicted: np.ndarray, reference: np.ndarray) -> float:
    """2 |P and R| / (|P| + |R|) of two boolean arrays of one shape, 0..1; NaN where both are empty.

    Source: Dice, Ecology 26 (1945); `compute_dice_coefficient` of DeepMind's surface-distance.
    """
    total = int(predicted.sum()) + int(reference.sum())
    return 2 * int((predicted & reference).sum()) / total if total else float("nan")


def surface_dice(predicted: np.ndarray, reference: np.ndarray, spacing_mm: np.ndarray, tolerance_mm: float) -> float:
    """Normalised surface Dice weighted by surface elements, 0..1; NaN where both are empty, 0 where one is.

    predicted, reference: boolean (i, j, k). spacing_mm: (3,). The share of both surfaces, by area, that lies within
    `tolerance_mm` of the other. Source: Nikolov et al., JMIR 23 (2021), "surface DSC", in the authors' own package.
    """
    return surface_scores(predicted, reference, spacing_mm, tolerance_mm)[0]


def surface_scores(
    predicted: np.ndarray, reference: np.ndarray, spacing_mm: np.ndarray, tolerance_mm: float
) -> tuple[float, float]:
    """`surface_dice`, and HD95 in mm, from one pass over the surfaces.

    HD95: the larger, over the two directions, of the distance within which 95 % of a surface's area lies of the other;
    NaN where either mask is empty, because there is no distance to nothing. Source: as `surface_dice`.
    """
    if not predicted.any() or not reference.any():
        return (float("nan") if not predicted.any() and not reference.any() else 0.0), float("nan")
    areas = lookup_tables.create_table_neighbour_code_to_surface_area(spacing_mm)
    ours, truth = _surface(predicted, areas), _surface(reference, areas)
    shape = tuple(side + 1 for side in predicted.shape)
    distances = {}
    for name, side, one, other in (("gt_to_pred", "gt", truth, ours), ("pred_to_gt", "pred", ours, truth)):
        far = _distances(one.points, other.points, spacing_mm, shape)
        order = np.lexsort((one.areas, far))  # the order of the package, so that its sums round as they do there
        distances[f"distances_{name}"], distances[f"surfel_areas_{side}"] = far[order], one.areas[order]
    nsd = compute_surface_dice_at_tolerance(distances, tolerance_mm)
    return float(nsd), float(compute_robust_hausdorff(distances, 95))


def border_dice(predicted: np.ndarray, reference: np.ndarray, spacing_mm: np.ndarray, tolerance_mm: float) -> float:
    """Normalised surface Dice that counts border voxels, 0..1; NaN where both are empty, 0 where one is.

    A border voxel has one of its 26 neighbours outside; outside the array is outside. Distances are between voxel
    centres, mm. Source: FLARE26 task 2's script (eval_metrics.py of github.com/medfm-flare/AutoMSC-Baseline).
    """
    if not predicted.any() or not reference.any():
        return float("nan") if not predicted.any() and not reference.any() else 0.0
    ours, truth = (
        np.argwhere(mask & (minimum_filter(mask.view(np.uint8), size=3, mode="constant", cval=0) == 0))
        for mask in (predicted, reference)
    )
    near = sum(
        int((_distances(one, other, spacing_mm, predicted.shape) <= tolerance_mm).sum())
        for one, other in ((ours, truth), (truth, ours))
    )
    return near / (len(ours) + len(truth))


def union(boxes: Sequence[Crop]) -> Crop:
    """The smallest index box around some, at least one. It needs no margin to score what lies in it: outside the array
    counts as background in every measure."""
    return tuple(
        slice(min(side.start for side in axis), max(side.stop for side in axis)) for axis in zip(*boxes, strict=True)
    )


@dataclass(frozen=True, eq=False)
class _Surface:
    """points: (n, 3) voxel corners that have both sides among their eight voxels. areas: (n,) mm2 of surface there."""

    points: np.ndarray
    areas: np.ndarray


def _surface(mask: np.ndarray, areas_mm2: np.ndarray) -> _Surface:
    """Corner (i, j, k) lies between the voxels i - 1 and i, and so on; areas_mm2: (256,) by the code of its voxels."""
    padded = np.pad(mask.view(np.uint8), 1)
    codes = np.zeros([side + 1 for side in mask.shape], dtype=np.uint8)
    for (i, j, k), code in np.ndenumerate(lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL.astype(np.uint8)):
        codes += code * padded[i : i + codes.shape[0], j : j + codes.shape[1], k : k + codes.shape[2]]
    points = np.argwhere((codes != 0) & (codes != 255))
    return _Surface(points, areas_mm2[codes[tuple(points.T)]])


def _distances(points: np.ndarray, others: np.ndarray, spacing_mm: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(n,) mm from each of (n, 3) grid points to the nearest of (m, 3) others, m > 0; both lie in an array of `shape`.

    Distances are computed from index differences, as a distance map does: exact at a tolerance of whole voxels.
    """
    tree = cKDTree(others * spacing_mm)
    _, nearest = tree.query(points * spacing_mm, distance_upper_bound=NEAR_MM)
    neighbours = others[np.minimum(nearest, len(others) - 1)]
    far = nearest == len(others)
    if far.sum() * VOXELS_PER_FAR_POINT <= np.prod(shape):
        neighbours[far] = others[tree.query(points[far] * spacing_mm)[1]]
    else:
        outside = np.ones(shape, dtype=bool)
        outside[tuple(others.T)] = False
        index = distance_transform_edt(outside, sampling=spacing_mm, return_distances=False, return_indices=True)
        neighbours[far] = index[(slice(None), *points[far].T)].T
    return np.sqrt((((points - neighbours) * spacing_mm) ** 2).sum(axis=1))
