"""Grid and the turn to canonical axes: every orientation of an array keeps its voxels where they are in the world."""

import itertools

import nibabel as nib
import numpy as np
import pytest

from seg_backbone.geometry import Grid, from_canonical, to_canonical

ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def turned(array, grid, orientation):
    """The same scan with its array axes permuted and flipped."""
    array = nib.apply_orientation(array, orientation)
    return array, Grid(array.shape, grid.affine @ nib.orientations.inv_ornt_aff(orientation, grid.shape))


def rotation(degrees, axis):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [n for n in range(3) if n != axis]
    matrix = np.eye(4)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
    return matrix


OBLIQUE = rotation(20, 2) @ rotation(10, 0) @ np.diag([0.8, 1.0, 2.5, 1.0])
OBLIQUE[:3, 3] = (-31.0, 12.0, 250.0)


def test_the_conventions_by_hand():
    grid = Grid((10, 20, 30), np.array([[-2, 0, 0, 5], [0, 3, 0, 0], [0, 0, 4, -8], [0, 0, 0, 1]], dtype=float))
    assert grid.orientation == "LAS"
    assert grid.axial_axis == 2
    assert grid.spacing_mm.tolist() == [2, 3, 4]
    assert grid.voxel_volume_ml == pytest.approx(0.024)
    assert grid.voxel_to_world(np.array([1, 1, 1])).tolist() == [3, 3, -4]
    low, high = grid.extent_mm()
    assert low.tolist() == [5 - 2 * 9.5, -1.5, -10]
    assert high.tolist() == [6, 3 * 19.5, -8 + 4 * 29.5]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(map(str, o.astype(int).ravel())))
def test_canonical_roundtrip_keeps_every_voxel_in_its_place(orientation):
    base = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    array, grid = turned(base, Grid(base.shape, OBLIQUE), orientation)
    canonical, canonical_grid = to_canonical(array, grid)
    assert canonical_grid.orientation == "RAS"
    np.testing.assert_array_equal(canonical, base)
    np.testing.assert_allclose(canonical_grid.affine, OBLIQUE, atol=1e-9)
    np.testing.assert_array_equal(from_canonical(canonical, grid), array)
    for value in (0, 7, 59):
        np.testing.assert_allclose(
            grid.voxel_to_world(np.argwhere(array == value)),
            Grid(base.shape, OBLIQUE).voxel_to_world(np.argwhere(base == value)),
        )
    np.testing.assert_allclose(grid.extent_mm(), Grid(base.shape, OBLIQUE).extent_mm())
    assert grid.orientation[grid.axial_axis] in "SI"


def test_world_to_voxel_undoes_voxel_to_world():
    grid = Grid((5, 6, 7), OBLIQUE)
    index = np.array([[0.0, 0.0, 0.0], [4.0, 5.0, 6.0], [1.25, -3.0, 2.5]])
    np.testing.assert_allclose(grid.world_to_voxel(grid.voxel_to_world(index)), index, atol=1e-9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.6, 0.5, 5.0), (0.3, 7.0, 2.0), (1000.0, 1000.0, 1000.0)])
def test_with_spacing_keeps_the_extent(spacing):
    grid = Grid((40, 33, 21), OBLIQUE)
    other = grid.with_spacing(spacing)
    np.testing.assert_allclose(other.extent_mm(), grid.extent_mm(), atol=1e-9)
    assert min(other.shape) >= 1
    assert other.voxel_volume_ml * np.prod(other.shape) == pytest.approx(grid.voxel_volume_ml * np.prod(grid.shape))


def test_same_as_sees_shape_shift_and_flip():
    grid = Grid((4, 4, 4), OBLIQUE)
    assert grid.same_as(Grid((4, 4, 4), OBLIQUE))
    assert not grid.same_as(Grid((4, 4, 5), OBLIQUE))
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 0.005
    assert grid.same_as(Grid((4, 4, 4), shifted))
    shifted[0, 3] += 0.1
    assert not grid.same_as(Grid((4, 4, 4), shifted))
    assert not grid.same_as(turned(np.zeros((4, 4, 4)), grid, ORIENTATIONS[1])[1])
