"""Whatever a user holds -> Volume: a path, a Volume, or numbers with an affine, checked as a file would be."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_volume
from seg_backbone.volume import MODALITIES, Volume, guess_modality


def as_volume(scan: str | Path | Volume | tuple[np.ndarray, np.ndarray], modality: str | None = None) -> Volume:
    """A Volume from whatever a user holds: a path, a Volume, or (array, affine). Raises ScanError."""
    if isinstance(scan, Volume):
        return scan
    if isinstance(scan, tuple):
        return volume_from_array(*scan, modality=modality)
    return read_volume(scan, modality)


def volume_from_array(array: np.ndarray, affine: np.ndarray, modality: str | None = None) -> Volume:
    """(i, j, k) numbers and a 4x4 affine (RAS mm) as a Volume, checked as a file would be. Raises ScanError."""
    array, affine = np.asarray(array), np.asarray(affine)
    if modality is not None and modality not in MODALITIES:
        raise ScanError("array", f"a modality among {MODALITIES}", repr(modality), "pass one of them")
    if array.dtype.kind not in "iufb":
        raise ScanError("array", "a grey-value image", f"voxels of type {array.dtype}", "give real numbers")
    if array.ndim != 3 or min(array.shape) < 2:
        raise ScanError("array", "a 3D volume", f"shape {array.shape}", "give one channel as a stack of slices")
    if not np.isfinite(array).all() or array.min() == array.max():
        raise ScanError("array", "finite values that differ", "NaN, infinity or one value", "check the input")
    real = affine.shape == (4, 4) and affine.dtype.kind in "iuf" and bool(np.isfinite(affine).all())
    if not real or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        found = "a singular one or NaN" if affine.shape == (4, 4) else f"shape {affine.shape}"
        raise ScanError("array", "an invertible 4x4 affine", found, "give voxel -> RAS mm")
    if array.dtype not in (np.int16, np.float32):
        array = array.astype(np.float32)
    shape = (array.shape[0], array.shape[1], array.shape[2])
    return Volume(
        array, Grid(shape, affine), modality or guess_modality(array), "array", "given" if modality else "guessed"
    )
