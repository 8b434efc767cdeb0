"""Training on phantoms: it learns, an interrupted run ends where an uninterrupted one does, bad files are one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seg_backbone.augment import Augmentation
from seg_backbone.cases import DatasetEntry
from seg_backbone.checkpoint import load_model, save_model
from seg_backbone.errors import CheckpointError, ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from seg_backbone.train import SegmentationConfig, train_segmentation
from seg_backbone.train.optimise import rate
from seg_backbone.train.samples import interleave
from seg_backbone.volume import Mask, Volume

REPOSITORY = Path(__file__).parents[2]
OPTIONS = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}
PLAN = Plan("tiny", ("tumour", "larynx"), patch=(16, 16, 16), network_options=OPTIONS)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two datasets: three CT with a bright tumour, one MR. p_2 validates."""
    root = tmp_path_factory.mktemp("raw")
    random = np.random.default_rng(0)
    grid = Grid((18, 16, 17), np.diag([-4.0, 4.0, 4.0, 1.0]))
    for name, modality, patients in (("D1", "CT", ("p_0", "p_1", "p_2")), ("D2", "MR", ("p_1",))):
        for patient in patients:
            ids = np.zeros(grid.shape, dtype=np.uint8)
            x, y, z = random.integers(2, 9, 3)
            ids[x : x + 6, y : y + 5, z : z + 6] = 1
            array = random.normal(0, 20, grid.shape) + 150 * ids + (0 if modality == "CT" else 200)
            folder = root / name
            for part in ("imagesTr", "labelsTr"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            write_volume(Volume(array.astype(np.int16), grid, modality), folder / "imagesTr" / f"{patient}_0000.nii.gz")
            write_mask(Mask(ids, grid), folder / "labelsTr" / f"{patient}.nii.gz")
        (folder / "dataset.json").write_text(
            json.dumps({"labels": {"background": 0, "tumour": 1}, "channel_names": {"0": modality}})
        )
    (root / "split.json").write_text(json.dumps({"patients": {"validation": ["p_2"]}}))
    return root


def configuration(data, output, **changes):
    base = SegmentationConfig(
        data=data,
        output=output,
        split=data / "split.json",
        plan=PLAN,
        datasets=(DatasetEntry("D1", 0.7, absent=("larynx",)), DatasetEntry("D2", 0.3)),
        steps=10,
        learning_rate=3e-2,
        warmup=3,
        ema=0.9,
        checkpoint_minutes=0,
        threads=1,
    )
    return replace(base, **changes)


def rows_of(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def test_it_learns_a_bright_cube(data, tmp_path):
    seen = []
    config = configuration(data, tmp_path, steps=100, validate_every=1000)
    folder = train_segmentation(config, report=seen.append)
    first, last = rows_of(tmp_path)
    assert seen == [first, last]
    assert (first["step"], last["step"]) == (50, 100)
    assert last["cross_entropy"] < 0.5 * first["cross_entropy"]
    assert last["dice_loss"] < first["dice_loss"]
    assert list(last["validation_dice"]) == ["CT tumour"]
    assert last["validation_dice"]["CT tumour"] > 0.7
    network, plan, _ = load_model(folder)
    assert plan.trained_on == {"CT": ("tumour",), "MR": ("tumour",)}  # no scan shows a larynx
    average = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["average"]
    for key, value in network.state_dict().items():  # what is saved is the averaged network, at half precision
        torch.testing.assert_close(value, average[f"module.network.{key}"].half().float())


def flat(state, path=""):
    """Every tensor and number of a nested state, by its place."""
    if isinstance(state, (dict, list)):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        return {k: v for key, value in pairs for k, v in flat(value, f"{path}/{key}").items()}
    return {path: state}


class Stop:
    """A progress bar whose user presses Ctrl-C at one step, before that step is saved."""

    def __init__(self, step):
        self.step = step

    def __call__(self, stage, done, total):
        if stage == "training" and done == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_equals_an_uninterrupted_one(data, tmp_path):
    whole = train_segmentation(configuration(data, tmp_path / "whole"))
    config = configuration(data, tmp_path / "parts")
    for stop in (4, 8):
        with pytest.raises(KeyboardInterrupt):
            train_segmentation(config, resume=True, progress=Stop(stop))
        assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == stop - 1
    resumed = train_segmentation(config, resume=True)

    ours, theirs = (flat(torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)) for run in ("parts", "whole"))
    assert ours.keys() == theirs.keys()
    tensors = [key for key in theirs if isinstance(theirs[key], torch.Tensor)]
    assert len(tensors) > 100
    for key in theirs:
        same = torch.equal(ours[key], theirs[key]) if key in tensors else ours[key] == theirs[key]
        assert same, key
    assert (resumed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert (resumed / "plan.json").read_text() == (whole / "plan.json").read_text()


def test_resuming_a_finished_run_changes_nothing_and_a_fresh_one_starts_over(data, tmp_path):
    config = configuration(data, tmp_path, steps=3)
    folder = train_segmentation(config)
    before = (folder / "weights.safetensors").read_bytes()
    steps = []
    count = lambda stage, done, total: steps.append(done) if stage == "training" else None  # noqa: E731
    train_segmentation(config, resume=True, progress=count)
    assert steps == []
    assert (folder / "weights.safetensors").read_bytes() == before
    train_segmentation(replace(config, seed=1), progress=count)
    assert steps == [1, 2, 3]
    assert (folder / "weights.safetensors").read_bytes() != before


def test_starting_from_a_model(data, tmp_path):
    torch.manual_seed(7)
    network = build_network("residual_unet", 2, 3, OPTIONS)
    start = save_model(network, PLAN, tmp_path / "start", half=True)
    config = configuration(data, tmp_path / "run", steps=1, learning_rate=0.0, start=start)
    folder = train_segmentation(config)
    for key, value in load_model(folder)[0].state_dict().items():
        torch.testing.assert_close(value, load_model(start)[0].state_dict()[key])
    wide = PLAN.with_(network_options=OPTIONS | {"features": [4, 6]})
    with pytest.raises(ConfigError, match="start: expected a model with the network of the plan") as caught:
        train_segmentation(replace(config, plan=wide))
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        train_segmentation(replace(config, start=tmp_path / "nothing"))


def test_a_dataset_without_training_cases(data, tmp_path):
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"patients": {"validation": ["p_1", "p_2"]}}))  # nobody is left in D2
    with pytest.raises(ConfigError, match="training cases in every dataset"):
        train_segmentation(configuration(data, tmp_path / "run", split=split))


