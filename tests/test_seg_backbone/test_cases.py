"""From nnU-Net raw folders to codes and tables: unknown is never background, and masks lie on their scan's grid."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from seg_backbone.cases import (
    CaseFiles,
    DatasetEntry,
    list_cases,
    load_case,
    read_split,
    split_cases,
)
from seg_backbone.errors import ConfigError, GridError, LabelError, ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.plan import Channel, Plan
from seg_backbone.volume import Mask, Volume

REPOSITORY = Path(__file__).parents[2]
PLAN = Plan("t", ("tumour", "parotid_right", "larynx", "mandible"), spacing_mm=(4.0, 4.0, 4.0))
TUMOUR, PAROTID, LARYNX, MANDIBLE, MAYBE_LESION = 1, 2, 3, 4, 5
SHAPE = (6, 7, 8)
STRAIGHT = np.diag([4.0, 4.0, 4.0, 1.0])  # canonical and at the plan's spacing: nothing is resampled
FLIPPED = np.diag([-4.0, -4.0, 4.0, 1.0])


def drawn():
    """Right parotid (1) and larynx (2) in the file's own ids."""
    ids = np.zeros(SHAPE, dtype=np.uint8)
    ids[1:3, 2:4, 3:5] = 1
    ids[4, 5, 6] = 2
    return ids


def raw(
    root, name="Dataset001_T", affine=STRAIGHT, mask_affine=None, rows=({"annotated": ["RightParotid", "larynx"]},)
):
    """An nnU-Net raw dataset with one CT case per manifest row (None: no row)."""
    folder = root / name
    grid = Grid(SHAPE, affine)
    array = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
    lines = []
    for number, row in enumerate(rows):
        case = f"p_{number:03d}"
        write_volume(Volume(array, grid, "CT"), folder / "imagesTr" / f"{case}_0000.nii.gz")
        mask_grid = Grid(SHAPE, affine if mask_affine is None else mask_affine)
        write_mask(Mask(drawn(), mask_grid), folder / "labelsTr" / f"{case}.nii.gz")
        if row is not None:
            lines.append(json.dumps({"dataset": name, "case": case, "modality": "CT"} | row))
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "RightParotid": 1, "larynx": 2}, "channel_names": {"0": "CT"}})
    )
    (root / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(autouse=True)
def _folders(tmp_path):
    for part in ("imagesTr", "labelsTr", "targetsTr"):
        (tmp_path / "Dataset001_T" / part).mkdir(parents=True)


def load(root, plan=PLAN, **entry):
    (files, *_) = list_cases(root, "Dataset001_T")
    return load_case(files, DatasetEntry("Dataset001_T", **entry), plan)


def test_cases_are_listed_with_what_they_annotate(tmp_path):
    root = raw(tmp_path, rows=[{"annotated": ["RightParotid"], "modality": "MR T1", "region": "neck"}, None])
    first, second = list_cases(root, "Dataset001_T")
    assert (first.case, first.patient, first.modality, first.region) == ("p_000", "p_000", "MR", "neck")
    assert first.annotated == ("parotid_right",)
    assert first.labels == {"parotid_right": 1, "larynx": 2}
    assert first.mask == root / "Dataset001_T" / "labelsTr" / "p_000.nii.gz"
    assert second.annotated == ("parotid_right", "larynx")  # no row: all that dataset.json names
    assert second.modality == "CT"


def test_a_class_that_was_not_annotated_is_unknown_not_background(tmp_path):
    case = load(raw(tmp_path, rows=[{"annotated": ["RightParotid"]}]))
    expected = np.zeros(SHAPE, dtype=np.uint8)
    expected[drawn() == 1] = PAROTID  # the larynx in the file is not trusted
    np.testing.assert_array_equal(case.codes, expected)
    assert case.table.astype(int).tolist() == [
        [1, 1, 0, 1, 1],  # background here: perhaps tumour, larynx or mandible, never the parotid
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
        [1, 1, 0, 1, 1],
    ]
    assert list(case.drawn) == [PAROTID]
    np.testing.assert_array_equal(case.drawn[PAROTID], np.argwhere(drawn() == 1))
    assert case.image.shape == (2, *SHAPE)


def test_absent_classes_are_background(tmp_path):
    case = load(raw(tmp_path), absent=("mandible",))
    assert case.table[0].tolist() == [True, True, False, False, False]
    assert sorted(case.drawn) == [PAROTID, LARYNX]


def test_outside_the_targets_there_is_no_lesion(tmp_path):
    root = raw(tmp_path)
    targets = np.zeros(SHAPE, dtype=np.uint8)
    targets[2:5, 1:6, 2:7] = 3
    write_mask(Mask(targets, Grid(SHAPE, STRAIGHT)), root / "Dataset001_T" / "targetsTr" / "p_000.nii.gz")
    case = load(root, lesion_free_outside="targetsTr")
    assert case.table[0].tolist() == [True, False, False, False, True]
    assert case.table[MAYBE_LESION].tolist() == [True, True, False, False, True]
    np.testing.assert_array_equal(case.codes == MAYBE_LESION, (targets > 0) & (drawn() == 0))
    np.testing.assert_array_equal(case.codes == PAROTID, drawn() == 1)  # what was drawn stays drawn
    assert MAYBE_LESION not in case.drawn  # no window is centred on a guess


def test_without_a_mask_nothing_is_known(tmp_path):
    root = raw(tmp_path, rows=[None])
    (root / "Dataset001_T" / "labelsTr" / "p_000.nii.gz").unlink()
    case = load(root, absent=("larynx",), lesion_free_outside="targetsTr")
    assert not case.codes.any()
    assert case.table[0].tolist() == [True, True, True, False, True]
    assert case.drawn == {}


def describe(root, **content):
    (root / "Dataset001_T" / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}} | content))


