"""NIfTI in and out, with the orientation kept exactly as it is in the file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from seg_backbone.errors import LabelError, ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io.atomic import replacing
from seg_backbone.volume import MODALITIES, Mask, Volume, guess_modality

SUFFIXES = (".nii.gz", ".nii")


def read_volume(path: str | Path, modality: str | None = None) -> Volume:
    """Read a NIfTI scan as a Volume, array axes as in the file.

    modality: "CT", "MR" or None to guess from the values. A trailing axis of length one is dropped.
    Raises ScanError: missing, not an image, not 3D, not finite, or all one value.
    """
    array, grid = _read_3d(path)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise ScanError(path, "finite values", f"{bad} NaN or infinite voxels", "replace them or export the scan again")
    if array.min() == array.max():
        raise ScanError(path, "a scan with contrast", f"every voxel equal to {array.min()}", "check the export")
    fits = array.dtype.kind in "iu" and array.min() >= -32768 and array.max() <= 32767
    array = array.astype(np.int16 if fits else np.float32, copy=False)
    if modality is not None and modality not in MODALITIES:
        raise ScanError(path, f"a modality among {MODALITIES}", repr(modality), "pass one of them")
    how = "given" if modality else "guessed"
    return Volume(array, grid, modality or guess_modality(array), str(path), how)


def read_mask(path: str | Path, labels: dict[str, int] | None = None) -> Mask:
    """Read a label map. Values must be whole and not negative. Raises ScanError or LabelError."""
    array, grid = _read_3d(path)
    whole = np.rint(array)
    if not np.isfinite(array).all() or np.abs(array - whole).max(initial=0) > 1e-3 or whole.min(initial=0) < 0:
        raise LabelError(path, "whole numbers from 0", "fractions, negatives or NaN", "give a label map, not an image")
    if float(whole.max(initial=0)) > np.iinfo(np.uint16).max:
        raise LabelError(path, "label values up to 65535", f"{whole.max():.0f}", "number the labels from 1")
    array = whole.astype(np.uint8 if whole.max(initial=0) < 256 else np.uint16)
    if labels is not None:
        extra = sorted(set(np.unique(array).tolist()) - set(labels.values()) - {0})
        if extra:
            raise LabelError(
                path, f"label values {sorted(labels.values())}", f"{extra}", "name them in the labels file"
            )
    return Mask(array, grid, labels or {}, str(path))


def write_mask(mask: Mask, path: str | Path) -> Path:
    """Write a label map on its own grid, atomically (a temporary name, then a rename). Returns the path."""
    image = nib.Nifti1Image(mask.array.astype(np.uint8 if mask.array.max(initial=0) < 256 else np.uint16), None)
    image.header.set_xyzt_units("mm")
    image.set_sform(mask.grid.affine, code=1)
    image.set_qform(mask.grid.affine, code=1, strip_shears=True)
    return _save(image, Path(path))


def write_volume(volume: Volume, path: str | Path) -> Path:
    """Write a scan on its own grid, atomically. Returns the path."""
    image = nib.Nifti1Image(volume.array, volume.grid.affine)
    image.header.set_xyzt_units("mm")
    return _save(image, Path(path))


def _save(image: nib.Nifti1Image, path: Path) -> Path:
    with replacing(path) as temporary:
        nib.save(image, temporary)
    return path


def _read_3d(path: str | Path) -> tuple[np.ndarray, Grid]:
    """The scalar voxels of a file and their grid; a trailing axis of length one is dropped. Raises ScanError."""
    image = _open(path)
    shape = image.shape
    if len(shape) == 4 and shape[3] == 1:
        image, shape = image.slicer[..., 0], shape[:3]
    if len(shape) != 3 or min(shape) < 2:
        found = f"a {len(shape)}D image of shape {tuple(shape)}"
        raise ScanError(path, "a 3D volume", found, "give one channel and one time point as a stack of slices")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-9:
        raise ScanError(path, "an invertible affine", "a singular one", "repair the header's orientation")
    try:
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # a truncated or corrupt file fails only when its voxels are read
        found = f"data that cannot be read ({_first_line(error)})"
        raise ScanError(path, "a complete image", found, "copy the file again") from None
    if array.dtype.kind not in "iuf":
        raise ScanError(path, "a grey-value image", f"voxels of type {array.dtype}", "export a scalar volume")
    return array, Grid(shape, image.affine)


def _open(path: str | Path) -> nib.Nifti1Pair:
    path = Path(path)
    if not path.exists():
        raise ScanError(path, "a NIfTI file", "no such file", "check the path")
    if path.is_dir():
        raise ScanError(path, "a NIfTI file", "a folder", "name the file inside it")
    try:
        image = nib.load(path)
    except Exception as error:
        found = f"not one ({_first_line(error)})"
        raise ScanError(path, "a NIfTI file (.nii, .nii.gz)", found, "convert it to NIfTI") from None
    if not isinstance(image, nib.Nifti1Pair):
        raise ScanError(path, "a NIfTI file (.nii, .nii.gz)", type(image).__name__, "convert it to NIfTI")
    return image


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
