"""Folders of hand-made masks, every score known."""

import json

import numpy as np
import pytest

from eval.overlap import surface_dice
from eval.segmentation import FLARE23_LABELS, evaluate_masks, find_manifest, read_annotated, tolerance_of
from seg_backbone.errors import ConfigError, GridError, InputError, LabelError, QuestionError
from seg_backbone.geometry import Grid
from seg_backbone.io.nifti import write_mask
from seg_backbone.volume import Mask

SHAPE = (12, 11, 10)
LABELS = {"tumour": 1, "mandible": 2}


def array(*boxes):
    """uint8 array with (value, low, high) boxes painted in order."""
    painted = np.zeros(SHAPE, dtype=np.uint8)
    for value, low, high in boxes:
        painted[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return painted


CUBE, SHIFTED = (1, (3, 3, 3), (7, 7, 7)), (1, (4, 3, 3), (8, 7, 7))


@pytest.fixture
def folders(tmp_path):
    """write(side, case, array, affine) puts a mask into tmp/pred or tmp/ref; both folders exist."""
    (tmp_path / "pred").mkdir()
    (tmp_path / "ref").mkdir()

    def write(side, case, values, affine=None):
        grid = Grid(values.shape, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine)
        write_mask(Mask(values, grid), tmp_path / side / f"{case}.nii.gz")

    return tmp_path / "pred", tmp_path / "ref", write


def only(results, label="tumour"):
    return {score.case: score for score in results.scores if score.label == label}


def test_corrected_scores_states_and_volumes(folders):
    pred, ref, write = folders
    write("pred", "shift", array(SHIFTED))
    write("ref", "shift", array(CUBE))
    write("pred", "healthy", array())
    write("ref", "healthy", array())
    write("pred", "false", array((1, (0, 0, 0), (1, 1, 1))))
    write("ref", "false", array())
    write("ref", "lost", array(CUBE))
    results = evaluate_masks(pred, ref, "corrected", LABELS)
    scores = only(results)
    assert scores["shift"].dsc == 0.75
    assert scores["shift"].nsd == 1.0  # 2 mm spacing, 2 mm tolerance
    assert scores["shift"].reference_ml == pytest.approx(64 * 12 / 1000)
    assert (scores["healthy"].state, np.isnan(scores["healthy"].dsc)) == ("both empty", True)
    assert (scores["false"].dsc, scores["false"].nsd) == (0, 0)
    assert (scores["lost"].state, scores["lost"].dsc) == ("missing prediction", 0)
    assert results.missing == ["lost"]
    metrics = results.metrics()
    tumour = metrics["classes"]["tumour"]
    assert tumour["dsc"]["mean"] == pytest.approx(0.75 / 3)
    assert [tumour[key] for key in ("scored", "both_empty", "missing", "false_positive")] == [3, 1, 1, 1]
    assert metrics["classes"]["mandible"]["dsc"]["mean"] == 0  # only the missing case counts
    assert metrics["mean"]["lesions"]["dsc"] == pytest.approx(0.25)


def test_crop_gives_the_score_of_the_whole_array(folders):
    pred, ref, write = folders
    rng = np.random.default_rng(1)
    ours, truth = ((rng.random(SHAPE) > 0.6).astype(np.uint8) for _ in range(2))
    ours[:3] = truth[9:] = 0
    write("pred", "a", ours)
    write("ref", "a", truth)
    expected = surface_dice(ours == 1, truth == 1, np.array([2.0, 2, 3]), 2.0)
    assert only(evaluate_masks(pred, ref, "corrected", LABELS))["a"].nsd == pytest.approx(expected)


def test_flipped_and_transposed_prediction_scores_the_same(folders):
    pred, ref, write = folders
    write("ref", "a", array(CUBE))
    turned = array(SHIFTED)[::-1].transpose(2, 0, 1)
    affine = np.array([[0.0, -2, 0, 22], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])  # i <- z, j <- flipped x, k <- y
    write("pred", "a", turned, affine)
    assert only(evaluate_masks(pred, ref, "corrected", LABELS))["a"].dsc == 0.75


def test_flipped_prediction_is_compared_as_stored_by_the_official_scripts(folders):
    pred, ref, write = folders
    write("ref", "a", array(CUBE))
    write("pred", "a", array(SHIFTED), np.diag([-2.0, 2, 3, 1]))
    results = evaluate_masks(pred, ref, "flare24")
    assert only(results)["a"].dsc == 0.75
    assert any("compared as stored" in note for note in results.notes)
    with pytest.raises(GridError):
        evaluate_masks(pred, ref, "corrected", LABELS)


@pytest.mark.parametrize("protocol", ["flare24", "corrected", "automsc"])
def test_another_shape_raises(folders, protocol):
    pred, ref, write = folders
    write("ref", "a", array(CUBE))
    write("pred", "a", array(CUBE)[:-1])
    with pytest.raises(GridError):
        evaluate_masks(pred, ref, protocol, None if protocol == "flare24" else LABELS)


def test_unnamed_label_value_raises(folders):
    pred, ref, write = folders
    write("ref", "a", array(CUBE))
    write("pred", "a", array((7, (0, 0, 0), (2, 2, 2))))
    with pytest.raises(LabelError, match="a.nii.gz"):
        evaluate_masks(pred, ref, "corrected", LABELS)


def test_flare23_rules(folders):
    pred, ref, write = folders
    aorta = FLARE23_LABELS["aorta"]
    write("ref", "a", array((aorta, (3, 3, 2), (6, 6, 6)), (1, (0, 0, 0), (2, 2, 2)), (2, (8, 8, 0), (11, 11, 3))))
    write("pred", "a", array((aorta, (3, 3, 0), (6, 6, 5)), (1, (0, 0, 0), (2, 2, 1)), (3, (0, 8, 0), (1, 9, 1))))
    results = evaluate_masks(pred, ref, "flare23")
    score = {s.label: s for s in results.scores}
    assert len(score) == 14
    assert score["aorta"].dsc == 1.0  # the top reference slice, k = 5, is dropped, and so is k < 2
    assert score["liver"].dsc == round(2 * 4 / 12, 4)
    assert (score["kidney_right"].dsc, score["kidney_right"].nsd) == (0, 0)  # one empty
    assert (score["spleen"].dsc, score["spleen"].nsd) == (0, 0)  # false positive
    assert (score["pancreas"].dsc, score["tumour"].nsd) == (1, 1)  # both empty
    organs = [s.dsc for s in results.scores if s.label != "tumour"]
    assert results.metrics()["mean"]["organs"]["dsc"] == round(np.mean(organs), 4)
    write("ref", "b", array())
    with pytest.raises(InputError, match="b"):
        evaluate_masks(pred, ref, "flare23")


def test_flare23_forces_nsd_to_zero_at_a_tiny_overlap(folders):
    """Shares one of 13 columns: DSC 1/13 < 0.1, while the liver's 5 mm tolerance would still give NSD > 0."""
    pred, ref, write = folders
    write("ref", "a", array((1, (0, 0, 0), (1, 1, 10))))
    write("pred", "a", array((1, (0, 0, 9), (2, 8, 10))))
    score = only(evaluate_masks(pred, ref, "flare23"), "liver")["a"]
    assert score.dsc == round(2 / 26, 4)
    assert score.nsd == 0


def test_z_range_without_the_off_by_one(folders):
    pred, ref, write = folders
    write("ref", "a", array((1, (3, 3, 2), (6, 6, 6))))
    write("pred", "a", array((1, (3, 3, 0), (6, 6, 5))))
    corrected = only(evaluate_masks(pred, ref, "corrected", {"Esophagus": 1}), "esophagus")["a"]
    assert corrected.dsc == pytest.approx(2 * 27 / (36 + 27))  # slices 2..5 count: 3 shared of 4 and 3
    assert corrected.tolerance_mm == 3.0


def test_z_axis_is_the_axis_nearest_to_world_z(folders):
    """The same masks with z stored first give the same score."""
    pred, ref, write = folders
    affine = np.array([[0.0, 2, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    write("ref", "a", array((1, (3, 3, 2), (6, 6, 6))).transpose(2, 0, 1), affine)
    write("pred", "a", array((1, (3, 3, 0), (6, 6, 5))).transpose(2, 0, 1), affine)
    assert only(evaluate_masks(pred, ref, "corrected", {"esophagus": 1}), "esophagus")["a"].dsc == pytest.approx(
        54 / 63
    )


def test_flare24_rules(folders):
    pred, ref, write = folders
    write("ref", "healthy", array())
    write("pred", "healthy", array())
    write("ref", "other", array(CUBE))
    write("pred", "other", array(CUBE, (2, (0, 0, 0), (1, 1, 1))))
    write("ref", "poor", array(CUBE))
    write("pred", "poor", array((1, (6, 6, 3), (10, 10, 7))))
    write("ref", "lost", array(CUBE))
    results = evaluate_masks(pred, ref, "flare24")
    scores = only(results)
    assert (scores["healthy"].dsc, scores["healthy"].nsd) == (1, 1)
    assert (scores["other"].state, scores["other"].dsc) == ("other label values", 0)
    assert scores["poor"].dsc == round(2 * 4 / 128, 4)
    assert scores["poor"].nsd == 0
    assert "lost" not in scores
    assert results.missing == ["lost"]
    assert results.metrics()["classes"]["tumour"]["dsc"]["mean"] == pytest.approx((1 + 0 + 0.0625) / 3, abs=1e-4)


def test_automsc_uses_voxel_borders_at_one_millimetre(folders):
    pred, ref, write = folders
    spacing = np.diag([1.0, 1, 1, 1])
    write("ref", "a", array(CUBE), spacing)
    write("pred", "a", array(SHIFTED), spacing)
    score = only(evaluate_masks(pred, ref, "automsc", LABELS))["a"]
    assert (score.dsc, score.nsd, score.tolerance_mm) == (0.75, 1.0, 1.0)


def test_partial_labels_and_ids_of_another_model(folders):
    pred, ref, write = folders
    write("ref", "a", array(CUBE))
    write("pred", "a", array((5, *CUBE[1:]), (6, (0, 0, 0), (2, 2, 2)), (9, (9, 9, 9), (10, 10, 10))))
    (pred / "labels.json").write_text(json.dumps({"lesion": 5, "mandible": 6, "larynx": 9}))
    whole = evaluate_masks(pred, ref, "corrected", LABELS)
    assert only(whole)["a"].dsc == 1.0
    assert only(whole, "mandible")["a"].dsc == 0.0
    partial = evaluate_masks(pred, ref, "corrected", LABELS, annotated={"a": ["GTV"]})
    assert only(partial, "mandible")["a"].state == "not annotated"
    assert np.isnan(only(partial, "mandible")["a"].dsc)
    with pytest.raises(LabelError, match="flare24"):
        evaluate_masks(pred, ref, "flare24")
    with pytest.raises(ConfigError):
        evaluate_masks(pred, ref, "automsc", LABELS, annotated={})


def test_labels_default_to_the_dataset_json_beside_the_reference(folders):
    pred, ref, write = folders
    write("ref", "a", array(CUBE))
    write("pred", "a", array(CUBE))
    with pytest.raises(LabelError):
        evaluate_masks(pred, ref)
    (ref.parent / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 1}}))
    assert only(evaluate_masks(pred, ref))["a"].dsc == 1.0


def test_manifest(tmp_path):
    ref = tmp_path / "Dataset1" / "labelsTr"
    ref.mkdir(parents=True)
    manifest = tmp_path / "manifest.jsonl"
    lines = [
        {"dataset": "Dataset1", "case": "a", "annotated": ["RightParotid"]},
        {"dataset": "Dataset2", "case": "a", "annotated": ["tumour"]},
        {"dataset": "Dataset1", "case": "b", "annotated": "see the paper"},
    ]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    assert find_manifest(ref) == manifest
    assert read_annotated(manifest, ref) == {"a": ["parotid_right"]}
    with pytest.raises(InputError, match="line 2"):
        read_annotated(manifest, tmp_path)
    manifest.write_text('{"case": "a"\n')
    with pytest.raises(QuestionError, match="line 1"):
        read_annotated(manifest, ref)


def test_bad_folders_and_protocols(folders):
    pred, ref, write = folders
    with pytest.raises(InputError, match="none"):
        evaluate_masks(pred, ref, "corrected", LABELS)
    with pytest.raises(InputError, match="no such folder"):
        evaluate_masks(pred / "nothing", ref, "corrected", LABELS)
    with pytest.raises(ConfigError, match="flare23, flare24"):
        evaluate_masks(pred, ref, "dice", LABELS)
    write("ref", "a", array(CUBE))
    write("pred", "b", array(CUBE))
    with pytest.raises(InputError, match="not one of them"):
        evaluate_masks(pred, ref, "corrected", LABELS)


def test_default_tolerance():
    assert [tolerance_of(name) for name in ("duodenum", "tumour", "mandible")] == [7, 2, 2]
