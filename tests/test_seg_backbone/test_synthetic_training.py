"""Synthetic tumours in training: windows that have them, splits that keep them out of validation, a net that learns."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from seg_backbone.cases import DatasetEntry, list_cases
from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.plan import Channel, Plan
from seg_backbone.preprocess import MR_FLAG
from seg_backbone.synthetic_tumours import TumourRecipe
from seg_backbone.train import SegmentationConfig, train_segmentation
from seg_backbone.train.config import SyntheticTumours
from seg_backbone.train.data import build_sources, divide
from seg_backbone.train.samples import Batches, Sample
from seg_backbone.train.synthetic import implant
from seg_backbone.volume import Mask, Volume

OPTIONS = {"features": [4, 8], "blocks": [1, 1], "strides": [1, 2]}
PLAN = Plan("tiny", ("tumour", "liver"), patch=(16, 16, 16), network_options=OPTIONS)
RECIPE = {"inside": "liver", "count": 1, "sizes": {"medium": 1}, "contrast_hu": {"liver": [90, 130]}}
GRID = Grid((20, 20, 20), np.diag([4.0, 4.0, 4.0, 1.0]))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three healthy scans with a liver; p_2, which validates, has a bright cube in it that is drawn."""
    root = tmp_path_factory.mktemp("raw")
    random = np.random.default_rng(0)
    for number in range(3):
        ids = np.zeros(GRID.shape, dtype=np.uint8)
        ids[3:17, 3:17, 3:17] = 2
        if number == 2:
            ids[7:13, 7:12, 8:13] = 1
        array = random.normal(0, 10, GRID.shape) - 100 + np.array([0, 210, 100])[ids]
        write_volume(Volume(array.astype(np.int16), GRID, "CT"), root / "D1" / "imagesTr" / f"p_{number}_0000.nii.gz")
        write_mask(Mask(ids, GRID), root / "D1" / "labelsTr" / f"p_{number}.nii.gz")
    described = {"labels": {"background": 0, "tumour": 1, "liver": 2}, "channel_names": {"0": "CT"}}
    (root / "D1" / "dataset.json").write_text(json.dumps(described))
    (root / "split.json").write_text(json.dumps({"patients": {"validation": ["p_2"]}}))
    return root


def configuration(data, output, **changes):
    base = SegmentationConfig(
        data=data,
        output=output,
        split=data / "split.json",
        plan=PLAN,
        datasets=(DatasetEntry("D1"),),
        steps=80,
        learning_rate=3e-2,
        warmup=3,
        ema=0.9,
        checkpoint_minutes=60,
        threads=1,
    )
    return replace(base, **changes)


def test_a_net_finds_lesions_that_it_has_only_seen_synthetic(data, tmp_path):
    """No training scan shows a tumour. Without synthetic ones the cube is missed, with them it is found."""
    settings = {"off": None, "on": SyntheticTumours.parse({"share": 1.0} | RECIPE)}
    dice, trained_on = {}, {}
    for name, synthetic in settings.items():
        train_segmentation(configuration(data, tmp_path / name, synthetic_tumours=synthetic))
        last = json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[-1])
        dice[name] = last["validation_dice"]
        trained_on[name] = json.loads((tmp_path / name / "model" / "plan.json").read_text())["trained_on"]
    assert dice["off"]["CT tumour"] < 0.05 and dice["off"]["CT liver"] > 0.3
    assert dice["on"]["CT tumour"] > 0.6
    assert trained_on == {"off": {"CT": ["liver"]}, "on": {"CT": ["tumour", "liver"]}}  # others are never predicted


def window(modality="CT", value=0.35):
    """A liver in the middle of a window, at 110 HU or an MR signal of 0.35."""
    image = np.full((2, 24, 24, 24), -1.0, dtype=np.float32)
    image[0, 2:22, 2:22, 2:22] = value
    image[1] = np.where(image[0] > -1, 0.11, -1) if modality == "CT" else MR_FLAG
    codes = np.zeros(image.shape[1:], dtype=np.uint8)
    codes[3:21, 3:21, 3:21] = 2
    table = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])
    return Sample(torch.from_numpy(image), torch.from_numpy(codes), table, "p_0", {"scan": torch.tensor([1])})


def test_a_window_gets_a_tumour_in_hu_in_every_channel():
    sample, random = window(), np.random.default_rng(0)
    recipe = TumourRecipe.of(RECIPE | {"contrast_hu": {"liver": [-80, -80]}, "mass_effect": 0})
    made = implant(sample, PLAN, SyntheticTumours(1.0, recipe), random)
    where = (made.codes == 1).numpy()
    assert where.sum() * 64 / 1000 == pytest.approx(4 / 3 * np.pi * 1.5**3, rel=0.7)  # 20 to 40 mm, in ml
    assert (sample.codes.numpy()[where] == 2).all() and (sample.codes == 1).sum() == 0
    deepest = [channel[where].min() for channel in made.image.numpy()]
    assert deepest == pytest.approx([0.35 - 80 / 200, 0.11 - 80 / 1000], abs=1e-3)
    assert (made.table == sample.table).all() and made.targets == {} and made.case == "p_0"


