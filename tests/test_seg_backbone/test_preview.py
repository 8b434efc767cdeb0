"""The preview shows the right slice, the right way round, whatever the order of the scan's axes."""

import io

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread

from seg_backbone.errors import ConfigError, GridError
from seg_backbone.geometry import Grid
from seg_backbone.lesions import find_instances
from seg_backbone.preview import count_slices, slice_png, write_preview
from seg_backbone.volume import Mask, Volume

LABELS = {"tumour": 1, "spinal_cord": 2}
COS, SIN = np.cos(np.radians(15)), np.sin(np.radians(15))
OBLIQUE = np.array([[2 * COS, -2 * SIN, 0, -60], [2 * SIN, 2 * COS, 0, -50], [0, 0, 4, 10], [0, 0, 0, 1]])


def phantom(modality="CT", affine=OBLIQUE):
    """A dark scan with a tumour at the patient's right front, and a larger cord behind on other slices too."""
    ids = np.zeros((60, 50, 20), dtype=np.uint8)
    ids[44:52, 36:42, 6:9] = 1  # RAS: right, anterior
    ids[26:34, 6:14] = 2
    grid = Grid(ids.shape, affine)
    array = np.where(ids > 0, 100, -1000).astype(np.int16)
    return Volume(array, grid, modality), Mask(ids, grid, LABELS)


def reoriented(volume, mask, codes):
    """The same phantom with its axes in another order."""
    start, end = nib.io_orientation(volume.grid.affine), nib.orientations.axcodes2ornt(codes)
    turn = nib.orientations.ornt_transform(start, end)
    array, ids = (nib.apply_orientation(a, turn) for a in (volume.array, mask.array))
    grid = Grid(array.shape, volume.grid.affine @ nib.orientations.inv_ornt_aff(turn, volume.grid.shape))
    return Volume(array, grid, volume.modality), Mask(ids, grid, LABELS)


def drawn(volume, mask, path):
    """The (rows, columns, 3) pixels of the preview."""
    assert write_preview(volume, mask, find_instances(mask), path) == path
    return imread(path)[..., :3]


def centre_of_red(pixels):
    """Mean (row, column) of the pixels in the lesion's colour."""
    red = (pixels[..., 0] > 0.6) & (pixels[..., 1] < 0.55) & (pixels[..., 2] < 0.55)
    assert red.sum() > 40
    return np.argwhere(red).mean(0)


def test_right_is_on_the_viewers_left_and_front_is_up(tmp_path):
    pixels = drawn(*phantom(), tmp_path / "a.png")
    assert pixels.shape == (600, 1500, 3)
    axial = pixels[40:520, :500]
    row, column = centre_of_red(axial)
    assert column < 210 and row < 230
    yellow = (axial[..., 0] > 0.9) & (axial[..., 1] > 0.9) & (axial[..., 2] < 0.3)
    assert yellow.any(), "the long axis is drawn"


@pytest.mark.parametrize("codes", ["LPS", "SAL", "PIR"])
def test_the_order_of_the_axes_changes_nothing(tmp_path, codes):
    volume, mask = phantom()
    first = drawn(volume, mask, tmp_path / "a.png")
    second = drawn(*reoriented(volume, mask, codes), tmp_path / "b.png")
    assert np.abs(first - second).mean() < 1e-3


def test_pixels_are_square_in_mm(tmp_path):
    """A cube of 40 mm on a 2 x 2 x 4 mm grid is as wide as high on every panel."""
    ids = np.zeros((60, 60, 30), dtype=np.uint8)
    ids[20:40, 20:40, 10:20] = 2
    grid = Grid(ids.shape, np.diag([2.0, 2.0, 4.0, 1.0]))
    volume = Volume(np.zeros(ids.shape, dtype=np.int16) - 1000, grid, "CT")
    pixels = drawn(volume, Mask(ids, grid, LABELS), tmp_path / "a.png")
    for left in (500, 1000):
        panel = pixels[45:520, left : left + 500]
        coloured = np.ptp(panel, axis=-1) > 0.1
        rows, columns = np.flatnonzero(coloured.sum(1) > 20), np.flatnonzero(coloured.sum(0) > 20)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3)


def test_an_empty_mask_and_an_mr_scan(tmp_path):
    volume, mask = phantom("MR")
    empty = Mask(np.zeros_like(mask.array), mask.grid, LABELS)
    assert drawn(volume, empty, tmp_path / "a.png").shape == (600, 1500, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_another_grid_is_refused(tmp_path):
    volume, mask = phantom()
    moved = Mask(mask.array, Grid(mask.grid.shape, np.diag([2.0, 2.0, 4.0, 1.0])), LABELS)
    with pytest.raises(GridError):
        write_preview(volume, moved, find_instances(moved), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SAR", "PIL"])
def test_a_slice_is_the_files_own_number_and_looks_the_same_in_any_order(codes):
    volume, mask = phantom()
    (tumour,) = (one for one in find_instances(mask) if one.label == "tumour")
    expected = slice_png(volume, mask, "axial", tumour.slice["index"])
    turned = reoriented(volume, mask, codes)
    (tumour,) = (one for one in find_instances(turned[1]) if one.label == "tumour")
    assert slice_png(*turned, "axial", tumour.slice["index"]) == expected
    pixels = imread(io.BytesIO(expected))[..., :3]
    assert pixels.shape == (50, 60, 3), "pixels of 2 mm"
    assert centre_of_red(pixels).tolist() == [49 - 38.5, 59 - 47.5], "right is left and front is up"
    plain = imread(io.BytesIO(slice_png(*turned, "axial", tumour.slice["index"], overlay=False)))
    assert np.ptp(plain[..., :3], axis=2).max() == 0


def test_slices_of_other_planes_have_square_pixels():
    volume, mask = phantom()
    assert count_slices(volume.grid) == {"axial": 20, "coronal": 50, "sagittal": 60}
    pixels = imread(io.BytesIO(slice_png(volume, mask, "coronal", 39)))
    assert pixels.shape[:2] == (40, 60), "80 x 120 mm"
    for plane, index in (("axial", 20), ("axial", -1), ("oblique", 0)):
        with pytest.raises(ConfigError):
            slice_png(volume, mask, plane, index)
