"""Heads that classify whole scans: what they pool, that they learn, and that model folders keep them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seg_backbone import Segmenter
from seg_backbone.augment import Augmentation
from seg_backbone.cases import DatasetEntry
from seg_backbone.checkpoint import load_model
from seg_backbone.errors import CheckpointError, ConfigError, LabelError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_volume, write_mask, write_volume
from seg_backbone.nets import build_network
from seg_backbone.plan import Plan, ScanHeadPlan, ScanTask
from seg_backbone.preprocess import normalise, preprocess
from seg_backbone.runtimes import has_package
from seg_backbone.scan_classes import UNKNOWN
from seg_backbone.scan_heads import WEIGHTS, ScanHeads, ScanPool, WithStatistics, load_heads, pooled_features
from seg_backbone.train import SegmentationConfig, train_segmentation
from seg_backbone.train.classes import accuracies, class_terms, classify_cases
from seg_backbone.train.config import ClassLoss, Member
from seg_backbone.train.data import build_sources, read_cases
from seg_backbone.train.loop import save_ensemble
from seg_backbone.train.model import LOSS_WEIGHTS, Output, build_model
from seg_backbone.train.objective import Step
from seg_backbone.train.optimise import build_optimizer
from seg_backbone.train.samples import SCAN, Batch, Batches, Sample, stack
from seg_backbone.volume import Mask, Volume

SHARED = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {"features": [6, 12], "blocks": [1, 1], "strides": [1, 2]}
TASKS = {"grade": ScanTask(("low", "high"), ("lesion",)), "grade_by_all": ScanTask(("low", "high"), ("volume",))}
PLAN = Plan(
    "tiny",
    ("tumour", "larynx"),
    patch=(16, 16, 16),
    network_options=OPTIONS,
    heads=ScanHeadPlan(TASKS, ("tumour",), 16),
)
GRID = Grid((18, 16, 17), np.diag([4.0, 4.0, 4.0, 1.0]))
CASES = 6


def phantom(number, random):
    """(HU, ids, grade): a tumour in a bright rim, whose inside is dark or bright: its grade; and a larynx that looks
    the same but is dark or bright by chance.
    """
    ids, array, grade = np.zeros(GRID.shape, dtype=np.uint8), random.normal(0, 15, GRID.shape), number % 2
    for value, z, inside in zip((1, 2), random.permutation([0, 8]), (grade, random.integers(2)), strict=True):
        x, y = random.integers(0, 9, 2)
        ids[x : x + 8, y : y + 8, z : z + 8] = value
        array[x : x + 8, y : y + 8, z : z + 8] = 200
        array[x + 1 : x + 7, y + 1 : y + 7, z + 1 : z + 7] -= (350, 100)[inside]
    return array.astype(np.int16), ids, grade


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A few phantoms as a dataset of FLARE26's layout; the last two validate."""
    folder, random = tmp_path_factory.mktemp("raw") / "D1", np.random.default_rng(0)
    lines, names = ["identifier,grade,grade_by_all"], [f"p_{number:02d}" for number in range(CASES)]
    for number, name in enumerate(names):
        array, ids, grade = phantom(number, random)
        write_volume(Volume(array, GRID, "CT"), folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_mask(Mask(ids, GRID), folder / "labelsTr" / f"{name}.nii.gz")
        lines.append(f"{name},{grade},{grade}")
    classes = {"0": "low", "1": "high"}
    description = {"labels": {"background": 0, "tumour": 1, "larynx": 2}, "channel_names": {"0": "CT"}}
    description |= {"classification_labels": {"grade": classes, "grade_by_all": classes}}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / "cls_data.csv").write_text("\n".join(lines) + "\n")
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[:-2], "val": names[-2:]}]))
    return folder.parent


