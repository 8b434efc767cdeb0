"""Instances by hand, and the same instances whatever the order and direction of the array's axes."""

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from seg_backbone.errors import GridError, LabelError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_volume
from seg_backbone.lesions import find_instances
from seg_backbone.volume import Mask, Volume

ORIENTATIONS = [
    np.column_stack([axes, flips])
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]
SCANS = Path(__file__).parents[2] / "examples" / "scans"


def turned(array, grid, orientation):
    """The same scan with its array axes permuted and flipped."""
    array = nib.apply_orientation(array, orientation)
    return array, Grid(array.shape, grid.affine @ nib.orientations.inv_ornt_aff(orientation, grid.shape))


def rotation(degrees, axis):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [n for n in range(3) if n != axis]
    matrix = np.eye(4)
    matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = cos, -sin, sin, cos
    return matrix


def small_mask(*voxels, shape=(12, 12, 6), affine=None, value=1):
    array = np.zeros(shape, dtype=np.uint8)
    array[tuple(np.transpose(voxels))] = value
    return Mask(array, Grid(shape, np.eye(4) if affine is None else affine), {"tumour": 1})


def test_an_empty_mask_has_no_instances():
    mask = Mask(np.zeros((4, 5, 6), dtype=np.uint8), Grid((4, 5, 6), np.eye(4)), {"tumour": 1})
    found = find_instances(mask)
    assert (len(found), found.list, found.of("tumour")) == (0, [], [])
    assert found.map.shape == (4, 5, 6)
    assert not found.map.any()


def test_a_single_voxel():
    mask = small_mask((3, 4, 5), affine=np.diag([1.0, 2.0, 5.0, 1.0]))
    volume = Volume(np.full(mask.grid.shape, 40, dtype=np.int16), mask.grid, "CT")
    probability = np.full(mask.grid.shape, 0.75, dtype=np.float32)
    (instance,) = find_instances(mask, volume, probability)
    assert (instance.id, instance.label, instance.rank, instance.voxels) == (1, "tumour", 1, 1)
    assert instance.volume_ml == pytest.approx(0.01)
    assert (instance.long_axis_mm, instance.short_axis_mm, instance.diameter_3d_mm) == (0, 0, 0)
    assert instance.long_axis_points_mm == ((3, 8, 25), (3, 8, 25))
    assert instance.slice == {"axis": "axial", "index": 5}
    assert instance.center_mm == (3, 8, 25)
    assert (instance.box.min_mm, instance.box.max_mm) == ((2.5, 7, 22.5), (3.5, 9, 27.5))
    assert instance.craniocaudal_mm == 5
    assert (instance.intensity_mean, instance.intensity_std, instance.intensity_median) == (40, 0, 40)
    assert instance.probability == 0.75


def test_a_corner_joins_and_a_gap_parts():
    assert [i.voxels for i in find_instances(small_mask((1, 1, 1), (2, 2, 2)))] == [2]
    assert [i.voxels for i in find_instances(small_mask((1, 1, 1), (3, 1, 1)))] == [1, 1]


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 5, 5), (3, 3, 3), (1, 31, 31)])
def test_scattered_voxels_in_a_thin_array(shape):
    array = np.zeros(shape, dtype=np.uint8)
    array[::2, ::2, ::2] = 1
    found = find_instances(Mask(array, Grid(shape, np.eye(4)), {"tumour": 1}))
    assert len(found) == array.sum()


@pytest.mark.parametrize("seed", range(5))
def test_parity_with_scipy_label(seed):
    rng = np.random.default_rng(seed)
    array = (rng.random(tuple(rng.integers(1, 20, 3))) < 0.1).astype(np.uint8)
    found = find_instances(Mask(array, Grid(array.shape, np.eye(4)), {"tumour": 1}))
    reference, count = label(array, np.ones((3, 3, 3)))
    assert len(found) == count
    assert len(set(zip(found.map.ravel().tolist(), reference.ravel().tolist(), strict=True)) - {(0, 0)}) == count


