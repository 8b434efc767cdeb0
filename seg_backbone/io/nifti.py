"""NIfTI in and out, with the orientation kept exactly as it is in the file."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io.atomic import replacing
from seg_backbone.io.image import Image, first_line, grid_of, to_mask
from seg_backbone.volume import Mask, Volume

SUFFIXES = (".nii.gz", ".nii")


def read_image(path: str | Path) -> Image:
    """The scalar voxels of a file and their grid; a trailing axis of length one is dropped. Raises ScanError."""
    image = _open(path)
    grid = _grid(image, path)
    try:
        array = np.asanyarray(_stored(image).get_unscaled()).reshape(grid.shape, order="F")
    except Exception as error:  # a truncated or corrupt file fails only when its voxels are read
        found = f"data that cannot be read ({first_line(error)})"
        raise ScanError(path, "a complete image", found, "copy the file again") from None
    slope, inter = _stored(image).slope, _stored(image).inter
    if (slope, inter) != (1, 0) and array.dtype.kind in "iuf":
        scaled = np.empty(array.shape, dtype=np.float32, order="F")
        for k in range(array.shape[2]):  # a whole float64 copy of a scan is four times its size
            scaled[..., k] = array[..., k] * np.float64(slope) + inter
        array = scaled
    return Image(array, grid)


def read_grid(path: str | Path) -> Grid:
    """The grid of a file, from its header alone. Raises ScanError."""
    return _grid(_open(path), path)


def foresee(path: str | Path) -> tuple[Grid, int, int]:
    """From the header: the grid, the bytes that the Volume will hold, and those that reading holds beside it at most.

    Raises ScanError for a file that is no 3D NIfTI.
    """
    image = _open(path)
    grid = _grid(image, path)
    stored = image.get_data_dtype()
    kept = stored == np.int16 and (_stored(image).slope, _stored(image).inter) == (1, 0)
    count = math.prod(grid.shape)
    return grid, count * (2 if kept else 4), count * (1 if kept else stored.itemsize + 1)  # 1: where it is finite


def read_mask(path: str | Path, labels: dict[str, int] | None = None) -> Mask:
    """Read a NIfTI label map; see `to_mask`. Raises ScanError or LabelError."""
    return to_mask(read_image(path), path, labels)


def write_mask(mask: Mask, path: str | Path) -> Path:
    """Write a label map on its own grid, atomically (a temporary name, then a rename). Returns the path."""
    image = nib.Nifti1Image(
        mask.array.astype(np.uint8 if mask.array.max(initial=0) < 256 else np.uint16, copy=False), None
    )
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


def _grid(image: nib.Nifti1Pair, path: str | Path) -> Grid:
    """The grid of a header; a trailing axis of length one is dropped. Raises ScanError unless 3D and invertible."""
    shape = image.shape
    return grid_of(path, shape[:3] if len(shape) == 4 and shape[3] == 1 else shape, image.affine)


def _stored(image: nib.Nifti1Pair) -> ArrayProxy:
    """The voxels as the file stores them, with slope and intercept beside; of an image that was opened from a file."""
    assert isinstance(image.dataobj, ArrayProxy)
    return image.dataobj


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
