"""Pseudo-labels by hand: what is certain, what is ignored, which classes a case annotates; the dataset on disk."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from seg_backbone.cases import DatasetEntry, encoding, list_cases
from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_mask, write_mask, write_volume
from seg_backbone.plan import Channel, Plan
from seg_backbone.pseudo_dataset import ScanToLabel, finish_dataset, label_scans
from seg_backbone.pseudo_labels import PseudoRules, annotation, draw, fill, pseudo_labels
from seg_backbone.volume import Mask, Volume
from vlm.data.check import find_faults
from vlm.data.questions import generate

pytestmark = pytest.mark.usefixtures("one_thread")

PLAN = Plan(
    "hand",
    ("tumour", "larynx"),
    patch=(16, 16, 16),
    trained_on={"CT": ("tumour", "larynx"), "MR": ("tumour",)},
)
GRID = Grid((16, 16, 16), np.diag([-4.0, -4.0, 4.0, 1.0]))
HU = {"tumour": 200, "larynx": -120}


class Brightness(nn.Module):
    """Says tumour above 40 HU and larynx below, with log odds of 20 a unit of the first HU window; nothing near it."""

    divisor = (1, 1, 1)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        first = image[:, 0]
        return torch.stack([torch.full_like(first, 10.0), 20 * first, -20 * first], dim=1)


def certainty(hu):
    """Probability of tumour at an HU, by the network above."""
    unit = 2 * (hu + 160) / 400 - 1
    p = np.exp([10, 20 * unit, -20 * unit])
    return p[1] / p.sum()


def hu_of(probability):
    """The HU at which tumour has a probability against background, the larynx being far away."""
    return (((10 + np.log(probability / (1 - probability))) / 20 + 1) / 2) * 400 - 160


def scan(*cubes, shape=GRID.shape):
    """A CT of 40 HU with cubes (corner, size, HU)."""
    array = np.full(shape, 40, dtype=np.int16)
    for corner, size, hu in cubes:
        array[tuple(slice(c, c + size) for c in corner)] = hu
    return Volume(array, GRID, "CT")


def test_what_is_uncertain_is_ignored():
    assert hu_of(0.95) > hu_of(0.85) > hu_of(0.2) and certainty(hu_of(0.95)) == pytest.approx(0.95, abs=1e-3)
    values = {(2, 2, 2): hu_of(0.97), (8, 2, 2): hu_of(0.75), (2, 8, 2): hu_of(0.25), (8, 8, 2): hu_of(0.03)}
    volume = scan(*((corner, 4, round(hu)) for corner, hu in values.items()))
    mask = draw(Brightness(), PLAN, volume, PseudoRules(mirror=False))
    assert mask.labels == {"tumour": 1, "larynx": 2, "ignore": 3}
    inner = [mask.array[tuple(c + 1 for c in corner)] for corner in values]
    assert inner == [1, 3, 3, 0]  # certain, probable, improbable, certainly not
    assert (mask.array == 3).sum() == 2 * 4**3
    loose = draw(Brightness(), PLAN, volume, PseudoRules(certain=0.7, mirror=False))
    assert [loose.array[tuple(c + 1 for c in corner)] for corner in values] == [1, 1, 0, 0]
    strict = draw(Brightness(), PLAN, volume, PseudoRules(certain=0.99, mirror=False))
    assert (strict.array == 1).sum() == 0


def test_on_a_finer_grid_the_rim_is_ignored():
    grid = Grid((32, 32, 32), np.diag([-2.0, -2.0, 2.0, 1.0]))
    array = np.full(grid.shape, 40, dtype=np.int16)
    array[10:22, 10:22, 10:22] = 200
    mask = draw(Brightness(), PLAN, Volume(array, grid, "CT"), PseudoRules(mirror=False))
    assert mask.grid.same_as(grid)
    assert (mask.array[12:20, 12:20, 12:20] == 1).all()
    assert set(np.unique(mask.array)) == {0, 1, 3}
    outside = np.ones(grid.shape, dtype=bool)
    outside[8:24, 8:24, 8:24] = False
    assert not mask.array[outside].any()


def test_small_components_and_second_pieces_are_ignored_not_background():
    volume = scan(((2, 2, 2), 4, 200), ((10, 10, 10), 2, 200), ((2, 10, 2), 3, -120), ((10, 2, 2), 2, -120))
    rules = PseudoRules(minimum_ml={"tumour": 1.0}, mirror=False)  # 64 mm3 a voxel: 2^3 voxels are 0.5 ml
    plan = PLAN.with_(single=("larynx",))
    array = draw(Brightness(), plan, volume, rules).array
    assert [array[3, 3, 3], array[10, 10, 10], array[3, 11, 3], array[10, 2, 2]] == [1, 3, 2, 3]
    assert (array == 3).sum() == 2 * 2**3
    everything = draw(Brightness(), PLAN, volume, replace(rules, minimum_ml={})).array
    assert not (everything == 3).any()


def test_classes_that_cannot_be_there_are_never_drawn():
    volume = scan(((2, 2, 2), 4, 200), ((10, 10, 10), 4, -120))
    array = draw(Brightness(), PLAN, volume, PseudoRules(mirror=False), absent=("larynx",)).array
    assert set(np.unique(array)) == {0, 1}  # without the larynx, background is certain there
    untrained = draw(Brightness(), PLAN.with_(trained_on={}), volume, PseudoRules()).array
    assert not untrained.any()


def test_flips_must_agree():
    """A network that only sees the left half is certain of nothing that its flip does not see."""

    class OneSided(Brightness):
        def forward(self, image):
            logits = super().forward(image)
            logits[:, 1, 8:] = 0.0
            return logits

    volume = scan(((3, 3, 3), 3, 200), ((10, 10, 10), 3, 200))  # files run from right to left
    mirrored, plain = (draw(OneSided(), PLAN, volume, PseudoRules(mirror=m)).array for m in (True, False))
    assert (plain == 1).sum() == 27
    assert (mirrored == 1).sum() == 0


def masks_of(*boxes, value=1):
    array = np.zeros(GRID.shape, dtype=np.uint8)
    for low, high in boxes:
        array[low:high] = value
    return Mask(array, GRID, pseudo_labels(PLAN))


def test_a_class_is_annotated_where_rounds_agree():
    rules = PseudoRules(stable=0.7)
    classes = ("tumour", "larynx")
    now = masks_of((0, 8))
    assert annotation(now, None, classes, rules) == (("tumour",), {})  # no larynx found: left open
    assert annotation(now, masks_of((2, 8)), classes, rules) == (("tumour",), {"tumour": round(12 / 14, 4)})
    assert annotation(now, masks_of((5, 8)), classes, rules) == ((), {"tumour": round(6 / 11, 4)})
    assert annotation(now, masks_of(), classes, rules) == ((), {"tumour": 0.0})
    assert annotation(masks_of(), now, classes, rules) == ((), {"tumour": 0.0})
    absence = replace(rules, absence=True)
    assert annotation(now, None, classes, absence) == (classes, {})
    assert annotation(masks_of(), now, classes, absence) == (("larynx",), {"tumour": 0.0})
    assert annotation(masks_of(), masks_of(), classes, absence) == (classes, {})


@pytest.fixture
def model(monkeypatch):
    """The network above in place of any model's."""
    monkeypatch.setattr("seg_backbone.pseudo_dataset.load_model", lambda name: (Brightness(), PLAN, "abc"))
    return "hand"


