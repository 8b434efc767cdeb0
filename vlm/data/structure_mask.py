"""Structures of RTSTRUCT or DICOM-SEG, which may overlap, -> one label map, whose classes cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seg_backbone.errors import LabelError
from seg_backbone.geometry import Grid
from seg_backbone.io.structures import voxels_of
from seg_backbone.labels import is_lesion
from seg_backbone.volume import Mask
from vlm.data.roi_names import TARGETS, RoiNames, read_roi_names

HIDDEN = 0.5  # of a class under others: more, and nothing is left of it in the mask

Drawn = dict[str, np.ndarray]  # class -> sorted indices of its voxels into the flat (i, j, k) array


def read_structure_mask(path: Path, grid: Grid) -> Mask:
    """The classes of one RTSTRUCT or DICOM-SEG on the grid of its scan, targets of a plan left out; ids by name.

    Raises ScanError, and LabelError where nothing of it is a class, or lies in the scan.
    """
    drawn, outside = drawn_in(path, grid, read_roi_names())
    if outside and not drawn:
        found, todo = f"{', '.join(outside[:3])} outside of it", "name the scan that they were drawn on"
        raise LabelError(path, "structures within the scan", found, todo)
    drawn = {name: drawn[name] for name in sorted(drawn) if name not in TARGETS}
    if not drawn:
        raise LabelError(path, "structures of anatomy or lesions", "none", "see vlm/data/roi_names.yaml")
    mask, _ = paint(drawn, {name: number for number, name in enumerate(drawn, start=1)}, grid)
    hide(mask, drawn)
    return Mask(mask.array, grid, mask.labels, str(path))


def drawn_in(path: Path, grid: Grid, names: RoiNames) -> tuple[Drawn, list[str]]:
    """What an object draws, by class (or target), and the names of structures that cover no voxel. Raises ScanError."""
    drawn: Drawn = {}
    empty = []
    for structure, voxels in voxels_of(path, grid):
        class_ = names.class_of(structure)
        if class_ and len(voxels):
            drawn[class_] = np.union1d(drawn[class_], voxels) if class_ in drawn else voxels
        elif class_:
            empty.append(structure.name)
    return drawn, empty


def paint(drawn: Drawn, labels: Mapping[str, int], grid: Grid) -> tuple[Mask, Counter[str]]:
    """The label map, larger classes below smaller ones and all below lesions; and "upper over lower" -> voxels."""
    array = np.zeros(grid.shape, dtype=np.uint8 if len(labels) < 256 else np.uint16)
    flat, covered = array.reshape(-1), Counter[str]()
    of = {number: name for name, number in labels.items()}
    for name in sorted(drawn, key=lambda name: (is_lesion(name), -len(drawn[name]), name)):
        below, counts = np.unique(flat[drawn[name]], return_counts=True)
        covered.update({f"{name} over {of[n]}": c for n, c in zip(below.tolist(), counts.tolist(), strict=True) if n})
        flat[drawn[name]] = labels[name]
    return Mask(array, grid, dict(labels)), covered


def hide(mask: Mask, drawn: Drawn) -> dict[str, float]:
    """Take the classes out of a painted mask of which more than HIDDEN lies under others; returns them with the share.

    What is left of "lungs" beside both lungs would teach, or tell, something that nobody drew.
    """
    flat = mask.array.reshape(-1)
    lost = {name: float(np.mean(flat[voxels] != mask.labels[name])) for name, voxels in drawn.items()}
    lost = {name: share for name, share in lost.items() if share > HIDDEN}
    for name in lost:
        flat[flat == mask.labels[name]] = 0
    return lost
