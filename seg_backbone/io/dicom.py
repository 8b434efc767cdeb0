"""DICOM CT and MR in: a folder or zip of slices, or one multi-frame file -> Image.

Headers are read first: they choose the series, sort its slices by position and are checked to form one regular stack;
then the pixels are decoded slice by slice. A classic slice and a frame of an enhanced (multi-frame) CT or MR are the
same thing here, a `Frame`. A zip is read where it lies: nothing of it is ever written to disk.
DICOM's own frame is LPS mm (PS3.3 C.7.6.2); the Image's is RAS mm.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.misc import is_dicom

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io.image import Image, first_line, grid_of
from seg_backbone.volume import MODALITIES

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
STEP_TOLERANCE = 0.05  # of the distance between slices: headers round their positions
MAX_TILT_DEGREES = 1.0  # below it the affine carries the shear; above it anatomy would reach the network slanted
HEADER = [
    "SeriesInstanceUID", "SOPInstanceUID", "SeriesDescription", "Modality", "ImageType", "Rows", "NumberOfFrames",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Columns", "SamplesPerPixel",
    "RescaleSlope", "RescaleIntercept", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
Opener = Callable[[], Any]  # returns a binary stream


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane of voxels and its place.

    file: name within the folder or zip. index: of the frame within the file. position: (3,) LPS mm of the first
    pixel's centre. directions: (2, 3) LPS unit vectors along a row and along a column. spacing: (2,) mm between
    neighbours along a row and along a column. shape: (columns, rows). rescale: slope and intercept of the values.
    """

    file: str
    index: int
    position: np.ndarray
    directions: np.ndarray
    spacing: np.ndarray
    shape: tuple[int, int]
    rescale: tuple[float, float]


@dataclass(frozen=True)
class Series:
    """The headers of one series, file name -> header."""

    uid: str
    headers: dict[str, Dataset]

    @property
    def modality(self) -> str:
        return str(self._first.get("Modality", "unknown"))

    @property
    def is_localizer(self) -> bool:
        return "LOCALIZER" in (self._first.get("ImageType") or ())

    def __str__(self) -> str:
        name = self._first.get("SeriesDescription") or "no description"
        count = sum(int(header.get("NumberOfFrames") or 1) for header in self.headers.values())
        return f"{self.modality} {str(name)!r} of {count} slices, UID {self.uid}"

    @property
    def _first(self) -> Dataset:
        return next(iter(self.headers.values()))


def read_image(path: str | Path, uid: str | None = None, only: Sequence[Path] | None = None) -> Image:
    """Read the CT or MR series of a folder (searched to any depth), a zip or one multi-frame file.

    uid: the SeriesInstanceUID to take; without it there must be one series, localizers not counted. only: the files
    of the folder to look at. Array axes run along the rows, along the columns and from slice to slice in the direction
    of their cross product. Values are slope * stored + intercept: HU for CT.
    Raises ScanError: no such series or several, not CT or MR, slices that are missing, unevenly spaced, tilted,
    repeated (4D) or unlike each other, headers without a place, pixels that cannot be decoded.
    """
    with _open_all(Path(path), only) as files:
        series = _choose(path, _all_series(path, files), uid)
        frames, affine = _stack(path, _frames(path, series))
        planes = np.stack(_decode(path, frames, files))  # (slice, row, column)
    array = planes.transpose(2, 1, 0)
    return Image(array, grid_of(path, array.shape, affine), series.modality)


def read_grid(path: str | Path, uid: str | None = None, only: Sequence[Path] | None = None) -> Grid:
    """The grid of what `read_image` reads, from the headers alone. Raises ScanError as `read_image` does."""
    with _open_all(Path(path), only) as files:
        frames, affine = _stack(path, _frames(path, _choose(path, _all_series(path, files), uid)))
    return grid_of(path, (*frames[0].shape, len(frames)), affine)


def read_headers(path: str | Path, uid: str | None = None) -> tuple[list[Dataset], np.ndarray]:
    """The complete headers, without pixels, of the files that `read_image` reads, and how to go through its slices.

    Returns the headers in the order of the slices, and the index that puts the slices of `read_image` in the order of
    the frames in those files (a multi-frame file keeps its own). Raises ScanError as `read_image` does.
    """
    with _open_all(Path(path)) as files:
        frames, _ = _stack(path, _frames(path, _choose(path, _all_series(path, files), uid)))
        headers: list[Dataset] = []
        for name in dict.fromkeys(frame.file for frame in frames):
            with files[name]() as stream:
                headers.append(dcmread(stream, stop_before_pixels=True))
    return headers, np.argsort([frame.index for frame in frames], kind="stable")


