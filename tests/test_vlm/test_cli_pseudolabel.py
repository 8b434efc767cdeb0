"""`vlm data pseudolabel` on files: a dataset that checks clean and trains, faults in one line, goes on."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from seg_backbone.checkpoint import load_model, save_model
from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_mask, write_mask, write_volume
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from seg_backbone.volume import Mask, Volume
from vlm.cli import app as vlm_app
from vlm.cli.data import app

GRID = Grid((16, 16, 16), np.diag([-4.0, 4.0, 4.0, 1.0]))
OPTIONS = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained network whose last bias makes it say tumour wherever it is asked."""
    torch.manual_seed(0)
    plan = Plan("tiny", ("tumour",), patch=(16, 16, 16), network_options=OPTIONS, trained_on={"CT": ("tumour",)})
    network = build_network("residual_unet", 2, 2, OPTIONS)
    last = [name for name, value in network.named_parameters() if value.shape == (2,)][-1]
    with torch.no_grad():
        network.get_parameter(last).copy_(torch.tensor([0.0, 30.0]))
    return save_model(network, plan, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def raw(tmp_path):
    """A dataset of one drawn case and two that are not, and a loose scan beside it."""
    folder = tmp_path / "raw" / "D1"
    rows = []
    for number, case in enumerate(("drawn", "open_0", "open_1", "loose")):
        array = np.random.default_rng(number).normal(40, 20, GRID.shape).astype(np.int16)
        place = tmp_path if case == "loose" else folder / "imagesTr"
        place.mkdir(parents=True, exist_ok=True)
        write_volume(Volume(array, GRID, "CT"), place / f"{case}_0000.nii.gz")
        rows.append({"dataset": "D1", "case": case, "annotated": ["tumour"] if case == "drawn" else []})
    ids = np.zeros(GRID.shape, np.uint8)
    ids[4:9, 4:9, 4:9] = 1
    write_mask(Mask(ids, GRID), folder / "labelsTr" / "drawn.nii.gz")
    labels = {"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(labels))
    (tmp_path / "raw" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_dataset_and_a_loose_scan(raw, tmp_path, model):
    out = tmp_path / "pseudo" / "Dataset900_Pseudo"
    arguments = ("pseudolabel", raw, tmp_path / "loose_0000.nii.gz", "--modality", "CT", "-o", out, "--model", model)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "tumour 3\n"
    assert f"Wrote 3 cases to {out}" in result.stderr
    assert sorted(path.name for path in (out / "labelsTr").iterdir()) == [
        f"{name}.nii.gz" for name in ("loose", "open_0", "open_1")
    ]
    assert (read_mask(out / "labelsTr" / "open_1.nii.gz").array == 1).mean() > 0.9
    checked = run("check", out)
    assert (checked.exit_code, checked.stdout) == (0, "")
    before = (out / "pseudo" / "open_0.nii.gz").stat().st_mtime_ns
    again = run(*arguments, "--json")
    counts = json.loads(again.stdout)
    assert (counts["cases"], counts["annotated"], counts["left_out"]) == (3, {"tumour": 3}, [])
    assert (out / "pseudo" / "open_0.nii.gz").stat().st_mtime_ns == before  # nothing is made twice
    second = run(
        *arguments[:-3], tmp_path / "pseudo" / "Dataset901_Second", "--model", model, "--previous", out, "--json"
    )
    assert json.loads(second.stdout)["annotated"] == {"tumour": 3}


def test_a_case_with_labels_is_filled(raw, tmp_path):
    """The model knows a larynx, which nobody drew in D1."""
    torch.manual_seed(0)
    known = {"CT": ("tumour", "larynx")}
    plan = Plan("two", ("tumour", "larynx"), patch=(16, 16, 16), network_options=OPTIONS, trained_on=known)
    network = build_network("residual_unet", 2, 3, OPTIONS)
    last = [name for name, value in network.named_parameters() if value.shape == (3,)][-1]
    with torch.no_grad():
        network.get_parameter(last).copy_(torch.tensor([0.0, 0.0, 30.0]))
    model = save_model(network, plan, tmp_path / "two")
    for flag, cases in (("--partial", 3), ("--no-partial", 2)):
        out = tmp_path / flag / "Dataset900_Pseudo"
        result = run("pseudolabel", raw, "-o", out, "--model", model, "--json", flag)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["cases"] == cases
    rows = [json.loads(line) for line in (tmp_path / "--partial" / "manifest.jsonl").read_text().splitlines()]
    drawn = next(row for row in rows if row["case"] == "drawn")
    assert (drawn["annotated"], drawn["pseudo"]["classes"]) == (["larynx", "tumour"], ["larynx"])
    before = read_mask(raw / "labelsTr" / "drawn.nii.gz").array
    after = read_mask(tmp_path / "--partial" / "Dataset900_Pseudo" / "labelsTr" / "drawn.nii.gz").array
    assert ((after == 1) == (before == 1)).all() and (after == 2).mean() > 0.8


def test_faults_are_one_line(raw, tmp_path, model):
    out = tmp_path / "p" / "Dataset900_Pseudo"
    base = ("pseudolabel", raw, "-o", out, "--model", model)
    for more, words in {
        ("--certain", "1.5"): "certain is a probability",
        ("--minimum-ml", "tumour"): "CLASS=ML",
        ("--minimum-ml", "liver=1"): "classes of the model",
        ("--previous", tmp_path): "a folder of pseudo-labels",
    }.items():
        with pytest.raises(ConfigError, match=words) as caught:
            CliRunner().invoke(vlm_app, ["data", *map(str, base), *map(str, more)], catch_exceptions=False)
        assert "\n" not in str(caught.value)
    (tmp_path / "raw" / "D1" / "imagesTr" / "open_1_0000.nii.gz").write_bytes(b"broken")
    result = run(*base)
    assert result.exit_code == 1
    assert "open_1_0000.nii.gz" in result.stderr
    assert result.stdout == "tumour 1\n"
    with pytest.raises(ConfigError, match="of different names, found none"):
        CliRunner().invoke(
            vlm_app, ["data", "pseudolabel", str(out), "-o", str(tmp_path / "x")], catch_exceptions=False
        )


def test_training_in_rounds(raw, tmp_path):
    config = {
        "data": str(raw.parent),
        "output": str(tmp_path / "run"),
        "plan": {"name": "t", "classes": ["tumour"], "patch": [16, 16, 16], "network_options": OPTIONS},
        "datasets": [{"name": "D1"}],
        "split": str(tmp_path / "split.json"),
        "steps": 2,
        "warmup": 1,
        "threads": 1,
        "pseudo_labels": {"rounds": 1, "rules": {"certain": 0.51, "absence": True}},
    }
    (tmp_path / "split.json").write_text(json.dumps({"patients": {"validation": ["nobody"]}}))
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    result = CliRunner().invoke(vlm_app, ["train", "segmentation", "--config", str(tmp_path / "c.yaml")])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "run" / "model")
    rounds = [json.loads(line)["round"] for line in result.stderr.splitlines() if line.startswith("{")]
    assert rounds == [0, 1]
    assert load_model(tmp_path / "run" / "model")[1].name == "t"
    description = json.loads((tmp_path / "run" / "pseudo_1" / "dataset.json").read_text())
    assert sorted(description["annotated"]) == ["open_0", "open_1"]
