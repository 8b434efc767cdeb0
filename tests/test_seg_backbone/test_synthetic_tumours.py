"""Synthetic tumours in a phantom whose organ, air, bone and values are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from seg_backbone.errors import ConfigError, GridError, LabelError
from seg_backbone.geometry import Grid
from seg_backbone.lesions import find_instances
from seg_backbone.synthetic_tumours import SIZES_MM, TumourRecipe, add_tumours, size_of
from seg_backbone.volume import Mask, Volume

LABELS = {"liver": 1, "tumour": 2, "spleen": 3}
OBLIQUE = np.array([[1.9, -0.4, 0, -60], [0.5, 1.9, 0.3, -70], [0, -0.3, 3.9, 40], [0, 0, 0, 1]])
PLAIN = TumourRecipe(inside=("liver",), count=(1, 1), sizes={"medium": 1.0}, mass_effect=(0.0, 0.0))


def phantom(noise=0.0, modality="CT", affine=OBLIQUE):
    """60 x 60 x 30 voxels of 2 x 2 x 4 mm: air, a body, a bone across it, a liver at 110 HU; no spleen."""
    grid = Grid((60, 60, 30), affine)
    array = np.full(grid.shape, -1000.0)
    array[4:56, 4:56, 1:29] = 50
    array[8:12, 8:52, 2:28] = 700
    ids = np.zeros(grid.shape, dtype=np.uint8)
    ids[18:50, 14:50, 6:26] = 1
    array[ids == 1] = 110
    array += np.random.default_rng(0).normal(0, noise, grid.shape)
    if modality == "MR":
        array = np.where(array < -500, 0, array + 200)
    return Volume(array.astype(np.int16), grid, modality), Mask(ids, grid, LABELS)


def drawn(recipe=PLAIN, seed=0, noise=0.0, modality="CT", annotated=("liver", "tumour", "spleen"), **more):
    volume, mask = phantom(noise, modality)
    return add_tumours(volume, mask, annotated, recipe, np.random.default_rng(seed), **more)


@pytest.mark.parametrize("size", SIZES_MM)
def test_every_size_lies_in_its_class_and_in_the_organ(size):
    volume, mask = phantom()
    made = drawn(replace(PLAIN, sizes={size: 1.0}), seed=1)
    (record,) = made.records
    low, high = SIZES_MM[size]
    assert record.size == size and 0.95 * low <= record.diameter_mm <= 1.05 * high
    assert record.volume_ml == pytest.approx(np.pi / 6 * record.diameter_mm**3 / 1000)
    where = made.instances == 1
    assert where.sum() == record.voxels and (mask.array[where] == 1).all()
    assert (made.mask.array == np.where(where, 2, mask.array)).all()
    far = ~ndimage.binary_dilation(where, iterations=4)
    assert (made.volume.array == volume.array)[far].all()


def test_records_are_what_the_mask_measures():
    made = drawn(replace(PLAIN, count=(3, 3), sizes={"small": 1.0}, mass_effect=(0.2, 0.5)), seed=2)
    found = {tuple(np.round(i.center_mm, 3)): i for i in find_instances(made.mask).of("tumour")}
    assert len(found) == len(made.records) == 3
    for record in made.records:
        instance = found[tuple(np.round(record.center_mm, 3))]
        assert instance.voxels == record.voxels and instance.box.to_json() == record.box.to_json()
        assert instance.volume_ml == pytest.approx(record.volume_ml)
        said = record.to_json()
        assert said["synthetic"] is True and said["inside"] == "liver" and said["contrast_unit"] == "HU"


def core(where):
    return ndimage.binary_erosion(where, iterations=2)


def test_contrast_in_hu_is_that_of_the_organ():
    recipe = replace(PLAIN, contrast_hu={"liver": (-70.0, -70.0)}, sizes={"large": 1.0})
    made = drawn(recipe)
    assert made.records[0].contrast == -70
    assert (made.volume.array[core(made.instances == 1)] == 40).all()
    low, high = PLAIN.contrast_in("liver")
    for seed in range(5):
        assert low <= drawn(seed=seed).records[0].contrast <= high
    assert PLAIN.contrast_in("kidney_left") == PLAIN.contrast_in("kidney") != PLAIN.contrast_in("gallbladder")
    assert PLAIN.contrast_in("lung_upper_lobe_left")[0] > 500


def test_texture_is_as_grainy_as_the_organ():
    recipe = replace(PLAIN, sizes={"large": 1.0}, texture=(1.0, 1.0), texture_mm=(3.0, 3.0))
    made = drawn(recipe, noise=12.0)
    values = made.volume.array[core(made.instances == 1)]
    assert values.std() == pytest.approx(12, rel=0.3)
    assert values.mean() == pytest.approx(110 + made.records[0].contrast, abs=4)


def test_contrast_of_mr_is_a_share_of_the_signal():
    made = [drawn(replace(PLAIN, sizes={"large": 1.0}, contrast_mr=(0.5, 0.5)), seed, 0, "MR") for seed in range(6)]
    signals = {int(np.median(m.volume.array[core(m.instances == 1)])) for m in made}
    assert signals == {155, 465}  # of 310: half as much, half as much again
    assert {m.records[0].contrast for m in made} == {-0.5, 0.5}
    assert made[0].records[0].contrast_unit == "relative"


def test_every_channel_shows_the_tumour():
    volume, mask = phantom()
    second = np.full(volume.array.shape, 1.0, dtype=np.float32)
    second[0] = 0.0
    made = add_tumours(replace(volume, others=(second,)), mask, LABELS, PLAIN, np.random.default_rng(0))
    inside = core(made.instances == 1)
    assert np.abs(made.volume.others[0][inside] - 1).min() > 0.1 and (volume.array != made.volume.array)[inside].all()


def test_mass_effect_pushes_the_organ_and_its_neighbours():
    """The organ loses what the tumour takes, and wins it back outside: its outline with the tumour grows."""
    _, mask = phantom()
    recipe = replace(PLAIN, sizes={"large": 1.0}, mass_effect=(0.5, 0.5))
    outline = [
        np.isin(drawn(replace(recipe, mass_effect=m)).mask.array, (1, 2)).sum() for m in ((0.0, 0.0), (0.5, 0.5))
    ]
    assert outline[0] == (mask.array == 1).sum() < outline[1]
    made = drawn(recipe)
    moved = (made.mask.array == 1) & (mask.array != 1)  # organ where there was none, and its values came along
    assert moved.sum() > 20 and np.median(made.volume.array[moved]) > 80
    assert made.records[0].mass_effect == 0.5


def test_the_same_generator_gives_the_same_scan_and_nothing_given_is_changed():
    volume, mask = phantom(noise=10.0)
    before = volume.array.copy(), mask.array.copy()
    recipe = TumourRecipe(inside=("liver", "body"))
    made = [add_tumours(volume, mask, LABELS, recipe, np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert (made[0].volume.array == made[1].volume.array).all() and made[0].records == made[1].records
    assert (made[0].volume.array != made[2].volume.array).any()
    assert (volume.array == before[0]).all() and (mask.array == before[1]).all()
    assert made[0].volume.array.dtype == volume.array.dtype and made[0].volume.grid is volume.grid


def test_lesions_keep_their_distance_from_each_other_and_from_real_ones():
    volume, mask = phantom()
    mask.array[30:34, 30:34, 14:17] = 2
    recipe = replace(PLAIN, count=(2, 5), sizes={"tiny": 1.0, "small": 2.0}, mass_effect=(0.0, 0.5))
    for seed in range(6):
        made = add_tumours(volume, mask, LABELS, recipe, np.random.default_rng(seed))
        assert len(find_instances(made.mask).of("tumour")) == len(made.records) + 1


def test_body_is_soft_tissue_that_no_class_covers():
    volume, mask = phantom(noise=15.0)
    recipe = replace(PLAIN, inside=("body",), count=(4, 4), sizes={"tiny": 1.0, "small": 1.0})
    for seed in range(3):
        made = add_tumours(volume, mask, (), recipe, np.random.default_rng(seed))
        assert {record.inside for record in made.records} == {"body"}
        where = made.instances > 0
        assert (mask.array[where] == 0).all() and where.any()
        values = volume.array[where]
        assert values.min() > -300 and np.median(values) == pytest.approx(50, abs=5)  # neither air nor bone


def test_a_region_holds_them():
    _, mask = phantom()
    region = np.zeros_like(mask.array)
    region[30:50, 14:50, 6:26] = 1
    recipe = replace(PLAIN, sizes={"small": 1.0}, count=(3, 3))
    made = drawn(recipe, region=Mask(region, mask.grid))
    assert made.records and (region[made.instances > 0] == 1).all()


def test_where_the_organ_is_not_there_nothing_is_drawn():
    volume, _ = phantom()
    for recipe, annotated in ((replace(PLAIN, inside=("spleen",)), LABELS), (PLAIN, ("tumour",))):
        made = drawn(recipe, annotated=annotated)
        assert made.records == () and not made.instances.any()
        assert (made.volume.array == volume.array).all()


def test_a_size_without_room_becomes_a_smaller_one():
    volume, mask = phantom()
    small = np.where(np.arange(60)[:, None, None] < 28, mask.array, 0).astype(np.uint8)  # 10 voxels thick: 20 mm
    sizes = {"small": 1e-9, "large": 1.0}
    made = add_tumours(
        volume, Mask(small, mask.grid, LABELS), LABELS, replace(PLAIN, sizes=sizes), np.random.default_rng(0)
    )
    assert [record.size for record in made.records] == ["small"]


def test_what_cannot_be():
    with pytest.raises(LabelError, match="pancreas"):
        drawn(replace(PLAIN, inside=("pancreas",)))
    volume, mask = phantom()
    other = Mask(mask.array, Grid(mask.grid.shape, np.eye(4)), LABELS)
    with pytest.raises(GridError):
        add_tumours(volume, other, LABELS, PLAIN, np.random.default_rng(0))
    with pytest.raises(GridError):
        drawn(region=other)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"sizes": {"huge": 1}}, "sizes"),
        ({"sizes": {"tiny": 0}}, "sizes"),
        ({"sizes": ["tiny"]}, "recipe"),
        ({"count": [3, 1]}, "count"),
        ({"count": [1.5, 2]}, "whole"),
        ({"edge_mm": [1]}, "edge_mm"),
        ({"mass_effect": [0, 1.5]}, "mass_effect"),
        ({"contrast_hu": {"liver": [10, -10]}}, "liver"),
        ({"inside": []}, "inside"),
        ({"inside": "tumour"}, "inside"),
        ({"stretch": 0.5}, "stretch"),
        ({"colour": "red"}, "colour"),
        ({"bend": "much"}, "recipe|bend"),
    ],
)
def test_a_recipe_that_cannot_be(said, words):
    with pytest.raises(ConfigError, match=words):
        TumourRecipe.of(said)


def test_a_recipe_as_people_write_it():
    recipe = TumourRecipe.of({"inside": "Liver", "count": 2, "edge_mm": 1.0, "contrast_hu": {"liver": [-50, -40]}})
    assert recipe.inside == ("liver",) and recipe.count == (2, 2) and recipe.edge_mm == (1.0, 1.0)
    assert recipe.contrast_in("liver") == (-50.0, -40.0)
    assert TumourRecipe.of(recipe.to_json() | {"inside": ["liver"]}) == recipe
    assert [size_of(d) for d in (3.0, 5.0, 10.0, 39.9, 40.0, 200.0)] == [
        "tiny",
        "tiny",
        "small",
        "medium",
        "large",
        "large",
    ]
