"""Acquisition: what the file itself says of a scan, its slices, voxels and field of view."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np

from vlm.heads.reading import Reading


def decode(reading: Reading) -> dict[str, Any]:
    """value: the number of slices, or of `voxel_size` their distance in mm; a field of view has none."""
    grid = reading.scene.grid
    axis = grid.axial_axis
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
