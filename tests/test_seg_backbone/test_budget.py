"""Plans for a budget: the ladder goes down, what is chosen keeps every limit, and measuring corrects predicting."""

import re
import sys
from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import pytest
import torch
from nnunet_reference import synthetic

from seg_backbone import budget
from seg_backbone.budget import (
    FAMILY,
    MB,
    STEPS,
    WIDTHS,
    WORKSPACE_MB,
    Budget,
    Cost,
    Machine,
    candidates,
    configure,
    measure_scan,
    measure_window,
    operations,
    parameters,
    predict_cost,
    window_values,
    worst_case,
)
from seg_backbone.cases import CaseFiles
from seg_backbone.configure import plan_training, target_spacing
from seg_backbone.errors import ConfigError
from seg_backbone.fingerprint import CaseShape, Intensities
from seg_backbone.geometry import Grid
from seg_backbone.io import write_volume
from seg_backbone.nets import build_network
from seg_backbone.plan import Channel, Plan
from seg_backbone.sliding_window import window_starts
from seg_backbone.volume import Volume

FINGERPRINTS = synthetic()
MACHINE = Machine(operations=1e9, read_s=1e-7, export_s=1e-8, process_mb=300.0)
TINY = Plan(
    "t",
    ("tumour",),
    spacing_mm=(2.0, 2.0, 4.0),
    patch=(16, 16, 8),
    network_options={"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]},
)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_every_rung_is_a_plan_that_the_network_takes(name):
    fingerprint = FINGERPRINTS[name]
    rungs = list(candidates(fingerprint, "t"))
    finest = target_spacing(fingerprint)
    assert [plan.step for plan in rungs[:3]] == list(STEPS)
    assert rungs[0].network_options["features"][0] == WIDTHS[0]
    assert rungs[-1].network_options["features"][0] == WIDTHS[-1]
    for plan in rungs:
        options = plan.network_options
        assert len(options["features"]) == len(options["blocks"]) == len(options["strides"]) >= 2
        divisor = np.prod(options["strides"], axis=0)
        assert not (np.array(plan.patch) % divisor).any()
        np.testing.assert_allclose(plan.spacing_mm, np.maximum(finest, min(plan.spacing_mm)), rtol=6e-3)
        assert (np.array(plan.spacing_mm) >= finest * 0.995).all()
    volumes = [prod(plan.spacing_mm) for plan in rungs]
    assert all(after >= 0.999 * before for before, after in pairwise(volumes))


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_the_smallest_rung_computes(name):
    plan = min(candidates(FINGERPRINTS[name], "t"), key=lambda plan: prod(plan.patch))
    with torch.device("meta"):  # shapes only
        network = build_network(plan.network, plan.inputs, plan.outputs, plan.network_options)
        output = network(torch.zeros(1, plan.inputs, *plan.patch))
    assert output.shape == (1, len(plan.classes) + 1, *plan.patch)
    assert parameters(plan) == sum(weights.numel() for weights in network.parameters())


def test_operations_by_hand():
    fine, deep = 16 * 16 * 8, 8 * 8 * 4
    by_hand = (
        27 * fine * (2 * 4 + 4 * 4 + 4 * 4)  # stem and first block
        + 27 * deep * (4 * 8 + 8 * 8)  # second block
        + deep * 4 * 8  # its shortcut
        + fine * 8 * 4  # up-convolution: each fine voxel has one source
        + 27 * fine * 8 * 4  # decoder
        + fine * 4 * 2  # logits
    )
    assert operations(TINY) == 2 * by_hand


def test_cost_by_hand():
    case = CaseShape("a", (1.0, 1.0, 2.0), (60, 32, 20), (60, 32, 20))  # 30 x 16 x 10 voxels of the working grid
    cost = predict_cost(TINY, case, MACHINE, "cpu")
    assert cost.windows == 3 * 1 * 2 == len(window_starts((30, 16, 10), TINY.patch, TINY.step))
    assert cost.window_s == pytest.approx(operations(TINY) / 1e9)
    assert cost.seconds == pytest.approx(6 * cost.window_s + 60 * 32 * 20 * (1e-7 + 2e-8))
    voxels = 16 * 16 * 8
    assert window_values(TINY) == voxels * (2 + 4 + 8 / 8 + 6 * 4)
    assert cost.window_mb == pytest.approx(window_values(TINY) * 4 / MB + WORKSPACE_MB)
    assert cost.gpu_mb == 0
    scan = 60 * 32 * 20 * 14 / MB
    whole = (2 * 2 + 2 + 1) * 30 * 16 * 10 * 4 / MB
    weights = parameters(TINY) * 4 / MB
    assert cost.ram_mb == pytest.approx(300 + scan + weights + cost.window_mb + whole)
    on_gpu = predict_cost(TINY, case, MACHINE, "cuda")
    assert on_gpu.ram_mb == pytest.approx(300 + scan)
    assert on_gpu.gpu_mb == pytest.approx(500 + weights + cost.window_mb + whole)


def test_the_worst_case_has_the_longest_time_and_the_largest_memory():
    long = CaseShape("long", (2.0, 2.0, 4.0), (100, 16, 8), (100, 16, 8))
    dense = CaseShape("dense", (0.1, 0.1, 0.1), (300, 200, 200), (300, 200, 200))
    machine = replace(MACHINE, read_s=0.0, export_s=0.0)
    worst = worst_case(TINY, (long, dense), machine, "cpu")
    assert worst.case == "long"
    assert (
        worst.ram_mb
        == predict_cost(TINY, dense, machine, "cpu").ram_mb
        > predict_cost(TINY, long, machine, "cpu").ram_mb
    )


def test_limits():
    cost = Cost("a", 1, 1.0, 10.0, 5.0, 400.0, 0.0)
    assert cost.fits(Budget())
    assert cost.fits(Budget(seconds=5, ram_mb=400))
    assert not cost.fits(Budget(seconds=4.9))
    assert not cost.fits(Budget(seconds=5, ram_mb=399))
    with pytest.raises(ConfigError, match="use --max-ram-mb"):
        Budget(gpu_mb=1000)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            Budget(device="cuda")


FILES = [CaseFiles("d", f"abdomen_ct_{n}", f"abdomen_ct_{n}", "CT", None, None, {}, ()) for n in range(5)]  # type: ignore[arg-type]
ABDOMEN = FINGERPRINTS["abdomen_ct"]
ABDOMEN = replace(ABDOMEN, cases=ABDOMEN.cases[:5], intensities=(Intensities(0, 1, -1, -100, 0, 200, 300),))


@pytest.fixture
def fake(monkeypatch):
    """A machine without noise: `slow` times slower than its calibration says, windows `large` times larger."""
    rates = {"slow": 1.0, "large": 1.0, "late": 1.0, "windows": 0, "scans": 0}

    def measure(plan, files, device):
        rates["windows"] += 1
        predicted = window_values(plan) * 4 / MB + WORKSPACE_MB
        return rates["slow"] * operations(plan) / 1e11, rates["large"] * predicted

    monkeypatch.setattr(budget, "calibrate", lambda *_: replace(MACHINE, operations=1e11))

    def measure_scan(plan, files, device, expected):
        rates["scans"] += 1
        return replace(expected, seconds=rates["late"] * expected.seconds)

    monkeypatch.setattr(budget, "measure_window", measure)
    monkeypatch.setattr(budget, "measure_scan", measure_scan)
    return rates


def test_without_a_budget_the_first_rung_is_taken(fake):
    chosen = configure(ABDOMEN, FILES, Budget(), "t")
    assert chosen.plan == next(candidates(ABDOMEN, "t"))
    assert chosen.measured == chosen.predicted
    assert fake["windows"] == 1


def test_the_first_rung_that_fits_is_taken(fake):
    limits = Budget(seconds=60, ram_mb=4000)
    chosen = configure(ABDOMEN, FILES, limits, "t")
    assert chosen.predicted.fits(limits)
    rungs = list(candidates(ABDOMEN, "t"))
    place = rungs.index(chosen.plan)
    assert place > 0
    machine = replace(MACHINE, operations=1e11)
    assert not any(worst_case(plan, ABDOMEN.cases, machine, "cpu").fits(limits) for plan in rungs[:place])
    tighter = configure(ABDOMEN, FILES, Budget(seconds=20, ram_mb=4000), "t")
    assert rungs.index(tighter.plan) > place


@pytest.mark.parametrize("way", ["slow", "large"])
def test_a_window_that_costs_more_than_predicted_leads_further_down(fake, way):
    before = configure(ABDOMEN, FILES, Budget(seconds=60), "t")
    limits = Budget(seconds=60, ram_mb=before.predicted.ram_mb + 10)
    fake[way], fake["windows"] = 2.5, 0
    after = configure(ABDOMEN, FILES, limits, "t")
    rungs = list(candidates(ABDOMEN, "t"))
    assert rungs.index(after.plan) > rungs.index(before.plan)
    assert after.measured.fits(limits)
    assert fake["windows"] == 2  # once is enough to learn how slow it is


def test_a_scan_that_takes_longer_than_its_windows_leads_further_down(fake):
    limits = Budget(seconds=60)
    before = configure(ABDOMEN, FILES, limits, "t")
    assert before.whole and fake["scans"] == 1
    fake["late"] = 1.5
    after = configure(ABDOMEN, FILES, limits, "t")
    rungs = list(candidates(ABDOMEN, "t"))
    assert rungs.index(after.plan) > rungs.index(before.plan)
    assert after.measured.fits(limits)
    fake["scans"] = 0
    assert not configure(ABDOMEN, FILES, Budget(), "t").whole  # it would take minutes
    assert fake["scans"] == 0


def test_a_budget_that_nothing_keeps(fake):
    with pytest.raises(ConfigError, match=r"at least .* s, .* MB RAM.*found 0.01 s, 100 MB RAM"):
        configure(ABDOMEN, FILES, Budget(seconds=0.01, ram_mb=100), "t")
    assert fake["windows"] == 0


def test_what_was_measured_is_told_where_nothing_keeps_the_budget(fake):
    smallest = list(candidates(ABDOMEN, "t"))[-1]
    seconds = worst_case(smallest, ABDOMEN.cases, replace(MACHINE, operations=1e11), "cpu").seconds
    limit = 1.2 * seconds  # predicted to be kept, and not kept
    fake["late"] = 1.5
    with pytest.raises(ConfigError, match="what some network can keep") as caught:
        configure(ABDOMEN, FILES, Budget(seconds=limit), "t")
    assert float(re.search(r"at least ([\d.]+) s", str(caught.value))[1]) > limit


def test_channels_are_normalised_as_nnunet_does(fake):
    plan = next(candidates(FINGERPRINTS["brain_mr"], "t"))
    assert [channel.name for channel in plan.channels] == ["FLAIR", "T1", "T1c", "T2"]
    assert plan.resampling == "cubic"
    assert {channel.scheme for channel in plan.channels} <= {"zscore", "zscore_nonzero"}
    assert plan.inputs == 4
    hu = Intensities(mean=50, std=20, minimum=-100, percentile_00_5=-80, median=40, percentile_99_5=120, maximum=200)
    mixed = replace(FINGERPRINTS["brain_mr"], channels=("CT", "noNorm", "PET", "T2"), intensities=(hu,) * 4)
    first, second, *_ = next(candidates(mixed, "t")).channels
    assert first == Channel("CT", "ct", 50, 20, -80, 120)
    assert second == Channel("noNorm", "none")
    ct = replace(FINGERPRINTS["thick_ct"], intensities=(replace(hu, std=0, percentile_00_5=50, percentile_99_5=50),))
    (flat,) = next(candidates(ct, "t")).channels
    assert flat.low == 50 < flat.high and flat.std > 0
    mr = FINGERPRINTS["cine_mr"]
    assert next(candidates(mr, "t")).channels[0].scheme == "zscore"
    assert not next(candidates(replace(ct, modalities=("CT", "MR")), "t")).channels  # seen through HU windows
    cut = replace(mr, cases=tuple(replace(case, cropped=(9, 9, 9)) for case in mr.cases))
    assert next(candidates(cut, "t")).channels[0].scheme == "zscore_nonzero"


def test_a_coarse_axis_keeps_nnunets_spacing_and_strides():
    """Slices of 10 mm: z is not halved with the others, and coarsened only when the others are as coarse."""
    fingerprint = FINGERPRINTS["cine_mr"]
    first, *_, last = candidates(fingerprint, "t")
    nnunet = plan_training(fingerprint, FAMILY)
    assert np.allclose(first.spacing_mm, nnunet.spacing_mm, rtol=5e-3)
    assert tuple(map(tuple, first.network_options["strides"])) == nnunet.strides
    assert tuple(map(tuple, first.network_options["kernels"])) == nnunet.kernels
    assert first.patch == nnunet.patch
    assert last.spacing_mm[2] == pytest.approx(nnunet.spacing_mm[2], rel=5e-3)
    assert min(last.spacing_mm) == pytest.approx(6.0, rel=5e-3)


def test_a_window_is_measured(tmp_path):
    """Predicted memory is near what the process really takes."""
    array = np.random.default_rng(0).integers(-900, 900, (50, 48, 48)).astype(np.int16)
    path = tmp_path / "a_0000.nii.gz"
    write_volume(Volume(array, Grid((50, 48, 48), np.diag([2.0, 2.0, 4.0, 1.0])), "CT"), path)
    options = {"features": [16, 32, 64], "blocks": [1, 1, 1], "strides": [1, 2, 2]}
    plan = TINY.with_(patch=(48, 48, 48), network_options=options)
    files = CaseFiles("d", "a", "a", "CT", path, None, {}, ())
    seconds, used = measure_window(plan, files, "cpu")
    assert seconds > 0
    case = CaseShape("a", (2.0, 2.0, 4.0), array.shape, array.shape)
    expected = predict_cost(plan, case, MACHINE, "cpu")
    scan = measure_scan(plan, files, "cpu", expected)
    assert scan.windows == expected.windows
    assert scan.seconds > 0
    assert scan.ram_mb > 100
    if sys.platform == "linux":
        assert 0.5 < used / (window_values(plan) * 4 / MB + WORKSPACE_MB) < 1.7
