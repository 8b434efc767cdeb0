"""The Segmenter: masks on the scan's own grid, whatever way it is stored or handed over."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

from seg_backbone import predict
from seg_backbone.checkpoint import save_model
from seg_backbone.errors import CheckpointError, ConfigError, ScanError
from seg_backbone.geometry import Grid
from seg_backbone.governor import Choice
from seg_backbone.io import write_volume
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter, as_volume, clean
from seg_backbone.preprocess import preprocess
from seg_backbone.volume import Volume

OPTIONS = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}
PLAN = Plan(
    name="tiny",
    classes=("tumour", "larynx", "mandible"),
    patch=(16, 16, 16),
    network_options=OPTIONS,
    trained_on={"CT": ("tumour", "larynx", "mandible"), "MR": ("larynx",)},
)
TURN = np.deg2rad(12)
AFFINE = np.array(
    [[np.cos(TURN), -np.sin(TURN), 0, -30], [np.sin(TURN), np.cos(TURN), 0, 9], [0, 0, 1, 5], [0, 0, 0, 1]]
) @ np.diag([5.0, 4.0, 6.0, 1.0])
AFFINE = AFFINE.astype(np.float32).astype(np.float64)  # as a NIfTI header holds it
SHAPE = (14, 12, 10)
ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(build_network("residual_unet", 2, 4, OPTIONS).eval(), PLAN, "0")


@pytest.fixture(scope="module")
def scan():
    """Smooth noise in Hounsfield units."""
    coarse = np.random.default_rng(0).uniform(-1000, 900, (5, 4, 4))
    return np.repeat(np.repeat(np.repeat(coarse, 3, 0), 3, 1), 3, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]].astype(
        np.int16
    )


@pytest.fixture(scope="module")
def result(segmenter, scan):
    return segmenter((scan, AFFINE), "CT", keep_stages=(0, -1))


def test_the_mask_lies_on_the_scans_own_grid(result, scan):
    assert result.mask.array.shape == SHAPE
    assert result.mask.array.dtype == np.uint8
    np.testing.assert_array_equal(result.mask.grid.affine, AFFINE)
    assert result.mask.labels == {"tumour": 1, "larynx": 2, "mandible": 3}
    assert np.unique(result.mask.array).size >= 3  # the random network says something
    assert result.report["shape"] == list(SHAPE)
    assert len(result.instances) == len(result.report["instances"]) > 0
    for instance in result.instances:
        assert 0.25 <= instance.probability <= 1
        assert instance.intensity_mean == pytest.approx(scan[result.instances.map == instance.id].mean())


@pytest.mark.parametrize("orientation", ORIENTATIONS[1::4], ids=lambda o: "".join(map(str, o.astype(int).ravel())))
def test_a_reoriented_scan_gives_the_reoriented_mask(segmenter, scan, result, orientation):
    turned = nib.apply_orientation(scan, orientation)
    affine = AFFINE @ nib.orientations.inv_ornt_aff(orientation, SHAPE)
    mask = segmenter((turned, affine), "CT").mask
    np.testing.assert_array_equal(mask.array, nib.apply_orientation(result.mask.array, orientation))
    np.testing.assert_array_equal(mask.grid.affine, affine)


def test_a_path_a_volume_and_an_array_are_one(tmp_path, segmenter, scan, result):
    volume = Volume(scan, Grid(SHAPE, AFFINE), "CT")
    path = write_volume(volume, tmp_path / "scan.nii.gz")
    for given in (path, str(path), volume, (scan.tolist(), AFFINE.tolist()), (scan.astype(np.float64), AFFINE)):
        again = segmenter(given, "CT")
        np.testing.assert_array_equal(again.mask.array, result.mask.array)
        assert again.mask.grid.same_as(result.mask.grid)
    assert segmenter(path, "CT").report["source"] == str(path)
    assert segmenter(path, "CT").mask.source == str(path)


def test_the_mask_is_the_argmax_of_the_network():
    """Patch, scan and working grid of one shape: nothing but the network is left."""
    torch.manual_seed(1)
    network = build_network("residual_unet", 2, 4, OPTIONS).eval()
    array = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 16)).astype(np.int16)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    image, _ = preprocess(Volume(array, Grid(array.shape, affine), "CT"), PLAN)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image)[None])[0].argmax(0).numpy()
    found = Segmenter(network, PLAN, "0")((array, affine), "CT")
    assert found.report["windows"] == 1
    assert (found.mask.array == expected).mean() > 0.999  # a tie may fall to either side


def test_a_class_that_was_never_trained_for_a_modality_does_not_appear(segmenter, scan, result):
    assert set(np.unique(result.mask.array)) - {0, 2}
    assert result.report["not_trained_for"] == []
    mr = segmenter((scan - scan.min(), AFFINE), "MR")
    assert set(np.unique(mr.mask.array)) == {0, 2}
    assert mr.report["not_trained_for"] == ["tumour", "mandible"]
    untrained = Segmenter(segmenter.network, PLAN.with_(trained_on={"CT": ("tumour",)}), "0")
    nothing = untrained((scan - scan.min(), AFFINE), "MR")
    assert not nothing.mask.array.any()
    assert len(nothing.instances) == 0


def test_features_lie_inside_the_padded_extent_and_have_the_stages_shapes(result, scan):
    windows = result.report["windows"]
    vectors, positions = result.features.vectors, result.features.positions_mm
    assert vectors.keys() == positions.keys() == {0, -1}
    assert vectors[0].shape == (windows * 16**3, 4)
    assert vectors[-1].shape == (windows * 8**3, 8)
    _, working = preprocess(Volume(scan, Grid(SHAPE, AFFINE), "CT"), PLAN)
    pad = np.maximum(0, 16 - np.array(working.shape))
    low, high = -(pad // 2) - 0.5, np.array(working.shape) + pad - pad // 2 - 0.5
    for stage, cell in ((0, 1), (-1, 2)):
        voxel = working.world_to_voxel(positions[stage])
        assert len(voxel) == len(vectors[stage])
        np.testing.assert_allclose(voxel.min(0), low + cell / 2, atol=1e-3)
        np.testing.assert_allclose(voxel.max(0), high - cell / 2, atol=1e-3)


class Averages(torch.nn.Module):
    """A network whose features are the input itself, and its averages over cells of two voxels."""

    def encoder(self, x):
        return [x, torch.nn.functional.avg_pool3d(x, 2)]

    def decoder(self, maps):
        return torch.cat([maps[0], maps[0]], dim=1)


def test_each_feature_is_told_where_in_the_patient_it_comes_from():
    """Scans that are linear in a world axis: a feature's value is the place of its cell."""
    for axis, affine in itertools.product(range(3), (AFFINE, AFFINE @ np.diag([-1.0, 1, -1, 1]))):
        grid = Grid((20, 22, 18), affine)
        world = grid.voxel_to_world(np.moveaxis(np.indices(grid.shape), 0, -1))[..., axis]
        plan = PLAN.with_(ct_windows_hu=((-500.0, 500.0), (-1000.0, 1000.0)))
        found = Segmenter(Averages(), plan, "0")((world, affine), "CT", keep_stages=(0, 1), fast=True)
        for stage in (0, 1):
            places = found.features.positions_mm[stage]
            inside = ((abs(grid.world_to_voxel(places) - np.array([9.5, 10.5, 8.5]))) < [7, 8, 6]).all(1)
            assert inside.sum() > 50
            np.testing.assert_allclose(found.features.vectors[stage][inside, 0] * 500, places[inside, axis], atol=0.05)