def test_a_mask_of_names_that_are_not_told_is_not_read(tmp_path):
    """As a mask with its names elsewhere: nothing is annotated, so only what the dataset lacks is known."""
    raw(tmp_path, rows=({"annotated": []},))
    description = {"labels": {"background": 0}, "channel_names": {"0": "CT"}}
    (tmp_path / "Dataset001_T" / "dataset.json").write_text(json.dumps(description))
    (files,) = list_cases(tmp_path, "Dataset001_T")
    case = load_case(files, DatasetEntry("Dataset001_T", absent=("tumour",)), PLAN)
    assert (case.codes == 0).all()
    assert case.table[0].tolist() == [True, False, True, True, True]


def test_a_dataset_without_masks_shows_what_its_scans_lack(tmp_path):
    root = raw(tmp_path, rows=[None])
    shutil.rmtree(root / "Dataset001_T" / "labelsTr")
    case = load(root, absent=("tumour", "larynx"))
    assert case.table[0].tolist() == [True, False, True, False, True]
    plan = PLAN.with_(regions={"gland": ("parotid_right", "mandible")})
    assert load(root, plan, absent=("gland",)).table[0].tolist() == [True, True, False, True, False]
    (root / "Dataset001_T" / "dataset.json").unlink()
    assert load(root, absent=PLAN.classes).table[0].tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("stated", [["larynx"], {"p_000": ["larynx"]}])
def test_dataset_json_may_say_what_is_annotated(tmp_path, stated):
    root = raw(tmp_path, rows=[None, {"annotated": ["RightParotid"]}])
    describe(root, labels={"RightParotid": 1, "larynx": 2}, annotated=stated)
    first, second = list_cases(root, "Dataset001_T")
    assert (first.annotated, second.annotated) == (("larynx",), ("parotid_right",))  # the manifest has the last word
    for wrong in ("larynx", {"p_000": "larynx"}):
        describe(root, labels={"RightParotid": 1, "larynx": 2}, annotated=wrong)
        with pytest.raises(ConfigError, match="dataset.json: expected `annotated`"):
            list_cases(root, "Dataset001_T")


def test_ignore_labels_are_no_classes(tmp_path):
    root = raw(tmp_path, rows=[None])
    names = {"background": 0, "ignore": 1, "rim": 2}
    describe(root, labels=names | {"larynx": 3}, may_be={"rim": ["background", "larynx"]})
    (files,) = list_cases(root, "Dataset001_T")
    assert files.annotated == ("larynx",)
    case = load(root)
    assert case.drawn == {}
    of = lambda value: case.table[np.unique(case.codes[drawn() == value]).item()].astype(int).tolist()  # noqa: E731
    assert of(0) == [1, 1, 1, 0, 1]  # nobody drew anything but the larynx
    assert of(1) == [1, 1, 1, 1, 1]
    assert of(2) == [1, 1, 1, 1, 1]  # background there may be what nobody drew, too
    assert load(root, absent=("tumour", "mandible", "parotid_right")).table[-1].astype(int).tolist() == [1, 0, 0, 1, 0]


