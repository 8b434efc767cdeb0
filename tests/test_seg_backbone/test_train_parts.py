"""The parts that training is put together from, each on its own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seg_backbone.cases import CaseFiles, DatasetEntry, TrainingCase
from seg_backbone.errors import ConfigError
from seg_backbone.partial_labels import marginal_loss
from seg_backbone.plan import Plan
from seg_backbone.train.cache import cached_case
from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.data import build_sources
from seg_backbone.train.log import Log
from seg_backbone.train.model import Model, Output, build_model
from seg_backbone.train.objective import Step, at, mask_term, total
from seg_backbone.train.optimise import build_optimizer
from seg_backbone.train.samples import Batches, Sample, ahead, stack
from seg_backbone.train.validation import means, score

PLAN = Plan("t", ("tumour", "larynx"), patch=(4, 4, 4))


class Counted:
    """A source whose windows hold its number and one drawn one."""

    def __init__(self, number, weight, codes=3, **targets):
        self.number, self.weight, self.codes, self.targets = number, weight, codes, targets

    def draw(self, random):
        image = torch.tensor([self.number, random.random()]).float().view(2, 1, 1, 1)
        table = torch.eye(3, dtype=torch.bool)[list(range(3)) + [0] * (self.codes - 3)]
        return Sample(image, torch.zeros(1, 1, 1).byte(), table, f"s{self.number}", self.targets)


def test_batches_depend_on_seed_and_number_alone():
    batches = Batches([Counted(0, 0.5), Counted(1, 0.25), Counted(2, 0.25)], size=2, seed=3)
    numbers = [batches[n].image[:, 0].flatten().tolist() for n in range(4)]
    assert sorted(numbers[0] + numbers[1]) == sorted(numbers[2] + numbers[3]) == [0, 0, 1, 2]
    for got, number in zip(ahead(batches, range(1, 9, 2)), range(1, 9, 2), strict=True):
        assert torch.equal(got.image, batches[number].image)
    assert not torch.equal(batches[0].image, Batches(batches.sources, 2, seed=4)[0].image)
    assert list(ahead(batches, range(3, 3))) == []


def test_samples_of_different_tables_and_targets_stack():
    draw = lambda source: source.draw(np.random.default_rng(0))  # noqa: E731
    batch = stack([draw(Counted(0, 1, grade=torch.tensor(2))), draw(Counted(1, 1, 5, grade=torch.tensor(1), x=0))])
    assert batch.cases == ("s0", "s1")
    assert batch.tables.shape == (2, 5, 3)
    assert batch.tables[0, 3:].all()
    assert batch.tables[1].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 0, 0]]
    assert {name: value.tolist() for name, value in batch.targets.items()} == {"grade": [2, 1]}


def a_step(logits):
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 3, (2, 4, 4, 4), generator=random).byte()
    samples = [Sample(torch.zeros(2, 4, 4, 4), c, torch.eye(3, dtype=torch.bool)) for c in codes]
    return Step(0, nn.Identity(), nn.Identity(), stack(samples), Output(logits, {}))


def configuration(**changes):
    entries = (DatasetEntry("dataset"),)
    return SegmentationConfig(**{"data": "raw", "output": "run", "plan": PLAN, "datasets": entries} | changes)


def test_coarser_logits_weigh_half_as_much():
    random = torch.Generator().manual_seed(1)
    fine, coarse = torch.randn(2, 3, 4, 4, 4, generator=random), torch.randn(2, 3, 2, 2, 2, generator=random)
    step = a_step([fine, coarse])
    codes = at(step.batch.codes, coarse)
    assert torch.equal(codes, step.batch.codes[:, 1::2, 1::2, 1::2])
    whole, values = total([mask_term(configuration())], step)
    ours = [
        (2 * a + b) / 3
        for a, b in zip(
            marginal_loss(fine, step.batch.codes, step.batch.tables),
            marginal_loss(coarse, codes, step.batch.tables),
            strict=True,
        )
    ]
    assert [float(v) for v in values.values()] == pytest.approx([float(v) for v in ours])
    assert list(values) == ["cross_entropy", "dice_loss"]
    assert float(whole) == pytest.approx(float(sum(ours)))
    one, _ = total([mask_term(configuration())], a_step(fine))
    assert float(one) == pytest.approx(float(sum(marginal_loss(fine, step.batch.codes, step.batch.tables))))


class Halves(nn.Module):
    """A network of an encoder and a decoder that are told apart."""

    def __init__(self):
        super().__init__()
        self.encoder = lambda x: [x, x[..., ::2]]
        self.decoder = lambda maps: [maps[0] * 2, maps[1]]

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Mean(nn.Module):
    def forward(self, features, logits):
        return torch.stack([features[1].mean(), logits.mean()])


def test_extra_heads_see_features_and_finest_logits():
    image = torch.rand(1, 2, 4, 4, 4)
    output = Model(Halves(), {"mean": Mean()})(image)
    torch.testing.assert_close(output.heads["mean"], torch.stack([image[..., ::2].mean(), 2 * image.mean()]))
    assert torch.equal(output.logits[0], Model(Halves())(image).logits[0])


@pytest.mark.parametrize("network", ["plain_unet", "resenc_unet", "segresnet"])
def test_new_weights_are_drawn_as_asked(network):
    """He et al. 2015 for leaky ReLU: variance 2 / ((1 + slope^2) fan-in); torch's own is a sixth of it."""
    options = {} if network == "segresnet" else {"features": [16, 32]}
    plan = Plan("t", ("tumour",), patch=(16, 16, 16), network=network, network_options=options)
    config = SegmentationConfig(Path(), Path(), plan, (DatasetEntry("d"),))
    for name, variance in (("torch", 1 / 3), ("he", 2)):
        model = build_model(replace(config, initialisation=name))
        convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv3d) and m.weight[0].numel() > 400]
        drawn = torch.cat([(weight * weight[0].numel() ** 0.5).flatten() for weight in convolutions])
        assert float(drawn.detach().var()) == pytest.approx(variance, rel=0.05)
    with pytest.raises(ConfigError, match="initialisation: expected one of torch, he, found 'kaiming'"):
        replace(config, initialisation="kaiming")