@contextmanager
def _open_all(path: Path, only: Sequence[Path] | None = None) -> Iterator[dict[str, Opener]]:
    """Name -> how to open it, of every file (or `only` some) in a folder or zip; one file is a folder of one.

    Raises ScanError.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of header values that are odd but of no use here
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.is_file()) if only is None else only
            yield {str(file.relative_to(path)): partial(file.open, "rb") for file in inside}
        elif is_dicom(path):
            yield {path.name: partial(path.open, "rb")}
        else:
            try:
                with zipfile.ZipFile(path) as archive:
                    members = sorted(member.filename for member in archive.infolist() if not member.is_dir())
                    yield {name: partial(archive.open, name) for name in members}
            except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last: a password
                raise ScanError(path, "a zip that opens", first_line(error), "zip the folder again") from None


def _all_series(path: str | Path, files: dict[str, Opener]) -> list[Series]:
    """Every series that has images, by UID; other files, other objects and second copies of a slice are passed over.

    Raises ScanError for a broken DICOM file: it might be a slice.
    """
    found: dict[str, dict[str, Dataset]] = {}
    seen = set()
    for name, opener in files.items():
        with opener() as stream:
            try:
                header = read_header(stream, HEADER)
            except Exception as error:  # pydicom has no class for a broken file
                broken = f"{name} with a header that cannot be read ({first_line(error)})"
                raise ScanError(path, "complete DICOM files", broken, "copy it again") from None
        if header is None:
            continue
        instance = header.get("SOPInstanceUID", name)
        if "Rows" in header and "SeriesInstanceUID" in header and instance not in seen:
            found.setdefault(str(header.SeriesInstanceUID), {})[name] = header
            seen.add(instance)
    return [Series(uid, headers) for uid, headers in sorted(found.items())]


def read_header(stream: Any, tags: list[str]) -> Dataset | None:
    """Some tags of a DICOM file, None for another file. Raises what pydicom does for a broken one, EOFError too."""
    if stream.read(132)[128:] != b"DICM":
        return None
    stream.seek(0)
    header = dcmread(stream, stop_before_pixels=True, specific_tags=tags)
    if "Rows" not in header and "Image Storage" in header.file_meta.MediaStorageSOPClassUID.name:
        raise EOFError("an image without a size")
    return header


def _choose(path: str | Path, series: list[Series], uid: str | None) -> Series:
    if not series:
        raise ScanError(path, "DICOM images", "none", "name the scan's file, or the folder that holds its slices")
    listing = "; ".join(map(str, series))
    if uid is not None:
        chosen = [one for one in series if one.uid == uid]
        if not chosen:
            raise ScanError(path, f"a series with UID {uid}", listing, "name one of these after the #")
    else:
        chosen = [one for one in series if one.modality in MODALITIES and not one.is_localizer]
    if len(chosen) > 1:
        listing = "; ".join(map(str, chosen))
        raise ScanError(path, "one series", f"{len(chosen)}: {listing}", f"choose one as {path}#UID")
    if not chosen or chosen[0].modality not in MODALITIES:
        raise ScanError(path, "a CT or MR series that is no localizer", listing, "give a CT or MR scan")
    return chosen[0]


def _frames(path: str | Path, series: Series) -> list[Frame]:
    """The planes of a series, in the order of its files. Raises ScanError where one has no place in the patient."""
    frames: list[Frame] = []
    for name, header in series.headers.items():
        try:
            frames += frames_of(name, header)
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            expected = "grey slices that tell their position, orientation and spacing"
            raise ScanError(path, expected, f"{first_line(error)} in {name}", "export it again") from None
    return frames


def frames_of(name: str, header: Dataset) -> Iterator[Frame]:
    """The planes of one file. Raises ValueError, TypeError, AttributeError or LookupError where they have no place."""
    if (header.get("SamplesPerPixel") or 1) != 1:
        raise ValueError("colour")
    multiframe = "PerFrameFunctionalGroupsSequence" in header
    if not multiframe and int(header.get("NumberOfFrames") or 1) > 1:
        raise LookupError("several frames without functional groups")
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for index, own in enumerate(header.PerFrameFunctionalGroupsSequence if multiframe else [Dataset()]):
        # an enhanced image keeps the place in the macros of its functional groups, a classic one in the open
        places = [items[0] for group in (own, shared) for items in _sequences(group)] if multiframe else [header]
        row_spacing, column_spacing = _find(places, "PixelSpacing")  # between rows, between columns
        frame = Frame(
            file=name,
            index=index,
            position=np.array(_find(places, "ImagePositionPatient"), dtype=np.float64).reshape(3),
            directions=np.array(_find(places, "ImageOrientationPatient"), dtype=np.float64).reshape(2, 3),
            spacing=np.array([column_spacing, row_spacing], dtype=np.float64),
            shape=(int(header.Columns), int(header.Rows)),
            rescale=(float(_find(places, "RescaleSlope", 1)), float(_find(places, "RescaleIntercept", 0))),
        )
        if np.abs(frame.directions @ frame.directions.T - np.eye(2)).max() > 1e-2 or frame.spacing.min() <= 0:
            raise ValueError("directions that are no unit vectors at a right angle, or a spacing of 0")
        yield frame


def _sequences(group: Dataset) -> list[Any]:
    return [element.value for element in group if element.VR == "SQ" and element.value]


def _find(places: Sequence[Dataset], attribute: str, default: float | None = None) -> Any:
    """An attribute's value in the first of some datasets that has one. Raises LookupError without a default."""
    for place in places:
        if place.get(attribute) is not None:
            return place.get(attribute)
    if default is None:
        raise LookupError(f"no {attribute}")
    return default


