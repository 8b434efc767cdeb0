"""BraTS's lesion-wise scores of cubes whose values follow from counting, and of random lesions from its definition."""

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter, generate_binary_structure, label

from eval.brats import brats_scores
from eval.overlap import dice, surface_scores

SHAPE = (40, 20, 20)
MM = np.ones(3)


def cubes(*boxes):
    """Cubes as (corner along the first axis, side)."""
    painted = np.zeros(SHAPE, dtype=bool)
    for start, side in boxes:
        painted[start : start + side, 3 : 3 + side, 3 : 3 + side] = True
    return painted


def test_found_small_and_false_lesions():
    """The large lesion is exact; the small one, 8 mm3, is not scored, and what touches it is not false; one is."""
    truth, ours = cubes((0, 4), (14, 2)), cubes((0, 4), (13, 2), (30, 3))
    assert brats_scores(ours, truth, MM) == (0.5, 187.0)
    assert brats_scores(cubes((14, 2)), truth, MM) == (0.0, 374.0)  # the large one is missed
    # 9 mm3 a voxel: the small one counts too, half of it found by a cube shifted by one voxel
    assert brats_scores(ours, truth, np.array([1.0, 3, 3]))[0] == pytest.approx((1 + 0.5 + 0) / 3)


def test_neighbours_are_one_lesion_and_near_predictions_belong_to_it():
    """Six voxels between them: dilated by three, the two references touch. The prediction finds one of them."""
    truth = cubes((0, 4), (10, 4))
    assert brats_scores(cubes((0, 4)), truth, MM)[0] == pytest.approx(2 * 64 / (64 + 128))
    assert brats_scores(cubes((0, 4)), cubes((0, 4), (11, 4)), MM) == (0.5, 187.0)
    assert brats_scores(cubes((0, 4), (6, 1)), cubes((0, 4)), MM)[0] == pytest.approx(2 * 64 / (64 + 65))
    assert brats_scores(cubes((0, 4), (7, 1)), cubes((0, 4)), MM)[0] == 0.5


def test_nothing_to_score():
    assert np.isnan(brats_scores(cubes(), cubes(), MM)).all()
    assert np.isnan(brats_scores(cubes(), cubes((14, 2)), MM)).all()


@pytest.mark.parametrize("seed", range(4))
def test_random_lesions_by_the_definition(seed):
    """Lesion by lesion over the whole array, with scipy's components, as the challenge's code goes."""
    rng, spacing = np.random.default_rng(seed), np.array([1.0, 1.0, 2.0])
    field = gaussian_filter(rng.standard_normal((45, 40, 35)), 2)
    other = field + 0.5 * gaussian_filter(rng.standard_normal(field.shape), 2)
    truth, ours = (values > 1.8 * values.std() for values in (field, other))
    structure, cube = generate_binary_structure(3, 2), np.ones((3, 3, 3))
    groups, count = label(binary_dilation(truth, structure, iterations=3), cube)
    lesions, predicted = label(ours, cube)
    dsc, hd95, touched = [], [], set()
    for group in range(1, count + 1):
        lesion = truth & (groups == group)
        hit = set(np.unique(lesions[binary_dilation(lesion, structure, iterations=3)])) - {0}
        touched |= hit
        if lesion.sum() * 2 > 50:
            found = np.isin(lesions, list(hit))
            dsc.append(dice(found, lesion))
            hd95.append(surface_scores(found, lesion, spacing, 1)[1] if hit else 374)
    false = predicted - len(touched)
    assert len(dsc) > 0 and count > 3
    expected = sum(dsc) / (len(dsc) + false), (sum(hd95) + 374 * false) / (len(dsc) + false)
    assert brats_scores(ours, truth, spacing) == pytest.approx(expected, abs=1e-6)
