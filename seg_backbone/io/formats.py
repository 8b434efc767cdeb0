"""Which reader reads what, by suffix and by content, and what counts as a scan in a folder.

A scan is a NIfTI, NRRD or MetaImage file, a folder or zip of DICOM slices, or one multi-frame DICOM file (any name).
`PATH#UID` names one series of a DICOM folder or zip.
"""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io.image import Image, to_mask, to_volume
from seg_backbone.volume import Mask, Volume, require_same_grid

# suffix -> the module that reads it; loaded on use
READERS = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".nrrd": "itk",
    ".nhdr": "itk",
    ".mha": "itk",
    ".mhd": "itk",
    ".zip": "dicom",
}
SUFFIXES = tuple(READERS)
DATA_SUFFIXES = (".raw", ".raw.gz", ".zraw")  # voxels of an .mhd or .nhdr beside them
FORMATS = "a scan (NIfTI, NRRD, MetaImage, DICOM folder or zip)"


def read_volume(path: str | Path, modality: str | None = None) -> Volume:
    """Read a scan of any format, array axes as in the file, world in RAS mm.

    modality: "CT", "MR" or None: a DICOM scan's own, else guessed from the values. A trailing axis of length one is
    dropped. Raises ScanError: missing, no scan, not 3D, not finite, or all one value; see also `dicom.read_image`.
    """
    return to_volume(read_image(path), path, modality)


def foresee(path: str | Path) -> tuple[Grid, int, int] | None:
    """What reading a scan will take, from its header alone, see `nifti.foresee`; None for a format that does not tell.

    Raises ScanError for a NIfTI file that is none.
    """
    suffix = _suffix(Path(path))
    if READERS.get(suffix) != "nifti":
        return None
    from seg_backbone.io import nifti

    return nifti.foresee(path)


def read_mask(path: str | Path, labels: dict[str, int] | None = None) -> Mask:
    """Read a label map of any format. Values must be whole and not negative. Raises ScanError or LabelError."""
    return to_mask(read_image(path), path, labels)


def further_channel(path: Path, number: int) -> Path | None:
    """The file of another channel of a scan, CASE_0001.nii.gz for CASE_0000.nii.gz; None for any other name."""
    suffix = _suffix(path)
    stem = path.name[: len(path.name) - len(suffix)] if suffix else ""
    return path.with_name(f"{stem[:-5]}_{number:04d}{suffix}") if stem.endswith("_0000") else None


def add_channels(volume: Volume, count: int) -> Volume:
    """A scan that came from CASE_0000 with the channels CASE_0001, ... beside it. Raises ScanError, GridError."""
    if len(volume.channels) == count:
        return volume
    others = []
    for number in range(1, count):
        path = further_channel(Path(volume.source), number)
        if path is None or not path.is_file():
            expected = f"{count} channels, CASE_0000 to CASE_{count - 1:04d}"
            found = f"no {path.name}" if path else "one file"
            raise ScanError(volume.source, expected, found, "put them into one folder and name the first")
        other = read_volume(path, volume.modality)
        require_same_grid(volume, other)
        others.append(other.array)
    return replace(volume, others=tuple(others))


def find_scans(folder: Path) -> tuple[list[Path], list[str]]:
    """The scans of a folder, by name, and the names of what else is in it; hidden files are neither.

    A folder that holds DICOM files is one scan itself, with its subfolders. In any other, each subfolder with DICOM
    files, at any depth, is one.
    """
    inside = sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    scans = [item for item in inside if _suffix(item) and not item.is_dir()]
    rest = [item for item in inside if item not in scans and not item.name.lower().endswith(DATA_SUFFIXES)]
    dicom = [item for item in rest if is_dicom(item)]
    others = [item.name for item in rest if item not in dicom]
    if any(item.is_file() for item in dicom):
        return [folder, *scans], others
    return sorted([*scans, *dicom]), others


def case_name(scan: str | Path) -> str:
    """The name of a scan's outputs: without the suffix and nnU-Net's _0000; a chosen series adds its UID."""
    path, uid = split_series(scan)
    name = Path(os.path.abspath(path)).name
    if not path.is_dir():
        suffix = next((suffix for suffix in (*SUFFIXES, ".dcm") if name.lower().endswith(suffix)), "")
        name = name[: len(name) - len(suffix)]
    name = name.removesuffix("_0000")
    return f"{name}_{uid}" if uid else name


def is_dicom(path: Path) -> bool:
    """Whether this is DICOM by content: a file of it, or a folder with one at any depth. A zip is not opened."""
    if path.is_dir():
        return any(item.is_file() and is_dicom(item) for item in path.rglob("*"))
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def split_series(path: str | Path) -> tuple[Path, str | None]:
    """PATH#UID -> (PATH, UID); without a series, or where a file has this very name, (path, None)."""
    if os.path.exists(path) or "#" not in Path(path).name:
        return Path(path), None
    plain, _, uid = str(path).rpartition("#")
    return Path(plain), uid


def read_image(path: str | Path) -> Image:
    """The voxels of a file of any format as they are stored, and their grid. Raises ScanError."""
    plain, uid = split_series(path)
    if not os.path.exists(plain):
        raise ScanError(path, FORMATS, "no such file", "check the path")
    suffix = _suffix(plain)
    if plain.is_dir() or suffix == ".zip" or (not suffix and is_dicom(plain)):
        from seg_backbone.io import dicom

        return dicom.read_image(plain, uid)
    if uid:
        raise ScanError(path, "a DICOM folder or zip before the #", "another file", "leave the # and the UID out")
    return import_module(f"seg_backbone.io.{READERS.get(suffix, 'nifti')}").read_image(plain)


def _suffix(path: Path) -> str:
    """The suffix of a known format, "" for any other."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