@pytest.mark.parametrize("network", ["plain_unet", "segresnet", "swin_unetr"])
def test_new_weights_take_nearly_all_for_background(network):
    options = {
        "plain_unet": {"features": [4, 8], "deep_supervision": True},
        "swin_unetr": {"features": 12, "depths": [1] * 4},
    }
    plan = Plan("t", ("a", "b", "c"), patch=(64, 64, 64), network=network, network_options=options.get(network, {}))
    config = SegmentationConfig(Path(), Path(), plan, (DatasetEntry("d"),))
    torch.manual_seed(0)
    model, other = (build_model(replace(config, initialisation=name)) for name in ("torch", "he"))
    for logits in outputs(model):
        assert logits.softmax(1)[:, 0].mean() > 0.9
    assert outputs(other)[0].softmax(1)[:, 0].mean() < 0.7


def outputs(model):
    found = model(torch.randn(1, 2, 64, 64, 64)).logits
    return found if isinstance(found, list) else [found]


class Normed(nn.Module):
    """A network whose two halves keep statistics and drop out."""

    def __init__(self):
        super().__init__()
        self.down, self.up = (nn.Sequential(nn.BatchNorm3d(2), nn.Dropout(0.5), nn.Conv3d(2, 2, 1)) for _ in range(2))

    def encoder(self, x):
        return [self.down(x)]

    def decoder(self, maps):
        return self.up(maps[0])

    def encoder_modules(self):
        return [self.down]

    def forward(self, x):
        return self.decoder(self.encoder(x))


@pytest.mark.parametrize(("frozen", "still", "moves"), [("encoder", "down", "up"), ("decoder", "up", "down")])
def test_a_frozen_part_takes_no_gradient_and_keeps_its_statistics(frozen, still, moves):
    model = Model(Normed(), frozen=(frozen,))
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.train()(torch.rand(2, 2, 4, 4, 4)).logits.sum().backward()
    kept = {name for name, value in model.network.state_dict().items() if torch.equal(before[name], value)}
    assert all(name in kept for name in before if name.startswith(still))
    assert f"{moves}.0.running_mean" not in kept
    grads = {name for name, weight in model.network.named_parameters() if weight.grad is not None}
    assert grads == {name for name, _ in model.network.named_parameters() if name.startswith(moves)}
    held = build_optimizer(model, configuration()).param_groups[0]["params"]
    assert {id(weight) for weight in held} == {id(weight) for weight in getattr(model.network, moves).parameters()}
    assert model.network.training or frozen == "decoder"
    assert not any(module.training for module in getattr(model.network, still).modules())
    assert not model.eval().network.training


def a_case(name, *unknown, shape=(6, 6, 6), drawn=()):
    """A case that leaves the given class ids unknown."""
    table = np.eye(4, 3, dtype=bool)
    table[3, 0] = True
    table[:, list(unknown)] |= table[:, :1]
    codes = np.zeros(shape, dtype=np.uint8)
    for n, code in enumerate(drawn):
        codes[n] = code
    places = {code: np.argwhere(codes == code).astype(np.int16) for code in drawn}
    files = CaseFiles("d", name, name, "CT", Path(f"{name}_0000.nii.gz"), None, {}, ())
    return TrainingCase(files, np.zeros((2, *shape), np.float16), codes, table, places)


