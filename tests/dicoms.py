"""Tiny DICOM series of phantoms, written with pydicom; no patient was ever in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)
from scipy.spatial.transform import Rotation

from seg_backbone.geometry import Grid
from seg_backbone.volume import Volume

SHAPE = (9, 8, 10)
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # of an LPS affine


def _affine(directions: np.ndarray) -> np.ndarray:
    """RAS affine of LPS directions (as columns), 0.75 x 0.5 x 2.5 mm."""
    lps = np.eye(4)
    lps[:3, :3] = directions * [0.75, 0.5, 2.5]
    lps[:3, 3] = -80.25, 41.5, -500
    return RAS @ lps


# what a scanner writes: the third direction is the cross product of the first two
AFFINES = {
    "axial": _affine(np.eye(3)),
    "sagittal": _affine(np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]]).T),
    "coronal": _affine(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]).T),
    "oblique": _affine(Rotation.from_euler("xyz", [20, -15, 35], degrees=True).as_matrix()),
}


def ct_phantom(plane: str = "axial", shape: tuple[int, int, int] = SHAPE) -> Volume:
    """Random Hounsfield units with one voxel (2, 5, 7) of 3000 HU."""
    array = np.random.default_rng(5).integers(-1000, 1000, shape).astype(np.int16)
    array[2, 5, 7] = 3000
    return Volume(array, Grid(shape, AFFINES[plane]), "CT")


def write_series(
    folder: Path,
    volume: Volume,
    edit: Callable[[int, Dataset], None] = lambda k, data: None,
    slices: Sequence[int] | None = None,
    prefix: str = "IM",
    **tags: object,
) -> str:
    """One file a slice, named without extension and not in the order of the slices; returns the SeriesInstanceUID.

    edit: changes the header of slice k. slices: only these. tags: the same in every header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    common = _patient(volume)
    common.update({keyword: value for keyword, value in tags.items()})
    for k in range(volume.grid.shape[2]) if slices is None else slices:
        data = Dataset()
        data.update(common)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, generate_uid()
        data.ImagePositionPatient = _position(volume, k)
        data.ImageOrientationPatient, data.PixelSpacing = _orientation(volume)
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = _stored(volume, k)
        edit(k, data)
        _save(data, folder / f"{prefix}{k * 7 % volume.grid.shape[2]:04d}")
    return str(common.SeriesInstanceUID)


def write_multiframe(path: Path, volume: Volume, order: Sequence[int]) -> None:
    """An enhanced CT: every slice in one file, in this order."""
    data = _patient(volume)
    data.SOPClassUID, data.SOPInstanceUID, data.NumberOfFrames = EnhancedCTImageStorage, generate_uid(), len(order)
    orientation, measures, values = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = _orientation(volume)
    measures.SliceThickness = float(volume.grid.spacing_mm[2])
    values.RescaleSlope, values.RescaleIntercept = 1, -1024
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    shared.PixelValueTransformationSequence = [values]
    data.SharedFunctionalGroupsSequence, frames = [shared], []
    for k in order:
        place, own = Dataset(), Dataset()
        place.ImagePositionPatient = _position(volume, k)
        own.PlanePositionSequence = [place]
        frames.append(own)
    data.PerFrameFunctionalGroupsSequence = frames
    data.PixelData = b"".join(_stored(volume, k) for k in order)
    _save(data, path)


def _patient(volume: Volume) -> Dataset:
    data = Dataset()
    data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = "Phantom", "P1", "", ""
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "20200101", "120000", "1", ""
    data.ReferringPhysicianName, data.PositionReferenceIndicator = "", ""
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = (generate_uid() for _ in range(3))
    data.SeriesDescription, data.SeriesNumber, data.InstanceNumber, data.Modality = "Thorax 2.5", 4, 1, "CT"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.Columns, data.Rows = volume.grid.shape[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    return data


def _position(volume: Volume, k: int) -> list[float]:
    return [float(round(value, 6)) for value in RAS[:3, :3] @ volume.grid.voxel_to_world(np.array([0, 0, k]))]


def _orientation(volume: Volume) -> tuple[list[float], list[float]]:
    lps, spacing = RAS[:3, :3] @ volume.grid.affine[:3, :3], volume.grid.spacing_mm
    directions = (lps / spacing)[:, :2].T.ravel()
    return [float(round(value, 9)) for value in directions], [float(spacing[1]), float(spacing[0])]


def _stored(volume: Volume, k: int) -> bytes:
    return (volume.array[:, :, k].T.astype(np.int32) + 1024).astype("<u2").tobytes()


def _save(data: Dataset, path: Path) -> None:
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.save_as(path, enforce_file_format=True)


def write_rtstruct(
    path: Path,
    scan: Path,
    rois: dict[str, Sequence[np.ndarray]],
    kinds: dict[str, str] | None = None,
    form: str = "CLOSED_PLANAR",
    edit: Callable[[Dataset], None] = lambda data: None,
    date: str = "20200102",
) -> None:
    """A structure set about the series in `scan`. rois: name -> its contours, (points, 3) RAS mm each; kinds: name ->
    interpreted type. edit: changes the whole before it is written."""
    first = dcmread(next(file for file in sorted(scan.iterdir()) if file.is_file()), stop_before_pixels=True)
    data = Dataset()
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
        data[keyword] = first[keyword]
    data.SOPClassUID, data.SOPInstanceUID, data.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    data.SeriesInstanceUID, data.StructureSetLabel = generate_uid(), "plan"
    data.StructureSetDate, data.StructureSetTime = date, "120000"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, frame.FrameOfReferenceUID = first.SeriesInstanceUID, first.FrameOfReferenceUID
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    names, drawn, told = [], [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, contour_set, observation = Dataset(), Dataset(), Dataset()
        roi.ROINumber = contour_set.ReferencedROINumber = observation.ReferencedROINumber = number
        roi.ROIName, roi.ReferencedFrameOfReferenceUID = name, first.FrameOfReferenceUID
        observation.ObservationNumber, observation.RTROIInterpretedType = number, (kinds or {}).get(name, "")
        if contours:
            contour_set.ContourSequence = [_contour(points, form) for points in contours]
        names.append(roi), drawn.append(contour_set), told.append(observation)
    data.StructureSetROISequence, data.ROIContourSequence, data.RTROIObservationsSequence = names, drawn, told
    edit(data)
    _save(data, path)


def _contour(points: np.ndarray, form: str) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = form, len(points)
    contour.ContourData = [f"{value:.4f}" for value in (points * [-1, -1, 1]).ravel()]
    return contour
