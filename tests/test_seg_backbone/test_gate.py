"""The classifier of windows: labels by hand, a threshold that keeps what is there, and a gate that learns and skips."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from seg_backbone import Segmenter, predict
from seg_backbone.checkpoint import save_model
from seg_backbone.errors import CheckpointError, ConfigError
from seg_backbone.gate import WEIGHTS, foreground_probability
from seg_backbone.geometry import Grid
from seg_backbone.governor import Choice
from seg_backbone.io import write_mask, write_volume
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from seg_backbone.skips import Tiling
from seg_backbone.train.gate import UNKNOWN, GateConfig, cross_entropy, holds_foreground, train_gate, with_threshold
from seg_backbone.volume import Mask, Volume

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}
PLAN = Plan(
    "tiny",
    ("tumour", "larynx"),
    patch=(16, 16, 16),
    network_options=OPTIONS,
    trained_on={"CT": ("tumour", "larynx")},
)
GRID = Grid((48, 16, 16), np.diag([4.0, 4.0, 4.0, 1.0]))


def scan_with_tumour(seed):
    """A body of 48 x 16 x 16 voxels of 4 mm with a bright cube of 6 voxels in its first third."""
    random = np.random.default_rng(seed)
    ids = np.zeros(GRID.shape, dtype=np.uint8)
    _, y, z = random.integers(1, 9, 3)
    x = random.choice([1, 2, 3, 4, 5, 8])  # no window of the validation holds a slice or two of it alone
    ids[x : x + 6, y : y + 6, z : z + 6] = 1
    return (random.normal(0, 20, GRID.shape) + 400.0 * ids).astype(np.int16), ids


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A model folder, a dataset of six scans of which two validate, and a training file."""
    root = tmp_path_factory.mktemp("gate")
    torch.manual_seed(0)
    save_model(build_network("residual_unet", 2, 3, OPTIONS), PLAN, root / "model")
    (root / "model" / "README.md").write_text("# tiny")
    for part in ("imagesTr", "labelsTr"):
        (root / "D1" / part).mkdir(parents=True)
    for number in range(6):
        array, ids = scan_with_tumour(number)
        write_volume(Volume(array, GRID, "CT"), root / "D1" / "imagesTr" / f"p_{number}_0000.nii.gz")
        write_mask(Mask(ids, GRID), root / "D1" / "labelsTr" / f"p_{number}.nii.gz")
    (root / "D1" / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 1}}))
    (root / "split.json").write_text(json.dumps({"patients": {"validation": ["p_4", "p_5"]}}))
    settings = {
        "model": str(root / "model"),
        "data": str(root),
        "output": str(root / "run"),
        "split": str(root / "split.json"),
        "datasets": [{"name": "D1", "absent": ["larynx"]}],
        "augmentation": {"rotate_deg": 0, "crop_mm": 0, "noise": 0, "intensity": 0},
        "gate": {"network_options": {"features": [8, 8, 8, 8]}},
        "steps": 80,
        "batch": 8,
        "learning_rate": 5e-3,
        "warmup": 3,
        "threads": 1,
    }
    (root / "gate.yaml").write_text(yaml.safe_dump(settings))
    return root


@pytest.fixture(scope="module")
def trained(raw):
    return train_gate(GateConfig.read(raw / "gate.yaml"))


def test_the_label_of_a_window():
    """Codes 0 (background, or class 2 that nobody drew), 1 (class 1), 2 (background for certain), 3 (class 1 or 2)."""
    table = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]], dtype=bool)
    for codes, label in (([1, 0], 1), ([2, 2], 0), ([0, 2], UNKNOWN), ([3, 2], 1), ([2, 1], 1)):
        assert holds_foreground(np.array(codes), table) == label


def test_unknown_windows_cost_nothing():
    logits = torch.tensor([0.0, 3.0], requires_grad=True)
    assert cross_entropy(logits, torch.tensor([1.0, UNKNOWN])).item() == pytest.approx(np.log(2))
    loss = cross_entropy(logits, torch.full((2,), UNKNOWN))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_the_threshold_keeps_what_is_there(raw):
    """Recall 0.9 of ten windows may lose one, 0.999 none."""
    config = GateConfig.read(raw / "gate.yaml")
    probability = np.array([0.05, 0.2, *[0.9] * 8, 0.01, 0.1, 0.3])
    label = np.array([1.0] * 10 + [0.0] * 3)
    strict = with_threshold(config, probability, label)
    assert strict.threshold == 0.05
    assert strict.validation == {"windows_with": 10, "windows_without": 3, "recall": 1.0, "skipped": 1 / 3}
    loose = with_threshold(replace(config, recall=0.9), probability, label)
    assert loose.threshold == 0.2
    assert loose.validation["recall"] == 0.9 and loose.validation["skipped"] == 2 / 3
    with pytest.raises(ConfigError, match="hold foreground"):
        with_threshold(config, probability, np.zeros(13))


def test_nobody_to_choose_a_threshold_on(raw, tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"patients": {"validation": []}}))
    settings = yaml.safe_load((raw / "gate.yaml").read_text()) | {"split": str(tmp_path / "split.json")}
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(settings | {"output": str(tmp_path / "run")}))
    with pytest.raises(ConfigError, match="validation cases with windows that hold foreground, found none"):
        train_gate(GateConfig.read(tmp_path / "gate.yaml"))
    assert not (tmp_path / "run" / "log.jsonl").exists()  # told before a step is trained


