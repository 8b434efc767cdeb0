"""FLARE26's joint task by the command line alone: configure, train, segment a folder, score results.csv."""

import csv
import json
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from seg_backbone.geometry import Grid
from seg_backbone.io import read_mask, write_mask, write_volume
from seg_backbone.volume import Mask, Volume
from vlm.cli import app, main

GRID = Grid((12, 11, 12), np.diag([-4.0, -4.0, 5.0, 1.0]))
pytestmark = pytest.mark.usefixtures("one_thread")


def dataset(root, cases=8):
    """Bright tumours, the large ones malignant; of one training case the class is not known."""
    folder, random = root / "Dataset026_T", np.random.default_rng(0)
    lines = ["identifier,label"]
    for number in range(cases):
        size = 3 + 3 * (number % 2)
        ids = np.zeros(GRID.shape, np.uint8)
        x, y, z = random.integers(1, 4, 3)
        ids[x : x + size, y : y + size, z : z + size] = 1
        array = random.normal(0, 20, GRID.shape) + 150 * ids
        write_volume(Volume(array.astype(np.int16), GRID, "CT"), folder / "imagesTr" / f"p_{number}_0000.nii.gz")
        write_mask(Mask(ids, GRID), folder / "labelsTr" / f"p_{number}.nii.gz")
        lines.append(f"p_{number},{'' if number == 1 else number % 2}")
    description = {"labels": {"background": 0, "lesion": 1}, "channel_names": {"0": "CT"}, "numTraining": cases}
    description["classification_labels"] = {"malignancy": {"0": "benign", "1": "malignant"}}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "cls_data.csv").write_text("\n".join(lines) + "\n")
    names = [f"p_{number}" for number in range(cases)]
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[:-2], "val": names[-2:]}]))
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(monkeypatch, capsys, *arguments):
    """The line on stderr of a command that ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["vlm", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    return line


def test_configure_train_segment_evaluate(tmp_path):
    folder, plan, run_folder, out = (
        dataset(tmp_path / "raw"),
        tmp_path / "plan.json",
        tmp_path / "run",
        tmp_path / "out",
    )
    run("data", "check", folder)
    assert "scan      malignancy: benign, malignant" in run("configure", folder, "-o", plan)
    written = json.loads(plan.read_text())
    assert written["plan"]["heads"]["tasks"] == {
        "malignancy": {"classes": ["benign", "malignant"], "pooling": ["lesion", "volume"]}
    }
    assert written["plan"]["heads"]["lesions"] == written["plan"]["classes"] == ["tumour"]
    assert "split" not in written and not (tmp_path / "plan.split.json").exists()  # the dataset has its own
    run("train", "segmentation", "--config", plan, "-o", run_folder, "--steps", "3")
    (row,) = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    assert row["class malignancy"] > 0
    assert set(row["validation_classes"]["malignancy"]) == {"accuracy", "balanced_accuracy"}

    report = tmp_path / "report.json"
    run(
        "segment",
        folder / "imagesTr",
        "-o",
        out,
        "--model",
        run_folder / "model",
        "--modality",
        "CT",
        "--report",
        report,
    )
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["identifier"] for row in rows] == [f"p_{number}" for number in range(8)]
    assert all(0 <= float(row["probs"]) <= 1 for row in rows)
    assert all(read_mask(out / f"p_{number}.nii.gz").grid.same_as(GRID) for number in range(8))
    told = json.loads(report.read_text())[0]["scan_classes"]["malignancy"]
    assert told["malignant"] == pytest.approx(float(rows[0]["probs"]), abs=1e-6)
    text = run(
        "evaluate", "classification", out / "results.csv", "--reference", folder / "cls_data.csv", "-o", tmp_path / "s"
    )
    assert "malignancy, 7 cases" in text
    scores = json.loads((tmp_path / "s" / "metrics.json").read_text())["tasks"]["malignancy"]
    assert {"balanced_accuracy", "macro_f1", "auroc", "auprc", "sensitivity", "specificity", "f1"} <= set(scores)


def test_a_model_without_heads_writes_no_results(tmp_path):
    folder, plan = dataset(tmp_path / "raw", cases=3), tmp_path / "plan.json"
    description = json.loads((folder / "dataset.json").read_text())
    del description["classification_labels"]
    (folder / "dataset.json").write_text(json.dumps(description))
    run("configure", folder, "-o", plan)
    assert json.loads(plan.read_text())["plan"]["heads"] is None
    run("train", "segmentation", "--config", plan, "-o", tmp_path / "run", "--steps", "1")
    scan = folder / "imagesTr" / "p_0_0000.nii.gz"
    run("segment", scan, "-o", tmp_path / "out", "--model", tmp_path / "run" / "model")
    assert not (tmp_path / "out" / "results.csv").exists()
    assert not (tmp_path / "run" / "model" / "heads.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cls_data.csv: expected a csv of scan classes, one case a line, found no such file; check the path"),
        ("case,label\np_0,0\n", "cls_data.csv: expected a column `identifier`, found the columns case, label"),
        ("identifier,label\np_0,2\n", "expected a class of malignancy in line 2 (0 benign, 1 malignant), found '2'"),
        ("identifier,label\nother_0,1\n", "expected cases of imagesTr with a class of malignancy, found none"),
    ],
)
def test_classes_that_do_not_fit_are_one_line(tmp_path, monkeypatch, capsys, text, words):
    folder = dataset(tmp_path / "raw", cases=3)
    plan = tmp_path / "plan.json"
    (folder / "cls_data.csv").unlink()
    if text is not None:
        (folder / "cls_data.csv").write_text(text)
    line = refused(monkeypatch, capsys, "configure", folder, "-o", plan)
    assert line.startswith(f"error: {folder.resolve()}") and words in line
    assert not plan.exists()
    faults = CliRunner().invoke(app, ["data", "check", str(folder)])
    assert faults.exit_code != 0
    assert "cls_data.csv" in faults.output


def test_training_refuses_a_csv_that_changed(tmp_path, monkeypatch, capsys):
    folder, plan = dataset(tmp_path / "raw", cases=3), tmp_path / "plan.json"
    run("configure", folder, "-o", plan)
    (folder / "cls_data.csv").write_text("identifier,label\np_0,maybe\n")
    line = refused(monkeypatch, capsys, "train", "segmentation", "--config", plan, "-o", tmp_path / "run")
    assert "cls_data.csv: expected a class of malignancy in line 2" in line and "'maybe'" in line
