"""DSC and NSD of shapes whose values follow from counting."""

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import compute_dice
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from eval import overlap
from eval.overlap import border_dice, dice, surface_dice, surface_scores


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


def blobs(seed, shape=(26, 22, 18)):
    """Two masks that overlap in part, with stray voxels far from both."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal(shape), 2)
    masks = [field > 0.05, field + 0.5 * gaussian_filter(rng.standard_normal(shape), 1.5) > 0.06]
    return [mask | (rng.random(shape) < 0.002) for mask in masks]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spacing", [(1.0, 1, 1), (0.8, 0.8, 2.5), (0.703125, 0.703125, 5), (3, 1.5, 0.4)])
@pytest.mark.parametrize("far_point", [1, 10**9])
def test_surface_scores_are_deepminds(monkeypatch, spacing, far_point):
    """Both ways to a far neighbour, which is every one here: the distance map, the search."""
    monkeypatch.setattr(overlap, "NEAR_MM", 1.0)
    monkeypatch.setattr(overlap, "VOXELS_PER_FAR_POINT", far_point)
    for seed in range(3):
        ours, truth = blobs(seed)
        distances = surface_distance.compute_surface_distances(truth, ours, spacing)
        for tolerance in (0.5, 2.0):
            nsd, hd95 = surface_scores(ours, truth, np.array(spacing), tolerance)
            assert nsd == pytest.approx(
                surface_distance.compute_surface_dice_at_tolerance(distances, tolerance), abs=1e-6
            )
            assert 0 < nsd < 1
            assert hd95 == pytest.approx(surface_distance.compute_robust_hausdorff(distances, 95), abs=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_surface_dice_is_deepminds_to_the_last_bit_at_a_spacing_of_whole_halves():
    """A tolerance of whole voxels: neighbours at exactly 2 mm count on both sides."""
    for seed in range(3):
        ours, truth = blobs(seed)
        distances = surface_distance.compute_surface_distances(truth, ours, [0.5, 0.5, 1.5])
        nsd = surface_distance.compute_surface_dice_at_tolerance(distances, 2.0)
        assert surface_dice(ours, truth, np.array([0.5, 0.5, 1.5]), 2.0) == nsd


@pytest.mark.parametrize("seed", range(3))
def test_border_dice_is_automscs(seed):
    """Borders by erosion with all 26 neighbours, distances by a map of the whole array."""
    ours, truth = blobs(seed)
    spacing = np.array([0.7, 0.7, 1.3])
    borders = [mask & ~binary_erosion(mask, np.ones((3, 3, 3))) for mask in (ours, truth)]
    maps = [distance_transform_edt(~border, sampling=spacing) for border in borders]
    for tolerance in (0.5, 1.0, 3.0):
        near = (maps[1][borders[0]] <= tolerance).sum() + (maps[0][borders[1]] <= tolerance).sum()
        expected = near / (borders[0].sum() + borders[1].sum())
        assert border_dice(ours, truth, spacing, tolerance) == pytest.approx(expected, abs=1e-6)


def test_dice_is_monais():
    for seed in range(3):
        ours, truth = blobs(seed)
        maps = [torch.tensor(mask)[None, None].float() for mask in (ours, truth)]
        assert dice(ours, truth) == pytest.approx(float(compute_dice(*maps)), abs=1e-6)
