"""Our planner says what nnU-Net v2's own says: on stored numbers, and live where nnunetv2 is installed."""

import json
from pathlib import Path

import numpy as np
import pytest
from nnunet_reference import DATASETS, as_nnunet, plans, synthetic

from seg_backbone.configure import (
    PRESETS,
    feature_map_values,
    median_shape,
    normalisation,
    plan_training,
    pooling,
    recipe,
    target_spacing,
)
from seg_backbone.fingerprint import CaseShape, Fingerprint, fingerprint
from seg_backbone.plan import Plan

TESTS = Path(__file__).parents[1]
SHARED = TESTS.parents[1] / "shared" / "data"
STORED = json.loads((TESTS / "nnunet_plans.json").read_text())  # made by nnunet_reference.py, which says how
SYNTHETIC = synthetic()


def same(ours: Fingerprint, theirs):
    """Every number of nnU-Net's plans, for every preset."""
    for preset, expected in theirs.items():
        plan = plan_training(ours, PRESETS[preset])
        np.testing.assert_allclose(plan.spacing_mm, expected["spacing_mm"], rtol=1e-6)
        assert list(plan.median_shape) == expected["median_shape"], preset
        assert list(plan.patch) == expected["patch"], preset
        assert [list(stride) for stride in plan.strides] == expected["strides"], preset
        assert [list(kernel) for kernel in plan.kernels] == expected["kernels"], preset
        assert list(plan.features) == expected["features"], preset
        assert list(plan.encoder_blocks) == expected["encoder_blocks"], preset
        assert list(plan.decoder_convolutions) == expected["decoder_convolutions"], preset
        assert plan.batch == expected["batch"], preset
        assert [list(pair) for pair in normalisation(ours)] == expected["normalisation"], preset


@pytest.mark.parametrize("name", SYNTHETIC)
def test_synthetic_datasets_plan_as_nnunet_does(name):
    same(SYNTHETIC[name], STORED["synthetic"][name])


@pytest.mark.parametrize("name", SYNTHETIC)
def test_live_against_nnunet(name):
    pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet, in an environment of its own)")
    same(SYNTHETIC[name], plans(*as_nnunet(SYNTHETIC[name])))