def test_a_window_of_mr_and_one_of_nnunet_channels():
    recipe = TumourRecipe.of(RECIPE | {"mass_effect": 0, "contrast_mr": 0.4})
    made = implant(window("MR"), PLAN, SyntheticTumours(1.0, recipe), np.random.default_rng(0))
    where = made.codes == 1
    change = (made.image[0] - window("MR").image[0])[where]
    assert (made.image[1] == MR_FLAG).all()
    assert abs(change).max() == pytest.approx(0.4 * 1.35, abs=1e-3)  # the signal is 1.35 above that of air
    channels = (Channel("CT", "ct", mean=60.0, std=50.0, low=-100.0, high=240.0), Channel("T1", "zscore"))
    plan = replace(PLAN, channels=channels)
    sample = window(value=1.0)  # 110 HU
    made = implant(sample, plan, SyntheticTumours(1.0, recipe), np.random.default_rng(1))
    most = (made.image - sample.image)[:, made.codes == 1].amax(1)
    assert 90 <= most[0] * 50 <= 130 and (made.image[1] == sample.image[1]).logical_not().any()


def test_a_window_without_the_organ_stays_as_it_is():
    sample = replace(window(), codes=torch.zeros(24, 24, 24, dtype=torch.uint8))
    made = implant(sample, PLAN, SyntheticTumours.parse(RECIPE), np.random.default_rng(0))
    assert made is sample


def test_windows_depend_on_seed_and_number_alone(data, tmp_path):
    from seg_backbone.train.data import read_cases

    config = configuration(data, tmp_path, synthetic_tumours=SyntheticTumours.parse({"share": 0.5} | RECIPE))
    training, validation = read_cases(config, tmp_path / "cases", None)
    batches = [Batches(build_sources(config, training), 4, 7) for _ in range(2)]
    for number in (3, 0):
        first, again = (b[number] for b in batches)
        assert torch.equal(first.image, again.image) and torch.equal(first.codes, again.codes)
    shown = [bool((codes == 1).any()) for number in range(6) for codes in batches[0][number].codes]
    assert 0.2 < np.mean(shown) < 0.8
    assert all(set(np.unique(case.codes)) <= {0, 2} for case in training[0])  # the cases themselves stay real
    assert [case.files.case for case in validation] == ["p_2"]


def test_synthetic_cases_train_and_never_validate(data, tmp_path):
    """Marked in dataset.json or in the manifest; a copy of a validation patient is on neither side."""
    (tmp_path / "D1").symlink_to(data / "D1")
    folder = tmp_path / "D2"
    (folder / "imagesTr").mkdir(parents=True)
    rows = []
    for number in range(3):
        scan = data / "D1" / "imagesTr" / f"p_{number}_0000.nii.gz"
        (folder / "imagesTr" / f"p_{number}_synthetic1_0000.nii.gz").symlink_to(scan)
        rows.append({"dataset": "D2", "case": f"p_{number}_synthetic1", "patient": f"p_{number}", "synthetic": True})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configuration(tmp_path, tmp_path, split=data / "split.json")
    config = replace(config, datasets=(DatasetEntry("D1"), DatasetEntry("D2")))
    for split in (data / "split.json", None):  # without one, a fold of the real patients
        config = replace(config, split=split)
        (_, held), (drawn, none) = divide(config)
        assert none == [] and held and len(drawn) == 2
        assert not {files.patient for files in held} & {files.patient for files in drawn}
    (tmp_path / "manifest.jsonl").unlink()
    assert not any(files.synthetic for files in list_cases(tmp_path, "D2"))
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0}, "synthetic": True}))
    assert all(files.synthetic for files in list_cases(tmp_path, "D2"))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"inside": ["spleen"]}, "spleen"),
        ({"label": "metastasis", "inside": ["liver"]}, "metastasis"),
        ({"share": 2}, "share"),
        ({"share": "half"}, "share|str"),
        ({"colour": "red"}, "colour"),
        ("on", "configuration|training file"),
    ],
)
def test_a_configuration_that_cannot_be(data, tmp_path, said, words):
    file = tmp_path / "config.yaml"
    plan = json.loads(PLAN.to_json())
    file.write_text(json.dumps({"data": str(data), "output": "o", "plan": plan, "datasets": [{"name": "D1"}]}))
    assert SegmentationConfig.read(file).synthetic_tumours is None
    assert SegmentationConfig.read(file, synthetic_tumours=RECIPE).synthetic_tumours.recipe.inside == ("liver",)
    with pytest.raises(ConfigError, match=words):
        SegmentationConfig.read(file, synthetic_tumours=said)
