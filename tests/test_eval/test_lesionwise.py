"""Lesions painted by hand, and agreement with MONAI and scipy on random ones."""

import json

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance
from monai.metrics.panoptic_quality import compute_panoptic_quality
from scipy.ndimage import generate_binary_structure, label
from typer.testing import CliRunner

from eval.detection import match
from eval.lesionwise import compare_lesions, lesion_figures
from eval.overlap import surface_dice, surface_scores
from seg_backbone.geometry import Grid
from seg_backbone.io.nifti import write_mask
from seg_backbone.volume import Mask
from vlm.cli.evaluate import app

SHAPE = (20, 12, 12)
ML, HALF_ML = np.full(3, 10.0), np.array([5.0, 10, 10])  # mm between voxels of 1 and 0.5 ml


def array(*boxes):
    painted = np.zeros(SHAPE, dtype=bool)
    for low, high in boxes:
        painted[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return painted


def random_masks(seed, density=0.004):
    """Two masks of small blobs; the second keeps most of the first, moves some of it and adds its own."""
    rng = np.random.default_rng(seed)
    seeds = rng.random(SHAPE) < density
    masks = []
    for noise in (rng.random(SHAPE) < density / 4, rng.random(SHAPE) < density / 4):
        blobs = seeds | noise
        for axis, step in ((0, 1), (1, 1), (2, 1), (1, -1)):
            blobs = blobs | np.roll(blobs, step, axis)
        masks.append(blobs & (rng.random(SHAPE) < 0.9))
    return masks


# Reference: 64 and 8 voxels. Prediction: half of the first and 4 voxels more, nothing of the second, 27 elsewhere.
TRUTH = array(((0, 0, 0), (4, 4, 4)), ((10, 0, 0), (12, 2, 2)))
OURS = array(((0, 0, 0), (2, 4, 4)), ((3, 0, 0), (4, 2, 2)), ((15, 5, 5), (18, 8, 8)))


def test_one_case_by_hand():
    lesions = compare_lesions(OURS, TRUTH, HALF_ML)
    assert sorted(lesions.reference) == [8, 64]
    assert sorted(lesions.predicted) == [4, 27, 32]
    assert sorted(lesions.iou.ravel())[-2:] == [4 / 64, 0.5]
    assert [lesions.counts(threshold) for threshold in (0.1, 0.3, 0.5)] == [(1, 2, 1)] * 3
    assert lesions.f1 == pytest.approx(2 / 5)
    assert lesions.panoptic_quality == 0  # one half is not above one half
    assert lesions.matched_dsc == [pytest.approx(2 * 32 / 96)]
    assert sorted(lesions.own_dsc) == [0, pytest.approx(2 * 36 / (36 + 64))]
    assert (lesions.false_positive_ml, lesions.false_negative_ml) == (13.5, 4)


def test_panoptic_quality_by_hand():
    """48 of 64 voxels found, 8 missed, 27 invented: 0.75 / (1 + 1 / 2 + 1 / 2)."""
    ours = array(((0, 0, 0), (3, 4, 4)), ((15, 5, 5), (18, 8, 8)))
    assert compare_lesions(ours, TRUTH, ML).panoptic_quality == pytest.approx(0.75 / 2)


def test_figures_pool_lesions_and_average_cases():
    """The case above, a healthy one that is left alone and a healthy one with two false lesions."""
    nothing = np.zeros(SHAPE, dtype=bool)
    false = array(((0, 0, 0), (1, 1, 1)), ((5, 5, 5), (6, 6, 6)))
    pairs = [(OURS, TRUTH), (nothing, nothing), (false, nothing)]
    cases = [compare_lesions(ours, truth, HALF_ML) for ours, truth in pairs]
    figures = lesion_figures(cases)(np.arange(3))
    assert figures["precision_iou50"] == pytest.approx(1 / 5)
    assert figures["recall_iou50"] == pytest.approx(1 / 2)
    assert figures["f1_iou50"] == pytest.approx(2 / (2 + 4 + 1))
    assert figures["false_positives_per_scan_iou10"] == pytest.approx(4 / 3)
    assert figures["panoptic_quality"] == 0
    assert figures["matched_dsc"] == pytest.approx(2 / 3)
    assert (figures["specificity_on_healthy"], figures["false_positives_per_healthy_scan"]) == (0.5, 1)
    assert (figures["false_positive_ml"], figures["false_negative_ml"]) == (
        pytest.approx(14.5 / 3),
        pytest.approx(4 / 3),
    )
    assert (figures["dsc_1_to_10_ml"], figures["dsc_10_to_100_ml"]) == (0, pytest.approx(0.72))
    assert np.isnan(figures["dsc_0_to_1_ml"])
    empty = lesion_figures(cases)(np.array([1, 1]))
    assert np.isnan(empty["f1_iou50"]) and np.isnan(empty["recall_iou10"]) and np.isnan(empty["lesion_dsc"])
    assert (empty["false_positives_per_scan_iou50"], empty["specificity_on_healthy"]) == (0, 1)


def test_a_missing_prediction_is_no_merit_on_a_healthy_scan():
    nothing = np.zeros(SHAPE, dtype=bool)
    figures = lesion_figures([compare_lesions(nothing, nothing, ML, missing=True)])(np.arange(1))
    assert (figures["specificity_on_healthy"], figures["lesion_dsc"]) == (0, 0)


def test_diagonal_neighbours_are_one_lesion_but_two_components_of_autopet():
    """Voxels that share a corner only: 26-connected, not 18-connected."""
    truth = array(((0, 0, 0), (1, 1, 1)), ((1, 1, 1), (2, 2, 2)))
    lesions = compare_lesions(array(((0, 0, 0), (1, 1, 1))), truth, ML)
    assert lesions.reference.tolist() == [2]
    assert lesions.false_negative_ml == 1


def test_exact_masks_are_perfect_and_sides_swap():
    perfect = compare_lesions(TRUTH, TRUTH, ML)
    assert (perfect.f1, perfect.panoptic_quality, perfect.lesion_dsc, perfect.false_positive_ml) == (1, 1, 1, 0)
    for seed in range(5):
        ours, truth = random_masks(seed)
        one, other = compare_lesions(ours, truth, ML), compare_lesions(truth, ours, ML)
        true, false_positive, false_negative = one.counts(0.3)
        assert other.counts(0.3) == (true, false_negative, false_positive)
        assert one.panoptic_quality == pytest.approx(other.panoptic_quality)
        assert one.false_positive_ml == other.false_negative_ml


def test_agrees_with_monai_panoptic_quality():
    """MONAI matches above 0.5, as panoptic quality is defined; F1 here from 0.5 on, so exact halves are passed over."""
    cube = np.ones((3, 3, 3))
    compared = 0
    for seed in range(12):
        ours, truth = random_masks(seed)
        lesions = compare_lesions(ours, truth, ML)
        maps = [torch.tensor(label(mask, cube)[0]) for mask in (ours, truth)]
        quality = {name: float(compute_panoptic_quality(*maps, metric_name=name)) for name in ("pq", "rq")}
        assert lesions.panoptic_quality == pytest.approx(quality["pq"], abs=1e-6)
        if not (lesions.iou == 0.5).any():
            assert lesions.f1 == pytest.approx(quality["rq"], abs=1e-6)
            compared += 0 < lesions.f1 < 1
    assert compared > 3


def test_agrees_with_panoptica():
    """Its greedy one-to-one matching finds the pairs of ours above 0.5, where each lesion has but one partner."""
    panoptica = pytest.importorskip("panoptica", reason="panoptica needs older libraries: an environment of its own")
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5),
    )
    for seed in range(6):
        ours, truth = random_masks(seed)
        lesions = compare_lesions(ours, truth, ML)
        if (lesions.iou == 0.5).any():
            continue
        theirs = evaluator.evaluate(ours.astype(np.uint8), truth.astype(np.uint8))["ungrouped"]
        assert lesions.counts(0.5) == (theirs.tp, theirs.fp, theirs.fn)
        assert lesions.panoptic_quality == pytest.approx(theirs.pq, abs=1e-6)
        assert np.mean(lesions.matched_dsc) == pytest.approx(theirs.sq_dsc, abs=1e-6)


