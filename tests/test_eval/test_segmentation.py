"""Folders of hand-made masks, every score known."""

import json
import pickle

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicoms import write_series

from eval import segmentation
from eval.mask_scores import score_case
from eval.overlap import surface_dice
from eval.protocols import read_tolerances, tolerance_of
from eval.segmentation import evaluate_masks
from seg_backbone.errors import ConfigError, GridError, InputError, LabelError
from seg_backbone.geometry import Grid
from seg_backbone.io.nifti import write_mask
from seg_backbone.labels import FLARE23_LABELS
from seg_backbone.volume import Mask, Volume

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
    with pytest.raises(InputError, match="no prediction for lost; .* or pass --allow-missing"):
        evaluate_masks(pred, ref, "corrected", LABELS)
    results = evaluate_masks(pred, ref, "corrected", LABELS, allow_missing=True)
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
    false = next(row for row in results.rows() if row["case"] == "false" and row["class"] == "tumour")
    assert false["volume_error_ml"] == pytest.approx(0.012)
    # of shift, healthy is left out, false; the lost case has no volume
    assert tumour["absolute_volume_error_ml"]["mean"] == tumour["volume_error_ml"]["mean"] == pytest.approx(0.006)
    assert tumour["relative_volume_error"]["mean"] == 0  # of shift alone: nothing is a share of an empty reference


@pytest.mark.parametrize("protocol", ["corrected", "flare24", "automsc"])
def test_synthetic_references_are_refused(folders, protocol):
    pred, ref, write = folders
    for case in ("real", "made"):
        write("pred", case, array(CUBE))
        write("ref", case, array(CUBE))
    lines = [
        {"dataset": "ref", "case": "made", "synthetic": True},
        {"dataset": "other", "case": "real", "synthetic": True},
    ]
    manifest = ref.parent / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="synthetic tumours in made;"):
        evaluate_masks(pred, ref, protocol, None if protocol == "flare24" else LABELS)
    manifest.unlink()
    (ref.parent / "dataset.json").write_text('{"synthetic": true}')
    with pytest.raises(InputError, match="synthetic tumours in made, real;"):
        evaluate_masks(pred, ref, protocol, None if protocol == "flare24" else LABELS)


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


def test_automsc_leaves_out_what_one_side_lacks_and_averages_all_rows_at_once(folders):
    """Two classes in one case, one of them alone in another: the overall mean is over the three rows."""
    pred, ref, write = folders
    other = (2, (0, 0, 0), (2, 2, 2))
    write("ref", "a", array(CUBE, other))
    write("pred", "a", array(CUBE, other, (3, (9, 9, 9), (10, 10, 10))))
    write("ref", "b", array(CUBE))
    write("pred", "b", array(SHIFTED))
    write("ref", "lost", array(CUBE))
    write("pred", "extra", array(CUBE))
    results = evaluate_masks(pred, ref, "automsc", LABELS)
    assert (results.cases, results.missing) == (2, ["lost"])
    assert results.metrics()["mean"]["all"]["dsc"] == pytest.approx((1 + 0.75 + 1) / 3)
    notes = " ".join(results.notes)
    for named in ("left out, as the official script does): lost", "extra", "taken as background", "a (prediction: 3)"):
        assert named in notes


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


def test_tolerances_of_the_user(folders, tmp_path):
    pred, ref, write = folders
    write("ref", "a", array(CUBE))
    write("pred", "a", array(SHIFTED))
    (tmp_path / "mm.json").write_text('{"Lesion": 1}')
    tolerances = read_tolerances(tmp_path / "mm.json")
    strict = only(evaluate_masks(pred, ref, "corrected", LABELS, tolerances_mm=tolerances))["a"]
    assert strict.tolerance_mm == 1
    assert strict.nsd == pytest.approx(surface_dice(array(SHIFTED) == 1, array(CUBE) == 1, np.array([2.0, 2, 3]), 1))
    assert strict.border_nsd < 1
    with pytest.raises(ConfigError, match="found livver"):
        evaluate_masks(pred, ref, "corrected", LABELS, tolerances_mm={"livver": 1.0})
    with pytest.raises(ConfigError, match="rules are fixed"):
        evaluate_masks(pred, ref, "flare24", tolerances_mm=tolerances)
    for bad in ('{"tumour": 0}', '{"tumour": "wide"}', "[1]", "{"):
        (tmp_path / "mm.json").write_text(bad)
        with pytest.raises(ConfigError, match="mm.json"):
            read_tolerances(tmp_path / "mm.json")


