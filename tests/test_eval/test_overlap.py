"""DSC and NSD of shapes whose values follow from counting."""

import numpy as np
import pytest
import surface_distance

from eval.overlap import border_dice, dice, surface_dice


def box(shape, low, high):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


CUBE = box((12, 12, 12), (3, 3, 3), (7, 7, 7))
SHIFTED = box((12, 12, 12), (4, 3, 3), (8, 7, 7))
EMPTY = np.zeros((12, 12, 12), dtype=bool)


def test_one_voxel_shift():
    assert dice(SHIFTED, CUBE) == 2 * 48 / (64 + 64)  # 3 of 4 layers shared
    assert surface_dice(SHIFTED, CUBE, np.ones(3), 1.0) == 1.0
    assert surface_dice(SHIFTED, CUBE, np.ones(3), 0.5) < 1.0


@pytest.mark.parametrize(("spacing", "expected"), [((1.0, 1, 1), 1.0), ((3.0, 1, 1), None)])
def test_spacing_decides_what_lies_within_the_tolerance(spacing, expected):
    """A shift of one voxel is 1 mm along an axis of 1 mm and 3 mm along an axis of 3 mm."""
    value = surface_dice(SHIFTED, CUBE, np.array(spacing), 2.0)
    assert value == expected if expected else 0.3 < value < 1.0


def test_border_dice_by_counting():
    """4x4x4 has 64 - 8 = 56 border voxels. Shifted by one: at 1 mm every border voxel has the other border next to it;
    at 0.5 mm only shared border voxels count."""
    assert border_dice(SHIFTED, CUBE, np.ones(3), 1.0) == 1.0
    border = {tuple(v) for v in np.argwhere(CUBE) if set(v) & {3, 6}}
    moved = {(i + 1, j, k) for i, j, k in border}
    assert len(border) == 56
    assert border_dice(SHIFTED, CUBE, np.ones(3), 0.5) == pytest.approx(2 * len(border & moved) / 112)


def test_border_dice_counts_the_edge_of_the_array_as_border():
    full = np.ones((3, 3, 3), dtype=bool)
    assert border_dice(full, full, np.ones(3), 1.0) == 1.0
    assert border_dice(full, full, np.ones(3), 0.0) == 1.0


@pytest.mark.parametrize("measure", [surface_dice, border_dice])
def test_empty(measure):
    assert np.isnan(dice(EMPTY, EMPTY))
    assert np.isnan(measure(EMPTY, EMPTY, np.ones(3), 1.0))
    assert measure(EMPTY, CUBE, np.ones(3), 1.0) == 0
    assert measure(CUBE, EMPTY, np.ones(3), 1.0) == 0


def test_cropping_changes_nothing():
    """Surface measures see nothing outside the union of both masks, which lets the scorer crop to it."""
    rng = np.random.default_rng(0)
    predicted, reference = EMPTY.copy(), EMPTY.copy()
    predicted[2:9, 3:8, 1:7] = rng.random((7, 5, 6)) > 0.3
    reference[3:9, 3:9, 2:8] = rng.random((6, 6, 6)) > 0.3
    spacing = np.array([0.8, 1.2, 2.5])
    crop = np.s_[2:9, 3:9, 1:8]
    for measure in (surface_dice, border_dice):
        whole = measure(predicted, reference, spacing, 1.0)
        assert measure(predicted[crop], reference[crop], spacing, 1.0) == pytest.approx(whole)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_surface_dice_is_deepminds():
    distances = surface_distance.compute_surface_distances(CUBE, SHIFTED, [1.0, 1.0, 1.0])
    expected = surface_distance.compute_surface_dice_at_tolerance(distances, 0.5)
    assert surface_dice(SHIFTED, CUBE, np.ones(3), 0.5) == pytest.approx(expected)
    assert "DeepMind" in __import__("importlib.metadata", fromlist=["metadata"]).metadata("surface-distance")["Author"]
