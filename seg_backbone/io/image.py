"""Image: what a reader takes out of a file, and the checks that make it a Volume or a Mask whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg_backbone.errors import LabelError, ScanError
from seg_backbone.geometry import Grid
from seg_backbone.volume import MODALITIES, Mask, Volume, guess_modality


@dataclass(frozen=True, eq=False)
class Image:
    """array: (i, j, k) real numbers as the format defines them (slope and intercept applied), on `grid`.

    modality: what the file says, "CT" or "MR"; None where the format has no place for it.
    """

    array: np.ndarray
    grid: Grid
    modality: str | None = None


def grid_of(path: str | Path, shape: tuple[int, ...], affine: np.ndarray) -> Grid:
    """The grid of a shape and a 4x4 voxel -> RAS mm affine. Raises ScanError unless 3D and invertible."""
    if len(shape) != 3 or min(shape) < 2:
        found = f"a {len(shape)}D image of shape {tuple(shape)}"
        raise ScanError(path, "a 3D volume", found, "give one channel and one time point as a stack of slices")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ScanError(path, "an invertible affine", "a singular one", "repair the header's orientation")
    return Grid((shape[0], shape[1], shape[2]), affine)


def to_volume(image: Image, path: str | Path, modality: str | None = None) -> Volume:
    """The scan of an image. modality: "CT", "MR", or None for the file's own, else guessed from the values.

    Raises ScanError: not real numbers, not finite, all one value, or a modality other than the file's.
    """
    array = require_real(image.array, path)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise ScanError(path, "finite values", f"{bad} NaN or infinite voxels", "replace them or export the scan again")
    if array.min() == array.max():
        raise ScanError(path, "a scan with contrast", f"every voxel equal to {array.min()}", "check the export")
    fits = array.dtype.kind in "iu" and array.min() >= -32768 and array.max() <= 32767
    array = array.astype(np.int16 if fits else np.float32, copy=False)
    if modality is not None and modality not in MODALITIES:
        raise ScanError(path, f"a modality among {MODALITIES}", repr(modality), "pass one of them")
    if modality and image.modality and modality != image.modality:
        raise ScanError(path, f"{modality}, as told", f"{image.modality} in its header", "leave the modality out")
    how = "given" if modality else "header" if image.modality else "guessed"
    return Volume(array, image.grid, modality or image.modality or guess_modality(array), str(path), how)


def to_mask(image: Image, path: str | Path, labels: dict[str, int] | None = None) -> Mask:
    """The label map of an image. labels: class name -> id; values outside it raise.

    Raises ScanError or LabelError: not real numbers, or values that are not whole, negative or without a name.
    """
    array = whole = require_real(image.array, path)
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            found = f"{np.count_nonzero(~np.isfinite(array))} NaN or infinite voxels"
            raise LabelError(path, "whole numbers from 0", found, "replace them or export the label map again")
        whole = np.rint(array)
        if np.abs(array - whole).max() > 1e-3:
            raise LabelError(path, "whole numbers from 0", "fractions", "give a label map, not an image")
    if whole.min() < 0:
        raise LabelError(path, "whole numbers from 0", f"{whole.min():.0f}", "give a label map, not an image")
    if whole.max() > np.iinfo(np.uint16).max:
        raise LabelError(path, "label values up to 65535", f"{whole.max():.0f}", "number the labels from 1")
    array = whole.astype(np.uint8 if whole.max() < 256 else np.uint16)
    mask = Mask(array, image.grid, labels or {}, str(path))
    if labels is not None and (extra := sorted(set(mask.boxes) - set(labels.values()))):
        raise LabelError(path, f"label values {sorted(labels.values())}", f"{extra}", "name them in the labels file")
    return mask


def first_line(error: Exception) -> str:
    """A library's error as part of one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def require_real(array: np.ndarray, path: str | Path) -> np.ndarray:
    """The array. Raises ScanError unless its values are real numbers."""
    if array.dtype.kind not in "iuf":
        raise ScanError(path, "a grey-value image", f"voxels of type {array.dtype}", "export a scalar volume")
    return array
