"""Pieces are scipy's, wherever the slabs are cut and however the array lies in memory."""

import numpy as np
import pytest
from scipy import ndimage

from seg_backbone import pieces
from seg_backbone.boxes import value_boxes
from seg_backbone.pieces import number_pieces, renumber, slabs

WHOLE = (slice(0, 9), slice(0, 14), slice(0, 11))


@pytest.fixture(params=["C", "F", "turned"])
def ids(request):
    """Random voxels of classes 1 and 2, in three layouts."""
    array = np.random.default_rng(3).choice(3, (9, 14, 11), p=[0.8, 0.15, 0.05]).astype(np.uint8)
    if request.param == "turned":
        return np.ascontiguousarray(array.transpose(1, 2, 0)[::-1]).transpose(2, 0, 1)[:, ::-1]
    return array.copy(order=request.param)


@pytest.mark.parametrize("voxels", [2**23, 400, 150, 1])
def test_pieces_are_those_of_scipy(ids, monkeypatch, voxels):
    monkeypatch.setattr(pieces, "SLAB_VOXELS", voxels)
    assert len(list(slabs(ids))) >= min(ids.size / voxels, 9)
    expected, count = ndimage.label(ids == 1, np.ones((3, 3, 3)))
    numbers = np.zeros_like(ids, dtype=np.uint16)
    found, numbers = number_pieces(ids, 1, WHOLE, numbers, before=5)
    assert len(found) == count > 10
    assert ((numbers > 0) == (ids == 1)).all()
    assert len(set(zip(numbers.ravel().tolist(), expected.ravel().tolist(), strict=True))) == count + 1
    for number in range(count):
        where = np.argwhere(numbers == number + 6)
        assert len(where) == found.voxels[number]
        np.testing.assert_allclose(where.mean(0), found.centers[number])
        box = tuple(slice(a, b + 1) for a, b in zip(where.min(0).tolist(), where.max(0).tolist(), strict=True))
        assert found.box(number) == box


def test_a_spiral_through_every_slab_is_one(monkeypatch):
    """Two combs that mesh, joined only at their far ends: each slab sees many pieces of it."""
    monkeypatch.setattr(pieces, "SLAB_VOXELS", 1)
    ids = np.zeros((9, 14, 11), dtype=np.uint8, order="F")
    ids[0::4, 0, :], ids[:, 0, 10] = 1, 1
    ids[2::4, 0, 0:9] = 1
    found, numbers = number_pieces(ids, 1, WHOLE, np.zeros(ids.shape, dtype=np.uint16))
    assert found.voxels.tolist() == [3 * 11 + 6, 9, 9]
    assert [len(np.unique(numbers[n, 0, :9])) for n in (0, 2, 4, 6, 8)] == [1] * 5
    assert numbers[0, 0, 0] == numbers[4, 0, 0] == numbers[8, 0, 0] == 1


def test_other_classes_and_the_rest_of_the_scan_are_left_alone():
    ids = np.zeros((6, 6, 6), dtype=np.uint8)
    ids[1, 1, 1], ids[3:5, 3, 3], ids[5, 5, 5], ids[1, 1, 3] = 1, 1, 1, 2
    numbers = np.full(ids.shape, 9, dtype=np.uint16)
    place = (slice(0, 5),) * 3
    found, numbers = number_pieces(ids, 1, place, numbers, before=9)
    assert found.voxels.tolist() == [1, 2] and found.centers.tolist() == [[1, 1, 1], [3.5, 3, 3]]
    assert (numbers[1, 1, 1], numbers[3, 3, 3], numbers[5, 5, 5], numbers[1, 1, 3]) == (10, 11, 9, 9)
    renumber(numbers, ids, 1, place, np.array([0, 30]), before=9)
    assert (numbers[1, 1, 1], numbers[3, 3, 3], numbers[5, 5, 5], numbers[1, 1, 3]) == (0, 30, 9, 9)


def test_numbers_take_a_wider_type_where_they_must():
    ids = np.zeros((4, 4, 4), dtype=np.uint8)
    ids[::3, ::3, ::3] = 1
    found, numbers = number_pieces(ids, 1, (slice(0, 4),) * 3, np.zeros(ids.shape, dtype=np.uint16), before=65530)
    assert (len(found), numbers.dtype, numbers.max()) == (8, np.uint32, 65538)


def test_boxes_of_values(ids):
    boxes = value_boxes(ids)
    assert set(boxes) == {1, 2}
    for value, box in boxes.items():
        where = np.argwhere(ids == value)
        assert box == tuple(slice(a, b + 1) for a, b in zip(where.min(0).tolist(), where.max(0).tolist(), strict=True))
    assert value_boxes(np.zeros((3, 3, 3), dtype=np.uint8)) == {}
