"""Losses under partial annotation: computed by hand, by plain loops, and by what must not change them."""

import numpy as np
import pytest
import torch

from seg_backbone.partial_labels import allowed_classes, marginal_loss

# background, a (drawn everywhere), u (drawn in some samples only)
UNKNOWN = torch.tensor([[True, False, True], [False, True, False], [False, False, True]])
KNOWN = torch.eye(3, dtype=torch.bool)


def logits_of(*probabilities):
    """Rows of class probabilities, one a voxel -> (1, C, n, 1, 1) logits."""
    return torch.tensor(probabilities, dtype=torch.float64).log().T[None, :, :, None, None].float()


def codes_of(*codes):
    return torch.tensor(codes, dtype=torch.uint8)[None, :, None, None]


def test_by_hand():
    logits = logits_of([0.5, 0.2, 0.3], [0.1, 0.6, 0.3])
    entropy, dice = marginal_loss(logits, codes_of(0, 1), UNKNOWN[None], torch.tensor([9.0, 3.0, 5.0]))
    # voxel 0 may be background or u: 0.5 + 0.3; voxel 1 is a, three times the weight
    assert float(entropy) == pytest.approx(-(np.log(0.8) + 3 * np.log(0.6)) / 4, abs=1e-6)
    assert float(dice) == pytest.approx(1 - 2 * 0.6 / (0.2 + 0.6 + 1), abs=1e-4)
    entropy, dice = marginal_loss(logits, codes_of(0, 1), KNOWN[None])
    assert float(entropy) == pytest.approx(-(np.log(0.5) + np.log(0.6)) / 2, abs=1e-6)


def test_dice_by_hand_leaves_out_uncertain_voxels():
    # u: voxel 0 is uncertain and left out, voxel 1 is a (so it is not u), voxel 2 is u. a: all three are known.
    logits = logits_of([0.1, 0.2, 0.7], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5])
    _, dice = marginal_loss(logits, codes_of(0, 1, 2), UNKNOWN[None])
    of_a, of_u = 2 * 0.6 / (0.2 + 0.6 + 0.3 + 1), 2 * 0.5 / (0.3 + 0.5 + 1)
    assert float(dice) == pytest.approx(1 - (of_a + of_u) / 2, abs=1e-4)
    _, dice = marginal_loss(logits, codes_of(0, 1, 2), KNOWN[None])
    assert float(dice) == pytest.approx(1 - (of_a + 2 * 0.5 / (0.7 + 0.3 + 0.5 + 1)) / 2, abs=1e-4)


def test_background_and_an_unannotated_class_do_not_push_each_other():
    logits = logits_of([0.5, 0.2, 0.3], [0.1, 0.6, 0.3]).requires_grad_()
    for table, still in ((UNKNOWN, True), (KNOWN, False)):
        entropy, dice = marginal_loss(logits, codes_of(0, 1), table[None])
        (gradient,) = torch.autograd.grad(entropy + dice, logits)
        background, drawn, unknown = gradient[0, :, 0, 0, 0].tolist()
        # the direction that moves probability from u to background and leaves their sum: d logit = +1/p, -1/p
        assert (abs(background / 0.5 - unknown / 0.3) < 1e-6) == still
        assert drawn > 0 > background
        assert (unknown < 0) == still


def test_where_only_the_two_are_possible_nothing_moves():
    logits = logits_of([0.5, 1e-9, 0.5]).requires_grad_()
    entropy, dice = marginal_loss(logits, codes_of(0), UNKNOWN[None])
    (gradient,) = torch.autograd.grad(entropy + dice, logits)
    assert gradient.abs().max() < 1e-7


def plain(logits, codes, tables, class_weight):
    """The same losses voxel by voxel."""
    logits, count = logits.double().numpy(), logits.shape[1]
    total = weights = 0.0
    sums = np.zeros((3, count))  # overlap, probability, size
    for sample, i, j, k in np.ndindex(codes.shape):
        p = np.exp(logits[sample, :, i, j, k])
        p /= p.sum()
        may_be = tables[sample, int(codes[sample, i, j, k])].numpy()
        weight = class_weight[int(may_be.argmax())] if may_be.sum() == 1 and not may_be[0] else 1.0
        total, weights = total - weight * np.log(p[may_be].sum()), weights + weight
        for c in range(count):
            if not may_be[c]:
                sums[1, c] += p[c]
            elif may_be.sum() == 1:
                sums[:, c] += p[c], p[c], 1
    dice = 2 * sums[0] / np.maximum(sums[1] + sums[2], 1e-9)
    return total / weights, np.mean([1 - dice[c] for c in range(1, count) if sums[2, c]])