def test_touching_classes_are_apart_and_ordered_by_class_then_volume():
    array = np.zeros((20, 10, 5), dtype=np.uint8)
    array[0, 0, 0] = 2
    array[4:6, 0:2, 0] = 2
    array[6:9, 0:2, 0] = 7  # touches the one before
    array[15, 0:2, 0] = 7
    mask = Mask(array, Grid(array.shape, np.eye(4)), {"parotid_left": 7, "tumour": 2, "larynx": 3})
    found = find_instances(mask)
    assert [(i.id, i.label, i.rank, i.voxels) for i in found] == [
        (1, "parotid_left", 1, 6),
        (2, "parotid_left", 2, 2),
        (3, "tumour", 1, 4),
        (4, "tumour", 2, 1),
    ]
    assert [i.id for i in found.of("tumour")] == [3, 4]
    assert found.of("larynx") == []
    for instance in found:
        where = found.map == instance.id
        assert where.sum() == instance.voxels
        np.testing.assert_allclose(np.argwhere(where).mean(0), instance.center_mm)
        assert set(np.argwhere(where)[:, 2]) == {instance.slice["index"]}
    assert ((found.map > 0) == (array > 0)).all()

    large = find_instances(mask, minimum_ml={"tumour": 0.002})
    assert [(i.id, i.label, i.voxels) for i in large] == [
        (1, "parotid_left", 6),
        (2, "parotid_left", 2),
        (3, "tumour", 4),
    ]
    assert large.map.max() == 3
    assert large.map[0, 0, 0] == 0


def test_input_that_does_not_fit():
    mask = small_mask((1, 1, 1))
    other = Volume(np.zeros((12, 12, 6)), Grid((12, 12, 6), np.diag([2.0, 1.0, 1.0, 1.0])), "CT")
    with pytest.raises(GridError):
        find_instances(mask, other)
    with pytest.raises(LabelError, match=r"\[9\] without one"):
        find_instances(small_mask((1, 1, 1), value=9))


def test_sides_are_the_patients():
    array = np.zeros((41, 5, 5), dtype=np.uint8)
    array[[2, 20, 38, 30], 2, 2] = [1, 1, 1, 2]
    labels = {"tumour": 1, "parotid_left": 2}
    for direction, sides in ((1.0, ["left", "midline", "right"]), (-1.0, ["right", "midline", "left"])):
        affine = np.diag([direction, 1.0, 1.0, 1.0])
        mask = Mask(array, Grid(array.shape, affine), labels)
        found = find_instances(mask)
        by_index = sorted(found.of("tumour"), key=lambda i: i.center_mm[0] * direction)
        assert [i.side for i in by_index] == sides
        assert found.of("parotid_left")[0].side == "left"  # its name wins

    grid = Grid(array.shape, np.eye(4))
    for modality, air, tissue in (("CT", -1000, 40), ("MR", 0, 300)):
        values = np.full(array.shape, air, dtype=np.int16)
        values[30:, 1:4, 1:4] = tissue  # a body far to the right in the image: its own middle is x = 35
        found = find_instances(Mask(array, grid, labels), Volume(values, grid, modality))
        assert sorted((i.center_mm[0], i.side) for i in found.of("tumour")) == [
            (2, "left"),
            (20, "left"),
            (38, "midline"),
        ]
    nothing = Volume(np.full(array.shape, -1000, dtype=np.int16), grid, "CT")
    assert [i.side for i in find_instances(Mask(array, grid, labels), nothing)] == [
        i.side for i in find_instances(Mask(array, grid, labels))
    ]


def test_ellipsoid_with_known_intensities():
    shape, spacing = (60, 50, 30), np.array([0.8, 0.8, 1.5])
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    center = np.array([24.0, 20.0, 22.5])
    inside = (((grid.voxel_to_world(np.moveaxis(np.indices(shape), 0, -1)) - center) / [15, 10, 12]) ** 2).sum(-1) <= 1
    values = np.where(inside, 60, -100).astype(np.int16)
    values[:30][inside[:30]] = 20  # half of it darker
    (tumour,) = find_instances(Mask(inside.astype(np.uint8), grid, {"tumour": 1}), Volume(values, grid, "CT"))
    assert tumour.volume_ml == pytest.approx(4 / 3 * np.pi * 15 * 10 * 12 / 1000, rel=0.01)
    assert tumour.center_mm == pytest.approx(center, abs=0.2)
    assert tumour.long_axis_mm == pytest.approx(30, abs=1.6)
    assert tumour.short_axis_mm == pytest.approx(20, abs=1.6)
    assert tumour.craniocaudal_mm == pytest.approx(24, abs=1.6)
    assert tumour.slice["index"] == 15
    darker = inside[:30].sum() / inside.sum()
    assert tumour.intensity_mean == pytest.approx(20 * darker + 60 * (1 - darker))
    assert tumour.intensity_std == pytest.approx(40 * np.sqrt(darker * (1 - darker)))
    assert tumour.intensity_median in (20, 60)