def test_cases_may_be_drawn_by_what_they_annotate():
    cases = [a_case("a", 2), a_case("b", 2), a_case("c", 2), a_case("d")]
    for sampling, groups in (("cases", [("abcd", 2.0)]), ("annotations", [("abc", 1.0), ("d", 1.0)])):
        config = configuration(sampling=sampling, plan=PLAN, datasets=(DatasetEntry("d", 2.0),))
        sources = build_sources(config, [cases])
        assert [("".join(c.files.case for c in s.cases), s.weight) for s in sources] == groups


def test_a_case_is_preprocessed_once(tmp_path, monkeypatch):
    loaded = []

    def load(files, entry, plan):
        loaded.append(files.case)
        return a_case(files.case, 2, drawn=(1, 2))

    monkeypatch.setattr("seg_backbone.train.cache.load_case", load)
    scan = tmp_path / "a_0000.nii.gz"
    scan.write_bytes(b"scan")
    files = CaseFiles("d", "a", "a", "CT", scan, None, {}, ())
    get = lambda plan=PLAN, **entry: cached_case(files, DatasetEntry("d", **entry), plan, tmp_path / "cases")  # noqa: E731
    want = a_case("a", 2, drawn=(1, 2))
    for _ in range(2):
        case = get()
        np.testing.assert_array_equal(case.codes, want.codes)
        np.testing.assert_array_equal(case.table, want.table)
        assert case.table.dtype == bool
        assert list(case.drawn) == [1, 2]
        for code, places in want.drawn.items():
            np.testing.assert_array_equal(case.drawn[code], places)
    assert isinstance(case.image, np.memmap)
    get(PLAN.with_(patch=(8, 8, 8), name="other"))
    assert loaded == ["a"]
    get(absent=("larynx",))
    get(PLAN.with_(spacing_mm=(1.0, 2.0, 3.0)))
    scan.write_bytes(b"another scan")
    get()
    assert loaded == ["a"] * 4
    (tmp_path / "cases" / "d__a" / "case.json").write_text("{broken")
    get()
    assert loaded == ["a"] * 5


def test_a_log_forgets_what_is_trained_again(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 50}\n{"step": 100}\n{"ste')
    with Log(tmp_path, 60, 200) as log:
        log.part({"loss": torch.tensor(1.0)})
        log.part({"loss": torch.tensor(2.0)})
        log.step(0.0)
        row = log.means()
        assert (row["loss"], row["waiting"]) == (1.5, 0.0)
        assert row["minutes_left"] >= 0
        log.write({"step": 61})
        log.part({"loss": torch.tensor(torch.nan)})
        with pytest.raises(ConfigError, match="loss: expected a finite loss"):
            log.require_finite()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 50}\n{"step": 61}\n'
    with Log(tmp_path, 0, 200):
        pass
    assert (tmp_path / "log.jsonl").read_text() == ""


class Constant(nn.Module):
    """Says the given class everywhere in the left half, background elsewhere."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, image):
        logits = torch.zeros(len(image), 3, *image.shape[2:])
        logits[:, self.number, :3], logits[:, 0, 3:] = 5.0, 5.0
        return logits


def test_validation_by_hand():
    plan = PLAN.with_(patch=(6, 6, 6), regions={"both": ("tumour", "larynx")})
    scores = score(Constant(1), [a_case("a", drawn=(1, 2))], plan)
    # three slices are said to be tumour: the first one is, the second one is larynx
    assert dict(scores) == {"CT tumour": 0.5, "CT larynx": 0.0, "CT both": pytest.approx(4 / 5)}
    unknown = a_case("b", 2, drawn=(1,))  # the larynx is unknown there: no score of it, nor of what holds it
    assert dict(score(Constant(1), [unknown], plan)) == {"CT tumour": 0.5}
    unsure = replace(unknown, table=np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]], dtype=bool))
    unsure.codes[1:3] = 3  # whatever they are, they count for nothing
    assert dict(score(Constant(1), [unsure], plan)) == {"CT tumour": 1.0, "CT both": 1.0}
    assert means([*scores, ("CT tumour", 1.0), ("MR tumour", 0.25)])["CT tumour"] == 0.75
    assert score(Constant(1), [a_case("c")], plan) == []
    assert means([]) == {}
