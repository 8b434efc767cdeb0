"""Each fault of a dataset is one line that names its file, and a sound dataset has none."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.volume import Mask, Volume
from vlm.cli import app as vlm_app
from vlm.cli.data import app
from vlm.data.check import find_cheap_faults, find_faults

GRID = Grid((6, 7, 8), np.diag([-2.0, -2.0, 3.0, 1.0]))
MOVED = Grid((6, 7, 8), np.diag([-2.0, -2.0, 4.0, 1.0]))
CASES = ("a", "b", "c")


def scan(folder, case, channel=0, grid=GRID):
    array = np.random.default_rng([channel, *case.encode()]).integers(-900, 900, grid.shape).astype(np.int16)
    write_volume(Volume(array, grid, "CT"), folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz")


def mask(folder, case, value=1, grid=GRID):
    ids = np.zeros(grid.shape, np.uint8)
    ids[2:4, 2:4, 2:4] = value
    write_mask(Mask(ids, grid), folder / "labelsTr" / f"{case}.nii.gz")


def describe(folder, **changes):
    base = {"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "CT", "1": "PET"}, "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps(base | changes))


@pytest.fixture
def folder(tmp_path):
    """Three cases of two channels, without a fault."""
    folder = tmp_path / "Dataset001_T"
    for case in CASES:
        scan(folder, case)
        scan(folder, case, 1)
        mask(folder, case)
    describe(folder)
    return folder


def broken(folder, name, value):
    """One voxel of a file becomes `value`."""
    array = np.random.default_rng(9).integers(0, 2, GRID.shape).astype(np.float32)
    array[1, 1, 1] = value
    write_volume(Volume(array, GRID, "CT"), folder / name)


def twice(folder, case, other):
    for channel in ("0000", "0001"):
        shutil.copy(folder / "imagesTr" / f"{case}_{channel}.nii.gz", folder / "imagesTr" / f"{other}_{channel}.nii.gz")


def folds(folder, train, held):
    (folder / "splits_final.json").write_text(json.dumps([{"train": train, "val": held}]))


def remove(folder, name):
    (folder / name).unlink()


def instead(folder, name, make):
    remove(folder, name)
    make(folder / name)


def manifest(folder, **row):
    row = {"dataset": folder.name, "case": "b"} | row
    (folder.parent / "manifest.jsonl").write_text(json.dumps(row) + "\n")


def classified(folder, table, **changes):
    tasks = {"grade": {"0": "low", "1": "high"}}
    describe(folder, classification_labels=tasks, **changes)
    (folder / "cls_data.csv").write_text(table)


FAULTS = {
    "missing mask": (lambda f: remove(f, "labelsTr/b.nii.gz"), "b_0000.nii.gz", "no mask"),
    "mask without scan": (lambda f: mask(f, "x"), "x.nii.gz", "without a scan"),
    "missing second channel": (lambda f: remove(f, "imagesTr/c_0001.nii.gz"), "c_0001.nii.gz", "missing"),
    "one channel too many": (lambda f: scan(f, "a", 2), "a_0002.nii.gz", "does not name"),
    "mask on another grid": (lambda f: mask(f, "a", grid=MOVED), "a.nii.gz", "the grid of"),
    "channel on another grid": (lambda f: scan(f, "a", 1, MOVED), "a_0001.nii.gz", "the grid of"),
    "value without a name": (lambda f: mask(f, "b", 7), "b.nii.gz", "[7]"),
    "empty mask": (lambda f: mask(f, "b", 0), "b.nii.gz", "empty"),
    "unreadable scan": (lambda f: (f / "imagesTr/b_0000.nii.gz").write_bytes(b"x" * 40), "b_0000.nii.gz", "not one"),
    "unreadable mask": (lambda f: (f / "labelsTr/b.nii.gz").write_bytes(b"x" * 40), "b.nii.gz", "not one"),
    "truncated channel": (
        lambda f: (f / "imagesTr/a_0001.nii.gz").write_bytes((f / "imagesTr/a_0001.nii.gz").read_bytes()[:-90]),
        "a_0001.nii.gz",
        "expected a NIfTI",
    ),
    "foreign file": (lambda f: (f / "imagesTr/notes.txt").write_text("x"), "notes.txt", "not read"),
    "wrong number": (lambda f: describe(f, numTraining=4), "dataset.json", "numTraining is 4"),
    "class nobody drew": (lambda f: describe(f, labels={"tumour": 1, "larynx": 2}), "labelsTr", "no mask shows larynx"),
    "no dataset.json": (lambda f: remove(f, "dataset.json"), "dataset.json", "no such file"),
    "broken dataset.json": (lambda f: (f / "dataset.json").write_text("{"), "dataset.json", "channel_names"),
    "NaN": (lambda f: broken(f, "imagesTr/b_0000.nii.gz", np.nan), "b_0000.nii.gz", "finite"),
    "labels that are not whole": (lambda f: broken(f, "labelsTr/b.nii.gz", 0.5), "b.nii.gz", "whole numbers"),
    "negative labels": (lambda f: broken(f, "labelsTr/b.nii.gz", -1), "b.nii.gz", "whole numbers"),
    "the same scan twice": (lambda f: twice(f, "a", "c"), "c_0000.nii.gz", "the same voxels as a_0000.nii.gz"),
    "a case of the manifest that is not there": (
        lambda f: (f.parent / "manifest.jsonl").write_text('{"dataset": "Dataset001_T", "case": "x"}'),
        "manifest.jsonl",
        "line 1 names x",
    ),
    "a case of a fold that is not there": (lambda f: folds(f, ["a", "x"], ["b"]), "splits_final.json", "names x"),
    "a case on both sides": (lambda f: folds(f, ["a", "b"], ["b"]), "splits_final.json", "both trains and validates b"),
    "broken folds": (lambda f: (f / "splits_final.json").write_text('{"a": 1}'), "splits_final.json", "not a list"),
    "labels that are no numbers": (lambda f: describe(f, labels={"tumour": "one"}), "dataset.json", "name -> id"),
    "a folder for a scan": (
        lambda f: instead(f, "imagesTr/b_0000.nii.gz", lambda path: path.mkdir()),
        "b_0000.nii.gz",
        "expected",
    ),
    "a link to nowhere": (
        lambda f: instead(f, "imagesTr/b_0000.nii.gz", lambda path: path.symlink_to("/nowhere")),
        "b_0000.nii.gz",
        "no such file",
    ),
    "a channel that leads nowhere": (
        lambda f: instead(f, "imagesTr/b_0001.nii.gz", lambda path: path.symlink_to("/nowhere")),
        "b_0001.nii.gz",
        "no such file",
    ),
    "annotated class without a name": (lambda f: manifest(f, annotated=["liver"]), "b_0000.nii.gz", "annotated liver"),
    "annotated case that is not there": (
        lambda f: describe(f, annotated={name: ["tumour"] for name in "abcx"}),
        "dataset.json",
        "`annotated` names x",
    ),
    "annotated that is no list": (lambda f: manifest(f, annotated="tumour"), "manifest.jsonl", "line 1"),
    "a modality that is none": (lambda f: manifest(f, modality="ultrasound"), "manifest.jsonl", "neither CT nor MR"),
    "broken manifest": (lambda f: (f.parent / "manifest.jsonl").write_text("{\n"), "manifest.jsonl", "line 1"),
    "a class of two names": (lambda f: describe(f, labels={"tumour": 1, "larynx": 1}), "dataset.json", "one class"),
    "a label that is a fraction": (lambda f: describe(f, labels={"tumour": 1, "b": 2.5}), "dataset.json", "2.5"),
    "a label below 0": (lambda f: describe(f, labels={"tumour": 1, "b": -1}), "dataset.json", "-1"),
    "regions without their order": (
        lambda f: (describe(f, labels={"whole": [1, 2], "core": 2}), mask(f, "b", 2)),
        "dataset.json",
        "regions_class_order is None, not a list of 2",
    ),
    "no folds": (lambda f: (f / "splits_final.json").write_text("[]"), "splits_final.json", "no list of folds"),
    "folds of text": (lambda f: folds(f, "a", "b"), "splits_final.json", "not a list"),
    "nobody to validate on": (lambda f: folds(f, ["a"], []), "splits_final.json", "nobody under `val`"),
    "a class that no scan has": (
        lambda f: classified(f, "identifier,grade\na,0\nb,low\n"),
        "cls_data.csv",
        "no scan is high (grade)",
    ),
    "classes that are not used": (
        lambda f: (f / "cls_data.csv").write_text("identifier\n"),
        "cls_data.csv",
        "not used",
    ),
    "numTraining that is text": (lambda f: describe(f, numTraining="three"), "dataset.json", "numTraining"),
    "channels as a list": (lambda f: describe(f, channel_names=["CT", "PET"]), "dataset.json", "channel_names"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_a_line_that_names_the_file(folder, name):
    assert find_faults(folder) == []
    do, file, words = FAULTS[name]
    do(folder)
    faults = find_faults(folder)
    assert any(file in fault and words in fault for fault in faults), faults
    if name != "no dataset.json":  # without it no label value has a name
        assert len(faults) == 1, faults
    assert not any("\n" in fault for fault in faults)


def test_all_faults_of_a_case_are_listed(folder):
    scan(folder, "a", 1, MOVED)
    mask(folder, "a", 0)
    remove(folder, "imagesTr/b_0000.nii.gz")
    faults = find_faults(folder)
    assert len(faults) == 3
    for file in ("b_0000.nii.gz: missing", "a_0001.nii.gz", "a.nii.gz: an empty mask"):
        assert any(file in fault for fault in faults), faults


def test_all_faulty_lines_of_a_table_are_listed(folder):
    classified(folder, "identifier,grade\na,0\nb,7\nc,medium\na,1\nx,1\n")
    faults = find_faults(folder)
    assert ["line 3" in faults[0], "line 4" in faults[1], "line 5" in faults[2]] == [True] * 3
    assert faults[3:] == [
        f"{folder / 'cls_data.csv'}: names x, of which there is no scan in imagesTr or imagesTs",
        f"{folder / 'cls_data.csv'}: no scan is high (grade)",
    ]
    (folder.parent / "manifest.jsonl").write_text('{\n\n[1]\n{"dataset": "Dataset001_T"}\n')
    lines = [fault for fault in find_faults(folder) if "manifest.jsonl" in fault]
    assert [fault.split(": ")[1].split(" is")[0] for fault in lines] == ["line 1", "line 3", "line 4"]


def test_a_single_case_cannot_be_validated(tmp_path):
    folder = tmp_path / "Dataset001_T"
    scan(folder, "a")
    mask(folder, "a")
    describe(folder, channel_names={"0": "CT"}, numTraining=1)
    assert find_faults(folder) == [f"{folder / 'imagesTr'}: a single case, nothing is left to validate on"]


def test_the_command_prints_them_and_leaves_with_2(folder):
    assert CliRunner().invoke(app, ["check", str(folder)]).exit_code == 0
    mask(folder, "b", 7)
    result = CliRunner().invoke(app, ["check", str(folder)])
    assert result.exit_code == 2
    assert (
        result.stdout.strip() == f"{folder / 'labelsTr' / 'b.nii.gz'}: label values [7] that dataset.json does not name"
    )


CHEAP = {
    "numTraining that is text",
    "missing mask",
    "mask without scan",
    "a folder for a scan",
    "a link to nowhere",
    "a channel that leads nowhere",
    "annotated class without a name",
    "annotated case that is not there",
    "broken manifest",
    "a class of two names",
    "a label that is a fraction",
    "a label below 0",
    "a case of a fold that is not there",
    "a case on both sides",
    "broken folds",
    "no folds",
    "folds of text",
    "nobody to validate on",
    "missing second channel",
    "one channel too many",
    "mask on another grid",
    "channel on another grid",
    "unreadable scan",
    "unreadable mask",
    "truncated channel",  # to less than a header
    "broken dataset.json",
    "channels as a list",
    "labels that are no numbers",
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_training_looks_at_first(folder, name):
    assert find_cheap_faults(folder) == []
    do, file, words = FAULTS[name]
    do(folder)
    faults = find_cheap_faults(folder)
    assert bool(faults) == (name in CHEAP)
    assert all(file in fault and words in fault for fault in faults), faults


def test_training_refuses_before_it_reads(folder, tmp_path):
    settings = {"name": "t", "classes": ["tumour"]}
    datasets = [{"name": folder.name}]
    config = {"data": str(folder.parent), "output": str(tmp_path / "run"), "plan": settings, "datasets": datasets}
    (tmp_path / "c.json").write_text(json.dumps(config))
    remove(folder, "imagesTr/c_0001.nii.gz")
    mask(folder, "a", grid=MOVED)
    result = CliRunner().invoke(vlm_app, ["train", "segmentation", "--config", str(tmp_path / "c.json")])
    assert result.exit_code == 2
    assert "c_0001.nii.gz: missing" in result.stderr
    assert "a.nii.gz: expected the grid of" in result.stderr
    assert not (tmp_path / "run").exists()


def test_other_file_endings(folder):
    for file in [*folder.glob("*Tr/*")]:
        image = sitk.ReadImage(str(file))
        sitk.WriteImage(image, str(file.with_name(file.name.replace(".nii.gz", ".mha"))))
        file.unlink()
    describe(folder, file_ending=".mha")
    assert find_faults(folder) == find_cheap_faults(folder) == []
    scan(folder, "a")
    (folder / "labelsTr" / "b.mha").unlink()
    faults = find_faults(folder)
    assert len(faults) == 2
    assert "a_0000.nii.gz: not read, scans are named CASE_0000.mha" in faults[0]
    assert "b_0000.mha: no mask" in faults[1]
    describe(folder, file_ending=".png")
    (fault,) = find_faults(folder)
    assert "a `file_ending` among" in fault
    with pytest.raises(ConfigError, match="nnU-Net raw dataset"):
        find_faults(folder / "imagesTr")


def test_unlabelled_scans_and_ignore_labels_are_no_faults(folder):
    describe(folder, labels={"background": 0, "tumour": 1, "ignore": 2})
    mask(folder, "b", 2)
    assert find_faults(folder) == []
    remove(folder, "labelsTr/b.nii.gz")
    assert [fault.split(":")[0] for fault in find_faults(folder)] == [str(folder / "imagesTr" / "b_0000.nii.gz")]
    row = {"dataset": folder.name, "case": "b", "annotated": []}
    (folder.parent / "manifest.jsonl").write_text(json.dumps(row))
    assert find_faults(folder) == []
    shutil.rmtree(folder / "labelsTr")
    (fault,) = find_faults(folder)
    assert fault.startswith(f"{folder / 'labelsTr'}: no masks")
    assert find_cheap_faults(folder) == []  # beside a dataset with masks it may be what is wanted
    describe(folder, annotated=[])
    assert find_faults(folder) == []