def test_agrees_with_autopets_volumes_by_scipy():
    structure = generate_binary_structure(3, 2)
    for seed in range(8):
        ours, truth = random_masks(seed)
        components, count = label(ours, structure)
        alone = [n for n in range(1, count + 1) if not (truth & (components == n)).any()]
        assert (
            compare_lesions(ours, truth, np.array([5.0, 5, 10])).false_positive_ml
            == 0.25 * np.isin(components, alone).sum()
        )


def test_matching_finds_the_most_pairs():
    """Greedy by IoU would take (0, 0) alone and leave (0, 1), (1, 0), which are two."""
    iou = np.array([[0.9, 0.5], [0.5, 0.0], [0.0, 0.0]])
    assert match(iou, 0.4) == [(0, 1), (1, 0)]
    assert match(iou, 0.6) == [(0, 0)]
    assert match(np.zeros((0, 3)), 0.5) == []


def test_hd95_by_hand_and_against_monai():
    """A slab 2 voxels thick that is 3 thick in the prediction: its far side, well over 5 % of its area, is 4 mm off."""
    spacing = np.array([4.0, 1, 1])
    truth, ours = array(((5, 2, 2), (7, 10, 10))), array(((5, 2, 2), (8, 10, 10)))
    nsd, hd95 = surface_scores(ours, truth, spacing, 2.0)
    assert nsd == surface_dice(ours, truth, spacing, 2.0)
    maps = [torch.tensor(mask)[None, None].float() for mask in (ours, truth)]
    monai = compute_hausdorff_distance(*maps, include_background=True, percentile=95, spacing=spacing.tolist())
    assert hd95 == float(monai) == 4.0
    assert surface_scores(ours, ours, spacing, 2.0) == (1.0, 0.0)
    nothing = np.zeros(SHAPE, dtype=bool)
    assert np.isnan(surface_scores(ours, nothing, spacing, 2.0)[1])