@pytest.fixture
def scans(tmp_path):
    """A tumour, a tumour and a larynx in NRRD, and nothing."""
    folder = tmp_path / "scans"
    folder.mkdir()
    write_volume(scan(((2, 2, 2), 4, 200)), folder / "a_0000.nii.gz")
    both = scan(((2, 2, 2), 4, 200), ((10, 10, 10), 4, -120))
    write_volume(both, tmp_path / "b.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "b.nii.gz")), str(folder / "b.nrrd"))
    write_volume(scan(((2, 2, 2), 1, 41)), folder / "c.nii.gz")
    return [
        ScanToLabel("a", folder / "a_0000.nii.gz", "CT", patient="p", region="neck", absent=("larynx", "femur")),
        ScanToLabel("b", folder / "b.nrrd", "CT"),
        ScanToLabel("c", folder / "c.nii.gz", "CT"),
    ]


def made(out, scans, model, **settings):
    assert label_scans(out, scans, model, PseudoRules(mirror=False), **settings) == []
    return finish_dataset(out, scans, PLAN)


def test_a_dataset_of_pseudo_labels(tmp_path, scans, model):
    root = tmp_path / "raw"
    root.mkdir()
    other = {"dataset": "Dataset001_Other", "case": "x", "annotated": []}
    (root / "manifest.jsonl").write_text(json.dumps(other) + "\n")
    out = root / "Dataset900_Pseudo"
    done = made(out, scans, model)
    assert (done.cases, done.left_out, done.annotated) == (2, ("c",), {"tumour": 2, "larynx": 2})
    assert find_faults(out) == []
    first, a, b = [json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines()]
    assert first == other
    assert a == {
        "dataset": "Dataset900_Pseudo",
        "case": "a",
        "modality": "CT",
        "patient": "p",
        "region": "neck",
        "annotated": ["tumour", "larynx"],  # drawn; known to be out of view
        "pseudo": {"model": "hand@abc", "classes": ["tumour"], "stability": {}},
    }
    assert b["annotated"] == ["tumour", "larynx"]
    cases = list_cases(root, "Dataset900_Pseudo")
    assert [(case.case, case.pseudo, case.patient, case.unsure) for case in cases] == [
        ("a", True, "p", {3: ()}),
        ("b", True, "b", {3: ()}),
    ]
    (root / "manifest.jsonl").unlink()  # dataset.json alone tells the same
    again = list_cases(root, "Dataset900_Pseudo")
    assert [(case.annotated, case.pseudo) for case in again] == [(case.annotated, True) for case in cases]
    code_of, table = encoding(cases[0], DatasetEntry("x"), PLAN)
    assert table[code_of[3]].all()  # an ignored voxel may be anything
    assert (out / "imagesTr" / "a_0000.nii.gz").resolve() == scans[0].image
    np.testing.assert_array_equal(
        nib.load(out / "imagesTr" / "b_0000.nii.gz").get_fdata(),
        sitk.GetArrayFromImage(sitk.ReadImage(scans[1].image)).T,
    )
    assert read_mask(out / "labelsTr" / "b.nii.gz").array[11, 11, 11] == 2
    assert list(generate(root, ["Dataset900_Pseudo"])) == []  # nothing is measured on it


def test_what_people_drew_stays_by_hand():
    """Values 1 tumour, 2 larynx, 3 ignore of the model against 1 tumour, 5 liver, 6 not annotated, 7 one of both."""
    mask = Mask(
        np.array([0, 1, 2, 3, 0, 1, 2, 3, 2, 1, 2], np.uint8).reshape(11, 1, 1),
        Grid((11, 1, 1), GRID.affine),
        pseudo_labels(PLAN),
    )
    drawn = np.array([0, 0, 0, 0, 1, 1, 1, 1, 5, 6, 7], np.uint8).reshape(11, 1, 1)
    # of the case 1 is tumour, 5 no class of the plan, 7 either; it leaves the larynx open
    table = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1]], dtype=bool)
    found = fill(mask, drawn, {1: 1, 5: 0, 7: 4}, table)
    assert found.array.flatten().tolist() == [0, 0, 2, 3, 1, 1, 1, 1, 0, 3, 3]
    assert mask.array.flatten().tolist()[:3] == [0, 1, 2]  # not changed in place


