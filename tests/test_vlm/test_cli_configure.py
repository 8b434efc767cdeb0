"""From a folder to masks by the command line alone: configure, train a few steps, segment."""

import json
import sys
from itertools import chain

import numpy as np
import pytest
from typer.testing import CliRunner

from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_mask, write_mask, write_volume
from seg_backbone.train import SegmentationConfig
from seg_backbone.volume import Mask, Volume
from vlm.cli import app, main

GRID = Grid((12, 11, 12), np.diag([-4.0, -4.0, 5.0, 1.0]))
LABELS = {"background": 0, "tumour": 1, "larynx": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


def dataset(root, channels, cases=5):
    """A bright and a dark box in noise, the same in every channel."""
    folder, random = root / "Dataset001_T", np.random.default_rng(0)
    for number in range(cases):
        ids = np.zeros(GRID.shape, np.uint8)
        x, y, z = random.integers(1, 3, 3)
        ids[x : x + 4, y : y + 5, z : z + 6] = 1
        ids[7:10, 3:9, 4:10] = 2
        for channel in range(len(channels)):
            array = random.normal(0, 20, GRID.shape) + np.array([0, 150, -150])[ids]
            image = Volume(array.astype(np.int16), GRID, "CT")
            write_volume(image, folder / "imagesTr" / f"p_{number}_{channel:04d}.nii.gz")
        write_mask(Mask(ids, GRID), folder / "labelsTr" / f"p_{number}.nii.gz")
    names = {str(number): name for number, name in enumerate(channels)}
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, "channel_names": names, "numTraining": cases}))
    return folder


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_configure_train_segment(tmp_path):
    folder, plan = dataset(tmp_path / "raw", ("CT",)), tmp_path / "plan.json"
    text = run("configure", folder, "-o", plan, "--max-seconds", "600", "--max-ram-mb", "4000")
    assert "4 x 4 x 5 mm" in text
    assert "predicted    measured     at most" in text
    written = json.loads(plan.read_text())
    for part in ("predicted", "measured"):
        assert 0 < written["configured"][part]["seconds"] <= 600
        assert written["configured"][part]["window_s"] > 0
    assert set(written["configured"]["plans_of_nnunet"]) == {"plain", "resenc_m", "resenc_l", "resenc_xl"}
    parts = [fold["validation"] for fold in json.loads((tmp_path / "plan.split.json").read_text())["folds"]]
    assert sorted(chain(*parts)) == sorted(path.name[:3] for path in (folder / "labelsTr").iterdir())
    assert all(parts)
    assert written["configured"]["measured_on"] == "scan"
    assert "measured: that scan was segmented, with untrained weights" in text
    config = SegmentationConfig.read(plan)
    assert config.plan.classes == ("tumour", "larynx")
    recipe = (config.optimizer, config.schedule, config.learning_rate, config.weight_decay)
    assert recipe == ("adamw", "cosine", 1e-3, 1e-4)
    assert config.plan.network_options["deep_supervision"]
    assert 2 <= config.batch <= 8
    assert f"training  5000 steps of batch {config.batch}, adamw with the schedule cosine, deep supervision" in text

    run("train", "segmentation", "--config", plan, "-o", tmp_path / "run", "--steps", "2")
    model = tmp_path / "run" / "model"
    trained = json.loads((model / "plan.json").read_text())
    assert trained["trained_on"] == {"CT": ["tumour", "larynx"]}
    assert trained["patch"] == written["plan"]["patch"]
    scan = folder / "imagesTr" / "p_0_0000.nii.gz"
    run("segment", scan, "-o", tmp_path / "masks", "--model", model, "--modality", "CT")
    mask = read_mask(tmp_path / "masks" / "p_0.nii.gz")
    assert mask.grid.same_as(GRID)
    assert mask.array.max() <= 2


def test_the_split_of_a_dataset_is_kept(tmp_path):
    folder, plan = dataset(tmp_path / "raw", ("CT",), cases=3), tmp_path / "plan.json"
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["p_0", "p_1"], "val": ["p_2"]}]))
    run("configure", folder, "-o", plan)
    assert not (tmp_path / "plan.split.json").exists()
    assert SegmentationConfig.read(plan).split is None
    run("train", "segmentation", "--config", plan, "-o", tmp_path / "run", "--steps", "1")
    assert len(list((tmp_path / "run" / "cases").iterdir())) == 3


def test_regions_and_ignored_voxels_end_to_end(tmp_path):
    """A plain nnU-Net dataset whose labels overlap and that leaves voxels out."""
    folder, plan = dataset(tmp_path / "raw", ("CT",), cases=3), tmp_path / "plan.json"
    labels = {"background": 0, "throat": [1, 2], "larynx": [2], "ignore": 3}
    description = {"labels": labels, "regions_class_order": [1, 2], "channel_names": {"0": "CT"}, "numTraining": 3}
    (folder / "dataset.json").write_text(json.dumps(description))
    path = folder / "labelsTr" / "p_0.nii.gz"
    mask = read_mask(path)
    mask.array[:, :, -2:] = 3
    write_mask(mask, path)
    run("data", "check", folder)
    run("configure", folder, "-o", plan)
    written = json.loads(plan.read_text())["plan"]
    assert written["classes"] == ["throat_rest", "larynx"]
    assert written["regions"] == {"throat": ["throat_rest", "larynx"]}
    run("train", "segmentation", "--config", plan, "-o", tmp_path / "run", "--steps", "1")
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert set(row["validation_dice"]) == {"CT throat_rest", "CT larynx", "CT throat"}
    run(
        "segment",
        folder / "imagesTr" / "p_0_0000.nii.gz",
        "-o",
        tmp_path / "out",
        "--model",
        tmp_path / "run" / "model",
    )
    assert read_mask(tmp_path / "out" / "p_0.nii.gz").array.max() <= 2