def test_sixty_classes_and_lesions_of_an_organ(folders):
    pred, ref, write = folders
    ids = np.arange(12 * 11 * 10).reshape(SHAPE) // 22
    labels = {f"organ {n}": n for n in range(1, 59)} | {"liver tumor": 59}
    write("ref", "a", ids.astype(np.uint8))
    write("pred", "a", ids.astype(np.uint8))
    results = evaluate_masks(pred, ref, "corrected", labels)
    assert [score.dsc for score in results.scores] == [1.0] * 59
    metrics = results.metrics()
    assert list(metrics["lesionwise"]) == ["liver_tumor"]
    assert set(metrics["mean"]) == {"organs", "lesions", "all"}


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii", "A.NII.GZ"])
def test_every_format_is_read(folders, name):
    pred, ref, write = folders
    write("ref", "a" if name[0] == "a" else "A", array(CUBE))
    write("pred", "a", array(SHIFTED))
    image = sitk.ReadImage(str(pred / "a.nii.gz"))
    (pred / "a.nii.gz").unlink()
    sitk.WriteImage(image, str(pred / name.lower()))
    (pred / name.lower()).rename(pred / name)
    (pred / "labels.json").write_text(json.dumps(LABELS))
    (pred / "a.dcm").write_bytes(bytes(128) + b"DICM")  # a segmentation object beside the masks
    for protocol in ("corrected", "automsc", "flare24"):
        assert [s.dsc for s in evaluate_masks(pred, ref, protocol, {"tumour": 1}).scores] == [0.75]


def test_a_dicom_series_of_labels_is_read(folders):
    pred, ref, write = folders
    volume = Volume(array(CUBE).astype(np.int16), Grid(SHAPE, np.diag([2.0, 2, 3, 1])), "CT")
    write_series(pred / "a", volume)
    write("ref", "a", array(CUBE))
    assert only(evaluate_masks(pred, ref, "corrected", LABELS))["a"].dsc == 1.0


def raw(folder, case, values):
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2, 3, 1])), folder / f"{case}.nii.gz")


def test_corrected_refuses_every_bad_case_by_name(folders):
    pred, ref, write = folders
    for case in ("grid", "nan", "value", "fine"):
        write("ref", case, array(CUBE))
        write("pred", case, array(CUBE))
    write("pred", "grid", array(CUBE), np.diag([2.0, 2, 2.5, 1]))
    write("pred", "value", array(CUBE, (9, (0, 0, 0), (1, 1, 1))))
    broken = array(CUBE).astype(np.float32)
    broken[0, 0, 0] = np.nan
    raw(pred, "nan", broken)
    with pytest.raises(InputError, match="3 of 4 that cannot") as raised:
        evaluate_masks(pred, ref, "corrected", LABELS)
    for named in ("grid.nii.gz", "nan.nii.gz: expected whole numbers from 0, found 1 NaN", "value.nii.gz", "[9]"):
        assert named in str(raised.value)
    assert "fine" not in str(raised.value)
    write("pred", "extra", array(CUBE))
    with pytest.raises(InputError, match="no reference for extra"):
        evaluate_masks(pred, ref, "corrected", LABELS)


def test_official_scripts_score_bad_voxels_as_they_cast_them_and_the_notes_say_so(folders):
    """257 becomes 1 as an int8; 1.9 is cut to 1; NaN is 0; 15 is no organ."""
    pred, ref, write = folders
    truth = array(CUBE)
    write("ref", "a", truth)
    ours = truth.astype(np.float64)
    ours[3, 3, 3], ours[3, 3, 4], ours[0, 0, 0], ours[0, 0, 1], ours[6, 6, 6] = 257, 1.9, np.nan, 15, 0
    raw(pred, "a", ours)
    results = evaluate_masks(pred, ref, "flare23")
    assert only(results, "liver")["a"].dsc == round(2 * 63 / 127, 4)
    notes = " ".join(results.notes)
    assert "a (3 voxels of the prediction)" in notes and "a (prediction: 15)" in notes
    lesion = evaluate_masks(pred, ref, "flare24")
    assert only(lesion)["a"].state == "other label values"
    assert "score the case 0, as the official script does: a (prediction: 15)" in " ".join(lesion.notes)
    compared = only(evaluate_masks(pred, ref, "automsc", LABELS))["a"]  # by value: 257 and 1.9 are not 1
    assert compared.dsc == 2 * 61 / (61 + 64)
    write("ref", "a", array((2, *CUBE[1:])))
    with pytest.raises(LabelError, match="flare24"):
        evaluate_masks(pred, ref, "flare24")


