"""The parts that training is put together from, each on its own."""

import numpy as np
import pytest
import torch
from torch import nn

from seg_backbone.partial_labels import marginal_loss
from seg_backbone.plan import Plan
from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.model import Model, Output
from seg_backbone.train.objective import Step, at, mask_term, total
from seg_backbone.train.samples import Batches, Sample, ahead, stack

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
    return SegmentationConfig("raw", "run", "split.json", PLAN, ("dataset",), **changes)


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