def test_several_channels_end_to_end(tmp_path):
    folder, plan = dataset(tmp_path / "raw", ("FLAIR", "T1"), cases=3), tmp_path / "plan.json"
    run("configure", folder, "-o", plan)
    written = json.loads(plan.read_text())["plan"]
    assert [(c["name"], c["scheme"]) for c in written["channels"]] == [("FLAIR", "zscore"), ("T1", "zscore")]
    run("train", "segmentation", "--config", plan, "-o", tmp_path / "run", "--steps", "1")
    scan, model = folder / "imagesTr" / "p_0_0000.nii.gz", tmp_path / "run" / "model"
    run("segment", scan, "-o", tmp_path / "out", "--model", model)
    assert read_mask(tmp_path / "out" / "p_0.nii.gz").grid.same_as(GRID)
    (folder / "imagesTr" / "p_1_0001.nii.gz").unlink()
    result = CliRunner().invoke(app, ["train", "segmentation", "--config", str(plan), "-o", str(tmp_path / "again")])
    assert result.exit_code == 2
    assert "p_1_0001.nii.gz: missing" in result.stderr


def test_a_fingerprint_spares_the_reading(tmp_path):
    folder, plan = dataset(tmp_path / "raw", ("CT",), cases=2), tmp_path / "a" / "plan.json"
    shown = json.loads(run("configure", folder, "-o", plan, "--json"))
    known = tmp_path / "a" / "plan.fingerprint.json"
    assert shown["fingerprint"] == str(known)
    (folder / "labelsTr" / "p_1.nii.gz").write_bytes(b"not read")
    run("configure", folder, "-o", tmp_path / "b.json", "--fingerprint", known)
    assert json.loads((tmp_path / "b.json").read_text())["plan"] == json.loads(plan.read_text())["plan"]
    (folder / "labelsTr" / "p_1.nii.gz").rename(folder / "labelsTr" / "p_2.nii.gz")
    (folder / "imagesTr" / "p_1_0000.nii.gz").rename(folder / "imagesTr" / "p_2_0000.nii.gz")
    with pytest.raises(ConfigError, match="the cases of the dataset, found 1 others, 1 not there"):
        run("configure", folder, "-o", plan, "--fingerprint", known)


@pytest.mark.parametrize(
    ("channels", "cases", "options", "words"),
    [
        (("CT",), 1, (), "two cases with masks"),
        (("CT",), 2, ("--max-gpu-mb", "900"), "use --max-ram-mb"),
        (("CT",), 2, ("--max-ram-mb", "2"), "at least .* found 2 MB RAM"),
    ],
)
def test_what_is_refused_writes_nothing(tmp_path, channels, cases, options, words):
    folder = dataset(tmp_path / "raw", channels, cases)
    with pytest.raises(ConfigError, match=words) as caught:
        run("configure", folder, "-o", tmp_path / "plan.json", *options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_voxels_that_do_not_fit_are_told_of_all_cases(tmp_path, monkeypatch, capsys):
    folder, plan = dataset(tmp_path / "raw", ("CT",), cases=4), tmp_path / "plan.json"
    run("configure", folder, "-o", plan)
    broken = [folder / "labelsTr" / f"p_{number}.nii.gz" for number in (1, 3)]
    for file, value in zip(broken, (7, 9), strict=True):
        write_mask(Mask(np.full(GRID.shape, value, np.uint8), GRID), file)
    for words in (["configure", folder, "-o", tmp_path / "b.json"], ["train", "segmentation", "--config", plan]):
        monkeypatch.setattr(sys, "argv", ["vlm", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert caught.value.code == 2
        assert [str(file) in line for file, line in zip(broken, lines, strict=True)] == [True, True]
        assert "7" in lines[0] and "9" in lines[1]
    assert not (tmp_path / "b.json").exists()


def test_folders_that_cannot_be_written_are_told_before_training(tmp_path):
    folder, plan, file = dataset(tmp_path / "raw", ("CT",), cases=2), tmp_path / "plan.json", tmp_path / "file"
    run("configure", folder, "-o", plan)
    file.write_text("not a folder")
    known = json.loads(plan.read_text())
    for key in ("output", "cache"):
        plan.write_text(json.dumps(known | {"output": str(tmp_path / "run"), key: str(file)}))
        with pytest.raises(ConfigError, match="file: expected a folder that can be written"):
            run("train", "segmentation", "--config", plan, "--steps", "1")
        assert not (tmp_path / "run").exists()
