"""The frames of a DICOM Segmentation (PS3.3 A.51) -> voxels of a scan's grid.

Binary, fractional (from half of the largest value on) and label map. A frame lies on the grid in any order and
direction, and may show a part of a slice only; frames that were left out are empty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.pixels import iter_pixels

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io.dicom import LPS_TO_RAS, Frame, frames_of
from seg_backbone.io.image import first_line
from seg_backbone.io.structures import Structure, code_of

FRACTION = 0.5  # of MaximumFractionalValue
OFF_GRID = 0.1  # voxels that a pixel's centre may lie beside a voxel's: positions are rounded


def segments(header: Dataset, path: Path) -> list[Structure]:
    """The segments. Raises ScanError where their description is incomplete."""
    try:
        found = []
        for segment in header.SegmentSequence:
            coded, side = code_of(segment.get("SegmentedPropertyTypeCodeSequence"))
            name = str(segment.get("SegmentLabel") or "")
            found.append(Structure(int(segment.SegmentNumber), name, "", coded, side))
        return found
    except (AttributeError, ValueError, TypeError) as error:
        raise ScanError(path, "a complete DICOM Segmentation", first_line(error), "export it again") from None


def voxels(header: Dataset, path: Path, grid: Grid) -> Iterator[tuple[int, np.ndarray]]:
    """See `structures.voxels_of`. Raises ScanError: pixels that cannot be decoded, or that lie beside the grid."""
    known = [segment.number for segment in segments(header, path)]
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    try:
        kind = str(header.SegmentationType)
        least = FRACTION * float(header.get("MaximumFractionalValue") or 1) if kind == "FRACTIONAL" else 0.5
        frames = list(frames_of(path.name, header))
        numbers = [0] * len(frames) if kind == "LABELMAP" else _segment_numbers(header)
        for frame, number, pixels in zip(frames, numbers, _pixels(header, path), strict=True):
            for value in [number] if number else set(np.unique(pixels).tolist()) & set(known):
                shown = pixels >= least if number else pixels == value
                found[value].append(_place(frame, shown, grid, path))
    except ScanError:
        raise
    except (RuntimeError, ValueError, AttributeError, LookupError, TypeError, EOFError) as error:
        expected = "a DICOM Segmentation whose frames tell their place"
        raise ScanError(path, expected, first_line(error), "export it again") from None
    for number in known:
        yield number, np.unique(np.concatenate(found[number])) if found[number] else np.empty(0, dtype=np.int64)


def _pixels(header: Dataset, path: Path) -> Iterator[np.ndarray]:
    """(rows, columns) of every frame, one at a time. Packed bits are taken apart here: a frame may begin within a byte,
    where pydicom's frame by frame reading loses it."""
    if header.BitsAllocated != 1 or header.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from iter_pixels(path)
        return
    packed = np.frombuffer(dcmread(path).PixelData, dtype=np.uint8)
    shape = header.Rows, header.Columns
    for start in range(0, int(header.NumberOfFrames) * shape[0] * shape[1], shape[0] * shape[1]):
        end = start + shape[0] * shape[1]
        bits = np.unpackbits(packed[start // 8 : -(-end // 8)], bitorder="little")
        yield bits[start % 8 : start % 8 + end - start].reshape(shape)


def _segment_numbers(header: Dataset) -> list[int]:
    """The segment of every frame, which may be told once for all."""
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = header.PerFrameFunctionalGroupsSequence
    told = [group if "SegmentIdentificationSequence" in group else shared for group in groups]
    return [int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for group in told]


def _place(frame: Frame, shown: np.ndarray, grid: Grid, path: Path) -> np.ndarray:
    """Flat indices of the grid's voxels at the pixels that are True in `shown`, (rows, columns)."""
    rows, columns = np.nonzero(shown)
    steps = frame.directions * frame.spacing[:, None]  # along a row: to the next column
    points = frame.position + columns[:, None] * steps[0] + rows[:, None] * steps[1]
    index = grid.world_to_voxel(points @ LPS_TO_RAS[:3, :3])
    nearest = np.rint(index).astype(np.int64)
    if len(index) and (
        np.abs(index - nearest).max() > OFF_GRID or (nearest < 0).any() or (nearest >= grid.shape).any()
    ):
        found = "pixels between the voxels of the scan, or outside of it"
        raise ScanError(path, "a segmentation on the grid of its scan", found, "resample it onto the scan first")
    return np.ravel_multi_index(tuple(nearest.T), grid.shape)
