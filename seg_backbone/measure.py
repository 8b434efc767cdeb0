"""RECIST measurements of a mask in mm, and the table of properties a question can ask for.

Enters a boolean array with its Grid, leaves lengths between voxel CENTRES in world mm (a single voxel has length 0).
Long and short axis follow RECIST 1.1 (Eisenhauer et al., Eur J Cancer 45:228-247, 2009): the longest diameter in
the plane of measurement, here the axial slice, and the diameter perpendicular to it. Farthest points are vertices of a
convex hull, so only those are compared: an organ's slice of 512 x 512 voxels costs a few dozen points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import ConvexHull, KDTree
from scipy.spatial.distance import cdist

from seg_backbone.boxes import bounds, extreme_voxels
from seg_backbone.geometry import Grid

TIE_MM = 1e-6  # lengths nearer than this are equal: float noise must not choose between symmetric axes

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Property:
    """Something measurable on an Instance.

    attribute: the field of `Instance`. unit: "mm", "ml" or "HU". words: how people write it, the first for display.
    """

    attribute: str
    unit: str
    words: tuple[str, ...]

    def unit_on(self, modality: str) -> str | None:
        """The unit on a "CT" or "MR" scan; None where the values are arbitrary (MR intensities)."""
        return None if self.unit == "HU" and modality != "CT" else self.unit


PROPERTIES: dict[str, Property] = {
    p.attribute: p
    for p in (
        Property("long_axis_mm", "mm", ("long axis", "longest axial diameter", "longest diameter", "long diameter")),
        Property("short_axis_mm", "mm", ("short axis", "perpendicular diameter", "short diameter")),
        Property("diameter_3d_mm", "mm", ("largest 3D diameter", "3D diameter", "maximum diameter in 3D")),
        Property("craniocaudal_mm", "mm", ("craniocaudal extent", "craniocaudal length", "height")),
        Property("volume_ml", "ml", ("volume", "size in millilitres", "size in ml")),
        Property("intensity_mean", "HU", ("mean intensity", "mean attenuation", "mean density", "average HU")),
        Property("intensity_std", "HU", ("standard deviation of the intensity", "intensity spread", "heterogeneity")),
        Property("intensity_median", "HU", ("median intensity", "median attenuation", "median density")),
    )
}


class AxialAxes(NamedTuple):
    """long_mm, short_mm: lengths. points_mm: world ends of the long axis. slice_index: along `grid.axial_axis`."""

    long_mm: float
    short_mm: float
    points_mm: tuple[Point, Point]
    slice_index: int


def axial_axes(mask: np.ndarray, grid: Grid) -> AxialAxes | None:
    """RECIST long and short axis of everything True in `mask`; None for an empty mask.

    mask: (i, j, k) bool on `grid`. Long axis: the largest distance in world mm between two voxel centres on one slice
    along `grid.axial_axis`. Short axis: the extent of that slice's voxel centres perpendicular to it, in the slice.
    Of equally long axes the one with the larger short axis counts, then the more superior, so that the result does not
    depend on the order of the array's axes. Source: RECIST 1.1.
    """
    assert mask.shape == grid.shape, "mask and grid differ in shape"
    crop = bounds(mask)
    if crop is None:
        return None
    axis, start = grid.axial_axis, np.array([s.start for s in crop])
    slices = np.moveaxis(mask[crop], axis, 0)
    to_mm = np.linalg.qr(np.delete(grid.affine[:3, :3], axis, axis=1))[1]  # (2, 2) in-slice index -> mm, an isometry
    reach = _reach_mm(slices, to_mm)
    found: list[AxialAxes] = []
    longest = 0.0
    for k in np.argsort(-reach, kind="stable"):
        if reach[k] < longest - TIE_MM:
            break
        index = _hull(extreme_voxels(slices[k]))
        flat = index @ to_mm.T
        distance = cdist(flat, flat)
        longest = max(longest, float(distance.max()))
        for pair in np.argwhere(np.triu(distance >= longest - TIE_MM)):
            ends = grid.voxel_to_world(np.insert(index[pair], axis, k, axis=1) + start)
            first, second = sorted(((float(x), float(y), float(z)) for x, y, z in ends), key=_order)
            long, short = float(distance[tuple(pair)]), _perpendicular_mm(flat, *flat[pair])
            found.append(AxialAxes(long, short, (first, second), int(k + start[axis])))
    return max(found, key=lambda axes: (round(axes.long_mm, 6), round(axes.short_mm, 6), *map(_order, axes.points_mm)))


def diameter_3d_mm(mask: np.ndarray, grid: Grid) -> float | None:
    """The largest distance in mm between two voxel centres of `mask` in 3D; None for an empty mask."""
    assert mask.shape == grid.shape, "mask and grid differ in shape"
    crop = bounds(mask)
    if crop is None:
        return None
    points = _hull(extreme_voxels(mask[crop])) @ grid.affine[:3, :3].T  # distances need no origin
    blocks = np.array_split(points, len(points) // 1024 + 1)
    return max(float(cdist(block, points).max()) for block in blocks)


def distance_between_mm(first: np.ndarray, second: np.ndarray, grid: Grid) -> float | None:
    """The smallest distance in mm between voxel centres of the two masks; 0 where they overlap, None if one is empty.

    first, second: (i, j, k) bool on `grid`. Neighbouring voxels are one spacing apart, not zero.
    """
    if not first.any() or not second.any():
        return None
    if (first & second).any():
        return 0.0
    nearest, _ = KDTree(_border_mm(first, grid)).query(_border_mm(second, grid))
    return float(nearest.min())


def center_distance_mm(first: np.ndarray, second: np.ndarray, grid: Grid) -> float | None:
    """The distance in mm between the centroids of the two masks; None if one is empty."""
    if not first.any() or not second.any():
        return None
    a, b = (grid.voxel_to_world(np.argwhere(mask).mean(0)) for mask in (first, second))
    return float(np.linalg.norm(a - b))


def _reach_mm(slices: np.ndarray, to_mm: np.ndarray) -> np.ndarray:
    """(n,) upper bound on the longest axis of each slice, from its index box; -1 for an empty slice."""

    def steps(line: np.ndarray) -> np.ndarray:
        return line.shape[1] - 1 - line[:, ::-1].argmax(1) - line.argmax(1)

    rows, columns = np.any(slices, axis=2), np.any(slices, axis=1)
    diagonals = [np.stack([steps(rows), sign * steps(columns)], axis=1) @ to_mm.T for sign in (1, -1)]
    return np.where(rows.any(1), np.max([np.linalg.norm(d, axis=1) for d in diagonals], axis=0), -1.0)


def _hull(points: np.ndarray) -> np.ndarray:
    """The rows of (n, d) whole-number `points` that span their convex hull, in however few dimensions they lie."""
    centred = points - points.mean(0)
    _, size, directions = np.linalg.svd(centred, full_matrices=False)
    rank = int((size > 1e-9 * max(1.0, float(size[0]))).sum())
    flat = centred @ directions[:rank].T
    if rank == 0:
        return points[:1]
    if rank == 1:
        return points[[flat.argmin(), flat.argmax()]]
    return points[ConvexHull(flat).vertices]


def _perpendicular_mm(flat: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    """The extent of (n, 2) points in mm perpendicular to the line start-end; 0 where start equals end."""
    along = end - start
    length = float(np.linalg.norm(along))
    return float(np.ptp(flat @ [-along[1], along[0]])) / length if length > 0 else 0.0


def _order(point: Point) -> tuple[float, ...]:
    """Sorts world points by z, y, x, blind to float noise."""
    return tuple(round(x, 3) for x in reversed(point))


def _border_mm(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """(n, 3) world mm of the voxels of a non-empty mask that have a face on its surface."""
    crop = bounds(mask)
    assert crop is not None
    border = mask[crop] & ~binary_erosion(mask[crop])
    return grid.voxel_to_world(np.argwhere(border) + [s.start for s in crop])