@pytest.mark.parametrize("name", DATASETS)
def test_real_datasets_have_nnunets_fingerprint_and_plans(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not here")
    ours, theirs = fingerprint(SHARED / name), STORED["datasets"][name]
    same(ours, theirs["plans"])
    assert ours.relative_size == pytest.approx(theirs["kept"], rel=1e-6)
    for channel, expected in zip(ours.intensities, theirs["intensities"], strict=True):
        assert (channel.minimum, channel.maximum) == pytest.approx((expected["min"], expected["max"]))
        spread = expected["percentile_99_5"] - expected["percentile_00_5"]
        for key in ("mean", "std", "median", "percentile_00_5", "percentile_99_5"):  # theirs are drawn at random
            assert getattr(channel, key) == pytest.approx(expected[key], abs=0.01 * spread), key


def of(spacings, sizes, channels=("CT",), kept=1.0, cases=None):
    """A fingerprint of given spacings and cropped sizes."""
    shapes = tuple(
        CaseShape(str(n), tuple(step), tuple(round(s / kept ** (1 / 3)) for s in size), tuple(size))
        for n, (step, size) in enumerate(zip(spacings, sizes, strict=True))
    )
    return Fingerprint("d", channels, ("tumour",), 2, cases or len(shapes), shapes, ())


def test_target_spacing_by_hand():
    cube = [(100, 100, 100)] * 3
    assert target_spacing(of([(1, 1, 1), (1, 2, 3), (2, 3, 2)], cube)).tolist() == [1, 2, 2]
    # slices of 5 mm, one case finer: coarse and few, so the 10th percentile; with many slices the median stays
    thick = [(1, 1, 5)] * 9 + [(1, 1, 2)] * 2
    assert target_spacing(of(thick, [(300, 300, 30)] * 11)).tolist() == [1, 1, 2]
    assert target_spacing(of(thick, [(300, 300, 101)] * 11)).tolist() == [1, 1, 5]
    # never finer than the others
    finest = [(1, 1, 5)] * 9 + [(1, 1, 0.2)] * 2
    np.testing.assert_allclose(target_spacing(of(finest, [(300, 300, 30)] * 11)), [1, 1, 1 + 1e-5], rtol=0, atol=1e-12)


def test_median_shape_rounds_each_case():
    found = of([(1, 1, 1), (2, 1, 1)], [(10, 11, 12), (10, 13, 12)])
    assert median_shape(found, np.array([1.5, 1.0, 2.0])).tolist() == [(7 + 13) / 2, 12, 6]


def test_pooling_by_hand():
    # 1 x 1 x 3 mm: z waits until the others have 2 mm (3 / 2 < 2), its kernel with it
    strides, kernels, size = pooling([1.0, 1.0, 3.0], [33, 32, 16])
    assert strides == [[1, 1, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]
    assert kernels == [[3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    assert size == [40, 32, 16]
    # one long axis alone stops at 12, two of them at 8
    assert len(pooling([1.0, 1.0, 1.0], [11, 4, 4])[0]) == 1
    assert len(pooling([1.0, 1.0, 1.0], [12, 4, 4])[0]) == 2
    assert len(pooling([1.0, 1.0, 1.0], [8, 8, 4])[0]) == 2


def test_feature_map_values_by_hand():
    strides, patch = [[1, 1, 1], [2, 2, 2]], [8, 8, 8]
    fine, deep = 32 * 512, 64 * 64
    logits = 3 * 512
    assert feature_map_values(patch, strides, 3, PRESETS["plain"]) == 2 * fine + 2 * deep + 3 * fine + logits
    residual = (1 + 2) * fine + (3 * 2 + 1) * deep + (1 + 1) * fine + logits
    assert feature_map_values(patch, strides, 3, PRESETS["resenc_m"]) == residual


def test_a_recipe_has_nnunets_batch_and_larger_ones_for_small_patches():
    facts = of([(1, 1, 1)] * 4, [(64, 64, 64)] * 4)
    topology = plan_training(facts, PRESETS["resenc_m"])
    options = {key: list(getattr(topology, key)) for key in ("features", "strides")}
    options["blocks"] = list(topology.encoder_blocks)
    plan = Plan("t", ("tumour",), topology.spacing_mm, topology.patch, network_options=options)
    chosen = recipe(facts, plan, PRESETS["resenc_m"], "cuda")
    assert chosen["batch"] == topology.batch
    assert (chosen["steps"], chosen["optimizer"], chosen["schedule"]) == (250_000, "sgd", "poly")
    small = recipe(facts, plan.with_(patch=(32, 32, 32)), PRESETS["resenc_m"], "cpu")
    assert (small["batch"], small["optimizer"], small["initialisation"]) == (8, "adamw", "torch")
    larger = plan.with_(patch=(48, 48, 48))
    on_gpu, on_cpu = (recipe(facts, larger, PRESETS["resenc_m"], device)["batch"] for device in ("cuda", "cpu"))
    assert on_gpu > on_cpu == 2  # a CPU learns more from many steps
    assert recipe(of([(1, 1, 1)], [(64, 64, 64)]), plan, PRESETS["resenc_m"], "cpu")["batch"] == 2


def test_normalisation_goes_by_the_channels_name():
    schemes = of([(1, 1, 1)], [(9, 9, 9)], ("CT", "ct ", "T2", "noNorm"), kept=0.5)
    assert normalisation(schemes) == [
        ("CTNormalization", False),
        ("ZScoreNormalization", True),
        ("ZScoreNormalization", True),
        ("NoNormalization", False),
    ]