@pytest.fixture(scope="module")
def oblique_scan():
    """Random blobs of two classes in a box-shaped body, on an oblique anisotropic grid."""
    rng = np.random.default_rng(5)
    shape = (22, 18, 10)
    affine = rotation(20, 2) @ rotation(10, 0) @ np.diag([0.8, 1.0, 2.5, 1.0])
    affine[:3, 3] = (-31.0, 12.0, 250.0)
    noise = gaussian_filter(rng.normal(size=shape), 1.2)
    array = (noise > np.quantile(noise, 0.9)).astype(np.uint8) + 2 * (noise < np.quantile(noise, 0.08)).astype(np.uint8)
    values = np.full(shape, -1000, dtype=np.int16)
    values[3:-2, 2:-2] = rng.integers(-50, 100, (17, 14, 10))
    return array, values, Grid(shape, affine)


def measured(array, values, grid, labels):
    """The instances as JSON with the slice as the world position of its middle instead of an index."""
    found = find_instances(Mask(array, grid, labels), Volume(values, grid, "CT"))
    rows = []
    for instance in found:
        row = instance.to_json()
        assert (found.map == instance.id).sum() == instance.voxels
        index = np.rint(grid.world_to_voxel(np.array(instance.long_axis_points_mm))).astype(int)
        assert set(index[:, grid.axial_axis]) == {row.pop("slice")["index"]}
        assert (found.map[tuple(index.T)] == instance.id).all()
        rows.append(row)
    return rows


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=lambda o: "".join(map(str, o.astype(int).ravel())))
def test_all_orientations_measure_the_same(oblique_scan, orientation):
    array, values, grid = oblique_scan
    labels = {"tumour": 1, "larynx": 2}
    reference = measured(array, values, grid, labels)
    assert len(reference) > 6
    other_array, other_grid = turned(array, grid, orientation)
    for row, expected in zip(
        measured(other_array, turned(values, grid, orientation)[0], other_grid, labels), reference, strict=True
    ):
        assert row.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, str | int):
                assert row[key] == value
            else:
                numbers = [list(v["min_mm"] + v["max_mm"]) if isinstance(v, dict) else v for v in (row[key], value)]
                if value is not None:
                    np.testing.assert_allclose(*numbers, atol=0.011)


def test_json_is_the_evidence_of_the_contract():
    mask = small_mask((1, 1, 1), (2, 1, 1), (3, 2, 1), affine=np.diag([0.3333, 0.5, 1.0, 1.0]))
    row = json.loads(json.dumps(find_instances(mask).list[0].to_json()))
    assert {"instance", "label", "volume_ml", "long_axis_mm", "short_axis_mm", "center_mm", "slice"} <= row.keys()
    assert row["slice"] == {"axis": "axial", "index": 1}
    assert row["long_axis_mm"] == 0.83
    assert row["center_mm"] == [0.67, 0.67, 1.0]
    assert row["intensity_mean"] is None
    assert row["probability"] is None


def scan_files():
    return sorted((p for p in SCANS.rglob("*.nii.gz")), key=lambda p: p.stat().st_size)


@pytest.mark.skipif(not scan_files(), reason="no example scans in this checkout")
def test_a_real_scan():
    volume = read_volume(scan_files()[0])
    limit = -300 if volume.modality == "CT" else 0.1 * np.percentile(volume.array, 99)
    mask = Mask((volume.array > limit).astype(np.uint8), volume.grid, {"body": 1})
    found = find_instances(mask, volume, minimum_ml={"body": 50.0})
    assert len(found) >= 1
    body = found.list[0]
    low, high = volume.grid.extent_mm()
    assert (body.box.min_mm >= low - 1e-6).all()
    assert (body.box.max_mm <= high + 1e-6).all()
    assert body.short_axis_mm > 0
    assert body.long_axis_mm <= body.diameter_3d_mm <= np.linalg.norm(high - low)
    assert body.volume_ml <= np.prod(volume.grid.shape) * volume.grid.voxel_volume_ml
