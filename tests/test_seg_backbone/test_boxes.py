"""Boxes by hand, and against the plain definition: every corner of every voxel."""

import itertools

import numpy as np
import pytest

from seg_backbone.boxes import Box, bounds, box_of, extreme_voxels
from seg_backbone.geometry import Grid

COS, SIN = np.cos(np.radians(30)), np.sin(np.radians(30))
OBLIQUE = np.array([[0.8 * COS, -SIN, 0.1, -80], [0.8 * SIN, COS, 0, 41], [0, 0.3, 2.5, -500], [0, 0, 0, 1]])


def test_iou_by_hand():
    a = Box((0, 0, 0), (10, 10, 10))
    assert a.volume_mm3 == 1000
    assert a.center_mm == (5, 5, 5)
    assert a.iou(a) == 1
    assert a.iou(Box((5, 0, 0), (15, 10, 10))) == pytest.approx(500 / 1500)
    assert a.iou(Box((2, 2, 2), (4, 4, 4))) == pytest.approx(8 / 1000)
    assert Box((5, 5, 5), (15, 15, 15)).iou(a) == pytest.approx(125 / 1875)
    assert a.iou(Box((10, 0, 0), (20, 10, 10))) == 0
    assert a.iou(Box((30, 30, 30), (31, 31, 31))) == 0
    flat = Box((1, 1, 1), (1, 2, 2))
    assert flat.iou(flat) == 0


def test_box_json_and_order():
    box = Box((0.123, -1, 2), (1.456, 3, 2.999))
    assert box.size_mm == pytest.approx((1.333, 4, 0.999))
    assert box.to_json() == {"min_mm": [0.12, -1, 2], "max_mm": [1.46, 3, 3.0]}
    with pytest.raises(AssertionError):
        Box((1, 0, 0), (0, 1, 1))


def test_outer_faces_of_one_voxel():
    mask = np.zeros((4, 5, 6), dtype=bool)
    assert box_of(mask, Grid(mask.shape, np.eye(4))) is None
    mask[1, 2, 3] = True
    box = box_of(mask, Grid(mask.shape, np.diag([-1.0, 2.0, 3.0, 1.0])))
    assert (box.min_mm, box.max_mm) == ((-1.5, 3, 7.5), (-0.5, 5, 10.5))


def test_a_full_mask_has_the_extent_of_its_grid():
    grid = Grid((4, 5, 6), OBLIQUE)
    box = box_of(np.ones(grid.shape, dtype=bool), grid)
    np.testing.assert_allclose((box.min_mm, box.max_mm), grid.extent_mm(), atol=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([0.7, -0.9, 3.0, 1.0])], ids=["oblique", "straight"])
def test_box_holds_exactly_all_voxel_corners(seed, affine):
    rng = np.random.default_rng(seed)
    mask = rng.random(tuple(rng.integers(2, 9, 3))) < rng.choice([0.02, 0.2, 0.9])
    mask[tuple(rng.integers(0, mask.shape))] = True
    grid = Grid(mask.shape, affine)
    offsets = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    corners = grid.voxel_to_world((np.argwhere(mask)[:, None] + offsets).reshape(-1, 3))
    box = box_of(mask, grid)
    np.testing.assert_allclose(box.min_mm, corners.min(0), atol=1e-9)
    np.testing.assert_allclose(box.max_mm, corners.max(0), atol=1e-9)


def test_bounds_are_tight():
    mask = np.zeros((5, 6, 7), dtype=bool)
    assert bounds(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = True
    assert bounds(mask) == (slice(1, 4), slice(2, 3), slice(3, 7))


def test_extreme_voxels_are_the_ends_of_columns():
    mask = np.zeros((2, 6, 3), dtype=bool)  # columns run along the second axis
    mask[0, 1:5, 2] = True
    mask[1, 3, 0] = True
    assert {tuple(v) for v in extreme_voxels(mask).tolist()} == {(0, 1, 2), (0, 4, 2), (1, 3, 0)}
    assert extreme_voxels(np.zeros((2, 6, 3), dtype=bool)).shape == (0, 3)
