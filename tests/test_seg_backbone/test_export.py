"""The streamed export equals the dense one to the bit, whatever the slab, the blocks and the orientation."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from seg_backbone.export import argmax_slabs
from seg_backbone.resample import linear_weights, resample_array

pytestmark = pytest.mark.usefixtures("one_thread")
ORIENTATIONS = [
    (axes, flips) for axes in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]


def noise(*shape, scale=3.0, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def gathered(blocks, source, shape, *args, **kwargs):
    """The whole mask, its probabilities (1 outside of the boxes), and the boxes."""
    ids, sure, places = np.zeros(shape, np.uint8), np.ones(shape, np.float32), []
    for place, part, probability in argmax_slabs(blocks, source, shape, *args, **kwargs):
        assert part.dtype == torch.uint8 and not ids[place].any()
        ids[place], sure[place] = part.cpu().numpy(), probability.cpu().numpy()
        places.append(place)
    return ids, sure, places


def dense(logits, shape):
    """Every logit interpolated by whole matrices, in float64: an independent reference."""
    rows = [linear_weights(s, t).double() for s, t in zip(logits.shape[1:], shape, strict=True)]
    return torch.einsum("Ii,Jj,Kk,cijk->cIJK", *rows, logits.double()).numpy()


@pytest.mark.parametrize("slab", [1, 4, 16, 100])
@pytest.mark.parametrize("shape", [(9, 14, 21), (5, 3, 30), (4, 6, 5), (2, 3, 2)])
def test_the_argmax_of_interpolated_logits(shape, slab):
    logits = noise(4, 4, 6, 5)
    expected = np.stack([resample_array(channel.numpy(), shape) for channel in logits])
    ids, sure, _ = gathered([logits], (4, 6, 5), shape, slab)
    np.testing.assert_array_equal(ids, expected.argmax(0))
    likely = torch.from_numpy(expected).softmax(0).max(0).values.numpy()
    np.testing.assert_allclose(sure[ids > 0], likely[ids > 0], atol=1e-5)


def require_same_bits(logits, shape):
    """Blocks of 1, 2 and uneven depth and slabs of 1 to 99 slices give the ids and probabilities of one of each."""
    source = tuple(logits.shape[1:])
    ids, sure, _ = gathered([logits], source, shape, slab=99)
    np.testing.assert_array_equal(ids, dense(logits.cpu(), shape).argmax(0))
    for cuts, slab in (((1,) * 9, 1), ((2,) * 5, 3), ((1, 3, 9), 16), ((9,), 2)):
        again, likely, _ = gathered(logits.split([*_fit(cuts, source[2])], dim=-1), source, shape, slab)
        np.testing.assert_array_equal(again, ids)
        np.testing.assert_array_equal(likely[ids > 0], sure[ids > 0])


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
def test_streaming_changes_no_bit(axes, flips):
    """All 48 orientations of an anisotropic scan."""
    logits = noise(5, 9, 7, 6, seed=1).permute(0, *(axis + 1 for axis in axes))
    logits = logits.flip([axis + 1 for axis in range(3) if flips[axis]])
    require_same_bits(logits, tuple((29, 7, 4)[axis] for axis in axes))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streaming_changes_no_bit_on_a_gpu():
    require_same_bits(noise(5, 9, 7, 6, seed=1).cuda(), (29, 7, 4))
    require_same_bits(noise(5, 9, 7, 6, seed=1).cuda(), (5, 21, 30))


def _fit(cuts, depth):
    """Block depths that add up to `depth`."""
    for cut in cuts:
        if depth:
            yield min(cut, depth)
            depth -= min(cut, depth)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 5), (5, 0.8, 1.25), (3.1, 9, 4), (12, 0.5, 6)])
def test_anisotropic_spacings(spacing):
    """Grids that grow along some axes and shrink along others, from a working grid of 4 mm."""
    logits = noise(3, 10, 9, 8)
    shape = tuple(max(1, round(4 * n / s)) for n, s in zip((10, 9, 8), spacing, strict=True))
    ids, sure, _ = gathered([logits], (10, 9, 8), shape, slab=99)
    expected = dense(logits, shape)
    ranked = np.sort(expected, axis=0)
    clear = ranked[-1] - ranked[-2] > 1e-4  # ties may fall to either side in another precision
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(ids[clear], expected.argmax(0)[clear])
    again, likely, _ = gathered(logits.split(3, dim=-1), (10, 9, 8), shape, slab=2)
    np.testing.assert_array_equal(again, ids)
    np.testing.assert_array_equal(likely[ids > 0], sure[ids > 0])


def test_a_block_may_be_overwritten():
    """As the sliding window does: one buffer, filled anew for each block."""
    logits, buffer = noise(3, 4, 5, 12), torch.empty(3, 4, 5, 4)

    def reused():
        for part in logits.split(4, dim=-1):
            yield buffer.copy_(part)

    expected, _, _ = gathered([logits], (4, 5, 12), (8, 5, 31), 16)
    for slab in (1, 7):
        np.testing.assert_array_equal(gathered(reused(), (4, 5, 12), (8, 5, 31), slab)[0], expected)
        copied = gathered([logits], (4, 5, 12), (8, 5, 31), slab, interpolation="nearest")[0]
        again = gathered(reused(), (4, 5, 12), (8, 5, 31), slab, interpolation="nearest")[0]
        np.testing.assert_array_equal(again, copied)


@pytest.mark.parametrize("shape", [(30, 28, 26), (7, 6, 5), (40, 6, 5)])
def test_boxes_are_certain_and_small(shape):
    """A small tumour in much background: outside of the boxes the dense argmax is background too."""
    logits = noise(3, 15, 14, 13, scale=0.5)
    logits[0] += 6
    logits[2, 4:8, 9:12, 3:6] += 60
    expected = dense(logits, shape).argmax(0)
    assert expected.any()
    ids, _, places = gathered([logits], (15, 14, 13), shape, 4)
    np.testing.assert_array_equal(ids, expected)
    assert sum(np.prod([side.stop - side.start for side in place]) for place in places) < 0.4 * expected.size
    logits[1:] -= 80
    assert gathered([logits], (15, 14, 13), shape, 4)[2] == []
    assert gathered([], (15, 14, 13), shape, 4)[2] == []


def test_nearest_by_hand():
    """2 voxels to 5: centres at 0.2, 0.6, 1.0, 1.4, 1.8 of them lie in voxels 0, 0, 1, 1, 1."""
    logits = torch.zeros(3, 2, 1, 4)
    logits[1, 0, 0, 0], logits[2, 1, 0, 3] = 5, 7
    ids, sure, _ = gathered([logits], (2, 1, 4), (5, 1, 2), interpolation="nearest")
    # 4 to 2: centres at 1 and 3, so voxels 1 and 3
    np.testing.assert_array_equal(ids[:, 0], [[0, 0], [0, 0], [0, 2], [0, 2], [0, 2]])
    assert sure[4, 0, 1] == pytest.approx(np.exp(7) / (np.exp(7) + 2))
    same, _, _ = gathered([noise(4, 5, 6, 7)], (5, 6, 7), (5, 6, 7), interpolation="nearest")
    np.testing.assert_array_equal(same, noise(4, 5, 6, 7).argmax(0))


def test_the_export_holds_one_class_at_a_time():
    """The most elements in any array that it makes do not grow with the classes."""

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            # a view takes no memory
            held = out.untyped_storage().nbytes() // 4 if isinstance(out, torch.Tensor) else 0
            self.elements = max(self.elements, 0 if held == self.logits else held)
            return out

    seen = []
    for classes in (3, 60):
        logits = torch.randn(classes, 4, 4, 4)
        with Largest() as largest:
            largest.logits = logits.numel()
            next(argmax_slabs([logits], (4, 4, 4), (20, 20, 20), 2))
        seen.append(largest.elements)
    assert seen == [20 * 20 * 2] * 2


def test_excluded_classes_and_half_precision():
    logits = noise(4, 5, 5, 5)
    without = logits.clone()
    without[2] = -1e4
    ids, sure, _ = gathered([logits], (5, 5, 5), (9, 8, 7), 3, excluded=(2,))
    expected, likely, _ = gathered([without], (5, 5, 5), (9, 8, 7), 3)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(sure[ids > 0], likely[ids > 0], atol=1e-6)
    assert gathered([logits], (5, 5, 5), (9, 8, 7), excluded=(1, 2, 3))[2] == []
    half, _, _ = gathered([logits.half()], (5, 5, 5), (9, 8, 7))
    full, _, _ = gathered([logits.half().float()], (5, 5, 5), (9, 8, 7))
    np.testing.assert_array_equal(half, full)
    first, even, _ = gathered([torch.zeros(3, 2, 2, 2)], (2, 2, 2), (3, 3, 3))
    assert not first.any()  # of equal ones the first
    np.testing.assert_allclose(even, 1 / 3, atol=1e-6)
