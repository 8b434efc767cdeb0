"""NIfTI in and out, with the orientation kept exactly as it is in the file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io.atomic import replacing
from seg_backbone.io.image import Image, first_line, grid_of, to_mask
from seg_backbone.volume import Mask, Volume

SUFFIXES = (".nii.gz", ".nii")


def read_image(path: str | Path) -> Image:
    """The scalar voxels of a file and their grid; a trailing axis of length one is dropped. Raises ScanError."""
    image = _open(path)
    shape = image.shape
    if len(shape) == 4 and shape[3] == 1:
        image, shape = image.slicer[..., 0], shape[:3]
    grid = grid_of(path, shape, image.affine)
    try:
        array = np.asanyarray(image.dataobj)
    except Exception as error:  # a truncated or corrupt file fails only when its voxels are read
        found = f"data that cannot be read ({first_line(error)})"
        raise ScanError(path, "a complete image", found, "copy the file again") from None
    return Image(array, grid)


def read_grid(path: str | Path) -> Grid:
    """The grid of a file, from its header alone. Raises ScanError."""
    image = _open(path)
    return grid_of(path, image.shape[:3] if image.shape[3:] == (1,) else image.shape, image.affine)


def read_mask(path: str | Path, labels: dict[str, int] | None = None) -> Mask:
    """Read a NIfTI label map; see `to_mask`. Raises ScanError or LabelError."""
    return to_mask(read_image(path), path, labels)


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


def _open(path: str | Path) -> nib.Nifti1Pair:
    path = Path(path)
    if not path.exists():
        raise ScanError(path, "a NIfTI file", "no such file", "check the path")
    if path.is_dir():
        raise ScanError(path, "a NIfTI file", "a folder", "name the file inside it")
    try:
        image = nib.load(path)
    except Exception as error:
        found = f"not one ({first_line(error)})"
        raise ScanError(path, "a NIfTI file (.nii, .nii.gz)", found, "convert it to NIfTI") from None
    if not isinstance(image, nib.Nifti1Pair):
        raise ScanError(path, "a NIfTI file (.nii, .nii.gz)", type(image).__name__, "convert it to NIfTI")
    return image
