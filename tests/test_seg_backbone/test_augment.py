"""Random windows: switched off they are plain crops, mirrored they swap sides, and they stay in range."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from seg_backbone.augment import Augmentation, draw_window, mirror_codes, mirror_table
from seg_backbone.cases import CaseFiles, TrainingCase
from seg_backbone.plan import Channel, Plan
from seg_backbone.preprocess import MR_FLAG, PAD
from seg_backbone.sliding_window import pad_to_patch

PLAN = Plan("t", ("tumour", "parotid_right", "parotid_left"), spacing_mm=(4.0, 2.0, 3.0), patch=(9, 11, 9))
OFF = Augmentation(
    rotate_deg=0, scale=(1, 1), mirror=0, crop_mm=0, shift_mm=0, intensity=0, noise=0, centred=1
)  # fmt: skip
SHAPE = (14, 12, 13)


def a_case(modality="CT", voxels=((1, (6, 7, 5)),), shape=SHAPE):
    """Noise with single voxels of the given (class, place); tumour and right parotid annotated."""
    image = np.random.default_rng(0).uniform(-1, 1, (2, *shape)).astype(np.float16)
    if modality == "MR":
        image[1] = MR_FLAG
    codes = np.zeros(shape, dtype=np.uint8)
    for code, place in voxels:
        codes[place] = code
    table = np.concatenate([np.eye(4, dtype=bool), np.eye(4, dtype=bool)[:1]])
    table[[0, 4], 3] = True
    table[4, 1] = True
    drawn = {c: np.argwhere(codes == c).astype(np.int16) for c in np.unique(codes).tolist() if c}
    files = CaseFiles("d", "c", "c", modality, Path("c"), Path("c"), {}, ("tumour", "parotid_right"))
    return TrainingCase(files, image, codes, table, drawn)


def plain_crop(array, centre, patch, fill):
    """The window around a voxel, by padding and slicing."""
    half = [n // 2 for n in patch]
    padded = np.pad(array, [(n, n) for n in half], constant_values=fill)
    return padded[tuple(slice(c, c + n) for c, n in zip(centre, patch, strict=True))]


@pytest.mark.parametrize(
    ("voxel", "centre"), [((6, 6, 5), (6, 6, 5)), ((0, 11, 12), (4, 6, 8))], ids=["inside", "corner"]
)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_switched_off_it_is_a_plain_crop_within_the_scan(modality, voxel, centre):
    case = a_case(modality, [(1, voxel)])
    for seed in range(6):  # the draws that do not matter differ
        image, codes, table = draw_window(case, PLAN, OFF, np.random.default_rng(seed))
        for channel, source in zip(image, case.image.astype(np.float32), strict=True):
            fill = MR_FLAG if (source == MR_FLAG).all() else PAD
            np.testing.assert_allclose(channel, plain_crop(source, centre, PLAN.patch, fill), atol=1e-4)
        np.testing.assert_array_equal(codes, plain_crop(case.codes, centre, PLAN.patch, 0))
        np.testing.assert_array_equal(table, case.table)
    assert (image.dtype, codes.dtype, table.dtype) == (torch.float32, torch.uint8, torch.bool)


def test_mirroring_swaps_the_sided_classes_in_codes_and_table():
    codes = torch.tensor([0, 1, 2, 3, 4], dtype=torch.uint8)
    assert mirror_codes(codes, PLAN).tolist() == [0, 1, 3, 2, 4]
    table = torch.from_numpy(a_case().table)
    mirrored = mirror_table(table, PLAN).int().tolist()
    # the left parotid was unknown: in the mirrored window it is the right one
    assert mirrored == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 0]]
    assert torch.equal(mirror_table(mirror_table(table, PLAN), PLAN), table)
    unsided = PLAN.with_(classes=("tumour", "larynx", "brainstem"))
    assert mirror_codes(codes, unsided).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(mirror_table(table, unsided), table)


def test_a_mirrored_window_is_the_flipped_plain_one():
    case = a_case(voxels=[(1, (6, 7, 5)), (2, (4, 6, 6)), (3, (9, 8, 3))])
    case = replace(case, drawn={1: case.drawn[1]})
    image, codes, table = draw_window(case, PLAN, OFF, np.random.default_rng(0))
    turned, turned_codes, turned_table = draw_window(case, PLAN, replace(OFF, mirror=1), np.random.default_rng(0))
    torch.testing.assert_close(turned, image.flip(1), atol=1e-4, rtol=0)
    assert torch.equal(turned_codes, mirror_codes(codes, PLAN).flip(0))
    assert sorted(turned_codes.unique().tolist()) == [0, 1, 2, 3]
    assert torch.equal(turned_table, mirror_table(table, PLAN))


def test_a_mirrored_window_of_a_mirrored_patient_is_the_plain_window():
    case = a_case(voxels=[(1, (6, 7, 5)), (2, (4, 6, 6)), (3, (9, 8, 3))])
    twin = replace(
        case,
        image=case.image[:, ::-1].copy(),
        codes=mirror_codes(torch.from_numpy(case.codes[::-1].copy()), PLAN).numpy(),
        table=mirror_table(torch.from_numpy(case.table), PLAN).numpy(),
        drawn={1: np.array([[SHAPE[0] - 1 - 6, 7, 5]], dtype=np.int16)},
    )
    case = replace(case, drawn={1: case.drawn[1]})
    # scale and turn about the left-right axis commute with the flip
    for seed in range(3):
        ours = draw_window(case, PLAN, replace(OFF, scale=(0.8, 1.3)), np.random.default_rng(seed))
        theirs = draw_window(twin, PLAN, replace(OFF, scale=(0.8, 1.3), mirror=1), np.random.default_rng(seed))
        torch.testing.assert_close(theirs[0], ours[0], atol=1e-4, rtol=0)
        assert torch.equal(theirs[1], ours[1])
        assert torch.equal(theirs[2], ours[2])


def test_scale_enlarges_what_is_seen():
    """A cube of 4 voxels in a window scaled by two is 8 wide."""
    case = a_case(voxels=[(1, (6, 5, 6))], shape=(12, 12, 12))
    case.codes[4:8, 4:8, 4:8] = 2
    case = replace(case, drawn={1: np.array([[5.5, 5.5, 5.5]])})
    _, codes, _ = draw_window(
        case, PLAN.with_(patch=(10, 10, 10)), replace(OFF, scale=(2, 2)), np.random.default_rng(0)
    )
    expected = torch.zeros(10, 10, 10, dtype=torch.uint8)
    expected[1:9, 1:9, 1:9] = 2
    assert torch.equal(codes, expected)


def test_a_turn_keeps_distances_from_the_centre():
    """In mm, whatever the spacing: what is round stays round."""
    shape, centre = (15, 25, 19), (7, 12, 9)
    case = a_case(shape=shape, voxels=[(1, centre)])
    away = np.linalg.norm((np.indices(shape).T - centre) * PLAN.spacing_mm, axis=-1).T
    case = replace(case, codes=np.where(away < 10, 2, 0).astype(np.uint8))
    case.image[:] = (away / 50)[None]
    plan = PLAN.with_(patch=(9, 9, 9))
    image, codes, _ = draw_window(case, plan, replace(OFF, rotate_deg=40), np.random.default_rng(1))
    still, _, _ = draw_window(case, plan, OFF, np.random.default_rng(1))
    np.testing.assert_allclose(image[0], still[0], atol=0.02)
    noise = a_case(shape=shape, voxels=[(1, centre)])
    turned, _, _ = draw_window(noise, plan, replace(OFF, rotate_deg=40), np.random.default_rng(1))
    still, _, _ = draw_window(noise, plan, OFF, np.random.default_rng(1))
    assert (turned - still).abs().mean() > 0.1
    assert abs(int((codes == 2).sum()) - int((away < 10).sum())) < 30


def test_every_window_lies_within_the_scan():
    case = a_case()
    case.image[:] = 1
    for seed in range(40):
        for centred in (0, 1):
            off = replace(OFF, centred=centred, shift_mm=60)
            image, _, _ = draw_window(case, PLAN, off, np.random.default_rng(seed))
            assert (image > 1 - 1e-3).all()  # what hung over would be air


def test_flips_along_the_axes_of_the_plan():
    case = a_case()
    still = draw_window(case, PLAN, OFF, np.random.default_rng(0))[0]
    for axes in ((), (0,), (1,), (0, 2), (0, 1, 2)):
        flipped = draw_window(case, PLAN.with_(mirror_axes=axes), replace(OFF, mirror=1), np.random.default_rng(0))[0]
        torch.testing.assert_close(flipped, still.flip([axis + 1 for axis in axes]), atol=1e-4, rtol=0)


def test_turns_and_scales_by_chance():
    case = a_case()
    still = draw_window(case, PLAN, OFF, np.random.default_rng(0))[0]
    for change in ({"rotate_deg": 30}, {"scale": (1.2, 1.3)}):
        seldom = replace(OFF, spatial=0.25, **change)
        windows = [draw_window(case, PLAN, seldom, np.random.default_rng(seed))[0] for seed in range(80)]
        assert 8 <= sum(not torch.allclose(window, still, atol=1e-3) for window in windows) <= 32


def test_centred_windows_hold_each_class_in_turn():
    voxels = [(1, (1, 1, 1)), (2, (12, 1, 11)), (3, (12, 10, 1))]  # no window holds two of them
    case, plan = a_case(voxels=voxels), PLAN.with_(patch=(10, 9, 9))
    seen = []
    for seed in range(40):
        _, codes, _ = draw_window(case, plan, replace(OFF, shift_mm=60), np.random.default_rng(seed))
        (code,) = [c for c in codes.unique().tolist() if c]
        seen.append(code)
    assert all(seen.count(code) >= 5 for code in (1, 2, 3))
    elsewhere = [draw_window(case, plan, replace(OFF, centred=0), np.random.default_rng(s))[1] for s in range(20)]
    assert not all(codes.any() for codes in elsewhere)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_nothing_leaves_the_range(modality):
    case = a_case(modality)
    strong = Augmentation(intensity=0.5, noise=0.5)
    for seed in range(20):
        image, codes, _ = draw_window(case, PLAN, strong, np.random.default_rng(seed))
        assert image.shape == (2, *PLAN.patch)
        assert image.min() >= PAD
        assert image.max() <= (1.0 if modality == "CT" else MR_FLAG)
        if modality == "MR":
            assert (image[1] == MR_FLAG).all()
        assert set(codes.unique().tolist()) <= {0, 1}


def test_contrast_changes_the_image_and_nothing_else():
    for modality in ("CT", "MR"):
        case = a_case(modality)
        plain = draw_window(case, PLAN, OFF, np.random.default_rng(3))
        changed = draw_window(case, PLAN, replace(OFF, intensity=0.1), np.random.default_rng(3))
        assert (changed[0][0] - plain[0][0]).abs().max() > 0.01
        assert torch.equal(changed[1], plain[1])


def test_a_scan_whose_faces_are_cut_is_drawn_as_one_that_ends_there():
    case, plan = a_case(), PLAN.with_(patch=(19, 21, 19))
    case.codes[:] = 1
    shapes = set()
    for seed in range(12):
        image, codes, _ = draw_window(case, plan, replace(OFF, crop=1, crop_mm=12), np.random.default_rng(seed))
        kept = torch.argwhere(codes)
        low, high = kept.min(0).values.tolist(), kept.max(0).values.tolist()
        shapes.add(shape := tuple(b - a + 1 for a, b in zip(low, high, strict=True)))
        starts = product(*(range(whole - size + 1) for whole, size in zip(SHAPE, shape, strict=True)))
        boxes = (tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True)) for start in starts)
        expected = (pad_to_patch(torch.from_numpy(case.image[(slice(None), *box)]), plan.patch)[0] for box in boxes)
        assert any(torch.allclose(image, window.float(), atol=1e-3) for window in expected)
        assert all(whole - 2 * 12 / mm <= n for whole, mm, n in zip(SHAPE, PLAN.spacing_mm, shape, strict=True))
    assert len(shapes) > 3
    seldom = replace(OFF, crop=0.25, crop_mm=12)
    windows = [draw_window(case, plan, seldom, np.random.default_rng(seed))[1] for seed in range(200)]
    whole = sum(int(codes.sum()) == case.codes.size for codes in windows)
    assert 140 < whole < 180  # one in 64 cuts no face


def test_windows_of_a_cut_scan_lie_within_what_is_left():
    case = a_case(voxels=[(1, (0, 0, 0))])
    case.image[:] = 1
    for seed in range(40):
        off = replace(OFF, crop=1, crop_mm=8, shift_mm=60, centred=seed % 2)
        image, _, _ = draw_window(case, PLAN, off, np.random.default_rng(seed))
        (inside,) = torch.where((image[0] > 1 - 1e-3).flatten())
        sizes = [n - 2 * min((n - 1) // 3, round(8 / mm)) for n, mm in zip(SHAPE, PLAN.spacing_mm, strict=True)]
        least = np.prod([min(a, b) for a, b in zip(sizes, PLAN.patch, strict=True)])
        assert len(inside) >= least


def test_windows_that_are_not_turned_lie_on_voxels():
    case = a_case(voxels=[(1, (6, 6, 5))])
    values = np.unique(case.image[0].astype(np.float32))
    for patch in ((8, 8, 8), (9, 10, 11), (20, 21, 22)):
        augmentation = replace(OFF, shift_mm=9, crop=0.5, crop_mm=9, mirror=0.5)
        image, _, _ = draw_window(case, PLAN.with_(patch=patch), augmentation, np.random.default_rng(0))
        image = image[0][image[0] != PAD].numpy()
        nearest = values[np.abs(values[:, None] - image.ravel()).argmin(0)]
        np.testing.assert_allclose(image.ravel(), nearest, atol=1e-4)


def test_a_scan_smaller_than_the_window():
    small = a_case(shape=(3, 4, 2), voxels=[(1, (1, 2, 1))])
    image, codes, _ = draw_window(small, PLAN, OFF, np.random.default_rng(0))
    np.testing.assert_allclose(image[:, 3:6, 3:7, 3:5], small.image, atol=1e-4)
    assert int((image[0] > PAD + 1e-4).sum()) == 3 * 4 * 2  # around the scan there is air
    assert torch.argwhere(codes).tolist() == [[4, 5, 4]]
    nothing_drawn = a_case(shape=(3, 4, 2), voxels=[])
    for seed in range(5):
        image, codes, _ = draw_window(nothing_drawn, PLAN, Augmentation(), np.random.default_rng(seed))
        assert image.shape == (2, *PLAN.patch)
        assert not codes.any()


def test_the_generator_decides():
    case = a_case()
    first, again, other = (draw_window(case, PLAN, Augmentation(), np.random.default_rng(s)) for s in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_only_what_a_window_sees_is_read():
    class Watched(np.ndarray):
        """An array that remembers the largest part that was taken of it."""

        most = 0

        def __getitem__(self, place):
            part = super().__getitem__(place)
            Watched.most = max(Watched.most, part.size)
            return part

    case = a_case(shape=(60, 60, 60), voxels=[(1, (30, 30, 30))])
    watched = replace(case, image=case.image.view(Watched), codes=case.codes.view(Watched))
    for seed in range(20):
        augmentation = Augmentation(centred=seed % 2)
        ours = draw_window(watched, PLAN, augmentation, np.random.default_rng(seed))
        theirs = draw_window(case, PLAN, augmentation, np.random.default_rng(seed))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert 0 < Watched.most < case.image.size / 4


@pytest.mark.parametrize("shape", [(14, 12, 13), (5, 30, 8), (2, 2, 2)])
def test_the_part_read_makes_no_difference(shape, monkeypatch):
    case = a_case(shape=shape, voxels=[(1, (1, 1, 1))])
    wide = Augmentation(rotate_deg=180, scale=(0.4, 2.0), centred=0.5)
    ours = [draw_window(case, PLAN, wide, np.random.default_rng(seed)) for seed in range(20)]
    monkeypatch.setattr("seg_backbone.augment._around", lambda grid, shape: tuple(slice(0, n) for n in shape))
    for seed, (image, codes, _) in enumerate(ours):
        whole, whole_codes, _ = draw_window(case, PLAN, wide, np.random.default_rng(seed))
        torch.testing.assert_close(image, whole, atol=1e-4, rtol=0)
        assert (codes != whole_codes).float().mean() < 1e-3  # a voxel at the edge of two


@pytest.mark.parametrize("name", ["blur", "low_resolution", "contrast", "gamma", "bias_field"])
def test_each_kind_of_degradation_changes_the_image_alone(name):
    case = a_case("MR")
    plain = draw_window(case, PLAN, OFF, np.random.default_rng(3))
    changed = draw_window(case, PLAN, replace(OFF, **{name: 1.0}), np.random.default_rng(3))
    again = draw_window(case, PLAN, replace(OFF, **{name: 1.0}), np.random.default_rng(3))
    assert type(changed[0]) is torch.Tensor
    assert torch.equal(changed[0], again[0])
    assert (changed[0][0] - plain[0][0]).abs().max() > 0.01
    assert (changed[0][1] == MR_FLAG).all()
    assert torch.equal(changed[1], plain[1])
    assert changed[0].isfinite().all()
    assert PAD <= changed[0].min() <= changed[0].max() <= MR_FLAG
    if name in ("blur", "low_resolution"):  # what they do is smoothing
        assert changed[0][0].std() < plain[0][0].std()


def test_the_field_of_mr_stays_away_from_ct():
    case = a_case("CT")
    plain = draw_window(case, PLAN, OFF, np.random.default_rng(3))
    torch.testing.assert_close(
        draw_window(case, PLAN, replace(OFF, bias_field=1.0), np.random.default_rng(3))[0], plain[0]
    )


def test_channels_of_their_own_files():
    """Normalised as nnU-Net does it, so without a range, and air is 0."""
    plan = PLAN.with_(channels=(Channel("T1", "zscore"), Channel("T2", "zscore")))
    case = a_case("MR", [(1, (0, 11, 12))])
    case.image[1] = np.random.default_rng(1).normal(0, 1, SHAPE)
    image, codes, _ = draw_window(case, plan, OFF, np.random.default_rng(0))
    for channel, source in zip(image, case.image.astype(np.float32), strict=True):
        np.testing.assert_allclose(channel, plain_crop(source, (4, 6, 8), PLAN.patch, 0), atol=1e-4)
    changed, same, _ = draw_window(case, plan, replace(OFF, intensity=0.3), np.random.default_rng(0))
    assert torch.equal(codes, same)
    gains = []
    for before, after in zip(image, changed, strict=True):  # a gain and an offset each
        assert float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) > 0.8  # noise may be added
        gains.append(float(after.std() / before.std()))
    assert abs(gains[0] - gains[1]) > 1e-3
    strong = replace(OFF, intensity=0.3, blur=1.0, gamma=1.0, contrast=1.0, low_resolution=1.0, bias_field=1.0)
    assert all(draw_window(case, plan, strong, np.random.default_rng(n))[0].isfinite().all() for n in range(5))