@pytest.fixture
def partly(tmp_path):
    """A dataset of two cases: in one people drew the tumour, where the model sees larynx too, in the other both."""
    folder = tmp_path / "raw" / "Dataset007_Partly"
    ids = np.zeros(GRID.shape, np.uint8)
    ids[2:5, 2:5, 2:5] = 1  # less than the model sees,
    ids[10:12, 10:12, 10:12] = 1  # and where it sees larynx
    rows = []
    for case, annotated in (("some", ["tumour"]), ("all", ["tumour", "larynx"])):
        volume = scan(((2, 2, 2), 4, 200), ((10, 10, 10), 4, -120))
        write_volume(volume, folder / "imagesTr" / f"{case}_0000.nii.gz")
        write_mask(Mask(ids, GRID), folder / "labelsTr" / f"{case}.nii.gz")
        rows.append({"dataset": folder.name, "case": case, "patient": f"p_{case}", "annotated": annotated})
    labels = {"labels": {"background": 0, "tumour": 1, "larynx": 2}, "channel_names": {"0": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(labels))
    (tmp_path / "raw" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_model_fills_what_people_left_open(tmp_path, partly, model):
    entry = DatasetEntry(partly.name)
    some, every = sorted(
        (ScanToLabel.of(files, entry) for files in list_cases(partly.parent, partly.name)),
        key=lambda s: s.case == "all",
    )
    assert (some.left_open(PLAN), every.left_open(PLAN)) == (("larynx",), ())
    out = tmp_path / "raw" / "Dataset900_Pseudo"
    made(out, [some, every], model)
    rows = [json.loads(line) for line in (tmp_path / "raw" / "manifest.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row["dataset"] == out.name]  # of the other one nothing is left to fill
    assert (row["case"], row["patient"], row["annotated"]) == ("some", "p_some", ["larynx", "tumour"])
    assert row["pseudo"]["classes"] == ["larynx"]
    own = read_mask(partly / "labelsTr" / "some.nii.gz").array
    array = read_mask(out / "labelsTr" / "some.nii.gz").array
    assert (array[own > 0] == own[own > 0]).all()  # also where the model says larynx
    assert not (array[own == 0] == 1).any()  # what people did not call tumour is none, whatever the model says
    assert (array == 2).sum() == 4**3 - 2**3
    (case,) = list_cases(out.parent, out.name)
    assert case.pseudo and not case.real and case.patient == "p_some"

    outside = ScanToLabel.of(some.files, DatasetEntry(partly.name, lesion_free_outside="targetsTr", absent=("larynx",)))
    assert outside.left_open(PLAN) == ()
    bare = ScanToLabel.of(replace(some.files, mask=None), DatasetEntry(partly.name, absent=("larynx",)))
    assert bare.left_open(PLAN) == ("tumour",)


def test_labelling_goes_on_where_it_was_interrupted(tmp_path, scans, model, monkeypatch):
    out = tmp_path / "raw" / "Dataset900_Pseudo"
    drawn = []

    def counted(network, plan, volume, *rest):
        drawn.append(volume.source)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(network, plan, volume, *rest)

    monkeypatch.setattr("seg_backbone.pseudo_dataset.draw", counted)
    with pytest.raises(KeyboardInterrupt):
        made(out, scans, model)
    with pytest.raises(ConfigError, match="nnU-Net raw dataset"):  # what is half done is no dataset
        list_cases(out.parent, out.name)
    done = made(out, scans, model)
    assert [path.rpartition("/")[2] for path in drawn] == ["a_0000.nii.gz", "b.nrrd", "b.nrrd", "c.nii.gz"]
    whole = made(tmp_path / "whole" / "Dataset900_Pseudo", scans, model)
    assert done == whole
    for name in ("dataset.json", "labelsTr/a.nii.gz", "labelsTr/b.nii.gz", "../manifest.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / "Dataset900_Pseudo" / name).read_bytes(), name
    label_scans(out, scans, model, PseudoRules(mirror=False))
    assert len(drawn) == 7  # four before, three of the whole one


def test_the_round_before_drops_what_is_unstable(tmp_path, scans, model):
    first = tmp_path / "raw" / "Dataset901_First"
    made(first, scans, model)
    before = read_mask(first / "pseudo" / "a.nii.gz")
    before.array[3:] = 0  # a fourth of the tumour's slices is left
    write_mask(before, first / "pseudo" / "a.nii.gz")
    second = made(tmp_path / "raw" / "Dataset902_Second", scans, model, previous=first)
    assert second.left_out == ("a", "c")
    rows = [json.loads(line) for line in (tmp_path / "raw" / "manifest.jsonl").read_text().splitlines()]
    assert [row["case"] for row in rows if row["dataset"] == "Dataset902_Second"] == ["b"]
    assert rows[-1]["pseudo"]["stability"] == {"tumour": 1.0, "larynx": 1.0}


def test_two_channels_are_placed_side_by_side(tmp_path, monkeypatch):
    plan = PLAN.with_(channels=(Channel("T1", "none"), Channel("T2", "none")), trained_on={"MR": ("tumour",)})

    class Bright(Brightness):
        def forward(self, image):
            return super().forward(image / 100)

    monkeypatch.setattr("seg_backbone.pseudo_dataset.load_model", lambda name: (Bright(), plan, "abc"))
    volume = scan(((2, 2, 2), 4, 200))
    for channel in ("0000", "0001"):
        write_volume(replace(volume, array=np.maximum(volume.array - 40, 0)), tmp_path / f"m_{channel}.nii.gz")
    out = tmp_path / "raw" / "Dataset903_Two"
    scans = [ScanToLabel("m", tmp_path / "m_0000.nii.gz", "MR")]
    label_scans(out, scans, "two", PseudoRules(mirror=False))
    finish_dataset(out, scans, plan, copy=True)
    assert sorted(path.name for path in (out / "imagesTr").iterdir()) == ["m_0000.nii.gz", "m_0001.nii.gz"]
    assert not any(path.is_symlink() for path in (out / "imagesTr").iterdir())
    assert json.loads((out / "dataset.json").read_text())["channel_names"] == {"0": "T1", "1": "T2"}
    assert [fault for fault in find_faults(out) if "single case" not in fault] == []


def test_bad_folders_rules_and_scans(tmp_path, scans, model, monkeypatch):
    out = tmp_path / "raw" / "Dataset900_Pseudo"
    with pytest.raises(ConfigError, match=r"minimum_ml: expected classes of the model: .* found \['liver'\]"):
        label_scans(out, scans, model, PseudoRules(minimum_ml={"liver": 1.0}))
    drawn_by_people = tmp_path / "people"
    (drawn_by_people / "labelsTr").mkdir(parents=True)
    with pytest.raises(ConfigError, match="a folder of pseudo-labels"):
        label_scans(drawn_by_people, scans, model, PseudoRules())
    with pytest.raises(ConfigError, match="a folder of pseudo-labels"):
        label_scans(out, scans, model, PseudoRules(), previous=drawn_by_people)
    made(out, scans, model)
    with pytest.raises(ConfigError, match="labels by this model and these rules, found others"):
        label_scans(out, scans, model, PseudoRules(certain=0.8))
    with pytest.raises(ConfigError, match="annotates|certain of"):
        label_scans(tmp_path / "none", scans[2:], model, PseudoRules(mirror=False))
        finish_dataset(tmp_path / "none", scans[2:], PLAN)
    shutil.rmtree(out)
    scans[1].image.write_bytes(b"no scan")
    (fault,) = label_scans(out, scans, model, PseudoRules(mirror=False))
    assert "b.nrrd" in fault
    assert finish_dataset(out, scans, PLAN).left_out == ("b", "c")  # the others are done
    painted = PLAN.with_(painted=(1, 2))
    monkeypatch.setattr("seg_backbone.pseudo_dataset.load_model", lambda name: (Brightness(), painted, "abc"))
    with pytest.raises(ConfigError, match="classes do not overlap"):
        label_scans(out, scans, model, PseudoRules())


@pytest.mark.parametrize(
    "bad", [{"certain": 1.0}, {"certain": 0.0}, {"stable": -0.1}, {"minimum_ml": {"tumour": -1.0}}], ids=str
)
def test_impossible_rules(bad):
    with pytest.raises(AssertionError):
        PseudoRules(**bad)