def test_fast_mode_looks_at_fewer_windows(segmenter):
    array = np.random.default_rng(0).integers(-1000, 1000, (34, 34, 16)).astype(np.int16)
    affine, seen = np.diag([4.0, 4.0, 4.0, 1.0]), []
    slow = segmenter((array, affine), "CT", progress=lambda done, total: seen.append((done, total)))
    fast = segmenter((array, affine), "CT", fast=True)
    assert slow.report["windows"] == 16 > fast.report["windows"] == 9
    assert seen == [(n, 16) for n in range(1, 17)]
    assert slow.features.vectors == {}


def test_caps_change_nothing_that_fits_and_degrade_what_does_not(segmenter, scan, result):
    free = segmenter((scan, AFFINE), "CT", max_ram_mb=1e6, max_seconds=1e6)
    np.testing.assert_array_equal(free.mask.array, result.mask.array)
    assert free.report["budget"]["why"] == []
    assert free.report["budget"]["predicted"]["ram_mb"] > 0 < free.report["budget"]["predicted"]["seconds"]
    with pytest.raises(ConfigError, match="at least --max-seconds"):
        segmenter((scan, AFFINE), "CT", max_seconds=1e-4)
    with pytest.raises(ConfigError, match="verify_skips"):
        segmenter((scan, AFFINE), "CT", max_seconds=100, verify_skips=True)


def test_settings_are_followed(segmenter, scan, monkeypatch):
    """Whatever the governor chooses is what is run."""
    chosen = Choice(batch=3, accumulator="float16", slab=1, step=1.0, coarser=0.5)
    monkeypatch.setattr(predict, "choose", lambda budget, start, need, source: (chosen, need(chosen), ["for a test"]))
    found = segmenter((scan, AFFINE), "CT", max_ram_mb=1e6)
    fine = Segmenter(segmenter.network, PLAN.with_(spacing_mm=(2.0, 2.0, 2.0), step=1.0), "0")((scan, AFFINE), "CT")
    assert found.report["windows"] == fine.report["windows"] > 8
    assert (found.mask.array == fine.mask.array).mean() > 0.98
    assert found.report["budget"]["chosen"]["accumulator"] == "float16"
    assert found.report["budget"]["why"] == ["for a test"]


def test_a_deadline_that_cannot_be_kept_stops_the_windows():
    seen, clock = [], predict._Clock()
    check = predict._with_deadline(lambda *n: seen.append(n), 100.0, clock, 1.0, "scan")
    check(1, 4)
    clock._start -= 99.5  # as if that long had passed
    with pytest.raises(
        ConfigError, match="scan: expected at least --max-seconds 240, found 2 of 4 windows after 99.5 s"
    ):
        check(2, 4)
    check(4, 4)  # all done: what follows is only finished late
    assert seen == [(1, 4), (2, 4), (4, 4)]


