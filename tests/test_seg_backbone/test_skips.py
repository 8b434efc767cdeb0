"""What says that a window need not be run, by hand."""

import numpy as np
import pytest
import torch

from seg_backbone.geometry import Grid
from seg_backbone.plan import Plan, Roi
from seg_backbone.preprocess import normalise
from seg_backbone.skips import (
    Tiling,
    body_mask,
    difference,
    region_of_interest,
    skip_report,
    strided,
    windows_without,
)
from seg_backbone.sliding_window import pad_to_patch, window_starts
from seg_backbone.volume import Mask

pytestmark = pytest.mark.usefixtures("one_thread")
PATCH = (8, 6, 4)


@pytest.mark.parametrize("shape", [(3, 4, 2), (8, 13, 4), (19, 5, 9)])
def test_a_tiling_is_the_padded_image_s(shape):
    tiling = Tiling(shape, PATCH, 0.7)
    padded, place = pad_to_patch(torch.zeros(1, *shape), PATCH)
    assert tiling.place == place
    assert tiling.starts() == window_starts(tuple(padded.shape[1:]), PATCH, 0.7)
    seen = np.zeros(shape, dtype=int)
    for start in tiling.starts():
        seen[tiling.inside(start)] += 1
    assert seen.min() >= 1


def test_windows_without_a_mask():
    tiling = Tiling((24, 6, 4), PATCH, 1.0)
    mask = np.zeros((24, 6, 4), dtype=bool)
    mask[7, 5, 3] = True
    assert windows_without(tiling, mask, tiling.starts()) == [(8, 0, 0), (16, 0, 0)]
    assert windows_without(tiling, mask, [(0, 0, 0)]) == []
    small = Tiling((4, 6, 4), PATCH, 1.0)  # the image lies at voxels 2 to 5 of the only window
    assert windows_without(small, np.ones((4, 6, 4), dtype=bool), small.starts()) == []


def test_body_by_hand():
    plan = Plan(name="p", classes=("tumour",))
    hu = np.full((12, 12, 3), -1000.0, dtype=np.float32)
    hu[2:10, 2:10] = 40
    hu[4:8, 4:8] = -900  # lung: air that the body encloses
    hu[11, 11, 0] = -310
    expected = np.zeros(hu.shape, dtype=bool)
    expected[2:10, 2:10] = True
    np.testing.assert_array_equal(body_mask(normalise(hu, "CT", plan), "CT", plan), expected)
    expected[11, 11, 0] = True  # 690 of 1040 is a signal
    np.testing.assert_array_equal(body_mask(normalise(hu + 1000, "MR", plan), "MR", plan), expected)
    narrow = plan.with_(ct_windows_hu=((-160.0, 240.0),))
    assert body_mask(normalise(hu, "CT", narrow), "CT", narrow) is None


def bright(windows, _):
    """Class 1 where channel 0 is bright, class 2 where channel 1 is."""
    return torch.stack([torch.full_like(windows[:, 0], 0.5), windows[:, 0], windows[:, 1]], 1) * 20


def image_with(*voxels, shape=(40, 24, 16)):
    image = torch.zeros(2, *shape)
    for channel, *at in voxels:
        image[(channel, *at)] = 1.0
    return image


ROI = Roi((2, 2, 1), 0.5, 4.0)
SPACING = np.array([2.0, 1.0, 4.0])
TILING = Tiling((40, 24, 16), PATCH, 0.5)


def test_the_region_is_padded_in_millimetres():
    """Voxels (10, 8, 3) and (14, 12, 5): 4 mm are 2, 4 and 1 voxels; the strided voxel covers two along i and j."""
    box = region_of_interest(bright, image_with((0, 10, 8, 3), (0, 14, 12, 5)), TILING, ROI, SPACING)
    where = np.argwhere(box)
    assert where.min(0).tolist() == [8, 4, 2]
    assert where.max(0).tolist() == [17, 17, 6]
    assert box.sum() == 10 * 14 * 5
    corner = region_of_interest(bright, image_with((0, 38, 0, 15)), TILING, ROI, SPACING)
    assert np.argwhere(corner).min(0).tolist() == [36, 0, 14]
    assert np.argwhere(corner).max(0).tolist() == [39, 5, 15]


def test_an_empty_region_is_none():
    assert region_of_interest(bright, image_with(), TILING, ROI, SPACING) is None
    assert region_of_interest(bright, image_with((1, 10, 8, 3)), TILING, ROI, SPACING, excluded=(2,)) is None
    assert region_of_interest(bright, image_with((0, 11, 9, 3)), TILING, ROI, SPACING) is None  # between the strides
    nobody = np.zeros((40, 24, 16), dtype=bool)
    assert region_of_interest(bright, image_with((0, 10, 8, 3)), TILING, ROI, SPACING, body=nobody) is None


def test_the_low_resolution_pass_is_small():
    """20 x 12 x 16 strided voxels in windows of 8 x 6 x 4 side by side."""
    assert strided(TILING, ROI).shape == (20, 12, 16)
    assert len(strided(TILING, ROI).starts()) == 3 * 2 * 4
    assert strided(Tiling((5, 7, 1), PATCH, 0.5), Roi((2, 3, 4))).shape == (3, 3, 1)


def test_the_report_says_which_by_what_and_where():
    tiling, grid = Tiling((24, 6, 4), PATCH, 1.0), Grid((24, 6, 4), np.diag([-2.0, 1.0, 3.0, 1.0]))
    said = skip_report({(8, 0, 0): "air", (16, 0, 0): "roi"}, tiling, grid)
    assert (said["air"], said["roi"], said["gate"]) == (1, 1, 0)
    assert said["windows"][0] == {"by": "air", "min_mm": [-31.0, -0.5, -1.5], "max_mm": [-15.0, 5.5, 10.5]}
    assert said["windows"][1]["by"] == "roi"
    assert said["voxels_that_differ"] is None


def test_a_lost_piece_is_named():
    grid, labels = Grid((9, 5, 5), np.eye(4)), {"tumour": 1, "larynx": 2}
    whole = np.zeros(grid.shape, dtype=np.uint8)
    whole[1:3, 1:3, 1:3], whole[6, 1, 1:3], whole[6:8, 4, 4] = 1, 1, 2
    mask = whole.copy()
    mask[2, 2, 2] = mask[6, 1] = 0
    said = difference(Mask(mask, grid, labels), Mask(whole, grid, labels))
    assert said == {"voxels_that_differ": 3, "lost": {"tumour": 1}}
    assert difference(Mask(whole, grid, labels), Mask(whole, grid, labels)) == {"voxels_that_differ": 0, "lost": {}}
