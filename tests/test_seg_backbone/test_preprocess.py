"""Network input: windows by hand, the flag of MR, and one tensor for a scan however its axes are stored."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.plan import Channel, Plan
from seg_backbone.preprocess import MR_FLAG, PAD, normalise, padding, preprocess, scan_box, separate_axis
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


def nnunet(*channels, spacing=(1.0, 1.0, 1.0), **changes):
    """A plan of channels that are normalised as nnU-Net does."""
    settings = {"resampling": "nnunet", "crop_nonzero": True, "orientation": "file"} | changes
    return Plan("t", ("tumour",), spacing_mm=spacing, patch=(8, 8, 8), channels=channels, **settings)


def test_nnunets_normalisations_by_hand():
    array = np.zeros((5, 5, 6), dtype=np.int16)
    array[1:4, 1:4, 1:5] = np.arange(1, 37).reshape(3, 3, 4)
    array[2, 2, 2] = 0  # a hole belongs to the inside
    grid = Grid(array.shape, np.eye(4))
    schemes = ["ct", "zscore", "zscore_nonzero", "rescale_to_0_1", "rgb_to_0_1", "none"]
    channels = [Channel(scheme, scheme, mean=10.0, std=2.0, low=5.0, high=20.0) for scheme in schemes]
    plan = nnunet(*channels)
    volume = Volume(array, grid, "MR", others=(array,) * 5)
    assert scan_box(volume, plan) == (slice(1, 4), slice(1, 4), slice(1, 5))
    inside = array[1:4, 1:4, 1:5].astype(float)
    z = (inside - inside.mean()) / inside.std()
    expected = [(inside.clip(5, 20) - 10) / 2, z, z, inside / 36, inside / 255, inside]
    image, working = preprocess(volume, plan)
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(working.voxel_to_world(np.zeros(3)), [1, 1, 1])
    assert padding(plan) == 0
    # what is not filled stays 0: a corner of the box
    array[1, 1, 1] = 0
    image, _ = preprocess(volume, plan)
    assert image[2, 0, 0, 0] == 0 != image[1, 0, 0, 0]
    assert (volume.array == array).all(), "the scan is left as it is"


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (2.0, 2.0, 4.5)], ids=["all axes", "slices apart"])
def test_cubic_is_what_nnunets_models_see(spacing):
    array = np.random.default_rng(0).integers(-100, 100, (12, 10, 9)).astype(np.int16)
    volume = Volume(array, Grid(array.shape, np.diag([1.0, 1.0, 4.5 if spacing[2] > 2 else 1.0, 1.0])), "CT")
    plan = nnunet(Channel("CT", "ct", 3.0, 20.0, -80.0, 80.0), spacing=spacing)
    cubic, smooth = (preprocess(volume, plan.with_(resampling=name))[0] for name in ("cubic", "smooth"))
    np.testing.assert_array_equal(cubic, preprocess(volume, plan)[0])
    assert cubic.std() > 1.2 * smooth.std()  # detail that the grid cannot hold is kept


def test_clipping_comes_before_resampling():
    array = np.full((8, 8, 8), 100, dtype=np.int16)
    array[:4] = -1000
    volume = Volume(array, Grid(array.shape, np.eye(4)), "CT")
    plan = nnunet(Channel("CT", "ct", 0.0, 1.0, -100.0, 100.0), spacing=(8 / 5, 1.0, 1.0), resampling="smooth")
    image, _ = preprocess(volume, plan)
    np.testing.assert_allclose(image[0, :, 0, 0], [-100, -100, 0, 100, 100], atol=1e-3)


def test_a_coarse_axis_takes_the_nearest_slice():
    assert separate_axis(np.array([1, 1, 3.0]), (1, 1, 1)) is None
    assert separate_axis(np.array([1, 1, 3.1]), (1, 1, 1)) == 2
    assert separate_axis(np.array([1, 1, 1.0]), (4, 1, 1)) == 0
    assert separate_axis(np.array([4, 1, 4.0]), (1, 9, 1)) is None  # two axes are as coarse, and the scan decides
    array = np.zeros((6, 6, 4), dtype=np.int16)
    array[..., 2] = 90
    volume = Volume(array + 1, Grid(array.shape, np.diag([1, 1, 4.0, 1])), "MR")
    image, _ = preprocess(volume, nnunet(Channel("T1", "none"), spacing=(1.5, 1.5, 3.0)))
    assert image.shape == (1, 4, 4, 5)
    np.testing.assert_allclose(image[0, 0, 0], [1, 1, 91, 91, 1], rtol=1e-5)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (4.0, 1.0, 1.0)])
@pytest.mark.parametrize("target", [(1.7, 1.6, 1.5), (0.8, 3.0, 2.9)])
def test_scans_are_resampled_by_nnunets_splines(spacing, target):
    """Against scipy's zoom, which is what nnU-Net's scikit-image calls, of the whole scan or of each slice of it."""

    def zoomed(image, shape):
        factors = [new / old for new, old in zip(shape, image.shape, strict=True)]
        return ndimage.zoom(image, factors, order=3, mode="nearest", grid_mode=True).clip(image.min(), image.max())

    array = np.random.default_rng(0).integers(0, 900, (14, 13, 12))
    grid = Grid(array.shape, np.diag([*spacing, 1]))
    image, working = preprocess(
        Volume(array.astype(np.int16), grid, "MR"), nnunet(Channel("T1", "none"), spacing=target)
    )
    axis, expected = separate_axis(np.array(spacing), target), array.astype(float)
    assert (axis is None) == (max(spacing) == 1 and max(target) / min(target) < 3)
    if axis is None:
        expected = zoomed(expected, working.shape)
    else:
        plane = np.delete(working.shape, axis)
        nearest = ((np.arange(working.shape[axis]) + 0.5) * array.shape[axis] / working.shape[axis]).astype(int)
        expected = np.stack([zoomed(part, plane) for part in np.moveaxis(expected, axis, 0)[nearest]], axis=axis)
    np.testing.assert_allclose(image[0], expected, atol=2e-3)


def test_resampling_commutes_with_what_is_linear():
    random = np.random.default_rng(0)
    array = random.integers(1, 900, (12, 11, 10)).astype(np.int16)
    array[:3] = 0
    grid = Grid(array.shape, np.diag([1, 2.0, 1.5, 1]))
    plan = nnunet(Channel("T1", "zscore_nonzero"), spacing=(1.7, 1.6, 1.5), crop_nonzero=False)
    inside = array > 0
    values = array[inside]
    normalised = np.where(inside, (array - values.mean()) / values.std(), 0).astype(np.float32)
    ours, _ = preprocess(Volume(array, grid, "MR"), plan)
    theirs, _ = preprocess(Volume(normalised, grid, "MR"), plan.with_(channels=(Channel("T1", "none"),)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_channels_that_are_missing_or_cannot_be():
    volume = Volume(np.ones((4, 4, 4), dtype=np.int16), Grid((4, 4, 4), np.eye(4)), "MR", "a.nii.gz")
    with pytest.raises(ScanError, match=r"a.nii.gz: expected 2 channels \(0000 T1, 0001 T2\), found 1"):
        preprocess(volume, nnunet(Channel("T1", "none"), Channel("T2", "none")))
    with pytest.raises(AssertionError, match="scheme is one of"):
        Channel("T1", "min-max")
    with pytest.raises(AssertionError, match="low, high and std"):
        Channel("CT", "ct")
