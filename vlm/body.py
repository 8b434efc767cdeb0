"""The box of the body in a scan, in which windows and tokens are laid out: air around the patient moves none."""

from __future__ import annotations

import numpy as np

from seg_backbone.boxes import bounds
from seg_backbone.geometry import Grid
from seg_backbone.volume import Volume

AIR_HU = -500.0  # below it: air, or lung
AIR_SHARE = 0.1  # of an MR's 99.5th percentile


def body_place(volume: Volume) -> tuple[slice, ...]:
    """The smallest index box that holds every voxel that is not air; the whole scan where all is."""
    limit = AIR_HU
    if volume.modality != "CT":
        positive = volume.array[volume.array > 0]  # so that an empty border does not count
        limit = AIR_SHARE * float(np.percentile(positive, 99.5)) if positive.size else np.inf
    return bounds(volume.array > limit) or tuple(slice(0, size) for size in volume.grid.shape)


def body_grid(volume: Volume) -> Grid:
    """The part of the scan's grid in that box."""
    return volume.grid.cropped(body_place(volume))