def test_a_region_of_the_plan_may_be_annotated_as_a_whole(tmp_path):
    root = raw(tmp_path, rows=[None])
    describe(root, labels={"bones": 1, "larynx": 2})
    plan = PLAN.with_(regions={"bones": ("mandible", "tumour")})
    case = load(root, plan)
    assert case.table[0].astype(int).tolist() == [1, 0, 1, 0, 0]  # outside the bones there is none
    code = np.unique(case.codes[drawn() == 1]).item()
    assert case.table[code].astype(int).tolist() == [0, 1, 0, 0, 1]  # inside it is one of them
    assert sorted(case.drawn) == [LARYNX, code]  # and windows are centred on it


def test_regions_of_the_dataset(tmp_path):
    root = raw(tmp_path, rows=[None])
    describe(root, labels={"throat": [1, 2], "larynx": 2}, regions_class_order=[1, 2])
    (files,) = list_cases(root, "Dataset001_T")
    assert files.annotated == ("throat_rest", "larynx")
    parts = load(root, Plan("t", ("throat_rest", "larynx"), regions={"throat": ("throat_rest", "larynx")}))
    np.testing.assert_array_equal(parts.codes, drawn())
    whole = load(root, Plan("t", ("throat",)))  # a plan that knows the whole only
    np.testing.assert_array_equal(whole.codes, drawn() > 0)
    assert whole.table[0].tolist() == [True, False]


def test_the_orientation_of_the_file_changes_nothing(tmp_path):
    straight = load(raw(tmp_path))
    grid = Grid(SHAPE, STRAIGHT)
    back = FLIPPED.copy()
    back[:3, 3] = grid.voxel_to_world(np.array([5, 6, 0]))
    folder = tmp_path / "Dataset001_T"
    array = np.random.default_rng(0).integers(-900, 900, SHAPE).astype(np.int16)
    write_volume(Volume(array[::-1, ::-1], Grid(SHAPE, back), "CT"), folder / "imagesTr" / "p_000_0000.nii.gz")
    write_mask(Mask(drawn()[::-1, ::-1], Grid(SHAPE, back)), folder / "labelsTr" / "p_000.nii.gz")
    turned = load(tmp_path)
    np.testing.assert_array_equal(turned.codes, straight.codes)
    np.testing.assert_array_equal(turned.image, straight.image)


def test_image_and_codes_go_to_the_plans_spacing_together(tmp_path):
    root = raw(tmp_path)
    array = np.where(drawn() == 1, 240, -160).astype(np.int16)
    write_volume(Volume(array, Grid(SHAPE, STRAIGHT), "CT"), root / "Dataset001_T" / "imagesTr" / "p_000_0000.nii.gz")
    case = load(root, PLAN.with_(spacing_mm=(2.0, 4.0, 2.0)))
    expected = np.zeros((12, 7, 16), dtype=bool)
    expected[2:6, 2:4, 6:10] = True
    np.testing.assert_array_equal(case.codes == PAROTID, expected)
    np.testing.assert_array_equal(case.image[0] > 0, expected)


@pytest.mark.parametrize("which", ["mask", "targets"])
def test_a_mask_on_another_grid_raises(tmp_path, which):
    moved = STRAIGHT.copy()
    moved[2, 3] = 4.0
    root = raw(tmp_path, mask_affine=moved if which == "mask" else None)
    targets = Mask(drawn(), Grid(SHAPE, moved))
    write_mask(targets, root / "Dataset001_T" / "targetsTr" / "p_000.nii.gz")
    with pytest.raises(GridError, match=r"p_000\.nii\.gz: expected the grid of .*p_000_0000"):
        load(root, lesion_free_outside="targetsTr")


def test_a_label_that_dataset_json_does_not_name_raises(tmp_path):
    root = raw(tmp_path)
    write_mask(Mask(drawn() * 4, Grid(SHAPE, STRAIGHT)), root / "Dataset001_T" / "labelsTr" / "p_000.nii.gz")
    with pytest.raises(LabelError, match=r"\[4, 8\]"):
        load(root)


def test_folders_and_manifests_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match="Dataset999"):
        list_cases(tmp_path, "Dataset999")
    raw(tmp_path)
    for text in ("{not json\n", '{"dataset": "Dataset001_T"}\n', "3\n"):
        (tmp_path / "manifest.jsonl").write_text(text)
        with pytest.raises(ConfigError, match="manifest.jsonl.*line 1"):
            list_cases(tmp_path, "Dataset001_T")


def files_of(*patients):
    return [CaseFiles("d", f"{p}_{n}", p, "CT", Path(), None, {}, ()) for n, p in enumerate(patients)]


