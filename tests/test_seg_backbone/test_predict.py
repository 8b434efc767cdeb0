"""The Segmenter: masks on the scan's own grid, whatever way it is stored or handed over."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch

from seg_backbone import predict
from seg_backbone.checkpoint import save_model
from seg_backbone.clock import Clock, with_deadline
from seg_backbone.errors import CheckpointError, ConfigError, ScanError
from seg_backbone.geometry import Grid
from seg_backbone.governor import Choice
from seg_backbone.intake import as_volume
from seg_backbone.io import write_volume
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan, Roi
from seg_backbone.predict import Segmenter
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

    divisor = (2, 2, 2)

    def forward(self, x):
        return self.decoder(self.encoder(x))

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


class Threshold(torch.nn.Module):
    """Class 1 above 100 HU, class 2 where the second channel says so too; blind to everything around a voxel."""

    divisor = (1, 1, 1)

    def forward(self, x):
        return self.decoder(self.encoder(x))

    def encoder(self, x):
        return [x]

    def decoder(self, maps):
        bright = maps[0][:, :1] - 0.3
        return torch.cat([-bright, bright, bright - 20, bright - 20], dim=1) * 10


@pytest.fixture(scope="module")
def threshold():
    return Segmenter(Threshold(), PLAN, "0")


def long_scan():
    """48 x 16 x 64 voxels of 4 mm: a body in the lower half, a tumour near its bottom, air above."""
    array = np.full((48, 16, 64), -1000, dtype=np.int16)
    array[:, :, :40] = 0
    array[4:10, 4:10, 4:10] = 200
    return array, np.diag([4.0, 4.0, 4.0, 1.0])


def test_windows_are_skipped_by_what_and_nothing_is_lost(threshold):
    """The air above slice 40, and what lies far from the tumour."""
    accurate = threshold(long_scan(), "CT")
    assert accurate.report["skipped"]["windows"] == [] and accurate.report["skipped"]["lost"] is None
    fast = threshold(long_scan(), "CT", fast=True, verify_skips=True)
    roi = threshold(long_scan(), "CT", fast=True, roi=True, verify_skips=True)
    for found in (fast, roi):
        np.testing.assert_array_equal(found.mask.array, accurate.mask.array)
        skipped = found.report["skipped"]
        assert (skipped["voxels_that_differ"], skipped["lost"]) == (0, {})
        assert len(skipped["windows"]) == skipped["air"] + skipped["roi"] > 0
        assert found.report["windows"] + len(skipped["windows"]) == len(threshold_windows())
    assert fast.report["skipped"]["roi"] == 0 < fast.report["skipped"]["air"]
    assert roi.report["skipped"]["roi"] > 0 and roi.report["windows"] < fast.report["windows"]
    assert all(one["min_mm"][2] >= 40 * 4 - 2 for one in fast.report["skipped"]["windows"])


def threshold_windows():
    return predict.Tiling((48, 16, 64), PLAN.patch, predict.FAST_STEP).starts()


def test_an_empty_region_ends_at_once(threshold):
    array, affine = long_scan()
    array[array == 200] = 0
    found = threshold((array, affine), "CT", roi=True)
    assert found.report["windows"] == 0 and not found.mask.array.any() and len(found.instances) == 0
    assert found.report["skipped"]["roi"] == len(predict.Tiling((48, 16, 64), PLAN.patch, PLAN.step).starts())


def test_what_a_region_loses_is_named(threshold):
    """One voxel wide: a pass over every second voxel cannot see it, and --verify-skips says so."""
    array, affine = long_scan()
    array[31, 5, 31] = 200
    found = threshold((array, affine), "CT", fast=True, roi=True, verify_skips=True)
    assert found.report["skipped"]["lost"] == {"tumour": 1}
    assert found.report["skipped"]["voxels_that_differ"] == 1
    assert threshold((array, affine), "CT", fast=True).mask.array[31, 5, 31] == 1


def test_fast_mode_uses_the_plans_region_only_where_it_pays():
    planned = Segmenter(Threshold(), PLAN.with_(roi=Roi((2, 2, 2), 0.5, 8.0)), "0")
    assert planned(long_scan(), "CT", fast=True).report["skipped"]["roi"] > 0
    assert planned(long_scan(), "CT", fast=True, roi=False).report["skipped"]["roi"] == 0
    assert planned(long_scan(), "CT").report["skipped"]["roi"] == 0
    array, affine = long_scan()
    assert planned((array[:16, :, :16], affine), "CT", fast=True).report["skipped"]["roi"] == 0  # one window
    assert planned(long_scan(), "CT", fast=True, keep_stages=(0,)).report["skipped"]["windows"] == []


def test_settings_of_windows_and_export(segmenter, threshold, scan, result):
    wide = segmenter((scan, AFFINE), "CT", step=1.0, blending="uniform")
    assert threshold(long_scan(), "CT", step=1.0).report["windows"] < threshold(long_scan(), "CT").report["windows"]
    assert wide.report["settings"] == {"blending": "uniform", "mirrored": [], "export": "linear"}
    assert wide.report["budget"]["chosen"]["step"] == 1.0
    nearest = segmenter((scan, AFFINE), "CT", export="nearest")
    assert 0.5 < (nearest.mask.array == result.mask.array).mean() < 1
    both = segmenter((scan, AFFINE), "CT", mirror=True)
    assert both.report["settings"]["mirrored"] == [0]
    assert not np.array_equal(both.mask.array, result.mask.array)
    # a network that sees one voxel at a time is the same in every mirror
    np.testing.assert_array_equal(
        threshold(long_scan(), "CT", mirror=True).mask.array, threshold(long_scan(), "CT").mask.array
    )


@pytest.mark.parametrize(("setting", "flag"), [({"step": 1.5}, "--step"), ({"blending": "hann"}, "--blending")])
def test_settings_that_do_not_exist(segmenter, scan, setting, flag):
    with pytest.raises(ConfigError, match=flag):
        segmenter((scan, AFFINE), "CT", **setting)


def test_mirroring_a_scan_mirrors_the_mask():
    """Left and right swap: the mask of the mirrored scan is the mirrored mask with the two classes exchanged."""
    torch.manual_seed(3)
    plan = PLAN.with_(classes=("tumour", "parotid_left", "parotid_right"), trained_on={})
    plan = plan.with_(trained_on={"CT": plan.classes})
    sided = Segmenter(build_network("residual_unet", 2, 4, OPTIONS).eval(), plan, "0")
    array = np.random.default_rng(1).integers(-1000, 1000, (20, 16, 16)).astype(np.int16)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    mask = sided((array, affine), "CT", mirror=True).mask.array
    other = sided((array[::-1].copy(), affine), "CT", mirror=True).mask.array[::-1]
    assert np.unique(mask).size >= 3
    assert (np.array([0, 1, 3, 2])[other] == mask).mean() > 0.999
    plain = sided((array[::-1].copy(), affine), "CT").mask.array[::-1]
    assert (np.array([0, 1, 3, 2])[plain] == mask).mean() < 0.99


def test_caps_change_nothing_that_fits_and_degrade_what_does_not(segmenter, scan, result):
    free = segmenter((scan, AFFINE), "CT", max_ram_mb=1e6, max_seconds=1e6)
    np.testing.assert_array_equal(free.mask.array, result.mask.array)
    assert free.report["budget"]["why"] == []
    assert free.report["budget"]["predicted"]["ram_mb"] > 0 < free.report["budget"]["predicted"]["seconds"]
    with pytest.raises(ConfigError, match="at least --max-seconds"):
        segmenter((scan, AFFINE), "CT", max_seconds=1e-4)
    with pytest.raises(ConfigError, match="at least --max-seconds 10[0-9][0-9],"):  # reading took 1000 s already
        segmenter((scan, AFFINE), "CT", max_seconds=500, spent_seconds=1000)
    with pytest.raises(ConfigError, match="verify_skips"):
        segmenter((scan, AFFINE), "CT", max_seconds=100, verify_skips=True)


def test_settings_are_followed(segmenter, scan, monkeypatch):
    """Whatever the governor chooses is what is run."""
    chosen = Choice(batch=3, accumulator="float16", slab=1, step=1.0, coarser=0.5)
    monkeypatch.setattr(predict, "choose", lambda budget, start, need, *_: (chosen, need(chosen), ["for a test"]))
    found = segmenter((scan, AFFINE), "CT", max_ram_mb=1e6)
    fine = Segmenter(segmenter.network, PLAN.with_(spacing_mm=(2.0, 2.0, 2.0), step=1.0), "0")((scan, AFFINE), "CT")
    assert found.report["windows"] == fine.report["windows"] > 8
    assert (found.mask.array == fine.mask.array).mean() > 0.98
    assert found.report["budget"]["chosen"]["accumulator"] == "float16"
    assert found.report["budget"]["why"] == ["for a test"]


def test_smaller_windows_are_followed(segmenter, scan, monkeypatch):
    chosen = Choice(window=0.5, place="cpu", step=1.0)
    monkeypatch.setattr(predict, "choose", lambda budget, start, need, *_: (chosen, need(chosen), []))
    found = segmenter((scan, AFFINE), "CT", max_ram_mb=1e6)
    patch = tuple(n // 2 for n in PLAN.patch)
    small = Segmenter(segmenter.network, PLAN.with_(patch=patch, step=1.0), "0")((scan, AFFINE), "CT")
    np.testing.assert_array_equal(found.mask.array, small.mask.array)
    assert found.report["windows"] == small.report["windows"]
    assert found.report["runtime"]["why"] == "windows smaller than the plan's come from torch"


def test_a_deadline_that_cannot_be_kept_stops_the_windows(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("seg_backbone.clock.time.perf_counter", lambda: now)
    seen, clock = [], Clock()
    check = with_deadline(lambda *n: seen.append(n), 100.0, clock, 1.0, "scan")
    check(1, 4)
    now += 99.5
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


@pytest.mark.parametrize("shape", [(2, 2, 2), (5, 2, 90)])
@pytest.mark.parametrize("options", [{}, {"fast": True, "roi": True, "verify_skips": True, "export": "nearest"}])
def test_thin_scans(segmenter, shape, options):
    array = np.random.default_rng(2).integers(-1000, 1000, shape).astype(np.int16)
    found = segmenter((array, np.diag([0.7, 0.7, 9.0, 1.0])), "CT", **options)
    assert found.mask.array.shape == shape
    assert found.report["windows"] + len(found.report["skipped"]["windows"]) >= 1


def test_a_scan_of_air_runs_no_window(segmenter):
    array = np.full((20, 20, 20), -1000, dtype=np.int16)
    array[0, 0, 0] = -990
    found = segmenter((array, np.diag([4.0, 4.0, 4.0, 1.0])), "CT", fast=True)
    assert found.report["windows"] == 0 and found.report["skipped"]["air"] == 8
    assert not found.mask.array.any()
