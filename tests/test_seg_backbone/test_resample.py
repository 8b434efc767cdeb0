"""Resampling: weights by hand, and nothing aliases."""

import numpy as np
import pytest

from seg_backbone.resample import linear_weights, nnunet_filters, resample_array, resample_labels

SIZES = [(1, 1), (1, 5), (5, 1), (6, 6), (4, 8), (8, 4), (7, 10), (10, 7), (97, 13), (13, 97)]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_rows_are_averages(source, target):
    weights = linear_weights(source, target)
    assert weights.shape == (target, source)
    assert weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(weights.flip(0, 1), weights, atol=1e-6)  # the two ends are treated alike


def test_weights_by_hand():
    # growing 2 -> 4: output centres lie at -0.25, 0.25, 0.75, 1.25 of the input; the border voxel repeats
    np.testing.assert_allclose(linear_weights(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], atol=1e-7)
    # shrinking 6 -> 3: a tent of half-width two input voxels around 0.5, 2.5, 4.5
    np.testing.assert_allclose(linear_weights(6, 3)[1], np.array([0, 1, 3, 3, 1, 0]) / 8, atol=1e-7)
    np.testing.assert_allclose(linear_weights(6, 3)[0], np.array([4, 3, 1, 0, 0, 0]) / 8, atol=1e-7)
    np.testing.assert_array_equal(linear_weights(5, 5), np.eye(5))


@pytest.mark.parametrize("shape", [(3, 20, 9), (12, 5, 9), (6, 9, 7), (1, 1, 1)])
def test_constant_stays_constant(shape):
    out = resample_array(np.full((6, 9, 7), -1024, dtype=np.int16), shape)
    assert out.shape == shape
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, -1024, rtol=1e-6)


def test_a_ramp_is_reproduced_inside_when_growing():
    source, target = (5, 6, 4), (12, 6, 9)
    ramp = np.einsum("c,cijk->ijk", [3.0, -2.0, 7.0], np.indices(source)).astype(np.float32)
    centres = [(np.arange(t) + 0.5) * s / t - 0.5 for s, t in zip(source, target, strict=True)]
    expected = np.einsum("c,cijk->ijk", [3.0, -2.0, 7.0], np.stack(np.meshgrid(*centres, indexing="ij")))
    inside = tuple(
        slice(*np.flatnonzero((c >= 0) & (c <= s - 1))[[0, -1]] + [0, 1]) for c, s in zip(centres, source, strict=True)
    )
    out = resample_array(ramp, target)
    np.testing.assert_allclose(out[inside], expected[inside], atol=1e-4)
    assert out.min() >= ramp.min()
    assert out.max() <= ramp.max()


@pytest.mark.parametrize("factor", [2, 4])
def test_shrinking_does_not_alias(factor):
    board = np.indices((16, 16, 16)).sum(0) % 2 * 100.0
    out = resample_array(board, (16 // factor,) * 3)
    np.testing.assert_allclose(out[1:-1, 1:-1, 1:-1], 50.0, atol=1e-4)
    stripes = np.broadcast_to((np.arange(16) % 2 * 100.0)[:, None, None], (16, 4, 4))
    np.testing.assert_allclose(resample_array(stripes, (16 // factor, 4, 4))[1:-1], 50.0, atol=1e-4)


def test_three_products_equal_one():
    """The order of the axes and the slabs of the first product change nothing."""
    array = np.random.default_rng(0).integers(-1000, 1000, (37, 20, 18)).astype(np.int16)
    for shape in ((11, 40, 18), (40, 7, 9), (37, 21, 3)):
        rows = [linear_weights(s, t).numpy() for s, t in zip(array.shape, shape, strict=True)]
        dense = np.einsum("Ii,Jj,Kk,ijk->IJK", *rows, array.astype(np.float64), optimize=True)
        np.testing.assert_allclose(resample_array(array, shape), dense, atol=1e-2)


def test_same_shape_is_the_identity():
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    out = resample_array(array, (4, 5, 6))
    np.testing.assert_array_equal(out, array)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    labels = np.random.default_rng(0).integers(0, 9, (4, 5, 6)).astype(np.uint8)
    np.testing.assert_array_equal(resample_labels(labels, (4, 5, 6)), labels)


def test_labels_keep_a_box():
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    labels[2:6, 2:6, 4:8] = 7
    labels[0:2] = 3
    grown = np.zeros((16, 8, 16), dtype=np.uint8)
    grown[4:12, 2:6, 8:16] = 7
    grown[0:4] = 3
    np.testing.assert_array_equal(resample_labels(labels, (16, 8, 16)), grown)
    shrunk = np.zeros((4, 4, 4), dtype=np.uint8)
    shrunk[1:3, 1:3, 2:4] = 7
    shrunk[0] = 3
    np.testing.assert_array_equal(resample_labels(labels, (4, 4, 4)), shrunk)


def test_filters_of_nnunet_do_not_smooth():
    # shrinking 6 -> 3: between the two middle voxels, or the upper one
    np.testing.assert_allclose(linear_weights(6, 3, "linear")[1], np.array([0, 0, 1, 1, 0, 0]) / 2, atol=1e-7)
    np.testing.assert_array_equal(linear_weights(6, 3, "nearest")[1], [0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(linear_weights(2, 3, "nearest"), [[1, 0], [0, 1], [0, 1]])
    assert nnunet_filters(1) == ("linear", "nearest", "linear")
    assert nnunet_filters(None) == ("linear", "linear", "linear")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_filters_and_limits_follow_their_axes_in_any_layout(order):
    array = np.random.default_rng(0).integers(-50, 50, (4, 6, 5)).astype(np.int16)
    stored = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
    filters = ("nearest", "linear", "smooth")
    weights = [linear_weights(n, m, kind).numpy() for n, m, kind in zip((4, 6, 5), (7, 3, 2), filters, strict=True)]
    expected = np.einsum("ai,bj,ck,ijk->abc", *weights, array.clip(-20, 30))
    np.testing.assert_allclose(resample_array(stored, (7, 3, 2), filters, (-20, 30)), expected, atol=1e-4)
    same = resample_array(stored, (4, 6, 5), filters, (-20, 30))
    np.testing.assert_array_equal(same, array.clip(-20, 30))