def test_masks_command_writes_lesions_and_hd95(tmp_path):
    grid = Grid(SHAPE, np.diag([5.0, 10, 10, 1]))  # 0.5 ml a voxel
    nothing = np.zeros(SHAPE, dtype=bool)
    for case, ours, truth in (("a", OURS, TRUTH), ("healthy", nothing, nothing), ("lost", None, nothing)):
        write_mask(Mask(truth.astype(np.uint8), grid), tmp_path / "ref" / f"{case}.nii.gz")
        if ours is not None:
            write_mask(Mask(ours.astype(np.uint8), grid), tmp_path / "pred" / f"{case}.nii.gz")
    (tmp_path / "labels.json").write_text(json.dumps({"tumour": 1, "larynx": 2}))
    base = [tmp_path / "pred", tmp_path / "ref", "--labels", tmp_path / "labels.json", "-o", tmp_path / "out"]
    base += ["--allow-missing", "--jobs", 1]
    result = CliRunner().invoke(app, ["masks", *map(str, base)])
    assert result.exit_code == 0, result.output
    assert "## Lesions, tumour: 2 in the reference, 3 predicted, 3 cases" in result.stdout
    assert "| f1_iou50 | 0.400 [" in result.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    own = metrics["lesionwise"]["tumour"]
    assert own["figures"]["false_positive_ml"]["value"] == pytest.approx(13.5 / 3)
    assert list(metrics["lesionwise"]) == ["tumour"]
    assert metrics["classes"]["tumour"]["hd95_mm"]["mean"] > 0
    head, *lines = (tmp_path / "out" / "per_case.csv").read_text().splitlines()
    rows = {line.split(",")[0]: dict(zip(head.split(","), line.split(","), strict=True)) for line in lines[::2]}
    assert [rows["a"][key] for key in ("reference_lesions", "predicted_lesions", "lesion_f1")] == ["2", "3", "0.4"]
    assert (rows["healthy"]["lesion_f1"], rows["lost"]["lesion_f1"]) == ("", "0.0")
    official = CliRunner().invoke(
        app, ["masks", *map(str, base[:2]), "--protocol", "flare24", "-o", str(tmp_path / "f"), "--jobs", "1"]
    )
    assert official.exit_code == 0, official.output
    assert "HD95" not in official.stdout
    assert "hd95" not in (tmp_path / "f" / "per_case.csv").read_text()
