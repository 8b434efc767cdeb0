"""DICOM in: the same voxels at the same place as the NIfTI of the same phantom, and bad series told in one line."""

import shutil
import warnings
import zipfile

import gdcm
import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicoms import AFFINES, ct_phantom, write_multiframe, write_series
from pydicom import dcmread
from pydicom.fileset import FileSet
from pydicom.uid import MRImageStorage, RLELossless

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_volume, write_volume
from seg_backbone.volume import Volume


def assert_same(volume, phantom):
    assert (volume.modality, volume.modality_from, volume.array.dtype) == ("CT", "header", np.int16)
    np.testing.assert_array_equal(volume.array, phantom.array)
    np.testing.assert_allclose(volume.grid.affine, phantom.grid.affine, atol=1e-5)


@pytest.mark.parametrize("plane", AFFINES)
def test_equals_the_nifti_of_the_same_phantom(tmp_path, plane):
    phantom = ct_phantom(plane)
    write_series(tmp_path / "series", phantom)
    volume = read_volume(tmp_path / "series")
    assert_same(volume, phantom)
    other = read_volume(write_volume(phantom, tmp_path / "a.nii.gz"))
    marked, as_nifti = (np.argwhere(scan.array == 3000)[0] for scan in (volume, other))
    assert marked.tolist() == as_nifti.tolist() == [2, 5, 7]
    places = volume.grid.voxel_to_world(marked), other.grid.voxel_to_world(as_nifti)
    np.testing.assert_allclose(*places, atol=1e-4)
    if plane == "axial":  # by hand: origin + index * spacing in LPS, x and y turned
        np.testing.assert_allclose(places[0], [80.25 - 2 * 0.75, -41.5 - 5 * 0.5, -500 + 7 * 2.5])


@pytest.mark.parametrize("plane", AFFINES)
def test_equals_what_simpleitk_makes_of_it(tmp_path, plane):
    write_series(tmp_path / "series", ct_phantom(plane))
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series"))
    sitk.WriteImage(sitk.ReadImage(files), str(tmp_path / "itk.nii.gz"))
    volume, image = read_volume(tmp_path / "series"), nib.load(tmp_path / "itk.nii.gz")
    np.testing.assert_array_equal(volume.array, np.asarray(image.dataobj))
    np.testing.assert_allclose(volume.grid.affine, image.affine, atol=1e-4)


def test_reversed_files_subfolders_and_second_copies(tmp_path):
    phantom = ct_phantom()
    write_series(tmp_path / "cd" / "DICOM" / "A1", phantom, lambda k, data: setattr(data, "InstanceNumber", 10 - k))
    shutil.copy(tmp_path / "cd" / "DICOM" / "A1" / "IM0003", tmp_path / "cd" / "copy.dcm")
    (tmp_path / "cd" / "README.txt").write_text("viewer on this disc")
    assert_same(read_volume(tmp_path / "cd"), phantom)


def test_a_disc_with_its_dicomdir(tmp_path):
    phantom = ct_phantom()
    write_series(tmp_path / "series", phantom, lambda k, data: setattr(data, "InstanceNumber", k + 1))
    disc = FileSet()
    for path in (tmp_path / "series").iterdir():
        disc.add(path)
    disc.write(tmp_path / "disc")
    assert (tmp_path / "disc" / "DICOMDIR").is_file()
    assert_same(read_volume(tmp_path / "disc"), phantom)


@pytest.mark.parametrize("order", [range(10), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7]])
def test_multiframe(tmp_path, order):
    phantom = ct_phantom("oblique")
    write_multiframe(tmp_path / "enhanced.dcm", phantom, order)
    assert_same(read_volume(tmp_path / "enhanced.dcm"), phantom)