def test_the_rate_warms_up_and_falls_to_zero(tmp_path):
    config = configuration(tmp_path, tmp_path, steps=20, warmup=4)
    rates = [rate(step, config) for step in range(21)]
    np.testing.assert_allclose(rates[:5], [0.25, 0.5, 0.75, 1, 1])
    assert rates[12] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(0)
    assert (np.diff(rates[4:]) < 0).all()
    half = replace(config, steps=12, schedule_steps=20)  # a run that ends early follows the long schedule
    assert [rate(step, half) for step in range(13)] == rates[:13]


def test_datasets_come_up_evenly_in_proportion():
    order = interleave(np.array([0.5, 0.25, 0.25]), 240)
    assert [order.count(n) for n in range(3)] == [120, 60, 60]
    assert all(sorted(order[n : n + 4]) == [0, 0, 1, 2] for n in range(0, 240, 4))


def test_our_configuration_reads(tmp_path):
    config = SegmentationConfig.read(REPOSITORY / "configs" / "segmentation.yaml")
    assert "tumour" in config.plan.classes
    assert set(config.plan.single) | set(config.plan.minimum_ml) <= set(config.plan.classes)
    assert all(set(entry.absent) <= set(config.plan.classes) for entry in config.datasets)
    assert (REPOSITORY / config.split).is_file()
    assert all(n % 2 ** (len(config.plan.network_options["strides"]) - 1) == 0 for n in config.plan.patch)
    changed = SegmentationConfig.read(REPOSITORY / "configs" / "segmentation.yaml", steps=3, output="x", batch=None)
    assert (changed.steps, changed.output, changed.batch) == (3, Path("x"), config.batch)
    assert isinstance(hash(changed.datasets), int)


GOOD = """
data: raw
output: run
split: split.json
plan: {name: t, classes: [tumour], patch: [16, 16, 16]}
datasets: [{name: D1, absent: [larynx]}]
augmentation: {mirror: 0.25}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (GOOD, "", ""),
        (GOOD, "- 1\n- 2\n", ""),
        (GOOD, "data: [", ""),
        ("data: raw\n", "", "data"),
        ("output: run\n", "", "output"),
        ("split: split.json\n", "", "split"),
        ("plan: {name: t, classes: [tumour], patch: [16, 16, 16]}\n", "", "plan"),
        ("classes: [tumour], ", "", "classes"),
        ("[tumour]", "[tumour, tumour]", "differ"),
        ("mirror", "mirrors", "mirrors"),
        ("absent", "missing", "missing"),
        ("datasets: [{name: D1, absent: [larynx]}]", "datasets: []", "datasets"),
        ("augmentation", "steps: 0\naugmentation", "steps"),
        ("augmentation", "stepz: 3\naugmentation", "stepz"),
        ("augmentation", "steps: many\naugmentation", ""),
    ],
)
def test_a_configuration_that_does_not_fit(tmp_path, old, new, words):
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    config = SegmentationConfig.read(path)
    assert config.augmentation == Augmentation(mirror=0.25)
    assert config.datasets == (DatasetEntry("D1", absent=("larynx",)),)
    assert config.start is None
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=words or None):
        SegmentationConfig.read(path)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ConfigError):
        SegmentationConfig.read(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="missing.yaml"):
        SegmentationConfig.read(tmp_path / "missing.yaml")
