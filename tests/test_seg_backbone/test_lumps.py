"""Shapes of synthetic tumours: their volume, where they may grow, what they push away, and how they are filled."""

import cc3d
import numpy as np
import pytest

from seg_backbone.lumps import REACH, grow, grow_at, paint, press, smooth_noise

ISO, THICK = np.array([2.0, 2.0, 2.0]), np.array([1.0, 1.5, 6.0])


def free_box(spacing, size_mm=90.0):
    return np.ones(np.ceil(size_mm / spacing).astype(int), dtype=bool)


def ball(diameter_mm=24.0, spacing=ISO):
    """A lump in the middle, which nothing bends and no border cuts."""
    return middle(spacing, diameter_mm, np.random.default_rng(0), stretch=1.0, bend=0.0)


def middle(spacing, *options, **more):
    free = free_box(spacing)
    return grow_at(np.array(free.shape) // 2, free, spacing, *options, **more)


def extent_mm(inside, spacing):
    return [np.ptp(np.nonzero(inside)[axis]) * spacing[axis] + spacing[axis] for axis in range(3)]


def radii_mm(lump, spacing):
    index = np.argwhere(lump.inside) + [side.start for side in lump.box]
    return np.linalg.norm((index - lump.center) * spacing, axis=1)


@pytest.mark.parametrize("spacing", [ISO, THICK], ids=["2 mm", "thick slices"])
@pytest.mark.parametrize("diameter_mm", [8.0, 15.0, 30.0])
def test_a_lump_is_one_piece_of_the_volume_asked_for(spacing, diameter_mm):
    for seed in range(4):
        lump = grow(free_box(spacing), spacing, diameter_mm, np.random.default_rng(seed), stretch=1.3, bend=0.25)
        wanted = np.pi / 6 * diameter_mm**3 / np.prod(spacing)
        assert 0.9 * wanted - 1 <= lump.inside.sum() <= wanted + 1
        assert lump.diameter_mm == pytest.approx(diameter_mm, rel=0.06)
        assert cc3d.connected_components(lump.inside, connectivity=26).max() == 1


@pytest.mark.parametrize("spacing", [ISO, THICK], ids=["2 mm", "thick slices"])
def test_without_bends_it_is_a_ball_in_millimetres(spacing):
    lump = ball(36.0, spacing)
    assert extent_mm(lump.inside, spacing) == pytest.approx([36.0] * 3, abs=2 * spacing.max())
    assert radii_mm(lump, spacing).max() <= 18.5


def test_stretch_and_bends_make_it_uneven():
    def roundness(stretch, bend):
        lumps = [middle(ISO, 30.0, np.random.default_rng(seed), stretch, bend) for seed in range(4)]
        return np.mean([min(e := extent_mm(lump.inside, ISO)) / max(e) for lump in lumps])

    assert roundness(1.0, 0.0) > 0.9
    assert roundness(2.0, 0.0) < 0.8
    bent, plain = (radii_mm(middle(ISO, 30.0, np.random.default_rng(0), 1.0, b), ISO).max() for b in (0.25, 0.0))
    assert plain < 15.5 and bent > 1.1 * plain


def test_it_goes_round_what_it_may_not_enter():
    free = free_box(ISO)
    free[:, :, 22:] = False
    free[20:22, 20:22, :] = False  # a vessel
    for seed in range(5):
        lump = grow(free, ISO, 24.0, np.random.default_rng(seed))
        assert free[lump.box][lump.inside].all()
        assert lump.diameter_mm == pytest.approx(24.0, rel=0.04)


def test_no_room_and_too_coarse_a_grid_are_none():
    random = np.random.default_rng(0)
    plate = np.zeros((40, 40, 40), dtype=bool)
    assert grow(plate, ISO, 10.0, random) is None
    plate[:, :, 20:22] = True
    assert grow(plate, ISO, 20.0, random) is None
    assert grow(np.ones((9, 9, 9), dtype=bool), np.array([8.0, 8.0, 8.0]), 8.0, random) is None


def test_the_same_generator_gives_the_same_lump():
    first, again, other = (grow(free_box(ISO), ISO, 20.0, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first.box == again.box and (first.inside == again.inside).all()
    assert first.box != other.box or (first.inside != other.inside).any()


def test_mass_effect_moves_tissue_outwards():
    """A ball of radius 12 mm, half of which is pushed away: what was at d' comes to d with d' = 1.5 d - 12 mm."""
    lump = ball(24.0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in free_box(ISO).shape], indexing="ij"), axis=-1)
    distance = np.linalg.norm((grid - lump.center) * ISO, axis=-1).astype(np.float32)
    image, labels = distance.copy(), (distance <= 8.0).astype(np.uint8)
    before = labels.sum()
    press(image, lump, 0.5, order=1)
    press(labels, lump, 0.5, order=0)
    shell = (distance > 13) & (distance < 23)
    assert np.abs(image - (1.5 * distance - 12))[shell].max() < 0.7
    beyond = distance > REACH * 12 + 1
    assert (image[beyond] == distance[beyond]).all()
    # 8 mm was at 2/3 of the radius, that is beyond half of it, and comes to (8 + 12) / 1.5 mm
    assert labels.sum() / before == pytest.approx((20 / 1.5 / 8) ** 3, rel=0.1)
    kept = distance.copy()
    press(kept, lump, 0.0, order=1)
    assert (kept == distance).all()


def test_paint_has_the_value_inside_half_of_it_at_the_surface_and_nothing_beyond():
    lump = ball(40.0)
    image = np.full(free_box(ISO).shape, 100, dtype=np.int16)
    paint(image, lump, ISO, 40.0, np.random.default_rng(0), edge_mm=2.0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in image.shape], indexing="ij"), axis=-1)
    distance = np.linalg.norm((grid - lump.center) * ISO, axis=-1)
    assert (image[distance < 12] == 40).all()
    assert image[np.abs(distance - 20) < 0.6].mean() == pytest.approx(70, abs=4)
    assert (image[distance > 30] == 100).all()
    assert image.dtype == np.int16


def test_texture_has_its_spread_and_keeps_within_limits():
    lump, image = ball(50.0), np.full(free_box(ISO).shape, 100.0, dtype=np.float32)
    paint(image, lump, ISO, 60.0, np.random.default_rng(0), spread=8.0, grain_mm=4.0, edge_mm=0.1)
    values = image[lump.box][lump.inside]
    assert values.mean() == pytest.approx(60, abs=2)
    assert values.std() == pytest.approx(8, rel=0.2)
    paint(image, lump, ISO, 60.0, np.random.default_rng(0), spread=80.0, edge_mm=0.1, limits=(50.0, 65.0))
    assert image.min() > 49.9 and image[lump.box][lump.inside].max() < 65.1


def test_noise_is_a_function_of_the_place():
    fine, coarse = np.arange(-30, 31, 1.0), np.arange(-30, 31, 3.0)
    noise = [smooth_noise([x] * 3, 30.0, 4.0, np.random.default_rng(0)) for x in (fine, coarse)]
    np.testing.assert_allclose(noise[0][::3, ::3, ::3], noise[1], atol=1e-5)
    assert abs(noise[0].mean()) < 0.1 and noise[0].std() == pytest.approx(1, abs=0.1)
    near = np.corrcoef(noise[0][:-1].ravel(), noise[0][1:].ravel())[0, 1]
    far = np.corrcoef(noise[0][:-20].ravel(), noise[0][20:].ravel())[0, 1]
    assert near > 0.9 and abs(far) < 0.2
