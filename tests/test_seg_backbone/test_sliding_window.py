"""Windows cover the scan, know where they are, and blending changes nothing that does not depend on the window."""

import itertools

import numpy as np
import pytest
import torch

from seg_backbone.preprocess import MR_FLAG, PAD
from seg_backbone.sliding_window import (
    UNSEEN_LOGIT,
    gaussian_window,
    mirrored,
    pad_to_patch,
    predict_blocks,
    predict_logits,
    uniform_window,
    window_starts,
)

SHAPES = [(3, 4, 2), (8, 6, 4), (8, 13, 4), (5, 20, 11), (19, 7, 9)]
PATCH = (8, 6, 4)


def image_of(shape, channels=2):
    return torch.rand((channels, *shape), generator=torch.Generator().manual_seed(0))


def test_starts_by_hand():
    assert window_starts((10, 4, 3), (4, 4, 4), 0.5) == [(0, 0, 0), (2, 0, 0), (4, 0, 0), (6, 0, 0)]
    assert window_starts((9,), (4,), 1.0) == [(0,), (2,), (5,)]


@pytest.mark.parametrize(("window", "step"), [*itertools.product((1, 4, 5, 8), (0.25, 0.5, 0.75, 0.8, 1.0))])
def test_starts_cover_and_overlap(window, step):
    for size in range(1, 40):
        starts = [s[0] for s in window_starts((size,), (window,), step)]
        assert starts[0] == 0
        assert starts[-1] == max(0, size - window)
        gaps = np.diff(starts)
        assert (gaps > 0).all()
        assert (gaps <= max(1, np.ceil(window * step))).all()  # overlap of 1 - step; above all no gap between windows
        assert len(starts) <= np.ceil(max(0, size - window) / (window * step)) + 1


def test_weights_are_largest_in_the_middle_and_never_zero():
    weights = gaussian_window((9, 48, 4))
    assert float(weights.max()) == 1.0
    assert float(weights.min()) > 0
    assert weights[4, 23, 1] == weights.max()
    np.testing.assert_allclose(weights, weights.flip(0, 1, 2), atol=1e-7)
    assert float(weights[4, 23 + 6, 1]) == pytest.approx(np.exp(-0.5 * (5.5**2 - 0.5**2) / 6**2), abs=1e-5)


def test_padding_is_air_but_a_constant_channel_stays():
    image = torch.stack([image_of((3, 9, 4), 1)[0], torch.full((3, 9, 4), MR_FLAG)])
    padded, place = pad_to_patch(image, PATCH)
    assert padded.shape == (2, 8, 9, 4)
    assert place == (slice(2, 5), slice(0, 9), slice(0, 4))
    assert torch.equal(padded[(slice(None), *place)], image)
    assert (padded[0, :2] == PAD).all()
    assert (padded[0, 5:] == PAD).all()
    assert (padded[1] == MR_FLAG).all()


