"""Components that a plan's rules exclude, by hand."""

import numpy as np
import pytest

from seg_backbone.plan import Plan
from seg_backbone.postprocess import clean

PLAN = Plan(name="tiny", classes=("tumour", "larynx", "mandible"))


def pieces():
    """Class 1: 8, 1 and 8 voxels; class 2: 4 and 2 voxels; apart even across corners."""
    ids = np.zeros((9, 6, 6), dtype=np.uint8)
    ids[0:2, 0:2, 0:2] = 1
    ids[3, 0, 0] = 1
    ids[5:7, 0:2, 0:2] = 1
    ids[0:2, 4:6, 0] = 2
    ids[3:5, 4, 0] = 2
    return ids


def counts(ids):
    return [int((ids == value).sum()) for value in (1, 2)]


def test_clean_drops_small_pieces():
    assert counts(clean(pieces(), PLAN, 0.5)) == [17, 6]
    plan = PLAN.with_(minimum_ml={"tumour": 1.0, "larynx": 1.5})
    ids = clean(pieces(), plan, 0.5)  # two and three voxels
    assert counts(ids) == [16, 4]
    assert ids[3, 0, 0] == 0
    assert counts(clean(pieces(), PLAN.with_(minimum_ml={"tumour": 4.0}), 0.5)) == [16, 6]  # eight voxels are enough
    assert counts(clean(pieces(), PLAN.with_(minimum_ml={"tumour": 4.1}), 0.5)) == [0, 6]


def test_clean_keeps_one_piece_of_what_anatomy_has_once():
    ids = clean(pieces(), PLAN.with_(single=("larynx", "mandible")), 0.5)
    assert counts(ids) == [17, 4]
    assert (ids[0:2, 4:6, 0] == 2).all()
    assert counts(clean(pieces(), PLAN.with_(single=("tumour",)), 0.5)) == [8, 6]  # of two equal ones the first
    both = PLAN.with_(single=("larynx",), minimum_ml={"larynx": 2.5})
    assert counts(clean(pieces(), both, 0.5)) == [17, 0]
    # touching at a corner is one piece
    corner = np.zeros((2, 2, 2), dtype=np.uint8)
    corner[0, 0, 0] = corner[1, 1, 1] = 1
    assert counts(clean(corner, PLAN.with_(single=("tumour",)), 0.5)) == [2, 0]


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 9, 9), (3, 21, 3)])
def test_clean_bears_scattered_voxels(shape):
    """cc3d 4.1 raises for some of these as a bool array."""
    ids = np.zeros(shape, dtype=np.uint8)
    ids[::2, ::2, ::2] = 1
    assert counts(clean(ids, PLAN.with_(single=("tumour",)), 1.0)) == [1, 0]
