"""Box: the world-aligned extent of a set of voxels, in RAS+ mm.

Enters a boolean array with its Grid, leaves a `Box` that holds every voxel, outer faces included. All voxels of a grid
have one shape, so the box of their corners is the box of their centres grown by half a voxel's own extent: exact for
oblique grids too, without listing eight corners a voxel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import find_objects

from seg_backbone.geometry import Grid


@dataclass(frozen=True)
class Box:
    """A closed box along the world axes. min_mm, max_mm: (x, y, z) RAS+ mm, min <= max on every axis."""

    min_mm: tuple[float, float, float]
    max_mm: tuple[float, float, float]

    def __post_init__(self) -> None:
        assert all(low <= high for low, high in zip(self.min_mm, self.max_mm, strict=True)), "min_mm exceeds max_mm"

    @property
    def center_mm(self) -> tuple[float, float, float]:
        """The middle of the box, world mm."""
        x, y, z = ((low + high) / 2 for low, high in zip(self.min_mm, self.max_mm, strict=True))
        return x, y, z

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Edge lengths along world x, y, z in mm."""
        x, y, z = (high - low for low, high in zip(self.min_mm, self.max_mm, strict=True))
        return x, y, z

    @property
    def volume_mm3(self) -> float:
        """Volume of the box in cubic mm."""
        x, y, z = self.size_mm
        return x * y * z

    def iou(self, other: Box) -> float:
        """Intersection over union of the two volumes, in [0, 1]; 0 for boxes that only touch or are both flat."""
        low = np.maximum(self.min_mm, other.min_mm)
        high = np.minimum(self.max_mm, other.max_mm)
        shared = float(np.prod(np.maximum(high - low, 0.0)))
        union = self.volume_mm3 + other.volume_mm3 - shared
        return shared / union if union > 0 else 0.0

    def to_json(self) -> dict[str, list[float]]:
        """{"min_mm": [x, y, z], "max_mm": [x, y, z]}, rounded to 0.01 mm."""
        return {"min_mm": [round(x, 2) for x in self.min_mm], "max_mm": [round(x, 2) for x in self.max_mm]}


def box_of(mask: np.ndarray, grid: Grid) -> Box | None:
    """The smallest world-aligned box that holds every voxel of `mask`, outer faces included; None for an empty mask.

    mask: (i, j, k) bool on `grid`.
    """
    assert mask.shape == grid.shape, "mask and grid differ in shape"
    crop = bounds(mask)
    if crop is None:
        return None
    centres = grid.voxel_to_world(extreme_voxels(mask[crop]) + [s.start for s in crop])
    half = 0.5 * np.abs(grid.affine[:3, :3]).sum(1)  # how far one voxel's corners reach from its centre
    low, high = (centres.min(0) - half).tolist(), (centres.max(0) + half).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def bounds(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The index box of the True voxels, one slice an axis, so that `mask[bounds(mask)]` is tight; None where empty."""
    axes = range(mask.ndim)
    filled = [np.flatnonzero(mask.any(axis=tuple(b for b in axes if b != a))) for a in axes]
    return tuple(slice(int(f[0]), int(f[-1]) + 1) for f in filled) if filled[0].size else None


def value_boxes(ids: np.ndarray) -> dict[int, tuple[slice, ...]]:
    """Value -> the smallest index box around its voxels, of every value of an unsigned array but 0.

    The array is passed over in the order of memory: a NIfTI file has i fastest, and going across it takes eight times
    as long.
    """
    order = sorted(range(ids.ndim), key=lambda axis: -abs(ids.strides[axis]))
    found = enumerate(find_objects(ids.transpose(order)), start=1)
    return {value: tuple(box[order.index(axis)] for axis in range(ids.ndim)) for value, box in found if box is not None}


def extreme_voxels(mask: np.ndarray) -> np.ndarray:
    """(n, ndim) indices of the first and last True voxel of every column along the longest axis; (0, ndim) if empty.

    Every vertex of the mask's convex hull is among them, so they stand for the mask in boxes and diameters.
    A column of one voxel is listed twice.
    """
    axis = int(np.argmax(mask.shape))
    columns = np.moveaxis(mask, axis, -1)
    filled = np.nonzero(columns.any(-1))
    first = columns.argmax(-1)[filled]
    last = mask.shape[axis] - 1 - columns[..., ::-1].argmax(-1)[filled]
    return np.concatenate([np.stack([*filled[:axis], end, *filled[axis:]], axis=1) for end in (first, last)])