def test_one_window_equals_the_network():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 3, 3, padding=1).eval()
    image = image_of(PATCH)
    out = predict_logits(lambda window, origins: network(window), image, PATCH)
    assert out.shape == (3, *PATCH)
    torch.testing.assert_close(out, network(image[None])[0].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("step", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pointwise_network_gives_the_pointwise_result(shape, step):
    image = image_of(shape)
    out = predict_logits(lambda w, _: torch.stack([w[:, 0] * 2 - w[:, 1], w[:, 1] ** 2], 1), image, PATCH, step)
    torch.testing.assert_close(out, torch.stack([image[0] * 2 - image[1], image[1] ** 2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_network_is_told_where_its_window_lies(shape):
    offsets = torch.stack(torch.meshgrid(*[torch.arange(n) for n in PATCH], indexing="ij"))

    def places(windows, origins):
        assert len(windows) == len(origins) <= 3
        return offsets + torch.tensor(origins).view(-1, 3, 1, 1, 1)

    for batch in (1, 3):
        out = predict_logits(places, image_of(shape), PATCH, batch=batch)
        torch.testing.assert_close(out, torch.from_numpy(np.indices(shape)).float(), atol=1e-4, rtol=1e-5)


def test_blending_trusts_the_middle_of_a_window():
    """Two windows that disagree: near each one's middle its own answer wins."""
    out = predict_logits(lambda w, origins: torch.full_like(w[:, :1], origins[0][0]), image_of((12, 6, 4)), PATCH)
    assert out.shape == (1, 12, 6, 4)
    line = out[0, :, 3, 2]
    assert (line.diff() >= 0).all()
    assert float(line[0]) == 0
    assert float(line[-1]) == 4
    assert float(line[3]) < 1 < 3 < float(line[8])


def test_progress_counts_every_window():
    seen = []
    count = len(window_starts((19, 7, 9), PATCH, 0.5))
    predict_logits(lambda w, _: w, image_of((19, 7, 9)), PATCH, 0.5, progress=lambda *n: seen.append(n))
    assert seen == [(n + 1, count) for n in range(count)]


def test_batches_and_half_precision_sums():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 3, 3, padding=1).eval()
    image, seen = image_of((19, 7, 9)), []
    count = len(window_starts((19, 7, 9), PATCH, 0.5))
    one = predict_logits(lambda w, _: network(w), image, PATCH)
    many = predict_logits(lambda w, _: network(w), image, PATCH, 0.5, progress=lambda *n: seen.append(n), batch=5)
    torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-5)
    # 8 windows start at each of the 4 levels along k; a batch stays on one level
    assert seen == [(8 * level + n, count) for level in range(4) for n in (5, 8)]
    half = predict_logits(lambda w, _: network(w), image, PATCH, accumulator=torch.float16)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), one, atol=1e-2, rtol=1e-2)


def places(windows, origins):
    """A network that says which window it saw, and one class beside it."""
    value = torch.tensor([[1.0 + sum(origin)] for origin in origins])
    return torch.cat([value, -value], dim=1)[:, :, None, None, None].expand(-1, -1, *PATCH)


@pytest.mark.parametrize("shape", [*SHAPES, (9, 7, 31)])
@pytest.mark.parametrize("blending", ["gaussian", "uniform"])
def test_blocks_are_the_dense_result_piece_by_piece(shape, blending):
    """Against sums over the whole padded image, window by window in the same order: equal to the bit."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 3, 3, padding=1).eval().requires_grad_(False)
    image = image_of(shape)
    padded, place = pad_to_patch(image, PATCH)
    weights = {"gaussian": gaussian_window, "uniform": uniform_window}[blending](PATCH)
    total, norm = torch.zeros(3, *padded.shape[1:]), torch.zeros(padded.shape[1:])
    for start in sorted(window_starts(tuple(padded.shape[1:]), PATCH, 0.6), key=lambda start: start[2]):
        where = tuple(slice(s, s + n) for s, n in zip(start, PATCH, strict=True))
        total[(slice(None), *where)] += network(padded[(slice(None), *where)][None])[0] * weights
        norm[where] += weights
    blocks = [part.clone() for part in predict_blocks(lambda w, _: network(w), image, PATCH, 0.6, blending=blending)]
    assert torch.equal(torch.cat(blocks, dim=-1), (total / norm)[(slice(None), *place)])
    assert all(part.shape[-1] <= PATCH[2] for part in blocks)


def test_the_sums_are_one_window_deep():
    """However long the scan: what the windows are added into never grows."""
    sizes = []
    for depth in (8, 80):
        blocks = predict_blocks(lambda w, _: w, image_of((8, 6, depth)), PATCH)
        sizes.append({part.untyped_storage().nbytes() for part in blocks})
    assert sizes == [{4 * 2 * 8 * 6 * 4}] * 2


def test_uniform_blending_is_the_plain_mean():
    """Two windows of 8 along i, starts 0 and 4: where both see a voxel it is the mean of their answers."""
    out = predict_logits(places, image_of((12, 6, 4)), PATCH, blending="uniform")[0, :, 0, 0]
    assert out.tolist() == [1.0] * 4 + [3.0] * 4 + [5.0] * 4


def test_skipped_windows_are_background():
    """Four windows along k, in front, between and behind of which nothing is run."""
    image, origins = image_of((8, 6, 16)), []

    def network(windows, places):
        origins.extend(places)
        return torch.stack([-windows[:, 0], windows[:, 0]], 1)

    full = predict_logits(network, image, PATCH, 1.0)
    assert origins == [(0, 0, n) for n in (0, 4, 8, 12)]
    for kept in itertools.product((False, True), repeat=4):
        skipped = {(0, 0, 4 * n) for n in range(4) if not kept[n]}
        origins.clear()
        blocks = [part.clone() for part in predict_blocks(network, image, PATCH, 1.0, skipped=skipped)]
        assert origins == [(0, 0, 4 * n) for n in range(4) if kept[n]]
        if not any(kept):
            assert blocks == []
            continue
        out = torch.cat(blocks, dim=-1)
        for n in range(4):
            part = slice(4 * n, 4 * n + 4)
            if kept[n]:
                assert torch.equal(out[..., part], full[..., part])
            else:
                assert (out[0, ..., part] == UNSEEN_LOGIT).all() and not out[1, ..., part].any()


def test_mirroring_is_the_mean_over_flips():
    """A network that is blind to direction gives the same; one that sees only the first voxel is averaged over them."""
    windows = torch.rand(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mirrored(lambda w: w * 2, (0, 1, 2))(windows), windows * 2)
    first = torch.zeros(1, 1, 2, 1, 1)
    first[0, 0, 0] = 1
    assert mirrored(lambda w: w * first, (0,))(torch.ones(1, 1, 2, 1, 1)).flatten().tolist() == [0.5, 0.5]
    calls = []
    mirrored(lambda w: calls.append(1) or w, (0, 1, 2))(windows)
    assert len(calls) == 8


def test_mirroring_swaps_the_sides():
    """Class 1 is found where class 2 lies in the mirror, and only a flip along the first axis swaps them."""

    def sided(windows):
        left = torch.zeros_like(windows)
        left[:, :, :2] = 1.0  # what lies first along axis 0 is class 1, the rest class 2
        return torch.cat([windows * 0, left, 1 - left], dim=1)

    window = torch.rand(1, 1, 4, 4, 4)
    torch.testing.assert_close(mirrored(sided, (0,), [0, 2, 1])(window), sided(window))
    torch.testing.assert_close(mirrored(sided, (0,))(window)[:, 1:], torch.full((1, 2, 4, 4, 4), 0.5))
    torch.testing.assert_close(mirrored(sided, (1,), [0, 2, 1])(window), sided(window))
