"""Training on phantoms: it learns, an interrupted run ends where an uninterrupted one does, bad files are one line."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from seg_backbone.augment import Augmentation
from seg_backbone.cases import DatasetEntry
from seg_backbone.checkpoint import load_model, save_model
from seg_backbone.errors import CheckpointError, ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan
from seg_backbone.train import SegmentationConfig, train_segmentation
from seg_backbone.train.config import Member
from seg_backbone.train.consistency import Consistency
from seg_backbone.train.cutmix import CutMix
from seg_backbone.train.data import build_sources, read_cases
from seg_backbone.train.model import Model, Output, build_model, running_average
from seg_backbone.train.objective import Step, mask_term, total
from seg_backbone.train.optimise import rate
from seg_backbone.train.samples import Batch, Batches, ahead, interleave
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
    config = configuration(data, tmp_path, steps=100, validate_every=1000, checkpoint_minutes=60)
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


NNUNET = {"optimizer": "sgd", "schedule": "poly", "momentum": 0.9, "learning_rate": 1e-2, "clip": 12.0}
RECIPES = {
    "default": {},
    "sgd, accumulated, drawn by a worker, validated": NNUNET | {"accumulate": 2, "workers": 1, "validate_every": 4},
    "no average, focal, by annotation": {"ema": 0, "focal": 1.0, "sampling": "annotations"},
    "mean teacher, carried lesions": {"consistency": Consistency(ramp=4), "cutmix": CutMix(0.5), "validate_every": 3},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_equals_an_uninterrupted_one(data, tmp_path, recipe):
    whole = train_segmentation(configuration(data, tmp_path / "whole", **RECIPES[recipe]))
    config = configuration(data, tmp_path / "parts", **RECIPES[recipe])
    for stop in (4, 8):
        with pytest.raises(KeyboardInterrupt):
            train_segmentation(config, resume=True, progress=Stop(stop))
        assert torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"] == stop - 1
    resumed = train_segmentation(config, resume=True)

    ours, theirs = (flat(torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)) for run in ("parts", "whole"))
    assert ours.keys() == theirs.keys()
    tensors = [key for key in theirs if isinstance(theirs[key], torch.Tensor)]
    assert len(tensors) > 50
    for key in theirs:
        same = torch.equal(ours[key], theirs[key]) if key in tensors else ours[key] == theirs[key]
        assert same, key
    assert (resumed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    assert (resumed / "plan.json").read_text() == (whole / "plan.json").read_text()
    names = ("step", "validation_dice", "best_dice", "best_step")  # means begin anew where a run was interrupted
    rows = [[{name: row.get(name) for name in names} for row in rows_of(tmp_path / run)] for run in ("parts", "whole")]
    assert rows[0] == rows[1]  # and none twice


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


def bits(folder):
    """The float16 numbers of a model folder, bit by bit, under the names of the network."""
    return {name: value.view(torch.int16) for name, value in load_file(folder / "weights.safetensors").items()}


@pytest.mark.parametrize("frozen", ["encoder", "decoder"])
def test_a_frozen_part_keeps_every_bit(data, tmp_path, frozen):
    torch.manual_seed(7)
    network = build_network("residual_unet", 2, 3, OPTIONS)
    with torch.no_grad():
        for weight in network.parameters():
            weight.flatten()[0] = -0.0  # whose sign an average of two zeros loses
    start = save_model(network, PLAN, tmp_path / "start", half=True)
    config = configuration(data, tmp_path / "whole", start=start, frozen=(frozen,), weight_decay=0.1)
    whole = train_segmentation(config)
    before, after = bits(start), bits(whole)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same >= {name for name in before if name.startswith(frozen)}
    learnt = {name for name in before if not name.startswith(frozen) and not name.endswith("bias")}
    assert learnt and not learnt & same  # a bias before an instance norm has no gradient

    parts = replace(config, output=tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        train_segmentation(parts, resume=True, progress=Stop(6))
    resumed = train_segmentation(parts, resume=True)
    assert (resumed / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
    moments = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)["optimizer"]["state"]
    assert 0 < len(moments) < len(before)
    with pytest.raises(ConfigError, match="a checkpoint of this configuration"):
        train_segmentation(replace(parts, frozen=(), steps=12), resume=True)


def test_two_processes_train_what_one_does_that_gathers_two_batches(data, tmp_path):
    if "openvino" in sys.modules:
        pytest.skip("a fork beside the threads of OpenVINO may hang; run this file alone")
    one = train_segmentation(configuration(data, tmp_path / "one", accumulate=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launched(rank):  # as `accelerate launch` does
        PartialState._reset_state()
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
        train_segmentation(configuration(data, tmp_path / "two", device="cpu"))

    processes = [multiprocessing.get_context("fork").Process(target=launched, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    ours, theirs = (load_model(tmp_path / run / "model")[0].state_dict() for run in ("two", "one"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, atol=2e-3, rtol=0)
    (row,) = rows_of(tmp_path / "two")
    assert row["validation_dice"] == pytest.approx(rows_of(tmp_path / "one")[0]["validation_dice"], abs=0.02)
    assert one.is_dir()


def test_accumulating_halves_makes_the_step_of_the_whole_batch(data, tmp_path):
    """With one sample a batch and no Dice term in play (nothing is drawn) the cross entropy is the same mean."""
    plan = PLAN.with_(classes=("larynx",), network_options=OPTIONS)
    options = {"plan": plan, "steps": 4, "datasets": (DatasetEntry("D1", absent=("larynx",)),), "ema": 0}
    config = configuration(data, tmp_path / "x", **options)
    training, _ = read_cases(config, tmp_path / "cases", None)
    batches = Batches(build_sources(config, training), 2, 0)
    model = build_model(config)
    term = mask_term(config)

    def gradient(parts):
        model.zero_grad()
        for part in parts:
            loss, _ = total([term], Step(0, model, model, part, model(part.image)))
            (loss / len(parts)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    batch = batches[0]
    halves = [
        Batch(batch.image[n : n + 1], batch.codes[n : n + 1], batch.tables[n : n + 1], batch.cases[n : n + 1], {})
        for n in (0, 1)
    ]
    torch.testing.assert_close(gradient(halves), gradient([batch]), atol=1e-5, rtol=1e-4)


def test_workers_draw_what_a_thread_draws(data, tmp_path):
    config = configuration(data, tmp_path)
    batches = Batches(build_sources(config, read_cases(config, tmp_path / "cases", None)[0]), 2, 0)
    pairs = zip(ahead(batches, range(1, 8, 2), 2), ahead(batches, range(1, 8, 2)), strict=True)
    for ours, theirs in pairs:
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.codes, theirs.codes)
        assert ours.cases == theirs.cases


class Deadly:
    weight = 1.0

    def draw(self, random):
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory is short


def test_a_worker_that_dies_is_one_line():
    with pytest.raises(ConfigError, match=r"workers: expected workers that live, .* set `workers: 1`"):
        list(ahead(Batches([Deadly()], 1, 0), range(4), 2))


MEMORY = {
    "batch": ({"batch": 6, "accumulate": 3}, "set `batch: 3` and `accumulate: 6`"),
    "patch": ({"batch": 1}, r"set `plan.patch: \[16, 16, 8\]`"),
}


@pytest.mark.parametrize("name", MEMORY)
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_lack_of_memory_says_what_to_change(data, tmp_path, monkeypatch, name, error):
    def forward(self, image):
        raise error

    monkeypatch.setattr(Model, "forward", forward)
    changes, words = MEMORY[name]
    plan = PLAN.with_(patch=(16, 16, 18))
    with pytest.raises(ConfigError, match=words) as caught:
        train_segmentation(configuration(data, tmp_path, plan=plan, **changes))
    assert "16 x 16 x 18 voxels" in str(caught.value)


def test_the_best_network_is_kept(data, tmp_path, monkeypatch):
    scores = iter([0.2, 0.6, 0.5, 0.6])
    states = []

    def score(network, cases, plan):
        states.append({key: value.clone() for key, value in network.state_dict().items()})
        return [("CT tumour", next(scores))]

    monkeypatch.setattr("seg_backbone.train.loop.score", score)
    model = train_segmentation(configuration(data, tmp_path, steps=4, validate_every=1))
    last = rows_of(tmp_path)[-1]
    assert (last["best_dice"], last["best_step"]) == (0.6, 2)
    for folder, state in ((tmp_path / "best", states[1]), (model, states[3])):
        for key, value in load_model(folder)[0].state_dict().items():
            torch.testing.assert_close(value, state[key].half().float())


def test_rows_also_go_to_tensorboard(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_segmentation(configuration(data, tmp_path, steps=2, validate_every=1, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (first, last) = events.Scalars("validation_dice/CT tumour")
    assert (first.step, last.step) == (1, 2)
    assert last.value == pytest.approx(rows_of(tmp_path)[-1]["validation_dice"]["CT tumour"], abs=1e-4)
    assert "cross_entropy" in events.Tags()["scalars"]


def test_half_precision_learns_too(data, tmp_path):
    half, full = (
        train_segmentation(configuration(data, tmp_path / name, precision=name, steps=4)) for name in ("bf16", "fp32")
    )
    ours, theirs = (load_model(folder)[0].state_dict() for folder in (half, full))
    assert any(not torch.equal(ours[key], value) for key, value in theirs.items())
    (ours,), (theirs,) = (rows_of(tmp_path / name) for name in ("bf16", "fp32"))
    assert ours["cross_entropy"] == pytest.approx(theirs["cross_entropy"], abs=0.02)
    with pytest.raises(ConfigError, match="precision: expected fp32 or bf16 on a CPU"):
        train_segmentation(configuration(data, tmp_path, precision="fp16", device="cpu"))


def test_a_loss_that_is_not_finite_ends_the_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr("seg_backbone.train.objective.marginal_loss", lambda s, *a, **k: (s.sum() * torch.nan,) * 2)
    with pytest.raises(ConfigError, match="lower `learning_rate`"):
        train_segmentation(configuration(data, tmp_path))
    assert not (tmp_path / "checkpoint.pt").exists()


def test_scans_without_masks_teach_what_they_lack_and_nothing_else(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "raw")
    (root / "D3" / "imagesTr").mkdir(parents=True)
    shutil.copy(root / "D1" / "imagesTr" / "p_2_0000.nii.gz", root / "D3" / "imagesTr" / "q_0000.nii.gz")
    gradients = {}
    for name, absent in (("unknown", ()), ("no larynx", ("larynx",)), ("neither", ("tumour", "larynx"))):
        config = configuration(root, tmp_path, datasets=(DatasetEntry("D3", absent=absent),), steps=1)
        with pytest.raises(ConfigError, match="training scans that show one of tumour, larynx, found none"):
            train_segmentation(config)  # alone it would make a model that draws nothing
        training, _ = read_cases(config, tmp_path / "cases", None)
        batch = Batches(build_sources(config, training), 1, 0)[0]
        logits = torch.zeros(1, 3, *PLAN.patch, requires_grad=True)
        loss, _ = total([mask_term(config)], Step(0, torch.nn.Identity(), None, batch, Output(logits, {})))
        loss.backward()
        gradients[name] = logits.grad.sum((0, 2, 3, 4)).numpy()
    np.testing.assert_allclose(gradients["unknown"], 0, atol=1e-6)
    background, tumour, larynx = gradients["no larynx"]
    assert larynx > 0 > background == pytest.approx(tumour)  # background or tumour: as likely as before
    background, tumour, larynx = gradients["neither"]
    assert tumour == pytest.approx(larynx) and larynx > 0 > background


def test_an_ensemble_of_folds(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "raw")
    folds = [{"train": ["p_0", "p_1"], "val": ["p_2"]}, {"train": ["p_2", "p_1"], "val": ["p_0"]}]
    (root / "D1" / "splits_final.json").write_text(json.dumps(folds))
    members = (Member(fold=0), Member(fold=1), Member(fold=1, seed=7))
    told = []
    config = configuration(root, tmp_path / "run", steps=2, split=None, members=members)
    config = replace(config, datasets=config.datasets[:1])
    model = train_segmentation(config, report=told.append)
    assert [row["member"] for row in told] == ["member 0", "member 1", "member 2"]
    network, plan, _ = load_model(model)
    assert (plan.members, plan.trained_on) == (3, {"CT": ("tumour",)})
    alone = [load_model(tmp_path / "run" / f"member_{n}" / "model")[0] for n in range(3)]
    image = torch.rand(1, 2, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), sum(member(image) for member in alone) / 3)
    assert len({member.state_dict()["encoder.stem.convs.0.conv.weight"].sum().item() for member in alone}) == 3
    trained = [path.name for path in (tmp_path / "run" / "cases").iterdir()]
    assert sorted(trained) == ["D1__p_0", "D1__p_1", "D1__p_2"]  # preprocessed once for all of them


def test_plans_that_training_cannot_fill(data, tmp_path):
    for changes in ({"members": 2}, {"orientation": "file"}, {"painted": (1, 2)}):
        with pytest.raises(ConfigError, match="plan: expected a plan that training can fill"):
            configuration(data, tmp_path, plan=PLAN.with_(**changes))


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


def test_the_average_follows_at_once_and_slowly_later():
    model = Model(torch.nn.Linear(1, 1, bias=False))
    average, weight = running_average(model, 0.5), model.network.weight
    expected = None
    for n, value in enumerate((1.0, 3.0, 5.0, 9.0, 2.0, 8.0, 4.0, 7.0, 1.0, 6.0, 3.0)):
        torch.nn.init.constant_(weight, value)
        average.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.module.network.weight.item() == pytest.approx(expected)
    assert decay == 0.5


def test_numbers_as_yaml_takes_them_for_text(tmp_path):
    text = (REPOSITORY / "configs" / "segmentation.yaml").read_text()
    path = tmp_path / "a.yaml"
    path.write_text(text.replace("learning_rate: 0.0015", "learning_rate: 1e-3"))
    assert SegmentationConfig.read(path).learning_rate == 1e-3
    path.write_text(text.replace("learning_rate: 0.0015", "learning_rate: fast"))
    with pytest.raises(ConfigError, match="a.yaml: learning_rate: expected a number, found 'fast'"):
        SegmentationConfig.read(path)


def test_datasets_come_up_evenly_in_proportion():
    order = interleave(np.array([0.5, 0.25, 0.25]), 240)
    assert [order.count(n) for n in range(3)] == [120, 60, 60]
    assert all(sorted(order[n : n + 4]) == [0, 0, 1, 2] for n in range(0, 240, 4))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("segmentation*.yaml")), ids=lambda p: p.stem)
def test_our_configurations_read(path):
    config = SegmentationConfig.read(path)
    assert "tumour" in config.plan.classes
    assert set(config.plan.single) | set(config.plan.minimum_ml) <= set(config.plan.classes)
    assert all(set(entry.absent) <= set(config.plan.classes) for entry in config.datasets)
    assert (REPOSITORY / config.split).is_file()
    assert all(n % 2 ** (len(config.plan.network_options["strides"]) - 1) == 0 for n in config.plan.patch)
    changed = SegmentationConfig.read(path, steps=3, output="x", batch=None)
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
        (GOOD, "", "c.yaml: the file: expected lines of `key: value`, found NoneType"),
        (GOOD, "- 1\n- 2\n", "found list"),
        (GOOD, "data: [", ""),
        ("data: raw\n", "", "the key `data`"),
        ("data: raw\n", "data:\n", "the key `data`"),
        ("output: run\n", "", "the key `output`"),
        ("plan: {name: t, classes: [tumour], patch: [16, 16, 16]}\n", "", "plan"),
        ("classes: [tumour], ", "", "classes"),
        ("[tumour]", "[tumour, tumour]", "differ"),
        ("mirror", "mirrors", "mirrors"),
        ("absent", "missing", "missing"),
        ("datasets: [{name: D1, absent: [larynx]}]", "datasets: []", "datasets"),
        ("augmentation", "steps: 0\naugmentation", "steps"),
        ("augmentation", "stepz: 3\naugmentation", "found stepz; is it `steps`"),
        ("augmentation", "steps: many\naugmentation", "steps: expected a whole number, found 'many'"),
        ("augmentation", "steps: 2.5\naugmentation", "steps: expected a whole number, found 2.5"),
        ("augmentation", "seed: true\naugmentation", "seed: expected a whole number, found True"),
        ("augmentation", "seed: -1\naugmentation", "seed: expected a value from 0, found -1"),
        ("augmentation", "tensorboard: no thanks\naugmentation", "tensorboard: expected true or false"),
        ("augmentation", "weight_decay: -1\naugmentation", "weight_decay: expected a value from 0"),
        ("augmentation", "learning_rate: .inf\naugmentation", "learning_rate: .* found inf"),
        ("augmentation", "learning_rate: .nan\naugmentation", "learning_rate: .* found nan"),
        ("augmentation", "workers: -2\naugmentation", "workers: expected a value from 0"),
        ("augmentation", "clip: 0\naugmentation", "clip: expected a value from 1e-06"),
        ("augmentation", "schedule_steps: 0\naugmentation", "schedule_steps: expected a value from 1"),
        ("augmentation", "class_weight: {tumour: -2}\naugmentation", "class_weight: expected weights from 0"),
        ("augmentation", "members: [0, 1]\naugmentation", "members: expected keys among fold, seed, found 0"),
        ("augmentation", "members: [{foldd: 1}]\naugmentation", "is it `fold`"),
        ("{mirror: 0.25}", "none", "augmentation: expected keys among"),
        ("{mirror: 0.25}", "{mirror: 3}", "augmentation: .* mirror is a chance from 0 to 1"),
        ("{mirror: 0.25}", "{noise: -1}", "augmentation: .* noise is not negative"),
        ("{mirror: 0.25}", "{scale: [1.2, 0.9]}", "augmentation: .* the smaller one first"),
        ("[16, 16, 16]", "[16, 16]", "patch is three whole numbers"),
        ("[16, 16, 16]", "[0, 16, 16]", "patch is three whole numbers"),
        ("{name: D1, absent: [larynx]}", "{name: D1, weight: 0}", "weights above 0, found another one of D1"),
        ("[{name: D1, absent: [larynx]}]", "D1", "datasets: expected a list"),
        ("augmentation", "consistency: {ramps: 3}\naugmentation", "ramps"),
        ("augmentation", "consistency: {certain: 1.5}\naugmentation", "probability"),
        ("augmentation", "consistency: {}\nema: 0\naugmentation", "`ema` above 0"),
        ("augmentation", "cutmix: {margin_mm: [20, 10]}\naugmentation", "margin_mm"),
        ("augmentation", "cutmix: {margin_mm: 20}\naugmentation", ""),
        ("augmentation", "pseudo_labels: {rounds: 0}\naugmentation", "rounds"),
        ("augmentation", "pseudo_labels: {rules: {certain: 2}}\naugmentation", "certain"),
        ("augmentation", "pseudo_labels: 3\naugmentation", ""),
        ("augmentation", "start: m\nfrozen: [encoder, stem]\naugmentation", "one or both of encoder, decoder.*stem"),
        ("augmentation", "start: m\nfrozen: neck\naugmentation", "found neck"),
        ("augmentation", "start: m\nfrozen: [encoder, decoder]\naugmentation", "left to train"),
        ("augmentation", "frozen: encoder\naugmentation", "`start`"),
        ("augmentation", "start: m\nfrozen: 3\naugmentation", ""),
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


def test_a_checkpoint_of_something_else(data, tmp_path):
    config = configuration(data, tmp_path, steps=1)
    train_segmentation(config)
    others = {
        "another classes": {"plan": PLAN.with_(classes=("larynx", "tumour"))},
        "another optimizer": {"optimizer": "sgd"},
        "another average": {"ema": 0.0},
        "another network": {"plan": PLAN.with_(network_options=OPTIONS | {"features": [4, 6]})},
    }
    for words, changes in others.items():
        with pytest.raises(ConfigError, match=f"checkpoint.pt: expected .* found one of {words}"):
            train_segmentation(replace(config, steps=2, **changes), resume=True)
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match="a checkpoint of this configuration"):
        train_segmentation(config, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ConfigError, match="a checkpoint of this configuration, found a file that is none"):
        train_segmentation(config, resume=True)


def test_a_window_that_the_network_cannot_halve(data, tmp_path):
    config = configuration(data, tmp_path, plan=PLAN.with_(patch=(15, 16, 16)))
    with pytest.raises(ConfigError, match="plan.patch: expected .* multiples of 2, 2, 2, found 15, 16, 16"):
        train_segmentation(config)
    assert not (tmp_path / "cases").exists()  # told before a scan is read


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ConfigError):
        SegmentationConfig.read(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="missing.yaml"):
        SegmentationConfig.read(tmp_path / "missing.yaml")