def configuration(data, output, **changes):
    base = SegmentationConfig(
        data=data,
        output=output,
        plan=PLAN,
        datasets=(DatasetEntry("D1"),),
        augmentation=Augmentation(crop_mm=0.0, intensity=0.0, noise=0.0),
        steps=3,
        learning_rate=1e-2,
        warmup=3,
        ema=0.9,
        checkpoint_minutes=60,
        threads=1,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A model of a few steps, and its configuration."""
    config = configuration(data, tmp_path_factory.mktemp("run"), steps=4)
    train_segmentation(config)
    return config


def test_the_class_of_a_lesion_is_read_off_the_lesion():
    """The same features and labels for both heads: one sees what lies under the lesion, the other the whole scan."""
    torch.manual_seed(0)
    random = np.random.default_rng(1)
    network = build_network(PLAN.network, 2, 3, OPTIONS).eval()  # untrained; the masks are the reference's
    heads = ScanHeads(PLAN, pooled_features(network, PLAN))
    statistics, grades = [], []
    for number in range(60):
        array, ids, grade = phantom(number, random)
        image = torch.from_numpy(normalise(array[:16, :, :16], "CT", PLAN))[None]
        logits = torch.nn.functional.one_hot(torch.from_numpy(ids[:16, :, :16]).long(), 3).movedim(-1, 0)[None] * 20.0
        with torch.inference_mode():
            statistics.append(heads.statistics(network.encoder(image), logits))
        grades.append(grade)
    inputs, truth = torch.cat(statistics).clone(), torch.tensor(grades)
    ml = heads.voxel_ml * 16**3
    optimizer = torch.optim.AdamW(heads.parameters(), 1e-2)
    for _ in range(60):
        by_lesion, by_all = heads.classify(inputs[:40], ml).split(2, dim=1)
        loss = sum(torch.nn.functional.cross_entropy(logits, truth[:40]) for logits in (by_lesion, by_all))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    by_lesion, by_all = heads.classify(inputs[40:], ml).split(2, dim=1)
    assert (by_lesion.argmax(1) == truth[40:]).float().mean() == 1
    assert (by_all.argmax(1) == truth[40:]).float().mean() < 0.9


REAL = {"head and neck": "101_HeadNeckCT/hn", "soft tissue": "102_SarcomaCT/sarc", "MR": "103_SarcomaMR/sarc"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real scans in ../shared/data")
@pytest.mark.parametrize("kinds", [("head and neck", "soft tissue"), ("soft tissue", "MR")], ids=["region", "modality"])
def test_real_scans_tell_their_body_region_and_modality(kinds):
    """Features of an untrained network over whole scans; a patient is on one side, whatever the modality."""
    torch.manual_seed(0)
    heads = ScanHeadPlan({"kind": ScanTask(kinds, ("volume",))}, hidden=16)
    plan = PLAN.with_(spacing_mm=(8.0, 8.0, 8.0), heads=heads)
    network = build_network(PLAN.network, 2, 3, OPTIONS).eval()
    head, statistics = ScanHeads(plan, pooled_features(network, plan)), []
    for patient in range(1, 9):
        for kind in kinds:
            folder, name = REAL[kind].split("/")
            scans = sorted((SHARED / f"Dataset{folder}" / "imagesTr").glob(f"{name}_*_0000.nii.gz"))
            image = preprocess(read_volume(scans[patient], "MR" if kind == "MR" else "CT"), plan)[0]
            even = tuple(slice(0, size // 2 * 2) for size in image.shape[1:])
            scan = torch.from_numpy(image[(slice(None), *even)])[None]
            with torch.inference_mode():
                statistics.append(head.statistics(network.encoder(scan), torch.zeros(1, 3, *scan.shape[2:])))
    inputs, truth = torch.cat(statistics).clone(), torch.tensor([0, 1] * 8)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head.classify(inputs[:10], 1.0), truth[:10]).backward()
        optimizer.step()
    assert (head.classify(inputs[10:], 1.0).argmax(1) == truth[10:]).float().mean() > 0.8


def test_a_model_folder_classifies_scans(trained, data):
    rows = [json.loads(line) for line in (trained.output / "log.jsonl").read_text().splitlines()]
    assert set(rows[-1]["validation_classes"]) == set(TASKS)
    assert min(rows[-1]["class grade"], rows[-1]["class grade_by_all"]) > 0
    segmenter = Segmenter.load(trained.output / "model")
    scan = data / "D1" / "imagesTr" / "p_03_0000.nii.gz"
    found = segmenter(scan, "CT")
    assert {name: tuple(classes) for name, classes in found.classes.items()} == dict.fromkeys(TASKS, ("low", "high"))
    assert all(sum(classes.values()) == pytest.approx(1) for classes in found.classes.values())
    assert found.report["scan_classes"] == found.classes
    kept = segmenter(scan, "CT", keep_stages=(1,))
    assert kept.classes == found.classes
    assert np.array_equal(kept.mask.array, found.mask.array)
    assert segmenter(scan, "CT", mirror=True).classes == found.classes
    assert segmenter(scan, "CT", fast=True).classes.keys() == found.classes.keys()
    step = segmenter(scan, "CT", step=0.25)  # more windows over the same scan
    assert step.classes["grade"]["low"] == pytest.approx(found.classes["grade"]["low"], abs=0.1)


@pytest.mark.skipif(not has_package("openvino"), reason="the optional package openvino is missing")
@pytest.mark.parametrize("members", [1, 2])
def test_openvino_classifies_as_torch_does(trained, data, tmp_path, monkeypatch, members):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = trained.output / "model"
    if members == 2:
        folder = save_ensemble([folder, folder], tmp_path / "two")
    scan = data / "D1" / "imagesTr" / "p_03_0000.nii.gz"
    expected = Segmenter.load(folder)(scan, "CT")
    for asked in ("openvino", "openvino-int8"):
        found = Segmenter.load(folder, runtime=asked)(scan, "CT")
        used = found.report["runtime"]
        assert (used["used"], used["why"] is None) == ("openvino", asked == "openvino")
        assert (found.mask.array == expected.mask.array).mean() > 0.99
        for task, classes in expected.classes.items():
            assert found.classes[task] == pytest.approx(classes, abs=1e-3)
    kept = Segmenter.load(folder, runtime="openvino")(scan, "CT", keep_stages=(1,))
    assert (kept.report["runtime"]["used"], kept.classes) == ("torch", expected.classes)


def test_a_folder_without_its_heads(trained, tmp_path):
    folder = shutil.copytree(trained.output / "model", tmp_path / "model")
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"heads.safetensors: expected the heads of plan.json"):
        Segmenter.load(folder)
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"heads": None}))
    assert Segmenter.load(folder).heads == []  # as every model from before there were heads
    del plan["heads"]
    (folder / "plan.json").write_text(json.dumps(plan))
    assert load_model(folder)[1].heads is None


def test_statistics_of_windows_add_up_to_those_of_the_scan():
    torch.manual_seed(0)
    heads = ScanHeads(PLAN, 3)
    maps = [torch.rand(2, 4, 8, 8, 8), torch.rand(2, 3, 4, 4, 4)]
    logits = torch.randn(2, 3, 8, 8, 8)
    each = heads.statistics(maps, logits)
    lesion = logits.softmax(1)[:, 1:2]
    coarse = torch.nn.functional.avg_pool3d(lesion, 2)
    torch.testing.assert_close(each[:, :3], (maps[1] * coarse).mean((2, 3, 4)))
    torch.testing.assert_close(each[:, 3], lesion.mean((1, 2, 3, 4)))
    torch.testing.assert_close(each[:, 4:7], maps[1].mean((2, 3, 4)))
    torch.testing.assert_close(each[:, 7:], logits.softmax(1)[:, 1:].mean((2, 3, 4)))
    scan = heads.statistics(
        [one.transpose(0, 1).flatten(1, 2)[None] for one in maps], logits.transpose(0, 1).flatten(1, 2)[None]
    )
    torch.testing.assert_close(each.mean(0, keepdim=True), scan)
    pool = ScanPool(WithStatistics(torch.nn.Identity(), [heads]))
    assert pool.probabilities(100) == {}
    for number in range(2):
        pool.add(pool.network.pooled([one[number : number + 1] for one in maps], logits[number : number + 1]))
    whole = heads.classify(scan, heads.voxel_ml * 1024)[0].split(2)
    found = pool.probabilities(1024)
    for name, part in zip(TASKS, whole, strict=True):
        assert list(found[name].values()) == pytest.approx(part.softmax(0).tolist(), abs=1e-5)


def test_what_a_head_sees():
    """By hand: features under lesions and the log of their volume; without any lesion they are 0."""
    heads = ScanHeads(PLAN, 2)
    seen = []
    for head in heads.layers:
        head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    heads.classify(torch.tensor([[0.2, 0.4, 0.5, 1.0, 3.0, 0.5, 0.25]]), ml=8.0)
    torch.testing.assert_close(seen[0], torch.tensor([[0.4, 0.8, 1.6094]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[1], torch.tensor([[1.0, 3.0, 1.6094, 1.0986]]), atol=1e-4, rtol=0)
    heads.classify(torch.zeros(1, 7), ml=8.0)
    assert not seen[2].any()


def test_the_mask_is_not_bent():
    logits = torch.randn(1, 3, 8, 8, 8, requires_grad=True)
    maps = [torch.rand(1, 4, 8, 8, 8), torch.rand(1, 3, 4, 4, 4, requires_grad=True)]
    ScanHeads(PLAN, 3)(maps, logits).sum().backward()
    assert logits.grad is None
    assert maps[1].grad.any()


UNET = {"features": (4, 6, 8), "blocks": (1, 1, 1), "strides": (1, 2, 2)}
WIDTHS = {
    "resenc_unet": (UNET, 6 + 8),
    "segresnet": ({"features": 8}, 16 + 32 + 64),
    "swin_unetr": ({"features": 12}, 31 * 12),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_every_kind_of_network_has_features_to_pool(name):
    options, width = WIDTHS[name]
    network = build_network(name, 2, 3, options)
    assert pooled_features(network, PLAN.with_(patch=(64, 64, 64))) == width
    assert next(network.parameters()).device.type == "cpu"


def test_task_weights_are_in_the_optimiser_and_move(data, tmp_path):
    config = configuration(data, tmp_path, classification=ClassLoss(learned=True))
    model = build_model(config)
    optimizer = build_optimizer(model, config)
    held = {id(one) for group in optimizer.param_groups for one in group["params"]}
    learned = model.heads[LOSS_WEIGHTS].log_variances
    assert id(learned) in held
    assert {id(one) for one in model.heads[SCAN].parameters()} <= held
    train_segmentation(config)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    assert (state[f"heads.{LOSS_WEIGHTS}.log_variances"] != 0).all()
    assert LOSS_WEIGHTS not in build_model(replace(config, classification=ClassLoss(learned=False))).heads


def step_of(logits, targets, variances=None):
    heads = {SCAN: logits} | ({} if variances is None else {LOSS_WEIGHTS: variances})
    given = {} if targets is None else {SCAN: torch.tensor(targets)}
    batch = Batch(torch.zeros(0), torch.zeros(0), torch.zeros(0), (), given)
    return Step(0, torch.nn.Identity(), None, batch, Output(torch.zeros(0), heads))


def test_the_loss_by_hand(data, tmp_path):
    config = configuration(data, tmp_path, classification=ClassLoss(weight=2.0, learned=False, balanced=False))
    training, _ = read_cases(config, tmp_path / "cases", None)
    (plain,) = class_terms(config, training)
    logits = torch.tensor([[0.0, np.log(3), 0.0, 0.0], [0.0, 0.0, 5.0, 0.0]], requires_grad=True)
    values = plain(step_of(logits, [[1, UNKNOWN], [UNKNOWN, UNKNOWN]]))
    assert values["class grade"].item() == pytest.approx(2 * np.log(4 / 3))
    assert values["class grade_by_all"].item() == 0  # nobody knows
    sum(values.values()).backward()
    assert logits.grad[0, :2].any() and not logits.grad[1].any() and not logits.grad[:, 2:].any()
    assert set(plain(step_of(logits, None))) == set(values)  # a batch of scans without classes

    weighed = replace(config, classification=ClassLoss(weight=1.0, learned=True, balanced=False))
    (term,) = class_terms(weighed, training)
    variances = torch.tensor([2.0, 3.0], requires_grad=True)
    values = term(step_of(logits, [[1, UNKNOWN], [UNKNOWN, UNKNOWN]], variances))
    assert values["class grade"].item() == pytest.approx(np.log(4 / 3) / 4 + np.log(3))
    sum(values.values()).backward()
    assert variances.grad[0] and not variances.grad[1]  # no weight drifts where nothing is known


def test_rare_classes_weigh_as_much_as_common_ones(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "raw")
    lines = ["identifier,grade,grade_by_all", "p_00,high,low", *(f"p_{n:02d},low,low" for n in (1, 2)), "p_03,,high"]
    (root / "D1" / "cls_data.csv").write_text("\n".join(lines))
    config = configuration(root, tmp_path, classification=ClassLoss(learned=False))
    training, _ = read_cases(config, tmp_path / "cases", None)
    (term,) = class_terms(config, training)
    even = torch.zeros(1, 4)
    losses = [term(step_of(even, [[number, UNKNOWN]]))["class grade"].item() for number in (0, 1)]
    assert losses == pytest.approx([np.log(2) * 3 / (2 * 2), np.log(2) * 3 / (2 * 1)])
    (root / "D1" / "cls_data.csv").write_text("identifier,grade,grade_by_all\np_00,1,\n")
    with pytest.raises(ConfigError, match="expected training cases with a class of grade_by_all, found none"):
        class_terms(config, training)


def test_windows_carry_what_is_known_of_their_scan(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "raw")
    (root / "D1" / "cls_data.csv").write_text('identifier,label\np_00,"[1, 0]"\np_01,"[0, -1]"\n')
    plan = PLAN.with_(patch=(8, 8, 8))
    config = configuration(root, tmp_path, plan=plan, augmentation=Augmentation(centred=0.5, crop_mm=0.0))
    training, _ = read_cases(config, tmp_path / "cases", None)
    batches = Batches(build_sources(config, training), 2, 0)
    seen = set()
    for number in range(60):
        batch = batches[number]
        for case, codes, (grade, by_all) in zip(batch.cases, batch.codes, batch.targets[SCAN].tolist(), strict=True):
            assert by_all == {"p_00": 0}.get(case, UNKNOWN)
            lesion = bool((codes == 1).any())
            assert grade == ({"p_00": 1, "p_01": 0}.get(case, UNKNOWN) if lesion else UNKNOWN)
            seen.add(lesion)
    assert seen == {True, False}
    image, codes, table = torch.zeros(1, 2, 2, 2), torch.zeros(2, 2, 2), torch.ones(1, 2)
    mixed = stack([Sample(image, codes, table, "a", {SCAN: torch.tensor([1, 0])}), Sample(image, codes, table, "b")])
    assert mixed.targets[SCAN].tolist() == [[1, 0], [UNKNOWN, UNKNOWN]]


def test_a_resumed_run_keeps_its_heads(data, tmp_path):
    def stop(stage, done, total):
        if stage == "training" and done == 2:
            raise KeyboardInterrupt

    whole = train_segmentation(configuration(data, tmp_path / "whole", steps=4))
    config = configuration(data, tmp_path / "parts", steps=4, checkpoint_minutes=0)
    with pytest.raises(KeyboardInterrupt):
        train_segmentation(config, progress=stop)
    resumed = train_segmentation(config, resume=True)
    assert (resumed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_an_ensemble_is_the_mean_of_its_members(data, tmp_path):
    config = configuration(data, tmp_path, steps=1, members=(Member(), Member()))
    folder = train_segmentation(config)
    scan = data / "D1" / "imagesTr" / "p_05_0000.nii.gz"
    heads = Segmenter.load(folder).heads
    assert len(heads) == 2
    for number, head in enumerate(heads):
        own = load_heads(tmp_path / f"member_{number}" / "model", PLAN)[0].state_dict()
        assert all(torch.equal(value, own[name]) for name, value in head.state_dict().items())
    assert sum(Segmenter.load(folder)(scan, "CT").classes["grade"].values()) == pytest.approx(1)


def test_training_goes_on_from_a_model_with_heads(trained, tmp_path):
    config = replace(trained, output=tmp_path, start=trained.output / "model", steps=1, learning_rate=0.0)
    before, after = (
        load_heads(folder, PLAN)[0].state_dict() for folder in (trained.output / "model", train_segmentation(config))
    )
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)


def test_validation_counts_the_cases_that_are_known(data, tmp_path, trained):
    _, held = read_cases(trained, tmp_path / "cases", None)
    network, plan, _ = load_model(trained.output / "model")
    found = classify_cases(network, load_heads(trained.output / "model", plan)[0], held, plan)
    assert len(found) == 2 * len(held)
    assert accuracies([("a", 0, 0), ("a", 0, 1), ("a", 1, 1), ("b", 2, 0)]) == {
        "a": {"accuracy": 0.6667, "balanced_accuracy": 0.75},
        "b": {"accuracy": 0.0, "balanced_accuracy": 0.0},
    }
    assert accuracies([]) == {}


def test_files_that_do_not_fit_the_plan(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "raw")
    (root / "D1" / "cls_data.csv").write_text("identifier,grade,grade_by_all\np_00,huge,0\n")
    with pytest.raises(LabelError, match=r"cls_data.csv: expected a class of grade in line 2 .*found 'huge'"):
        train_segmentation(configuration(root, tmp_path / "run"))
    (root / "D1" / "cls_data.csv").unlink()
    with pytest.raises(LabelError, match=r"cls_data.csv: .*no such file"):
        train_segmentation(configuration(root, tmp_path / "run"))
    other = PLAN.with_(heads=ScanHeadPlan({"grade": ScanTask(("high", "low"))}))
    with pytest.raises(
        ConfigError, match=r"dataset.json: expected the plan's classes of grade: high, low, found low, high"
    ):
        train_segmentation(configuration(data, tmp_path / "run", plan=other))
    with pytest.raises(AssertionError, match="lesions are classes"):
        PLAN.with_(heads=ScanHeadPlan(TASKS, ("liver",)))


def test_a_plan_with_heads_is_read_as_it_was_written(tmp_path):
    (tmp_path / "plan.json").write_text(PLAN.to_json())
    assert Plan.read(tmp_path / "plan.json") == PLAN
    brief = Plan.of({"name": "t", "classes": ["tumour"], "heads": {"tasks": {"grade": ["low", "high"]}}})
    assert brief.heads == ScanHeadPlan({"grade": ScanTask(("low", "high"), ("lesion", "volume"))})
    (tmp_path / "plan.json").write_text(
        json.dumps({"name": "t", "classes": ["a"], "heads": {"tasks": {"grade": ["low"]}}})
    )
    with pytest.raises(CheckpointError, match="two classes or more"):
        Plan.read(tmp_path / "plan.json")
