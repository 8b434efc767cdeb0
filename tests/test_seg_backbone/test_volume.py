"""Volume and Mask hold an array together with its grid, and refuse to mix grids."""

import numpy as np
import pytest

from seg_backbone.errors import GridError
from seg_backbone.geometry import Grid
from seg_backbone.volume import Mask, Volume, guess_modality, require_same_grid

GRID = Grid((4, 5, 6), np.diag([1.0, 1.0, 2.0, 1.0]))


def test_array_and_grid_must_agree():
    with pytest.raises(AssertionError):
        Volume(np.zeros((4, 5, 7)), GRID, "CT")
    with pytest.raises(AssertionError):
        Mask(np.zeros((4, 5), dtype=np.uint8), GRID)
    with pytest.raises(AssertionError):
        Volume(np.zeros((4, 5, 6)), GRID, "PET")


def test_mask_of_a_class():
    array = np.zeros((4, 5, 6), dtype=np.uint8)
    array[1, 2, 3] = 2
    mask = Mask(array, GRID, {"a": 1, "b": 2})
    assert np.argwhere(mask.of("b")).tolist() == [[1, 2, 3]]
    assert not mask.of("a").any()
    assert not mask.of("unheard of").any()
    assert mask.of("unheard of").shape == (4, 5, 6)


def test_different_grids_raise_one_line():
    volume = Volume(np.zeros((4, 5, 6)), GRID, "CT", source="scan.nii.gz")
    moved = np.diag([1.0, 1.0, 2.0, 1.0])
    moved[0, 3] = 3
    mask = Mask(np.zeros((4, 5, 6), dtype=np.uint8), Grid((4, 5, 6), moved), source="mask.nii.gz")
    require_same_grid(volume, volume)
    with pytest.raises(GridError, match="mask.nii.gz: expected the grid of scan.nii.gz") as caught:
        require_same_grid(volume, mask)
    assert "\n" not in str(caught.value)


def test_guess_modality():
    rng = np.random.default_rng(0)
    body = rng.normal(40, 20, (32, 32, 32))
    ct = body.copy()
    ct[:8] = -1000
    assert guess_modality(ct.astype(np.int16)) == "CT"
    assert guess_modality((body * 10).clip(0).astype(np.int16)) == "MR"