def test_a_multiframe_that_highdicom_made(tmp_path):
    phantom = ct_phantom()
    write_series(tmp_path / "series", phantom, Manufacturer="none", SliceThickness=2.5, BurnedInAnnotation="NO")
    files = [dcmread(path) for path in sorted((tmp_path / "series").iterdir())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = hd.legacy.LegacyConvertedEnhancedCTImage(files, hd.UID(), 1, hd.UID(), 1)
    made.save_as(tmp_path / "legacy")
    assert_same(read_volume(tmp_path / "legacy"), phantom)


def test_rescaling(tmp_path):
    phantom = ct_phantom()
    whole = phantom.array.astype(np.float64) + 1024
    for name, slope, intercept in (("halves", 0.5, -100.25), ("wide", 20, 0)):
        write_series(
            tmp_path / name,
            phantom,
            lambda k, data, slope=slope, intercept=intercept: data.update(
                {"RescaleSlope": slope, "RescaleIntercept": intercept}
            ),
        )
        volume = read_volume(tmp_path / name)
        assert volume.array.dtype == np.float32  # neither fits int16
        np.testing.assert_array_equal(volume.array, whole * slope + intercept)


def test_mr_with_a_slope_of_its_own_for_each_slice(tmp_path):
    phantom = ct_phantom("sagittal")
    write_series(
        tmp_path / "mr",
        phantom,
        lambda k, data: data.update({"SOPClassUID": MRImageStorage, "RescaleSlope": 1 + k / 4, "RescaleIntercept": 0}),
        Modality="MR",
    )
    volume = read_volume(tmp_path / "mr")
    assert (volume.modality, volume.modality_from) == ("MR", "header")
    expected = (phantom.array.astype(np.float64) + 1024) * (1 + np.arange(10) / 4)
    np.testing.assert_array_equal(volume.array, expected.astype(np.float32))


def as_jpeg(path, syntax):
    """Compress a file in place with GDCM."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


@pytest.mark.parametrize("name", ["RLE", "JPEGLosslessProcess14_1", "JPEG2000Lossless", "JPEGLSLossless"])
def test_compressed(tmp_path, name):
    phantom = ct_phantom(shape=(32, 24, 8))
    write_series(tmp_path, phantom)
    for path in tmp_path.iterdir():
        if name == "RLE":
            data = dcmread(path)
            data.compress(RLELossless)
            data.save_as(path)
        else:
            as_jpeg(path, getattr(gdcm.TransferSyntax, name))
        assert dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    assert_same(read_volume(tmp_path), phantom)


def test_rounded_positions_are_no_gap(tmp_path):
    phantom = ct_phantom("oblique")

    def round_off(k, data):
        data.ImagePositionPatient = [round(float(value), 2) for value in data.ImagePositionPatient]

    write_series(tmp_path, phantom, round_off)
    np.testing.assert_allclose(read_volume(tmp_path).grid.affine, phantom.grid.affine, atol=0.006)


def test_a_small_tilt_stays_in_the_affine(tmp_path):
    affine = AFFINES["axial"].copy()
    affine[1, 2] = 0.02  # 0.02 mm over 2.5 mm: 0.46 degrees
    phantom = Volume(ct_phantom().array, Grid((9, 8, 10), affine), "CT")
    write_series(tmp_path, phantom)
    assert_same(read_volume(tmp_path), phantom)


def test_several_series(tmp_path):
    phantom = ct_phantom()
    write_series(tmp_path, phantom, prefix="A", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path, phantom, prefix="B", Modality="PT")
    first = write_series(tmp_path, phantom, prefix="C", SeriesDescription="Arterial 2.5")
    assert_same(read_volume(tmp_path), phantom)  # a localizer and a PET leave one series to choose
    second = write_series(tmp_path, Volume(phantom.array + 1, phantom.grid, "CT"), slices=range(5), prefix="D")
    with pytest.raises(ScanError) as caught:
        read_volume(tmp_path)
    message = str(caught.value)
    assert "\n" not in message and "expected one series, found 2: " in message
    assert f"CT 'Arterial 2.5' of 10 slices, UID {first}" in message
    assert f"CT 'Thorax 2.5' of 5 slices, UID {second}" in message
    assert message.endswith(f"choose one as {tmp_path}#UID")
    assert_same(read_volume(f"{tmp_path}#{first}"), phantom)
    np.testing.assert_array_equal(read_volume(f"{tmp_path}#{second}").array, phantom.array[..., :5] + 1)
    with pytest.raises(ScanError, match=r"expected a series with UID 1\.2\.3"):
        read_volume(f"{tmp_path}#1.2.3")


def zip_of(folder, path, rename=lambda name: name):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, rename(str(file.relative_to(folder.parent))))
    return path


def test_zip(tmp_path):
    phantom = ct_phantom("coronal")
    uid = write_series(tmp_path / "a" / "study", phantom)
    scan = zip_of(tmp_path / "a" / "study", tmp_path / "scan.zip")
    assert_same(read_volume(scan), phantom)
    assert_same(read_volume(f"{scan}#{uid}"), phantom)


def test_a_zip_that_names_files_outside_writes_nothing(tmp_path, monkeypatch):
    phantom = ct_phantom()
    write_series(tmp_path / "series", phantom)
    (tmp_path / "here").mkdir()
    scan = zip_of(tmp_path / "series", tmp_path / "here" / "evil.zip", lambda name: f"../../{name}.dcm")
    shutil.rmtree(tmp_path / "series")
    monkeypatch.chdir(tmp_path / "here")
    assert_same(read_volume(scan), phantom)
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "evil.zip"]


def spoil(kind, path):
    """Write a series, or something else, that cannot be read."""
    phantom = ct_phantom()
    edits = {
        "uneven": lambda k, d: d.ImagePositionPatient.__setitem__(2, -500 + 2.5 * k + (k > 5) * 0.4),
        "jumps_aside": lambda k, d: d.ImagePositionPatient.__setitem__(0, -80.25 + (k == 4) * 3),
        "tilted": lambda k, d: d.ImagePositionPatient.__setitem__(1, 41.5 + k * 0.5),
        "four_d": lambda k, d: d.ImagePositionPatient.__setitem__(2, -500 + 2.5 * (k % 5)),
        "turns": lambda k, d: d.ImageOrientationPatient.__setitem__(0, -1 if k == 3 else 1),
        "no_position": lambda k, d: d.__delattr__("ImagePositionPatient") if k == 2 else None,
        "no_spacing": lambda k, d: d.__delattr__("PixelSpacing"),
        "odd_orientation": lambda k, d: setattr(d, "ImageOrientationPatient", [1, 0, 0]),
        "zero_orientation": lambda k, d: setattr(d, "ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        "colour": lambda k, d: setattr(d, "SamplesPerPixel", 3),
        "truncated": lambda k, d: setattr(d, "PixelData", d.PixelData[:20]) if k == 3 else None,
        "plain_multiframe": lambda k, d: setattr(d, "NumberOfFrames", 2),
    }
    if kind == "empty":
        path.mkdir()
    elif kind == "other_files":
        path.mkdir()
        (path / "notes.txt").write_text("none here")
    elif kind == "not_a_zip":
        path.write_bytes(b"PK not really")
    elif kind == "locked_zip":
        write_series(path.parent / "series", phantom)
        data = bytearray(zip_of(path.parent / "series", path).read_bytes())
        for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag "encrypted" of every entry
            place = data.find(magic)
            while place >= 0:
                data[place + offset] |= 1
                place = data.find(magic, place + 4)
        path.write_bytes(data)
    elif kind == "one_file":
        write_series(path.parent / "series", phantom)
        shutil.copy(path.parent / "series" / "IM0000", path)
    else:
        tags = {"pet": {"Modality": "PT"}, "x_ray": {"Modality": "DX"}}.get(kind, {})
        tags |= {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]} if kind == "localizer" else {}
        slices = {"missing_slice": [0, 1, 2, 3, 5, 6, 7], "one_slice": [4]}.get(kind)
        write_series(path, phantom, edits.get(kind, lambda k, data: None), slices, **tags)
        if kind.startswith("broken_header"):
            cut = {"broken_header_early": 200, "broken_header_late": 700}[kind]
            (path / "IM0000").write_bytes((path / "IM0000").read_bytes()[:cut])
    return path


BAD = {
    "empty": "expected DICOM images, found none",
    "other_files": "expected DICOM images, found none",
    "not_a_zip": "expected a zip that opens",
    "locked_zip": "encrypted",
    "one_slice": "found a single slice; name the folder",
    "one_file": "found a single slice; name the folder",
    "missing_slice": "expected slices 2.50 mm apart, found a step of 5.00 mm between slices 4 and 5 of 7",
    "uneven": "found a step of 2.90 mm between slices 6 and 7 of 10",
    "jumps_aside": "between slices 4 and 5 of 10",
    "tilted": "found a gantry tilt of 11.3 degrees",  # atan(0.5 / 2.5)
    "four_d": "expected each place once (3D), found 5 of 10 slices in the place of another",
    "turns": "expected one orientation, spacing and size",
    "no_position": "found no ImagePositionPatient in IM0004",
    "no_spacing": "found no PixelSpacing in IM0000",
    "odd_orientation": "expected grey slices that tell their position, orientation and spacing",
    "zero_orientation": "found directions that are no unit vectors",
    "colour": "found colour in IM0000",
    "truncated": "that cannot be decoded",
    "plain_multiframe": "found several frames without functional groups",
    "broken_header_early": "found IM0000 with a header that cannot be read",
    "broken_header_late": "found IM0000 with a header that cannot be read",
    "pet": "expected a CT or MR series that is no localizer, found PT 'Thorax 2.5' of 10 slices",
    "x_ray": "found DX",
    "localizer": "expected a CT or MR series that is no localizer, found CT",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_series_is_one_line_that_says_what_is_wrong(tmp_path, kind, capfd):
    path = spoil(kind, tmp_path / ("scan.zip" if kind.endswith("zip") else "scan"))
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ") and "\n" not in message
    assert BAD[kind] in message
    assert capfd.readouterr().err == ""


def test_another_modality_than_the_headers(tmp_path):
    write_series(tmp_path, ct_phantom())
    assert read_volume(tmp_path, "CT").modality_from == "given"
    with pytest.raises(ScanError, match="expected MR, as told, found CT in its header"):
        read_volume(tmp_path, "MR")
