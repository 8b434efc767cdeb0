"""The box of the body in a scan, in which windows and tokens are laid out: air around the patient moves none."""

from __future__ import annotations

import numpy as np

from seg_backbone.boxes import bounds
from seg_backbone.geometry import Grid
from seg_backbone.volume import Volume

AIR_HU = -500.0  # below it: air, or lung
AIR_SHARE = 0.1  # of an MR's 99.5th percentile

CUT_SHARE = 0.3


def body_place(volume: Volume) -> tuple[slice, ...]:
    """The smallest index box that holds every voxel that is not air; the whole scan where all is."""
    limit = AIR_HU
    if volume.modality != "CT":
        positive = volume.array[volume.array > 0]  # so that an empty border does not count
        limit = AIR_SHARE * float(np.percentile(positive, 99.5)) if positive.size else np.inf
    return bounds(volume.array > limit) or tuple(slice(0, size) for size in volume.grid.shape)


def is_cut(volume: Volume, place: tuple[slice, ...]) -> bool:
    """Whether the scan cuts the body on its left or its right, as a crop of a limb does: the middle of what is in view
    is then not the body's midline. place: of the body, see `body_place`.

    A side is cut where the outermost plane of that box is body in more than CUT_SHARE of the densest plane.
    """
    inside = volume.array[place]
    along = int(np.argmax(np.abs(volume.grid.affine[0, :3])))
    limit = AIR_HU if volume.modality == "CT" else AIR_SHARE * float(np.percentile(inside, 99.5))
    profile = (inside > limit).sum(axis=tuple(axis for axis in range(3) if axis != along))
    return bool(max(profile[0], profile[-1]) > CUT_SHARE * profile.max())


def body_grid(volume: Volume) -> Grid:
    """The part of the scan's grid in that box."""
    return volume.grid.cropped(body_place(volume))
