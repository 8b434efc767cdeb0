"""Network input: windows by hand, the flag of MR, and one tensor for a scan however its axes are stored."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from seg_backbone.geometry import Grid
from seg_backbone.plan import Plan
from seg_backbone.preprocess import MR_FLAG, PAD, normalise, preprocess
from seg_backbone.volume import Volume

PLAN = Plan("t", ("tumour",), spacing_mm=(3.0, 3.0, 4.0), ct_windows_hu=((-160.0, 240.0), (-1000.0, 1000.0)))
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def test_ct_windows_map_to_minus_one_and_one():
    values = np.array([-3000, -1000, -160, 40, 240, 1000, 3000], dtype=np.float32).reshape(7, 1, 1)
    out = normalise(values, "CT", PLAN)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0].ravel(), [-1, -1, -1, 0, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(out[1].ravel(), [-1, -1, -0.16, 0.04, 0.24, 1, 1], atol=1e-6)
    assert out.min() == PAD


def test_mr_is_scaled_by_its_bright_end_and_flagged():
    values = np.arange(0, 1001, dtype=np.float32).reshape(7, 11, 13)
    out = normalise(values, "MR", PLAN)
    top = np.percentile(np.arange(1, 1001), 99.5)
    np.testing.assert_allclose(out[0], np.minimum(values * 2 / top - 1, 1.5), atol=1e-5)
    assert out[0].min() == PAD
    assert (out[1] == MR_FLAG).all()
    # the scanner's arbitrary unit does not matter
    np.testing.assert_allclose(normalise(values * 37, "MR", PLAN), out, atol=1e-5)
    bright = values.copy()
    bright[0, 0, 0] = 1e6  # nor does a spike
    assert normalise(bright, "MR", PLAN).max() == MR_FLAG
    assert np.isfinite(normalise(-values, "MR", PLAN)).all()


def test_the_working_grid_keeps_the_extent():
    grid = Grid((12, 9, 8), np.diag([-2.0, 2.0, 5.0, 1.0]))
    array = np.full(grid.shape, -1000, dtype=np.int16)
    array[:6] = 240  # index 0 is the patient's right end here
    image, working = preprocess(Volume(array, grid, "CT"), PLAN)
    assert image.shape == (2, 8, 6, 10)
    assert working.shape == (8, 6, 10)
    assert working.orientation == "RAS"
    np.testing.assert_allclose(working.spacing_mm, [3, 3, 4])
    np.testing.assert_allclose(working.extent_mm(), grid.extent_mm(), atol=1e-9)
    np.testing.assert_allclose(image[0, 5:], 1, atol=1e-6)
    np.testing.assert_allclose(image[0, :3], -1, atol=1e-6)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_stored_orientation_changes_nothing(modality):
    array = np.random.default_rng(0).integers(-1000, 1000, (10, 8, 7)).astype(np.int16)
    if modality == "MR":
        array = array + 1000
    turn = np.deg2rad(12)
    affine = np.array(
        [[np.cos(turn), -np.sin(turn), 0, -30], [np.sin(turn), np.cos(turn), 0, 9], [0, 0, 1, 5], [0, 0, 0, 1]]
    )
    grid = Grid(array.shape, affine @ np.diag([1.5, 2.0, 5.0, 1.0]))
    expected, expected_grid = preprocess(Volume(array, grid, modality), PLAN)
    assert len(ORIENTATIONS) == 48
    for orientation in ORIENTATIONS:
        turned = nib.apply_orientation(array, orientation)
        turned_grid = Grid(turned.shape, grid.affine @ nib.orientations.inv_ornt_aff(orientation, grid.shape))
        image, working = preprocess(Volume(turned, turned_grid, modality), PLAN)
        np.testing.assert_allclose(image, expected, atol=1e-5)
        assert working.same_as(expected_grid, 1e-6)