def test_a_batch_may_mix_annotation_sets():
    rng = torch.Generator().manual_seed(0)
    tables = torch.stack([torch.cat([t, t[:1] | UNKNOWN[1:2]]) for t in (UNKNOWN, KNOWN)])  # code 3: perhaps a
    logits = torch.randn(2, 3, 2, 3, 2, generator=rng)
    codes = torch.randint(0, 4, (2, 2, 3, 2), generator=rng).byte()
    for weight in ([1.0, 1.0, 1.0], [9.0, 3.0, 5.0]):
        entropy, dice = marginal_loss(logits, codes, tables, torch.tensor(weight))
        np.testing.assert_allclose([float(entropy), float(dice)], plain(logits, codes, tables, weight), atol=1e-4)
    # the cross entropy is the mean of the samples', each under its own table
    alone = [float(marginal_loss(logits[n : n + 1], codes[n : n + 1], tables[n : n + 1])[0]) for n in (0, 1)]
    assert float(marginal_loss(logits, codes, tables)[0]) == pytest.approx(np.mean(alone), abs=1e-6)
    swapped, _ = marginal_loss(logits, codes, tables.flip(0))
    assert abs(float(swapped) - np.mean(alone)) > 1e-3


def test_allowed_classes_follow_each_samples_table():
    codes = torch.tensor([0, 2], dtype=torch.uint8).view(2, 1, 1, 1)
    allowed = allowed_classes(codes, torch.stack([UNKNOWN, KNOWN]))
    assert allowed[:, :, 0, 0, 0].tolist() == [[True, False, True], [False, False, True]]


def test_a_perfect_prediction_costs_nothing():
    codes = torch.randint(0, 3, (2, 4, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    logits = 30.0 * torch.nn.functional.one_hot(codes.long(), 3).movedim(-1, 1)
    for tables in (torch.stack([KNOWN, KNOWN]), torch.stack([UNKNOWN, KNOWN])):
        entropy, dice = marginal_loss(logits, codes, tables)
        assert 0 <= float(entropy) < 1e-5
        assert abs(float(dice)) < 1e-5
    wrong, _ = marginal_loss(logits.flip(1), codes, torch.stack([KNOWN, KNOWN]))
    assert float(wrong) > 1


def test_without_any_drawn_class_the_dice_is_zero_and_all_is_finite():
    logits = torch.randn(1, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0)) * 50
    logits.requires_grad_()
    entropy, dice = marginal_loss(logits, torch.zeros(1, 2, 2, 2, dtype=torch.uint8), UNKNOWN[None])
    assert dice.item() == 0.0
    (entropy + dice).backward()
    assert torch.isfinite(entropy)
    assert torch.isfinite(logits.grad).all()


def test_focal_turns_to_what_is_hard():
    logits = logits_of([0.5, 0.2, 0.3], [0.1, 0.6, 0.3])
    entropy, dice = marginal_loss(logits, codes_of(0, 1), UNKNOWN[None], focal=2.0)
    assert float(entropy) == pytest.approx(-(0.2**2 * np.log(0.8) + 0.4**2 * np.log(0.6)) / 2, abs=1e-6)
    assert float(dice) == float(marginal_loss(logits, codes_of(0, 1), UNKNOWN[None])[1])
    perfect = (40 * torch.eye(3)[:1]).view(1, 3, 1, 1, 1).requires_grad_()
    marginal_loss(perfect, codes_of(0), KNOWN[None], focal=0.5)[0].backward()  # 0 ^ (0.5 - 1) has no derivative
    assert torch.isfinite(perfect.grad).all()


def test_the_dice_of_a_union_by_hand():
    union = torch.tensor([[False, True, True]])  # a or u
    table = torch.tensor([[True, False, False], [False, True, False], [False, True, True], [True, True, True]])
    logits = logits_of([0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.2, 0.3, 0.5], [0.3, 0.3, 0.4])
    _, dice = marginal_loss(logits, codes_of(0, 1, 2, 3), table[None], unions=union)
    of_a = 2 * 0.6 / (0.2 + 0.6 + 1)  # voxel 2 is one of the two, voxel 3 anything: unknown
    of_union = 2 * (0.9 + 0.8) / (0.5 + 0.9 + 0.8 + 2)
    assert float(dice) == pytest.approx(1 - (of_a + of_union) / 2, abs=1e-4)
    # only the union was drawn: which of the two it is moves nothing
    logits = logits_of([0.2, 0.3, 0.5]).requires_grad_()
    entropy, dice = marginal_loss(logits, codes_of(2), table[None], unions=union)
    (gradient,) = torch.autograd.grad(entropy + dice, logits)
    _, a, u = gradient[0, :, 0, 0, 0].tolist()
    assert a / 0.3 == pytest.approx(u / 0.5)