def test_the_split_goes_by_patient():
    cases = files_of("a", "b", "a", "c", "d")
    split = {"validation": ["a"], "evaluation": ["d"]}
    parts = {part: [c.case for c in split_cases(cases, split, part)] for part in ("training", *split)}
    assert parts == {"training": ["b_1", "c_3"], "validation": ["a_0", "a_2"], "evaluation": ["d_4"]}


def test_a_split_file_that_does_not_fit(tmp_path):
    for number, text in enumerate(["", "[]", "{}", '{"patients": ["a"]}', '{"patients": {"validation": 3}}']):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        with pytest.raises(ConfigError, match="a split file"):
            read_split(path)
    with pytest.raises(ConfigError, match="missing.json"):
        read_split(tmp_path / "missing.json")


def test_our_split_keeps_every_patient_on_one_side():
    split = read_split(REPOSITORY / "configs" / "split.json")
    patients = [patient for part in split.values() for patient in part]
    assert len(patients) == len(set(patients)) > 20
    assert set(split) == {"validation", "evaluation"}
    # one sarcoma patient has a CT and an MR: both go where the patient goes
    assert sum(p.startswith("sarc_") for p in patients) == 8
    both = [CaseFiles(d, "sarc_001", "sarc_001", m, Path(), None, {}, ()) for d, m in (("ct", "CT"), ("mr", "MR"))]
    assert split_cases(both, split, "validation") == both
    assert split_cases(both, split, "training") == []


def test_a_split_of_nnunet(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["a_0", "b_1"], "val": ["c_3"]}, {"train": ["c_3"], "val": ["a_0", "a_2"]}]))
    cases = files_of("a", "b", "a", "c", "d")
    first, second = read_split(path), read_split(path, 1)
    assert [c.case for c in split_cases(cases, first, "training")] == ["a_0", "b_1"]  # what no list names stays out
    assert [c.case for c in split_cases(cases, first, "validation")] == ["c_3"]
    assert [c.case for c in split_cases(cases, second, "validation")] == ["a_0", "a_2"]
    with pytest.raises(ConfigError, match="fold 2, counted from 0, found 2 folds"):
        read_split(path, 2)
    with pytest.raises(ConfigError, match="found one split"):
        read_split(REPOSITORY / "configs" / "split.json", 1)


def test_a_split_of_folds(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"folds": [{"validation": ["a"]}, {"validation": ["c"], "evaluation": ["d"]}]}))
    cases = files_of("a", "b", "a", "c", "d")
    assert [c.case for c in split_cases(cases, read_split(path), "training")] == ["b_1", "c_3", "d_4"]
    assert [c.case for c in split_cases(cases, read_split(path, 1), "training")] == ["a_0", "b_1", "a_2"]
    with pytest.raises(ConfigError, match="fold 2, counted from 0, found 2 folds"):
        read_split(path, 2)


def test_every_channel_of_the_plan_is_read(tmp_path):
    root = raw(tmp_path)
    grid, second = Grid(SHAPE, STRAIGHT), np.random.default_rng(5).normal(300, 40, SHAPE).astype(np.float32)
    plan = PLAN.with_(channels=(Channel("CT", "ct", 10.0, 50.0, -100.0, 200.0), Channel("PET", "zscore")))
    with pytest.raises(ScanError, match=r"no p_000_0001\.nii\.gz"):
        load(root, plan)
    write_volume(Volume(second, grid, "CT"), root / "Dataset001_T" / "imagesTr" / "p_000_0001.nii.gz")
    case = load(root, plan)
    assert case.image.shape == (2, *SHAPE)
    np.testing.assert_allclose(case.image[1], (second - second.mean()) / second.std(), atol=5e-3)
    assert (case.image[0].min(), case.image[0].max()) == (pytest.approx(-2.2, abs=2e-3), pytest.approx(3.8, abs=4e-3))
    np.testing.assert_array_equal(case.codes, load(root).codes)


def test_codes_follow_the_crop_of_the_image(tmp_path):
    root = raw(tmp_path)
    array = np.zeros(SHAPE, np.int16)
    array[1:6, 2:7, 3:8] = 100 * (1 + drawn()[1:6, 2:7, 3:8].astype(np.int16))
    path = root / "Dataset001_T" / "imagesTr" / "p_000_0000.nii.gz"
    write_volume(Volume(array, Grid(SHAPE, STRAIGHT), "CT"), path)
    case = load(root, PLAN.with_(channels=(Channel("MR", "none"),), crop_nonzero=True))
    np.testing.assert_array_equal(case.image[0], array[1:6, 2:7, 3:8])
    np.testing.assert_array_equal(case.codes > 0, case.image[0] > 100)
