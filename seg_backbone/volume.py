"""Volume and Mask: an array that never travels without its grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from seg_backbone.boxes import value_boxes
from seg_backbone.errors import GridError
from seg_backbone.geometry import Grid

MODALITIES = ("CT", "MR")


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan.

    array: (i, j, k) int16 or float32; Hounsfield units for CT, arbitrary units for MR. modality: "CT" or "MR".
    source: the file or folder it came from. modality_from: "given", "header" (of a DICOM file), "guessed" (see
    `guess_modality`) or "model" (which knows one only). others: arrays of the further channels on the same grid, for
    models that see several.
    """

    array: np.ndarray
    grid: Grid
    modality: str
    source: str = "array"
    modality_from: str = "given"
    others: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        assert all(array.shape == self.grid.shape for array in self.channels), "array and grid differ in shape"
        assert self.modality in MODALITIES, self.modality

    @property
    def channels(self) -> tuple[np.ndarray, ...]:
        """Every channel's array, the first being `array`."""
        return (self.array, *self.others)


@dataclass(frozen=True, eq=False)
class Mask:
    """Class ids on a grid. array: (i, j, k) unsigned integer, 0 is background. labels: class name -> id."""

    array: np.ndarray
    grid: Grid
    labels: dict[str, int] = field(default_factory=dict)
    source: str = "array"

    def __post_init__(self) -> None:
        assert self.array.shape == self.grid.shape, "array and grid differ in shape"

    @cached_property
    def boxes(self) -> dict[int, tuple[slice, ...]]:
        """Id -> the smallest index box around its voxels, of every id that the mask holds."""
        return value_boxes(self.array)

    def of(self, name: str) -> np.ndarray:
        """Boolean (i, j, k) array of one class; all False where the mask lacks it."""
        return self.array == self.labels[name] if name in self.labels else np.zeros(self.array.shape, dtype=bool)


def require_same_grid(first: Volume | Mask, second: Volume | Mask) -> None:
    """Raises GridError where the two do not lie on one grid. Nothing is ever resampled silently."""
    if not first.grid.same_as(second.grid):
        raise GridError(
            second.source,
            f"the grid of {first.source} ({first.grid.shape}, {first.grid.orientation})",
            f"{second.grid.shape}, {second.grid.orientation}, origin {np.round(second.grid.affine[:3, 3], 2).tolist()}",
            "resample one onto the other first",
        )


def guess_modality(array: np.ndarray) -> str:
    """ "CT" where the values look like Hounsfield units, else "MR".

    CT has air near -1000 HU (or padding below it) in at least 0.1 % of the voxels and water-like tissue, [-50, 150] HU,
    in at least 5 %. A guess, and wrong for a CT cropped to the inside of the body: pass the modality where it is known.
    """
    sample = array[tuple(slice(None, None, max(1, n // 96)) for n in array.shape)]
    air = float(np.mean(((sample >= -1100) & (sample <= -850)) | (sample <= -1900)))
    watery = float(np.mean((sample >= -50) & (sample <= 150)))
    return "CT" if air >= 0.001 and watery >= 0.05 else "MR"
