"""NIfTI in and out: the grid survives exactly, and bad input is one line that names the file."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from seg_backbone.errors import InputError, LabelError, ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_mask, read_volume, write_mask, write_volume
from seg_backbone.volume import Mask, Volume

SHAPE = (6, 7, 8)
STRAIGHT = np.diag([-0.75, 0.75, 3.0, 1.0])
COS, SIN = np.cos(np.radians(25)), np.sin(np.radians(25))
OBLIQUE = np.array([[0.9 * COS, -SIN, 0, -80.3], [0.9 * SIN, COS, 0, 41.7], [0, 0, 2.5, -500.1], [0, 0, 0, 1]])
SHEARED = OBLIQUE @ np.array([[1, 0, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)  # a tilted gantry


def stored(affine):
    """The affine as a header can hold it: NIfTI keeps float32."""
    return affine.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("affine", [STRAIGHT, OBLIQUE, SHEARED], ids=["straight", "oblique", "sheared"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_roundtrip_keeps_grid_and_values_exactly(tmp_path, affine, suffix):
    rng = np.random.default_rng(1)
    volume = Volume(rng.integers(-1000, 1000, SHAPE).astype(np.int16), Grid(SHAPE, stored(affine)), "CT")
    again = read_volume(write_volume(volume, tmp_path / f"a{suffix}"), "CT")
    np.testing.assert_array_equal(again.array, volume.array)
    np.testing.assert_array_equal(again.grid.affine, volume.grid.affine)
    assert again.array.dtype == np.int16
    assert again.modality_from == "given"

    mask = Mask(rng.integers(0, 4, SHAPE).astype(np.uint8), volume.grid, {"a": 1, "b": 2, "c": 3})
    back = read_mask(write_mask(mask, tmp_path / f"m{suffix}"), mask.labels)
    np.testing.assert_array_equal(back.array, mask.array)
    np.testing.assert_array_equal(back.grid.affine, volume.grid.affine)
    assert back.labels == mask.labels
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{suffix}", f"m{suffix}"]


def test_float_values_and_large_ids_survive(tmp_path):
    grid = Grid(SHAPE, STRAIGHT)
    volume = Volume(np.linspace(0, 1, 336, dtype=np.float32).reshape(SHAPE), grid, "MR")
    again = read_volume(write_volume(volume, tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(again.array, volume.array)
    assert (again.modality, again.modality_from) == ("MR", "guessed")
    mask = Mask(np.full(SHAPE, 300, dtype=np.uint16), grid)
    np.testing.assert_array_equal(read_mask(write_mask(mask, tmp_path / "m.nii.gz")).array, mask.array)


def test_a_trailing_axis_of_one_is_dropped(tmp_path):
    array = np.arange(336, dtype=np.int16).reshape(*SHAPE, 1) % 5
    nib.save(nib.Nifti1Image(array, STRAIGHT), tmp_path / "a.nii.gz")
    assert read_volume(tmp_path / "a.nii.gz").array.shape == SHAPE
    assert read_mask(tmp_path / "a.nii.gz").array.shape == SHAPE


def bad_file(kind, folder):
    """Write one file that is not a scan and return its path."""
    path = folder / f"{kind}.nii.gz"
    array = np.arange(336, dtype=np.float32).reshape(SHAPE)
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("patient moved\nrepeat the scan\n")
    elif kind == "zipped_text":
        path.write_bytes(gzip.compress(b"patient moved\nrepeat the scan\n"))
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        nib.save(nib.Nifti1Image(np.random.default_rng(0).random((32, 32, 32)), STRAIGHT), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind != "missing":
        array = {
            "flat": array[..., 0],
            "one_slice": array[..., :1],
            "series": np.stack([array, array], axis=-1),
            "zeros": np.zeros_like(array),
            "nan": np.where(array == 3, np.nan, array),
            "infinite": np.where(array == 3, np.inf, array),
            "complex": array.astype(np.complex64),
            "rgb": np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]),
        }[kind]
        nib.save(nib.Nifti1Image(array, STRAIGHT), path)
    return path


UNREADABLE = ["missing", "folder", "text", "zipped_text", "empty", "truncated", "flat", "one_slice", "series"]
UNREADABLE += ["complex", "rgb"]


@pytest.mark.parametrize("kind", [*UNREADABLE, "zeros", "nan", "infinite"])
def test_a_bad_scan_is_one_line_that_names_the_file(tmp_path, kind):
    with pytest.raises(ScanError) as caught:
        read_volume(bad_file(kind, tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / kind}.nii.gz: expected ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [*UNREADABLE, "nan", "infinite"])
def test_a_bad_mask_is_one_line_that_names_the_file(tmp_path, kind):
    with pytest.raises(InputError) as caught:
        read_mask(bad_file(kind, tmp_path))
    assert str(caught.value).startswith(f"{tmp_path / kind}.nii.gz: expected ")
    assert "\n" not in str(caught.value)


def test_a_broken_affine(tmp_path):
    for name, value in (("singular", 0.0), ("nan", np.nan)):
        image = nib.Nifti1Image(np.arange(336, dtype=np.int16).reshape(SHAPE), STRAIGHT)
        image.header["srow_z"] = value
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), tmp_path / f"{name}.nii.gz")
        with pytest.raises(ScanError, match="invertible affine"):
            read_volume(tmp_path / f"{name}.nii.gz")


@pytest.mark.parametrize("values", [(0, 0.5), (0, -1), (0, 7), (0, 70000)])
def test_a_mask_that_is_not_a_label_map(tmp_path, values):
    array = np.full(SHAPE, values[0], dtype=np.float32)
    array[0, 0, 0] = values[1]
    nib.save(nib.Nifti1Image(array, STRAIGHT), tmp_path / "m.nii.gz")
    with pytest.raises(LabelError):
        read_mask(tmp_path / "m.nii.gz", {"tumour": 1})


def test_an_unknown_modality(tmp_path):
    volume = Volume(np.arange(336, dtype=np.int16).reshape(SHAPE), Grid(SHAPE, STRAIGHT), "CT")
    path = write_volume(volume, tmp_path / "a.nii.gz")
    with pytest.raises(ScanError, match="PET"):
        read_volume(path, "PET")