def _stack(path: str | Path, frames: list[Frame]) -> tuple[list[Frame], np.ndarray]:
    """The frames from first to last along their normal, and the affine, voxel -> RAS mm. Raises ScanError."""
    if len(frames) < 2:
        raise ScanError(path, "a stack of slices", "a single slice", "name the folder that holds the whole series")
    first = frames[0]
    for frame in frames:
        turned = np.abs(frame.directions - first.directions).max() > 1e-3
        scaled = np.abs(frame.spacing - first.spacing).max() > 1e-3
        if turned or scaled or frame.shape != first.shape:
            found = f"{first.file} and {frame.file} that differ in it"
            raise ScanError(path, "one orientation, spacing and size", found, "export each stack as its own series")
    normal = np.cross(*first.directions)
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    positions = np.array([frame.position for frame in frames])
    steps = np.diff(positions, axis=0)
    if repeated := int((steps @ normal < 1e-3).sum()):
        found = f"{repeated} of {len(frames)} slices in the place of another"
        todo = "export one time point, echo or phase as its own series"
        raise ScanError(path, "each place once (3D)", found, todo)
    usual = np.median(steps, axis=0)
    errors = np.linalg.norm(steps - usual, axis=1)
    worst = int(errors.argmax())
    if errors[worst] > STEP_TOLERANCE * np.linalg.norm(usual):
        gap = f"a step of {np.linalg.norm(steps[worst]):.2f} mm between slices {worst + 1} and {worst + 2}"
        found = f"{gap} of {len(frames)} ({frames[worst].file}, {frames[worst + 1].file})"
        expected = f"slices {np.linalg.norm(usual):.2f} mm apart"
        raise ScanError(path, expected, found, "add the missing slices, or resample the scan evenly")
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    tilt = np.degrees(np.arccos(min(1.0, float(step @ normal / np.linalg.norm(step) / np.linalg.norm(normal)))))
    if tilt > MAX_TILT_DEGREES:
        todo = "resample it upright first, as dcm2niix does"
        raise ScanError(path, "slices stacked along their normal", f"a gantry tilt of {tilt:.1f} degrees", todo)
    affine = np.eye(4)
    affine[:3, :2] = (first.directions * first.spacing[:, None]).T
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    return frames, LPS_TO_RAS @ affine


def _decode(path: str | Path, frames: list[Frame], files: dict[str, Opener]) -> list[np.ndarray]:
    """(rows, columns) values of each frame, int16 or int64 where slope and intercept are whole, else float32."""
    planes = []
    name, stored = "", np.empty(0)
    for frame in frames:
        if frame.file != name:  # the frames of a multi-frame file follow each other: it is decoded once
            name, stored = frame.file, _pixels(path, frame.file, files[frame.file])
        planes.append(_values(stored[frame.index], *frame.rescale))
    return planes


def _pixels(path: str | Path, name: str, opener: Opener) -> np.ndarray:
    """(frames, rows, columns) stored values of one file, decompressed. Raises ScanError."""
    try:
        with opener() as stream:
            stored = dcmread(stream).pixel_array
    except (RuntimeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        found = f"pixels of {name} that cannot be decoded ({first_line(error)})"
        raise ScanError(path, "complete DICOM images", found, "copy or decompress them again") from None
    return stored.reshape(-1, *stored.shape[-2:])


def _values(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if not (slope.is_integer() and intercept.is_integer()):
        return (stored * slope + intercept).astype(np.float32)
    values = stored.astype(np.int64) * int(slope) + int(intercept)
    return values.astype(np.int16) if values.min() >= -32768 and values.max() <= 32767 else values
