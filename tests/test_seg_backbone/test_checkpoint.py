"""Model folders: what is saved is what is loaded, and a broken folder is one line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from seg_backbone.checkpoint import average_models, find_model, load_model, save_model
from seg_backbone.errors import CheckpointError
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from vlm.cli import app

OPTIONS = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}
PLAN = Plan("t", ("tumour", "larynx"), patch=(8, 8, 8), network_options=OPTIONS, trained_on={"CT": ("tumour",)})


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network("residual_unet", 2, 3, OPTIONS).eval()


@pytest.fixture
def folder(tmp_path, network):
    return save_model(network, PLAN, tmp_path / "model")


def test_weights_are_as_readable_as_any_new_file(folder, tmp_path):
    (tmp_path / "any").touch()
    modes = {path.stat().st_mode for path in (*folder.iterdir(), tmp_path / "any")}
    assert len(modes) == 1


@pytest.mark.parametrize(("half", "tolerance"), [(False, 0.0), (True, 5e-3)])
def test_roundtrip(tmp_path, network, half, tolerance):
    window = torch.randn(1, 2, 8, 8, 8)
    folder = save_model(network, PLAN, tmp_path / "new" / "model", half=half)
    loaded, plan, version = load_model(folder)
    assert plan == PLAN
    assert not loaded.training
    assert len(version) == 12
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    ours, theirs = network.state_dict(), loaded.state_dict()
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, atol=1e-6 if half else 0, rtol=1e-3 if half else 0)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(window), network(window), atol=max(tolerance, 1e-5), rtol=tolerance)
    assert sorted(p.name for p in folder.iterdir()) == ["plan.json", "weights.safetensors"]


def test_the_version_names_the_weights(tmp_path, network, folder):
    again = save_model(network, PLAN, tmp_path / "again")
    assert load_model(again)[2] == load_model(folder)[2]
    with torch.no_grad():
        network.decoder.seg_layers[0].bias[0] += 1e-3
    assert load_model(save_model(network, PLAN, again))[2] != load_model(folder)[2]


def test_the_average_of_models(tmp_path, network, folder):
    other = build_network("residual_unet", 2, 3, OPTIONS).eval()
    second = save_model(other, PLAN.with_(name="second", step=0.7), tmp_path / "second")
    mean, plan, _ = load_model(average_models([folder, second], tmp_path / "mean"))
    assert plan == PLAN
    for key, value in network.state_dict().items():
        torch.testing.assert_close(mean.state_dict()[key], (value + other.state_dict()[key]) / 2)
    result = CliRunner().invoke(app, ["model", "average", str(folder), str(second), "-o", str(tmp_path / "cli")])
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "cli")
    assert load_model(tmp_path / "cli")[1] == PLAN


@pytest.mark.parametrize("change", [{"spacing_mm": (1.0, 1.0, 1.0)}, {"resampling": "cubic"}], ids=str)
def test_models_that_see_scans_otherwise_have_no_average(tmp_path, network, folder, change):
    other = save_model(network, PLAN.with_(**change), tmp_path / "other")
    with pytest.raises(CheckpointError, match="other: expected the classes, spacing_mm"):
        average_models([folder, other], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def refused(folder, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"not safetensors", None], ids=["empty", "text", "truncated"])
def test_corrupt_weights(folder, data):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if data is None else data)
    refused(folder, "weights.safetensors: expected safetensors")


@pytest.mark.parametrize("name", ["plan.json", "weights.safetensors"])
def test_an_incomplete_folder_lists_what_ships(folder, name):
    (folder / name).unlink()
    refused(folder, "a model folder with plan.json and weights.safetensors.*models that ship")


def test_a_name_that_does_not_ship():
    with pytest.raises(CheckpointError, match="no such model"):
        find_model("no such model")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["tumour"]},
        {"network_options": OPTIONS | {"features": [4, 6]}},
        {"network_options": OPTIONS | {"blocks": [1, 2]}},
        {"ct_windows_hu": [[-160, 240]]},
    ],
    ids=["classes", "features", "blocks", "channels"],
)
def test_weights_of_another_plan(folder, changes):
    data = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(data | changes))
    refused(folder, "weights that fit plan.json")


def test_a_broken_plan(folder):
    (folder / "plan.json").write_text("{")
    refused(folder, "plan.json: expected a plan.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "mamba"}, "plan.json: expected one of .*, found 'mamba'"),
        ({"network_options": {"features": [4, 8], "strides": [1]}}, "plan.json: expected options .* differ in length"),
        ({"patch": [16, 16, 17]}, "plan.json: expected a patch of multiples of"),
        ({"spacing_mm": [0, 1, 1]}, "plan.json: expected .*, found .*spacing_mm is above 0"),
    ],
)
def test_a_plan_that_is_no_network_is_named(folder, changes, words):
    path = folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    refused(folder, words)
