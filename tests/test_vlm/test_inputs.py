"""Every command takes every format: the same phantom gives the same masks and answers, whatever file it came in."""

import json
import shutil
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicoms import write_rtstruct, write_series
from phantoms import LABELS, phantom, tiny_models

from seg_backbone.io import read_mask, write_mask, write_volume
from vlm.cli import main

FORMATS = ["scan.nii.gz", "scan.nrrd", "scan.mha", "scan.mhd", "scan", "scan.zip"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, llm_folder):
    return tiny_models(tmp_path_factory.mktemp("models"), llm_folder)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The phantom in every format, one folder a format, and its mask in two, with the labels."""
    folder = tmp_path_factory.mktemp("scans")
    volume, mask = phantom()
    write_volume(volume, folder / "nii" / "scan.nii.gz")
    write_series(folder / "dicom" / "scan", volume)
    (folder / "zip").mkdir()
    shutil.make_archive(str(folder / "zip" / "scan"), "zip", folder / "dicom", "scan")
    for suffix in ("nrrd", "mha", "mhd"):
        (folder / suffix).mkdir()
        sitk.WriteImage(sitk.ReadImage(str(folder / "nii" / "scan.nii.gz")), str(folder / suffix / f"scan.{suffix}"))
    write_mask(mask, folder / "masks" / "scan.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(folder / "masks" / "scan.nii.gz")), str(folder / "scan.seg.nrrd"))
    (folder / "labels.json").write_text(json.dumps(LABELS))
    return folder


def at(scans, name):
    suffix = name.removeprefix("scan").removeprefix(".").removesuffix(".gz")
    return scans / (suffix or "dicom") / name


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command; returns exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vlm", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as left:
            code = left.code or 0
        return code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def expected(models, scans):
    """The mask that the model draws on the NIfTI."""
    from seg_backbone.predict import Segmenter

    return Segmenter.load(models.parent / "segmentation", "cpu")(at(scans, "scan.nii.gz")).mask


@pytest.mark.parametrize("name", ["scan.nrrd", "scan.mhd", "scan", "scan.zip"])
def test_segment(run, models, scans, expected, tmp_path, name):
    options = ["--model", models.parent / "segmentation", "--device", "cpu"]
    code, _, stderr = run("segment", at(scans, name), "-o", tmp_path, *options)
    assert (code, stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.json", "scan.nii.gz"]
    mask = read_mask(tmp_path / "scan.nii.gz")
    assert mask.array.any(), "this test needs a mask with something in it"
    np.testing.assert_array_equal(mask.array, expected.array)
    np.testing.assert_allclose(mask.grid.affine, expected.grid.affine, atol=1e-4)


def test_segment_a_folder_of_formats_with_dicom_seg(run, models, scans, expected, tmp_path):
    for name in ("scan.nrrd", "scan.mhd"):
        shutil.copytree(at(scans, name).parent, tmp_path / "in", dirs_exist_ok=True)
    (tmp_path / "in" / "scan.nrrd").rename(tmp_path / "in" / "other.nrrd")
    shutil.copytree(at(scans, "scan"), tmp_path / "in" / "patient" / "DICOM")
    (tmp_path / "in" / "notes.txt").touch()
    options = ["--model", models.parent / "segmentation", "--device", "cpu", "--fast"]
    code, _, stderr = run("segment", tmp_path / "in", "-o", tmp_path / "out", *options)
    assert (code, stderr) == (0, f"note: {tmp_path / 'in'}: not scans, left out: notes.txt\n")
    written = ["labels.json", "other.nii.gz", "patient.nii.gz", "scan.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written

    code, _, stderr = run("segment", tmp_path / "in", "-o", tmp_path / "seg", *options, "--dicom-seg")
    assert code == 1
    assert stderr.count("expected a DICOM scan for a DICOM-SEG") == 2 and stderr.count("\n") == 3
    written = ["labels.json", "patient.nii.gz", "patient.seg.dcm"]
    assert sorted(path.name for path in (tmp_path / "seg").iterdir()) == written
    import highdicom as hd

    segmentation = hd.seg.segread(tmp_path / "seg" / "patient.seg.dcm")
    present = np.unique(nib.load(tmp_path / "seg" / "patient.nii.gz").dataobj)
    assert segmentation.number_of_segments == np.count_nonzero(present)


def test_dicom_seg_of_a_nifti_is_a_mistake(run, models, scans, tmp_path):
    options = ["-o", tmp_path / "out", "--model", models.parent / "segmentation", "--dicom-seg"]
    code, _, stderr = run("segment", at(scans, "scan.nii.gz"), *options)
    assert code == 2 and "leave out --dicom-seg" in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_info(run, models, scans):
    facts = {}
    for name in FORMATS:
        code, stdout, _ = run("info", at(scans, name), "--model", models.parent / "segmentation", "--json")
        assert code == 0
        facts[name] = json.loads(stdout)
        assert facts[name].pop("scan") == str(at(scans, name))
        assert facts[name].pop("modality_from") == ("header" if name in ("scan", "scan.zip") else "guessed")
    assert all(one == facts["scan.nii.gz"] for one in facts.values())


def test_ask_with_a_mask_in_another_format(run, models, scans):
    options = ["--labels", scans / "labels.json", "--model", models, "--device", "cpu", "--type", "counting", "--json"]
    answers = []
    for scan, mask in (("scan.nii.gz", "masks/scan.nii.gz"), ("scan", "scan.seg.nrrd")):
        code, stdout, _ = run("ask", at(scans, scan), "How many tumours?", "--mask", scans / mask, *options)
        assert code == 0
        answers.append(json.loads(stdout))
    for key in ("value", "text", "boxes"):
        assert answers[0][key] == answers[1][key]


def test_ask_with_a_structure_set(run, models, scans, tmp_path):
    grid = phantom()[1].grid
    edges = np.array([(5.5, 5.5), (13.5, 5.5), (13.5, 13.5), (5.5, 13.5)])  # the largest tumour: voxels 6 to 13
    cube = [grid.voxel_to_world(np.column_stack([edges, np.full(4, k)])) for k in range(4, 12)]
    write_rtstruct(tmp_path / "plan.dcm", at(scans, "scan"), {"GTV 1": cube, "BODY": cube, "PTV": cube}, {"PTV": "PTV"})
    options = ["--mask", tmp_path / "plan.dcm", "--model", models, "--device", "cpu", "--type", "detection", "--json"]
    for name in ("scan", "scan.nii.gz"):
        code, stdout, stderr = run("ask", at(scans, name), "Where is the tumour?", *options)
        assert code == 0, stderr
        (found,) = json.loads(stdout)["evidence"]
        assert found["label"] == "tumour" and found["volume_ml"] == pytest.approx(4.096)
        low, high = grid.voxel_to_world(np.array([(5.5, 5.5, 3.5), (13.5, 13.5, 11.5)]))
        np.testing.assert_allclose((found["box"]["min_mm"], found["box"]["max_mm"]), (low, high), atol=0.01)
    write_rtstruct(tmp_path / "far.dcm", at(scans, "scan"), {"GTV": [points + 500 for points in cube]})
    code, _, stderr = run(
        "ask", at(scans, "scan"), "Where is the tumour?", "--mask", tmp_path / "far.dcm", *options[2:]
    )
    assert code == 2 and "GTV outside of it" in stderr and stderr.count("\n") == 1


WHERE = "Where are the tumours and both parotids?"


def test_the_dicom_seg_of_segment_answers_as_its_nifti(run, models, scans, tmp_path):
    model = ["--model", models.parent / "segmentation", "--device", "cpu", "--dicom-seg"]
    assert run("segment", at(scans, "scan"), "-o", tmp_path, *model)[0] == 0
    options = ["--model", models, "--device", "cpu", "--type", "detection", "--json"]
    answers = []
    for mask in ("scan.seg.dcm", "scan.nii.gz"):
        labels = ["--labels", tmp_path / "labels.json"] if mask.endswith("gz") else []
        code, stdout, stderr = run("ask", at(scans, "scan"), WHERE, "--mask", tmp_path / mask, *labels, *options)
        assert code == 0, stderr
        answers.append({(item["label"], item["voxels"]) for item in json.loads(stdout)["evidence"]})
    assert answers[0] == answers[1] and answers[0]


def test_chat_opens_a_series(run, models, scans, monkeypatch):
    lines = iter([f"/open {at(scans, 'scan')}", f"/open {scans / 'none#1'}", "How many tumours?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, stdout, stderr = run("chat", at(scans, "scan.mha"), "--model", models, "--device", "cpu")
    assert code == 0 and f"opened {at(scans, 'scan')}" in stdout
    assert stderr.startswith(f"error: {scans / 'none#1'}: expected a scan") and stderr.count("\n") == 1


def test_batch(run, models, scans, tmp_path):
    images = [str(at(scans, name).relative_to(scans)) for name in ("scan.nii.gz", "scan.mha", "scan.zip")]
    rows = [{"id": image, "image": image, "question": "How many tumours?", "type": "counting"} for image in images]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "masks").mkdir()
    shutil.copy(scans / "scan.seg.nrrd", tmp_path / "masks" / "scan.nrrd")
    options = ["--scans", scans, "--masks", tmp_path / "masks", "--labels", scans / "labels.json"]
    code, _, _ = run(
        "batch", tmp_path / "q.jsonl", "-o", tmp_path / "a.jsonl", *options, "--model", models, "--device", "cpu"
    )
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert code == 0 and [answer["id"] for answer in answers] == images
    assert all(answer["unscored"] is None and answer["value"] == answers[0]["value"] for answer in answers)


def bad_input(kind, scans, folder):
    """A path that is no scan."""
    path = folder / kind
    volume = phantom()[0]
    if kind == "series.zip":
        path.write_text("no zip")
    elif kind == "text.nrrd":
        path.write_text("patient moved\nrepeat the scan\n")
    elif kind == "lonely.mhd":
        shutil.copy(at(scans, "scan.mhd"), path)
    elif kind == "slice":
        shutil.copy(next(at(scans, "scan").iterdir()), path)
    elif kind == "gap":
        write_series(path, volume, slices=[0, 1, 2, 4, 5])
    elif kind == "pet":
        write_series(path, volume, Modality="PT")
    elif kind == "two":
        write_series(path, volume, prefix="A")
        write_series(path, volume, prefix="B")
    return path


@pytest.mark.parametrize(
    "kind", ["series.zip", "text.nrrd", "lonely.mhd", "slice", "gap", "pet", "two", "none.mha", "none#1.2"]
)
def test_a_bad_input_is_one_line_and_exit_code_2(run, models, scans, tmp_path, kind):
    path = bad_input(kind, scans, tmp_path)
    segmentation = models.parent / "segmentation"
    for verb in (
        ["info", path, "--model", segmentation],
        ["segment", path, "-o", tmp_path / "out", "--model", segmentation],
        ["ask", path, "How many tumours?", "--model", models],
        ["chat", path, "--model", models],
    ):
        code, stdout, stderr = run(*verb)
        assert (code, stdout) == (2, "")
        assert stderr.startswith(f"error: {path}: expected ") and stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