def test_official_scripts_slice_the_third_axis_and_take_the_header_spacing(folders):
    """An oblique scan whose first axis is nearest to z; the spacing in the header is float32."""
    pred, ref, write = folders
    esophagus = FLARE23_LABELS["esophagus"]
    affine = np.array([[0.0, 2, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0], [0, 0, 0, 1]])
    write("ref", "a", array((esophagus, (3, 3, 2), (6, 6, 6))), affine)
    write("pred", "a", array((esophagus, (3, 3, 0), (6, 6, 5))), affine)
    assert only(evaluate_masks(pred, ref, "flare23"), "esophagus")["a"].dsc == 1.0
    assert only(evaluate_masks(pred, ref, "corrected", {"esophagus": esophagus}), "esophagus")["a"].dsc < 1.0
    thin = np.diag([0.4, 0.4, 0.4, 1.0])  # five voxels are 2.00000003 mm in the header: too far
    write("ref", "a", array((FLARE23_LABELS["gallbladder"], (1, 3, 3), (2, 7, 7))), thin)
    write("pred", "a", array((FLARE23_LABELS["gallbladder"], (1, 3, 3), (7, 7, 7))), thin)
    flat, deep = array((1, (1, 3, 3), (2, 7, 7))) == 1, array((1, (1, 3, 3), (7, 7, 7))) == 1
    exact, header = (surface_dice(deep, flat, np.full(3, s), 2.0) for s in (0.4, float(np.float32(0.4))))
    assert exact > header
    assert only(evaluate_masks(pred, ref, "flare23"), "gallbladder")["a"].nsd == round(header, 4)


def test_cases_in_parallel_score_the_same(folders):
    pred, ref, write = folders
    for case in "abc":
        write("ref", case, array(CUBE))
        write("pred", case, array(SHIFTED if case == "b" else CUBE))
    seen = []
    two = evaluate_masks(pred, ref, "corrected", LABELS, jobs=2, progress=lambda *told: seen.append(told))
    assert repr(two.rows()) == repr(evaluate_masks(pred, ref, "corrected", LABELS).rows())
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_an_interrupted_run_goes_on_where_it_was(folders, tmp_path, monkeypatch):
    pred, ref, write = folders
    for case in "abc":
        write("ref", case, array(CUBE))
        write("pred", case, array(SHIFTED, (1, (0, 0, 0), (1, 1, 1))))
    expected = evaluate_masks(pred, ref, "corrected", LABELS)
    keep, looked_at = tmp_path / "keep", []

    def score(case, rules):
        looked_at.append(case.name)
        if case.name == "c" and looked_at.count("c") == 1:
            raise KeyboardInterrupt
        return score_case(case, rules)

    monkeypatch.setattr(segmentation, "score_case", score)
    with pytest.raises(KeyboardInterrupt):
        evaluate_masks(pred, ref, "corrected", LABELS, keep_dir=keep)
    write("pred", "b", array(SHIFTED))  # another file since
    resumed = evaluate_masks(pred, ref, "corrected", LABELS, keep_dir=keep)
    assert looked_at == ["a", "b", "c", "b", "c"]
    assert not keep.exists()
    rows = [[row for row in result.rows() if row["case"] != "b"] for result in (resumed, expected)]
    assert repr(rows[0]) == repr(rows[1])
    assert only(resumed)["b"].dsc != only(expected)["b"].dsc
    figures = [
        result.metrics()["lesionwise"]["tumour"]["figures"]["f1_iou50"]["value"] for result in (resumed, expected)
    ]
    assert figures == [pytest.approx(6 / 8), pytest.approx(6 / 9)]  # b lost its false lesion


def test_an_error_comes_back_whole_from_another_process():
    error = GridError("a.nii.gz", "one grid", "another", "resample it")
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), back.todo) == (GridError, str(error), "resample it")
