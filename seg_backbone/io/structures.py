"""What DICOM structure sets (RTSTRUCT) and segmentations (SEG) draw: names, and voxels on the grid of a scan.

Structures may overlap and have no ids of a label map; `seg_backbone.io.rtstruct` and `seg_backbone.io.segments` read
the two kinds of object, this file what they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io.image import first_line

RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"  # SOP classes (PS3.4 B.5)
SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # binary or fractional; label map


@dataclass(frozen=True)
class Structure:
    """One ROI of a structure set, or one segment.

    number: by which the object's other parts refer to it. name: as its author wrote it. kind: the interpreted type of
    an ROI ("ORGAN", "PTV", "EXTERNAL", ...), "" for a segment. coded: what a code says it is ("Parotid gland"), and
    side: "left", "right" or "", of a code too.
    """

    number: int
    name: str
    kind: str = ""
    coded: str = ""
    side: str = ""


def list_structures(path: Path, header: Dataset | None = None) -> list[Structure]:
    """The structures of an RTSTRUCT that have contours, or the segments of a SEG; read unless its `header` is given.

    Raises ScanError.
    """
    from seg_backbone.io import rtstruct, segments

    header = header or read_object(path)
    return rtstruct.rois(header, path) if header.SOPClassUID == RTSTRUCT else segments.segments(header, path)


def voxels_of(path: Path, grid: Grid) -> Iterator[tuple[Structure, np.ndarray]]:
    """Every structure, as `list_structures` has them, with the sorted indices of its voxels into the flat (i, j, k)
    array of `grid`: none where it covers no voxel's centre. Raises ScanError: unreadable, or not on the grid."""
    from seg_backbone.io import rtstruct, segments

    header = read_object(path)
    part = rtstruct if header.SOPClassUID == RTSTRUCT else segments
    structures = {one.number: one for one in list_structures(path, header)}
    for number, voxels in part.voxels(header, path, grid):
        if number in structures:
            yield structures[number], voxels


def read_object(path: Path) -> Dataset:
    """All of an RTSTRUCT or a SEG but its pixels. Raises ScanError."""
    try:
        header = dcmread(path, stop_before_pixels=True)
        if header.SOPClassUID in (RTSTRUCT, *SEGMENTATION):
            return header
        found = header.SOPClassUID.name
    except Exception as error:  # pydicom has no class for a broken file
        found = f"a header that cannot be read ({first_line(error)})"
    raise ScanError(path, "an RTSTRUCT or a DICOM Segmentation", found, "export it again")


def code_of(sequence: object) -> tuple[str, str]:
    """Meaning of a code sequence and the side that modifies it, "" where there is none."""
    if not sequence:
        return "", ""
    code = sequence[0]  # type: ignore[index]
    modifiers = code.get("SegmentedPropertyTypeModifierCodeSequence") or ()
    sides = [str(one.get("CodeMeaning", "")).lower() for one in modifiers]
    return str(code.get("CodeMeaning") or ""), next((side for side in sides if side in ("left", "right")), "")
