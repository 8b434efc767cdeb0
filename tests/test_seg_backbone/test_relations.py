"""Relations between instances: by hand, against every pair of voxels, and the area of a ball."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from seg_backbone.geometry import Grid
from seg_backbone.lesions import Instance, Instances, find_instances
from seg_backbone.relations import Relations
from seg_backbone.volume import Mask


def found(array: np.ndarray, affine: np.ndarray, labels: dict[str, int]) -> tuple[Instances, Relations]:
    grid = Grid(array.shape, affine)
    instances = find_instances(Mask(array=array.astype(np.uint8), grid=grid, labels=labels))
    return instances, Relations(instances.map, grid)


def only(instances: Instances, label: str) -> Instance:
    (instance,) = instances.of(label)
    return instance


def test_gap_by_hand() -> None:
    array = np.zeros((20, 12, 12))
    array[2:5, 2:5, 2:5] = 1
    array[10:15, 2:5, 2:5] = 2
    array[7, 6, 5] = 3
    instances, relations = found(array, np.diag([-1.0, 2.0, 3.0, 1.0]), {"a": 1, "b": 2, "c": 3})
    a, b, c = (only(instances, name) for name in "abc")
    assert relations.gap_mm(a, b) == relations.gap_mm(b, a) == 6
    assert relations.gap_mm(a, c) == pytest.approx(np.sqrt(3**2 + 4**2 + 3**2))
    assert relations.nearest(a, instances.list) is c and relations.nearest(a, [a]) is None
    assert Relations().gap_mm(a, b) == pytest.approx(5), "between the outer faces of the boxes"


@pytest.mark.parametrize("seed", range(4))
def test_gap_parity_with_every_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=(14, 12, 10)), 2)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zx", [25, 15], degrees=True).as_matrix() @ np.diag([0.8, 1.1, 2.5])
    array = np.where(noise > np.quantile(noise, 0.85), 1, np.where(noise < np.quantile(noise, 0.15), 2, 0))
    instances, relations = found(array, affine, {"a": 1, "b": 2})
    for one in instances.of("a"):
        for other in instances.of("b"):
            worlds = [instances_world(instances, i.id, affine, array.shape) for i in (one, other)]
            assert relations.gap_mm(one, other) == pytest.approx(cdist(*worlds).min())
        nearest = relations.nearest(one, instances.of("b"))
        assert relations.gap_mm(one, nearest) == pytest.approx(min(relations.gap_mm(one, i) for i in instances.of("b")))


def test_of_two_that_it_touches_a_lesion_lies_in_the_one_around_it() -> None:
    array = np.ones((20, 12, 12))
    array[:8] = 2
    array[5:12, 4:8, 4:8] = 3
    instances, relations = found(array, np.eye(4), {"large": 1, "small": 2, "lesion": 3})
    large, small, lesion = (only(instances, name) for name in ("large", "small", "lesion"))
    assert relations.gap_mm(lesion, small) == relations.gap_mm(lesion, large) == 1
    assert relations.nearest(lesion, instances.list) is large


def instances_world(instances: Instances, number: int, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return Grid(shape, affine).voxel_to_world(np.argwhere(instances.map == number))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)])
def test_surface_area_of_a_ball(spacing: tuple[float, float, float]) -> None:
    radius = 20.0
    shape = tuple(int(2 * radius / step) + 6 for step in spacing)
    index = np.stack(np.meshgrid(*(np.arange(n) - n / 2 for n in shape), indexing="ij"), axis=-1)
    ball = np.linalg.norm(index * spacing, axis=-1) <= radius
    instances, relations = found(ball, np.diag([*spacing, 1.0]), {"ball": 1})
    area = relations.surface_area_cm2(instances.list[0])
    assert area == pytest.approx(4 * np.pi * radius**2 / 100, rel=0.03)
    assert Relations().surface_area_cm2(instances.list[0]) is None
