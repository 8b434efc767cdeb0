"""DSC, NSD and HD95 of two boolean arrays on one grid."""

from __future__ import annotations

import warnings

import numpy as np
import surface_distance
from scipy.ndimage import binary_erosion, distance_transform_edt


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
    with warnings.catch_warnings():  # the package still imports from scipy's old namespaces
        warnings.simplefilter("ignore", DeprecationWarning)
        distances = surface_distance.compute_surface_distances(reference, predicted, spacing_mm)
    nsd = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm)
    return float(nsd), float(surface_distance.compute_robust_hausdorff(distances, 95))


def border_dice(predicted: np.ndarray, reference: np.ndarray, spacing_mm: np.ndarray, tolerance_mm: float) -> float:
    """Normalised surface Dice that counts border voxels, 0..1; NaN where both are empty, 0 where one is.

    A border voxel touches the outside through a face; outside the array is outside. Distances are between voxel
    centres, mm. Source: FLARE26 task 2 ("NSD at 1 mm on voxel borders"); definition as in Reinke et al., Common
    limitations of image processing metrics (2021), boundary metrics.
    """
    if not predicted.any() or not reference.any():
        return float("nan") if not predicted.any() and not reference.any() else 0.0
    borders = [mask & ~binary_erosion(mask) for mask in (predicted, reference)]
    near = 0
    for one, other in (borders, borders[::-1]):
        near += int((distance_transform_edt(~other, sampling=spacing_mm)[one] <= tolerance_mm).sum())
    return near / int(borders[0].sum() + borders[1].sum())
