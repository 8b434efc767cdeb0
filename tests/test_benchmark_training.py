"""The benchmark of training: its data are what it says, budget and schedule hold, the table tells the figures."""

import json
from itertools import count, repeat
from types import SimpleNamespace

import numpy as np
import pytest
import training as benchmark
from nnunet_words import architecture

from seg_backbone.cases import list_cases
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.nets import build_network
from seg_backbone.volume import Mask, Volume


def make_dataset(data, name):
    """Five CT cases p_0 to p_4, of which p_1 annotates nothing."""
    folder, grid = data / name, Grid((4, 4, 4), np.eye(4))
    for number in range(5):
        scan = np.full(grid.shape, number, dtype=np.int16)
        write_volume(Volume(scan, grid, "CT"), folder / "imagesTr" / f"p_{number}_0000.nii.gz")
        write_mask(Mask((scan > 0).astype(np.uint8), grid), folder / "labelsTr" / f"p_{number}.nii.gz")
    labels = {"background": 0, "tumour": 1}
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))


def test_patients_are_divided_by_the_split(tmp_path):
    make_dataset(tmp_path / "data", "Dataset001_Toy")
    lines = [{"dataset": "Dataset001_Toy", "case": "p_1", "annotated": []}, {"dataset": "Dataset002", "case": "q"}]
    (tmp_path / "data" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"patients": {"validation": ["p_3"], "evaluation": ["p_4"]}}))
    raw = tmp_path / "raw"
    for _ in range(2):  # an interrupted run converts again
        benchmark.convert(tmp_path / "data", "Dataset001_Toy", split, raw)
    folder = raw / "Dataset001_Toy"
    found = {kind: sorted(file.name for file in (folder / kind).iterdir()) for kind in ("imagesTs", "labelsTs")}
    assert found == {"imagesTs": ["p_3_0000.nii.gz"], "labelsTs": ["p_3.nii.gz"]}
    cases = list_cases(raw, "Dataset001_Toy")
    assert [(case.case, case.annotated) for case in cases] == [("p_0", ("tumour",)), ("p_1", ()), ("p_2", ("tumour",))]
    assert all(case.mask is not None and case.mask.resolve().parent.name == "labelsTr" for case in cases)
    assert json.loads((folder / "dataset.json").read_text())["numTraining"] == 3


class Trainer:
    """What `spend` needs of nnU-Net's trainer; every step costs 25 seconds of the clock."""

    def __init__(self):
        self.used, self.shares, self.dataloader_train = 0.0, [], repeat({})
        self.lr_scheduler = SimpleNamespace(max_steps=1000, step=self.schedule)

    def schedule(self, now):
        self.shares.append(now / self.lr_scheduler.max_steps)

    def train_step(self, batch):
        self.used += 25
        return {"loss": 0.5}


def test_the_budget_is_spent_and_the_schedule_is_whole():
    trainer = Trainer()
    assert benchmark.spend(trainer, 90, clock=lambda: trainer.used) == 4  # the fourth step uses it up
    assert trainer.shares == pytest.approx([0, 25 / 90, 50 / 90, 75 / 90])


def test_the_schedule_is_the_one_of_nnunet():
    torch = pytest.importorskip("torch")
    schedule = pytest.importorskip("nnunetv2.training.lr_scheduler.polylr", reason="nnunetv2 is not installed")
    trainer, rates = Trainer(), []
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.01)
    trainer.lr_scheduler = schedule.PolyLRScheduler(optimizer, 0.01, 1000)
    step = trainer.train_step
    trainer.train_step = lambda batch: rates.append(optimizer.param_groups[0]["lr"]) or step(batch)
    benchmark.spend(trainer, 100, clock=lambda: trainer.used)
    assert rates == pytest.approx([0.01 * (1 - share) ** 0.9 for share in (0, 0.25, 0.5, 0.75)])


def test_steps_that_fit():
    # the first five steps warm up; the others take 2 s each; the first one ended after 12 s
    stamps = [100.0, 109, 115, 117, 119, *(119 + 2.0 * n for n in range(1, 16))]
    assert benchmark.steps_within(112, 12, stamps) == (50, 2.0)
    assert benchmark.steps_within(1, 12, stamps) == (1, 2.0)


def test_nnunet_gets_our_network():
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
    from torch import nn

    plan = benchmark.PLAN
    ours = build_network(plan["network"], 1, 2, plan["network_options"])
    stages = (plan["network_options"][name] for name in ("features", "blocks", "strides", "kernels"))
    options = architecture(*stages)["arch_kwargs"]
    options |= {"conv_op": nn.Conv3d, "norm_op": nn.InstanceNorm3d, "nonlin": nn.LeakyReLU}
    theirs = ResidualEncoderUNet(1, num_classes=2, **options)
    shapes = [{name: tuple(value.shape) for name, value in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_axes_of_nnunet():
    assert benchmark.turn([[1, 2, 3]], [0, 1, 2]) == [[3, 2, 1]]
    assert benchmark.turn([[1, 2, 3]], [2, 0, 1]) == [[1, 3, 2]]


def test_a_stage_runs_once(tmp_path):
    numbers = count()
    for _ in range(2):
        assert benchmark.kept(tmp_path, "train", lambda: {"steps": next(numbers)}) == {"steps": 0}


def test_the_table(tmp_path):
    figure = {"mean": 0.5, "interval": [0.25, 0.75]}
    costs = {"train_cpu_s": 1200.0, "train_wall_s": 1500.0, "prepare_cpu_s": 30.0, "predict_cpu_s": 12.0}
    classes = {"tumour": {"scored": 8, "dsc": figure, "nsd": {"mean": None, "interval": None}}}
    row = {"system": "nnunet grid", "steps": 240, "batch": 2, **costs, "classes": classes}
    benchmark.write([row], tmp_path, "Dataset001_Toy", 20)
    expected = "| nnunet grid | 240 x 2 | 20.0 | 25.0 | 0.5 | 0.2 | tumour | 8 | 0.500 [0.250, 0.750] | – |"
    assert expected in (tmp_path / "training.md").read_text()
    assert json.loads((tmp_path / "training.json").read_text())["rows"] == [row]
