"""NRRD and MetaImage in: voxels and places as in the NIfTI of the same phantom, and bad files told in one line."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicoms import AFFINES, RAS, ct_phantom

from seg_backbone.errors import InputError, ScanError
from seg_backbone.io import read_mask, read_volume, write_volume

SUFFIXES = [".nrrd", ".nhdr", ".mha", ".mhd"]


def itk_image(array, affine):
    """A SimpleITK image of an array (i, j, k) and its RAS affine."""
    lps = RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("plane", AFFINES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equals_the_nifti_of_the_same_phantom(tmp_path, plane, suffix):
    phantom = ct_phantom(plane)
    image = itk_image(phantom.array, phantom.grid.affine)
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    volume, as_nifti = read_volume(tmp_path / f"scan{suffix}"), nib.load(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.array, phantom.array)
    np.testing.assert_allclose(volume.grid.affine, phantom.grid.affine, atol=1e-6)
    np.testing.assert_allclose(volume.grid.affine, as_nifti.affine, atol=1e-4)
    assert (volume.array.dtype, volume.modality_from) == (np.int16, "guessed")
    marked = np.argwhere(volume.array == 3000)[0]
    other = read_volume(write_volume(phantom, tmp_path / "b.nii.gz")).grid.voxel_to_world([2, 5, 7])
    np.testing.assert_allclose(volume.grid.voxel_to_world(marked), other, atol=1e-4)


def test_an_nrrd_in_ras_or_las(tmp_path):
    phantom = ct_phantom("oblique")
    sitk.WriteImage(itk_image(phantom.array, phantom.grid.affine), str(tmp_path / "lps.nhdr"))
    header = (tmp_path / "lps.nhdr").read_text()
    for space, turn in (("right-anterior-superior", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1))):
        (tmp_path / "scan.nhdr").write_text(header.replace("left-posterior-superior", space))
        volume = read_volume(tmp_path / "scan.nhdr")
        # the numbers of the header now count toward other sides: from the LPS numbers to those, then to RAS
        expected = np.diag([*turn, 1.0]) @ RAS @ phantom.grid.affine
        np.testing.assert_allclose(volume.grid.affine, expected, atol=1e-6)
        np.testing.assert_array_equal(volume.array, phantom.array)


def test_masks(tmp_path):
    ids = np.zeros((9, 8, 10), dtype=np.uint8)
    ids[2:4, 3, 5] = 2
    for suffix in (".nrrd", ".mha"):
        sitk.WriteImage(itk_image(ids, AFFINES["oblique"]), str(tmp_path / f"mask{suffix}"))
        mask = read_mask(tmp_path / f"mask{suffix}", {"tumour": 1, "larynx": 2})
        np.testing.assert_array_equal(mask.array, ids)
        assert mask.array.dtype == np.uint8
        with pytest.raises(InputError, match="expected label values"):
            read_mask(tmp_path / f"mask{suffix}", {"tumour": 1})


def test_floats_and_a_trailing_axis_of_one(tmp_path):
    array = np.linspace(0, 1, 720, dtype=np.float32).reshape(9, 8, 10)
    image = itk_image(array, AFFINES["axial"])
    sitk.WriteImage(sitk.JoinSeries([image]), str(tmp_path / "scan.mha"))
    volume = read_volume(tmp_path / "scan.mha")
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.grid.affine, AFFINES["axial"], atol=1e-6)


def spoil(kind, folder):
    """Write one file that is no scan and return its path."""
    image = itk_image(ct_phantom().array, AFFINES["axial"])
    path = folder / f"{kind}{'.mhd' if kind.startswith('mhd') else '.nhdr' if kind.startswith('nhdr') else '.nrrd'}"
    if kind == "text":
        path.write_text("patient moved\nrepeat the scan\n")
    elif kind == "flat":
        sitk.WriteImage(image[:, :, 0], str(path))
    elif kind == "series":
        sitk.WriteImage(sitk.JoinSeries([image, image]), str(path))
    elif kind == "colour":
        sitk.WriteImage(sitk.Compose(image, image, image), str(path))
    elif kind == "constant":
        sitk.WriteImage(image * 0, str(path))
    elif kind != "missing":
        sitk.WriteImage(image, str(path))
        if kind.endswith("without_data"):
            next(other for other in folder.iterdir() if other != path).unlink()
        elif kind == "truncated":
            path.write_bytes(path.read_bytes()[:-500])
        elif kind == "nhdr_without_space":
            lines = [line for line in path.read_text().splitlines() if not line.startswith("space")]
            path.write_text("\n".join([*lines[:-1], "spacings: 1 1 1", lines[-1], ""]))
        elif kind == "nhdr_scanner_space":
            path.write_text(path.read_text().replace("left-posterior-superior", "scanner-xyz"))
    return path


BAD = {
    "missing": "no such file",
    "text": "data that cannot be read",
    "flat": "expected a 3D volume, found a 2D image",
    "series": "expected a 3D volume, found a 4D image of shape (9, 8, 10, 2)",
    "colour": "expected a grey-value image, found 3 values a voxel",
    "constant": "expected a scan with contrast",
    "truncated": "data that cannot be read",
    "mhd_without_data": "expected its voxels in mhd_without_data.raw, found no such file",
    "nhdr_without_data": "expected its voxels in nhdr_without_data.raw, found no such file",
    "nhdr_without_space": "expected an anatomical NRRD space, found none",
    "nhdr_scanner_space": "expected an anatomical NRRD space, found scanner-xyz",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_that_says_what_is_wrong(tmp_path, kind, capfd):
    path = spoil(kind, tmp_path)
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ") and "\n" not in message
    assert BAD[kind] in message
    assert capfd.readouterr().err == ""
