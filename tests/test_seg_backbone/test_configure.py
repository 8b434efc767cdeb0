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
    target_spacing,
)
from seg_backbone.fingerprint import CaseShape, Fingerprint, fingerprint

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
