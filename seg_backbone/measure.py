"""RECIST measurements of a mask in mm.

Enters a boolean array with its Grid, leaves lengths between voxel CENTRES in world mm (a single voxel has length 0).
Long and short axis follow RECIST 1.1 (Eisenhauer et al., Eur J Cancer 45:228-247, 2009): the longest diameter in
the plane of measurement, here the axial slice, and the diameter perpendicular to it. Farthest points are vertices of a
convex hull, so only those are compared: an organ's slice of 512 x 512 voxels costs a few dozen points.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from seg_backbone.boxes import bounds, extreme_voxels
from seg_backbone.geometry import Grid

TIE_MM = 1e-6  # lengths nearer than this are equal: float noise must not choose between symmetric axes

Point = tuple[float, float, float]


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
