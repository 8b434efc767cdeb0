"""The contours of an RTSTRUCT (PS3.3 C.8.8.6) -> voxels of a scan's grid.

A voxel is inside where its centre is inside an odd number of the contours of its plane: contours inside of others are
holes, as CLOSEDPLANAR_XOR says and as planning systems write CLOSED_PLANAR, and so are keyholes (one contour that runs
in and out along the same line). A contour stands for a slab as thick as the usual distance between the structure's
planes, one slice where it has a single plane; so contours may lie between slices, on every other slice, or closer than
slices. Points and open contours enclose nothing and are passed over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import Dataset

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io.image import first_line
from seg_backbone.io.structures import Structure, code_of

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
PLANE_TOLERANCE = 0.25  # slices that a contour may leave its plane by: positions are rounded, scanners tilt a little
SAME_PLANE = 0.01  # slices


def rois(header: Dataset, path: Path) -> list[Structure]:
    """The ROIs that have closed contours. Raises ScanError for a structure set without its parts."""
    try:
        drawn = {number for number, contours in _sequences(header) if any(map(_is_closed, contours))}
        told = {int(one.ReferencedROINumber): one for one in header.get("RTROIObservationsSequence") or ()}
        found = []
        for roi in header.get("StructureSetROISequence") or ():
            number = int(roi.ROINumber)
            if number in drawn:
                about = told.get(number, Dataset())
                coded, side = code_of(about.get("RTROIIdentificationCodeSequence"))
                kind = str(about.get("RTROIInterpretedType") or "").upper()
                found.append(Structure(number, str(roi.get("ROIName") or ""), kind, coded, side))
        return found
    except (AttributeError, ValueError, TypeError) as error:
        raise ScanError(path, "a complete RTSTRUCT", first_line(error), "export it again") from None


def voxels(header: Dataset, path: Path, grid: Grid) -> Iterator[tuple[int, np.ndarray]]:
    """See `structures.voxels_of`. Raises ScanError: broken points, or contours that lie slanted to the grid."""
    for number, sequence in _sequences(header):
        contours = [_points(contour, path) for contour in sequence if _is_closed(contour)]
        if contours:
            try:
                yield number, fill(contours, grid)
            except ValueError as error:
                expected = "contours in planes along the axes of the scan"
                raise ScanError(path, expected, f"{error} (ROI {number})", "export them on the scan's slices") from None


def fill(contours: list[np.ndarray], grid: Grid) -> np.ndarray:
    """Sorted flat indices of the voxels of `grid` that closed contours enclose. contours: (points, 3) RAS mm each.

    Raises ValueError where no axis of the grid is across every contour's plane.
    """
    placed = [grid.world_to_voxel(points) for points in contours]
    spread = np.max([np.ptp(points, axis=0) for points in placed], axis=0)
    axis = int(spread.argmin())  # across the planes
    if spread[axis] > PLANE_TOLERANCE:
        raise ValueError(f"one that spans {spread[axis]:.2f} slices")
    within = [side for side in range(3) if side != axis]
    planes: dict[float, list[np.ndarray]] = defaultdict(list)
    for points in placed:
        planes[round(float(points[:, axis].mean()) / SAME_PLANE) * SAME_PLANE].append(points[:, within])
    heights = np.array(sorted(planes))
    thickness = round(float(np.median(np.diff(heights))), 6) if len(heights) > 1 else 1.0
    found = []
    for slice_ in range(grid.shape[axis]):
        above = np.round(slice_ - heights, 6)
        covering = np.flatnonzero((above >= -thickness / 2) & (above < thickness / 2))
        if len(covering):
            nearest = heights[covering[np.abs(above[covering]).argmin()]]
            rows, columns = _inside(planes[nearest], (grid.shape[within[0]], grid.shape[within[1]]))
            index = [rows, columns]
            index.insert(axis, np.full(len(rows), slice_))
            found.append(np.ravel_multi_index(tuple(index), grid.shape))
    return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)


def _inside(polygons: list[np.ndarray], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the cells whose centre lies inside an odd number of polygons, (points, 2) cells each.

    Every edge flips the cells behind it in the rows that it crosses; what two polygons share flips twice.
    """
    start = np.concatenate(polygons)
    end = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    down = start[:, 0] > end[:, 0]  # all edges upward: one that runs there and back again then crosses at one place
    start, end = np.where(down[:, None], end, start), np.where(down[:, None], start, end)
    first = np.clip(np.ceil(start[:, 0]), 0, shape[0]).astype(int)
    counts = np.clip(np.ceil(end[:, 0]), 0, shape[0]).astype(int) - first
    if not counts.any():
        return np.empty(0, dtype=int), np.empty(0, dtype=int)
    edge = np.repeat(np.arange(len(start)), counts)
    rows = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts)
    share = (rows - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
    columns = np.ceil(start[edge, 1] + share * (end[edge, 1] - start[edge, 1]))
    columns = np.clip(columns, 0, shape[1]).astype(int)
    low, size = rows.min(), (rows.max() - rows.min() + 1, columns.max() + 1)
    flips = np.bincount(np.ravel_multi_index((rows - low, columns), size), minlength=size[0] * size[1])
    odd = np.cumsum(flips.reshape(size), axis=1) % 2
    rows, columns = np.nonzero(odd[:, : shape[1]])
    return rows + low, columns


def _sequences(header: Dataset) -> Iterator[tuple[int, list[Dataset]]]:
    for roi in header.get("ROIContourSequence") or ():
        yield int(roi.ReferencedROINumber), list(roi.get("ContourSequence") or ())


def _is_closed(contour: Dataset) -> bool:
    return contour.get("ContourGeometricType") in CLOSED and "ContourData" in contour


def _points(contour: Dataset, path: Path) -> np.ndarray:
    """(points, 3) RAS mm. Raises ScanError."""
    value = contour.get_item("ContourData").value  # as it is stored: a number object for each takes most of the time
    try:
        numbers = np.array(value.split(b"\\") if isinstance(value, bytes) else value, dtype=np.float64)
        points = numbers.reshape(-1, 3)
        if not np.isfinite(points).all():
            raise ValueError("points that are not finite")
    except (ValueError, TypeError) as error:
        raise ScanError(path, "contours of x, y and z", first_line(error), "export it again") from None
    return points * LPS_TO_RAS