def test_load_by_folder(tmp_path, segmenter, scan, result):
    folder = save_model(segmenter.network, PLAN, tmp_path / "model")
    loaded = Segmenter.load(folder, "cpu")
    np.testing.assert_array_equal(loaded((scan, AFFINE), "CT").mask.array, result.mask.array)
    assert loaded((scan, AFFINE), "CT").report["model"] == f"tiny@{loaded.version}"
    with pytest.raises(CheckpointError):
        Segmenter.load(tmp_path, "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            Segmenter.load(folder, "cuda")


def pieces():
    """Class 1: 8, 1 and 8 voxels; class 2: 4 and 2 voxels; apart even across corners."""
    ids = np.zeros((9, 6, 6), dtype=np.uint8)
    ids[0:2, 0:2, 0:2] = 1
    ids[3, 0, 0] = 1
    ids[5:7, 0:2, 0:2] = 1
    ids[0:2, 4:6, 0] = 2
    ids[3:5, 4, 0] = 2
    return ids


def counts(ids):
    return [int((ids == value).sum()) for value in (1, 2)]


def test_clean_drops_small_pieces():
    assert counts(clean(pieces(), PLAN, 0.5)) == [17, 6]
    plan = PLAN.with_(minimum_ml={"tumour": 1.0, "larynx": 1.5})
    ids = clean(pieces(), plan, 0.5)  # two and three voxels
    assert counts(ids) == [16, 4]
    assert ids[3, 0, 0] == 0
    assert counts(clean(pieces(), PLAN.with_(minimum_ml={"tumour": 4.0}), 0.5)) == [16, 6]  # eight voxels are enough
    assert counts(clean(pieces(), PLAN.with_(minimum_ml={"tumour": 4.1}), 0.5)) == [0, 6]


def test_clean_keeps_one_piece_of_what_anatomy_has_once():
    ids = clean(pieces(), PLAN.with_(single=("larynx", "mandible")), 0.5)
    assert counts(ids) == [17, 4]
    assert (ids[0:2, 4:6, 0] == 2).all()
    assert counts(clean(pieces(), PLAN.with_(single=("tumour",)), 0.5)) == [8, 6]  # of two equal ones the first
    both = PLAN.with_(single=("larynx",), minimum_ml={"larynx": 2.5})
    assert counts(clean(pieces(), both, 0.5)) == [17, 0]
    # touching at a corner is one piece
    corner = np.zeros((2, 2, 2), dtype=np.uint8)
    corner[0, 0, 0] = corner[1, 1, 1] = 1
    assert counts(clean(corner, PLAN.with_(single=("tumour",)), 0.5)) == [2, 0]


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 9, 9), (3, 21, 3)])
def test_clean_bears_scattered_voxels(shape):
    """cc3d 4.1 raises for some of these as a bool array."""
    ids = np.zeros(shape, dtype=np.uint8)
    ids[::2, ::2, ::2] = 1
    assert counts(clean(ids, PLAN.with_(single=("tumour",)), 1.0)) == [1, 0]


RAMP = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
HOLED, ENDLESS = RAMP.copy(), RAMP.copy()
HOLED[1, 1, 1], ENDLESS[1, 1, 1] = np.nan, np.inf


@pytest.mark.parametrize(
    ("array", "affine", "words"),
    [
        (RAMP[0], AFFINE, "3D volume"),
        (RAMP[None], AFFINE, "3D volume"),
        (RAMP[:1], AFFINE, "3D volume"),
        (HOLED, AFFINE, "finite"),
        (ENDLESS, AFFINE, "finite"),
        (np.zeros((3, 4, 5)), AFFINE, "finite values that differ"),
        (RAMP.astype(complex), AFFINE, "complex"),
        (RAMP.astype(str), AFFINE, "grey-value"),
        (RAMP, np.eye(3), "affine"),
        (RAMP, np.zeros((4, 4)), "affine"),
        (RAMP, np.full((4, 4), np.nan), "affine"),
        (RAMP, None, "affine"),
    ],
)
def test_bad_arrays_are_one_line(segmenter, array, affine, words):
    with pytest.raises(ScanError, match=words) as caught:
        segmenter((array, affine), "CT")
    assert "\n" not in str(caught.value)


def test_a_modality_that_is_none(segmenter):
    with pytest.raises(ScanError, match="PET"):
        segmenter((RAMP, AFFINE), "PET")


def test_as_volume_keeps_what_fits_and_guesses_the_rest():
    volume = as_volume((RAMP.astype(np.int64), AFFINE))
    assert (volume.modality, volume.modality_from, volume.array.dtype) == ("MR", "guessed", np.float32)
    kept = RAMP.astype(np.int16)
    assert as_volume((kept, AFFINE), "CT").array is kept
    assert as_volume((kept, AFFINE), "CT").modality_from == "given"
    assert as_volume(volume) is volume
    with pytest.raises(ScanError, match="missing"):
        as_volume("missing.nii.gz")
