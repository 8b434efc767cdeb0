"""Windows cover the scan, know where they are, and blending changes nothing that does not depend on the window."""

import itertools

import numpy as np
import pytest
import torch

from seg_backbone.plan import Plan
from seg_backbone.preprocess import MR_FLAG, PAD, normalise
from seg_backbone.sliding_window import body_mask, gaussian_window, pad_to_patch, predict_logits, window_starts

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
    predict_logits(lambda w, _: w, image_of((19, 7, 9)), PATCH, 0.5, lambda done, total: seen.append((done, total)))
    assert seen == [(n + 1, count) for n in range(count)]


def test_batches_and_half_precision_sums():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 3, 3, padding=1).eval()
    image, seen = image_of((19, 7, 9)), []
    count = len(window_starts((19, 7, 9), PATCH, 0.5))
    one = predict_logits(lambda w, _: network(w), image, PATCH)
    many = predict_logits(lambda w, _: network(w), image, PATCH, 0.5, lambda *n: seen.append(n), batch=5)
    torch.testing.assert_close(many, one, atol=1e-5, rtol=1e-5)
    assert seen == [(min(n, count), count) for n in range(5, count + 5, 5)]
    half = predict_logits(lambda w, _: network(w), image, PATCH, accumulator=torch.float16)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), one, atol=1e-2, rtol=1e-2)


def test_windows_without_body_are_skipped():
    """Patch 8 x 6 x 4, step 1, a body in the first of three windows along i: the others are background."""
    image, origins = image_of((24, 6, 4)), []

    def network(window, places):
        origins.extend(places)
        return torch.stack([-window[:, 0], window[:, 0]], 1)

    full = predict_logits(network, image, PATCH, 1.0)
    assert origins == [(0, 0, 0), (8, 0, 0), (16, 0, 0)]
    body = np.zeros((24, 6, 4), dtype=bool)
    body[7, 5, 3] = True
    origins.clear()
    out = predict_logits(network, image, PATCH, 1.0, body=body)
    assert origins == [(0, 0, 0)]
    assert torch.equal(out[:, :8], full[:, :8])
    assert (out[0, 8:] > 0).all() and not out[1, 8:].any()
    body[7, 5, 3] = False
    assert predict_logits(network, image, PATCH, 1.0, body=body).shape == full.shape  # one window is always run


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
