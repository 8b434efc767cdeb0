"""RECIST axes by hand, on an ellipsoid, and against the plain definition: every pair of voxel centres."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from seg_backbone.geometry import Grid
from seg_backbone.measure import axial_axes, diameter_3d_mm

SEMI_AXES_MM = np.array([20.0, 12.0, 8.0])
SPACING = np.array([0.7, 0.9, 2.0])


def rotation(degrees, axis):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [n for n in range(3) if n != axis]
    matrix = np.eye(3)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
    return matrix


def ellipsoid(turn):
    """An ellipsoid along the world axes at the world origin, on a grid of SPACING turned by a 3x3 rotation."""
    shape = (72, 64, 28)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACING)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = Grid(shape, affine)
    world = grid.voxel_to_world(np.moveaxis(np.indices(shape), 0, -1))
    return ((world / SEMI_AXES_MM) ** 2).sum(-1) <= 1, grid


def brute_force(mask, grid):
    """Long and short axis straight from the definition."""
    best = (-1.0, -1.0)
    for k in range(mask.shape[grid.axial_axis]):
        index = np.argwhere(mask)
        world = grid.voxel_to_world(index[index[:, grid.axial_axis] == k])
        if not len(world):
            continue
        columns = np.delete(grid.affine[:3, :3], grid.axial_axis, axis=1)
        normal = np.cross(columns[:, 0], columns[:, 1])
        distance = cdist(world, world)
        for a, b in np.argwhere(distance >= distance.max() - 1e-6):
            across = np.cross(normal, world[b] - world[a])
            length = np.linalg.norm(across)
            short = np.ptp(world @ across) / length if length > 0 else 0.0
            best = max(best, (round(float(distance[a, b]), 6), round(float(short), 6)))
    return best


@pytest.mark.parametrize("turn", [np.eye(3), rotation(30, 2)], ids=["straight", "about z"])
def test_ellipsoid_cut_through_its_middle(turn):
    mask, grid = ellipsoid(turn)
    volume_ml = mask.sum() * grid.voxel_volume_ml
    assert volume_ml == pytest.approx(4 / 3 * np.pi * SEMI_AXES_MM.prod() / 1000, rel=0.01)
    axes = axial_axes(mask, grid)
    assert 40 - 1.5 < axes.long_mm <= 40
    assert 24 - 1.5 < axes.short_mm <= 24
    assert axes.slice_index in (13, 14)
    ends = np.array(axes.points_mm)
    assert np.linalg.norm(ends[1] - ends[0]) == pytest.approx(axes.long_mm)
    assert 40 - 1.5 < diameter_3d_mm(mask, grid) <= 40


def test_ellipsoid_on_slices_tilted_about_x():
    mask, grid = ellipsoid(rotation(20, 0))
    cos, sin = np.cos(np.radians(20)), np.sin(np.radians(20))
    in_slice = 2 / np.sqrt((cos / 12) ** 2 + (sin / 8) ** 2)  # the tilted slice's own ellipse across x
    axes = axial_axes(mask, grid)
    assert 40 - 1.5 < axes.long_mm <= 40
    assert axes.short_mm == pytest.approx(in_slice, abs=1.5)
    assert grid.axial_axis == 2


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("turn", [np.eye(3), rotation(25, 2) @ rotation(15, 0)], ids=["straight", "oblique"])
def test_parity_with_every_pair(seed, turn):
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=tuple(rng.integers(4, 16, 3))), rng.choice([0.0, 1.0, 2.0]))
    mask = np.transpose(noise > np.quantile(noise, rng.choice([0.5, 0.9, 0.99])), rng.permutation(3))
    affine = np.eye(4)
    affine[:3, :3] = turn[:, rng.permutation(3)] @ np.diag(rng.uniform(0.5, 3, 3) * rng.choice([-1, 1], 3))
    grid = Grid(mask.shape, affine)
    axes = axial_axes(mask, grid)
    assert (axes.long_mm, axes.short_mm) == pytest.approx(brute_force(mask, grid), abs=2e-6)
    ends = grid.world_to_voxel(np.array(axes.points_mm))
    np.testing.assert_allclose(ends, np.rint(ends), atol=1e-6)
    assert all(mask[tuple(v)] for v in np.rint(ends).astype(int))
    np.testing.assert_allclose(ends[:, grid.axial_axis], axes.slice_index, atol=1e-6)
    world = grid.voxel_to_world(np.argwhere(mask))
    assert diameter_3d_mm(mask, grid) == pytest.approx(cdist(world, world).max())


def test_a_sheared_grid_is_measured_in_the_world():
    affine = np.array([[1.0, 0.5, 0, 0], [0, 1.0, 0.3, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    mask = np.random.default_rng(3).random((7, 8, 4)) > 0.8
    grid = Grid(mask.shape, affine)
    axes = axial_axes(mask, grid)
    assert (axes.long_mm, axes.short_mm) == pytest.approx(brute_force(mask, grid), abs=2e-6)


def test_shapes_by_hand():
    grid = Grid((9, 9, 5), np.diag([1.0, 2.0, 5.0, 1.0]))
    mask = np.zeros(grid.shape, dtype=bool)
    assert axial_axes(mask, grid) is None
    assert diameter_3d_mm(mask, grid) is None

    mask[4, 4, 3] = True  # one voxel
    assert axial_axes(mask, grid) == (0, 0, ((4, 8, 15), (4, 8, 15)), 3)
    assert diameter_3d_mm(mask, grid) == 0

    mask[4, 4, :] = True  # a pin through all slices: no length on any of them
    assert axial_axes(mask, grid)[:2] == (0, 0)
    assert diameter_3d_mm(mask, grid) == 20

    mask[2:7, 4, 1] = True  # five voxels in a row, 1 mm apart
    assert axial_axes(mask, grid) == (4, 0, ((2, 8, 5), (6, 8, 5)), 1)

    mask[4, 3, 1] = True  # a T: one voxel, 2 mm off the row
    assert axial_axes(mask, grid)[:2] == pytest.approx((4, 2))

    mask = np.zeros(grid.shape, dtype=bool)
    mask[1:5, 1:3, 2] = True  # one slice, 3 x 2 mm between centres; the diagonal is the longest
    axes = axial_axes(mask, grid)
    assert axes.long_mm == pytest.approx(np.hypot(3, 2))
    assert axes.short_mm == pytest.approx(2 * 3 * 2 / np.hypot(3, 2))  # both other corners, on either side
    assert axes.slice_index == 2
    assert diameter_3d_mm(mask, grid) == pytest.approx(np.hypot(3, 2))

    mask = np.zeros(grid.shape, dtype=bool)
    mask[[0, 3, 8], [0, 3, 8], 1] = True  # a diagonal line
    assert axial_axes(mask, grid)[:2] == pytest.approx((8 * np.hypot(1, 2), 0), abs=1e-9)


def test_equal_slices_give_the_superior_one():
    for direction, index in ((1.0, 4), (-1.0, 0)):
        grid = Grid((3, 3, 5), np.diag([1.0, 1.0, direction, 1.0]))
        assert axial_axes(np.ones(grid.shape, dtype=bool), grid).slice_index == index