def test_it_learns_and_is_stored_beside_the_model(raw, trained):
    rows = [json.loads(line) for line in (raw / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-2]["step"] == 80 and rows[-2]["cross_entropy"] < 0.65
    assert rows[-1]["recall"] == 1.0 and rows[-1]["skipped"] > 0.5
    plan = Plan.read(trained / "plan.json")
    assert plan.with_(gate=None) == PLAN
    assert plan.gate.threshold == rows[-1]["threshold"] and plan.gate.ct_windows_hu == ((-900, 650), (-175, 250))
    assert sorted(path.name for path in trained.iterdir()) == ["README.md", WEIGHTS, "plan.json", "weights.safetensors"]
    assert (trained / "weights.safetensors").read_bytes() == (raw / "model" / "weights.safetensors").read_bytes()
    assert Plan.read(raw / "model" / "plan.json").gate is None


def test_a_resumed_run_equals_an_uninterrupted_one(raw, tmp_path):
    def stop(stage, done, total):
        if stage == "training" and done == 3:
            raise KeyboardInterrupt

    folders = []
    for name in ("whole", "parts"):
        config = GateConfig.read(raw / "gate.yaml", output=tmp_path / name, steps=4)
        config = replace(config, training=replace(config.training, checkpoint_minutes=0))
        if name == "parts":
            with pytest.raises(KeyboardInterrupt):
                train_gate(config, progress=stop)
        folders.append(train_gate(config, resume=True))
    assert (folders[0] / WEIGHTS).read_bytes() == (folders[1] / WEIGHTS).read_bytes()


def test_fast_mode_skips_what_the_gate_finds_empty(raw, trained):
    array, _ = scan_with_tumour(9)
    gated, plain = Segmenter.load(trained, "cpu"), Segmenter.load(raw / "model", "cpu")
    scan = (array, GRID.affine)
    fast = gated(scan, "CT", fast=True, verify_skips=True).report
    assert fast["skipped"]["gate"] > 0 and fast["windows"] + fast["skipped"]["gate"] == 4
    assert {one["by"] for one in fast["skipped"]["windows"]} == {"gate"}
    assert fast["skipped"]["voxels_that_differ"] > 0  # the network is untrained: it draws where the gate sees nothing
    for other in (gated(scan, "CT", fast=True, gate=False), gated(scan, "CT"), plain(scan, "CT", fast=True)):
        assert other.report["skipped"]["gate"] == 0
    assert gated(scan, "CT", gate=True).report["skipped"]["gate"] > 0
    capped = gated(scan, "CT", fast=True, max_ram_mb=1e6, max_seconds=1e6)
    assert capped.report["skipped"]["gate"] == fast["skipped"]["gate"]
    with pytest.raises(ConfigError, match="a model with a gate"):
        plain(scan, "CT", gate=True)


@pytest.mark.parametrize("change", [{"coarser": 1.25}, {"window": 0.5}])
def test_the_gate_is_silent_about_windows_that_it_was_not_tried_on(trained, monkeypatch, change):
    chosen = Choice(**change)
    monkeypatch.setattr(predict, "choose", lambda budget, start, need, *_: (chosen, need(chosen), []))
    array, _ = scan_with_tumour(9)
    report = Segmenter.load(trained, "cpu")((array, GRID.affine), "CT", fast=True, max_ram_mb=1e6).report
    assert report["skipped"]["gate"] == 0 and report["windows"] > 0


def test_scores_do_not_depend_on_the_batch(trained):
    gate = Segmenter.load(trained, "cpu").gate
    tiling, image = Tiling((40, 12, 16), (16, 16, 16), 0.5), torch.rand(2, 40, 12, 16)
    one = foreground_probability(gate, image, tiling, tiling.starts())
    assert one.shape == (len(tiling.starts()),)
    np.testing.assert_allclose(foreground_probability(gate, image, tiling, tiling.starts(), 3), one, atol=1e-5)
    assert foreground_probability(gate, image, tiling, []).shape == (0,)


def test_bad_gates_are_one_line(raw, trained, tmp_path):
    changes = (
        ({"recall": 2}, "recall"),
        ({"gate": {"depth": 3}}, "bad.yaml: gate: expected keys among .* found depth"),
        ({"model": "none"}, "^none: expected a model folder"),
        ({"model": None}, "bad.yaml: the file: expected the key `model`"),
        ({"plan": {"name": "t", "classes": ["tumour"]}}, "bad.yaml: plan: expected none"),
        ({"batch": 1}, "bad.yaml: batch: expected 2 or more"),
    )
    for change, words in changes:
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load((raw / "gate.yaml").read_text()) | change))
        with pytest.raises((ConfigError, CheckpointError), match=words):
            GateConfig.read(path)
    with pytest.raises(ConfigError, match="gate training file"):
        GateConfig.read(tmp_path / "missing.yaml")
    (tmp_path / "model").mkdir()
    for path in trained.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model" / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=WEIGHTS):
        Segmenter.load(tmp_path / "model", "cpu")
    (tmp_path / "model" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        Segmenter.load(tmp_path / "model", "cpu")


def test_the_shipped_recipe_reads():
    config = GateConfig.read("configs/gate.yaml")
    assert config.gate.ct_windows_hu == ((-900, 650), (-175, 250)) and config.recall == 0.999
    assert config.training.plan.patch == (48, 48, 48)
