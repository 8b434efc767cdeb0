"""Acquisition: what the file itself says of a scan, its slices, voxels and field of view."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from seg_backbone.labels import display
from vlm.heads.reading import Reading, evidence, none_found


def decode(reading: Reading) -> dict[str, Any]:
    """value: the number of slices, or of `voxel_size` their distance in mm; a field of view has none."""
    grid = reading.scene.grid
    axis = grid.axial_axis
    if reading.fact == "slice_range":
        return _slice_range(reading)
    parts: dict[str, Any] = {"confidence": reading.fact_probability}
    if reading.fact == "slices":
        count = int(grid.shape[axis])
        return parts | {"text": f"The scan has {count} axial slices.", "value": count}
    order = np.argsort(nib.io_orientation(grid.affine)[:, 0])  # voxel axes by the world axis they run along
    spacing, shape = (np.array(values)[order] for values in (grid.spacing_mm, grid.shape))
    along = "from left to right, front to back and top to bottom"
    if reading.fact == "voxel_size":
        size = " x ".join(f"{step:.3g}" for step in spacing)
        return parts | {
            "text": f"A voxel measures {size} mm ({along}).",
            "value": round(float(spacing[2]), 3),
            "unit": "mm",
        }
    size = " x ".join(f"{length:.0f}" for length in spacing * shape)
    voxels = " x ".join(str(n) for n in shape)
    return parts | {"text": f"The field of view is {size} mm, {voxels} voxels ({along})."}


def _slice_range(reading: Reading) -> dict[str, Any]:
    """value: on how many axial slices the structure lies; exact where these run along world z."""
    instance = reading.one()
    if instance is None:
        return none_found(reading)
    grid, (x, y, _) = reading.scene.grid, instance.center_mm
    ends = np.array([(x, y, instance.box.min_mm[2]), (x, y, instance.box.max_mm[2])])  # outer faces
    low, high = np.sort(grid.world_to_voxel(ends)[:, grid.axial_axis])
    first, last = low + 0.5, high - 0.5
    count = round(float(last - first)) + 1
    where = f"from {first:.0f} to {last:.0f}, counted from 0 in the file"
    text = f"The {display(instance.label)} lies on {count} axial slice{'s' * (count > 1)}, {where}."
    return {
        "text": text,
        "value": count,
        "evidence": evidence([instance]),
        "confidence": reading.confidence([instance]),
    }
