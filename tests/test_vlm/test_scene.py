"""Scenes: what the language model is shown depends on the patient, not on how the file is stored."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import features_of, padded, phantom, phantom_scene, turned

from seg_backbone.geometry import Grid
from seg_backbone.lesions import find_instances
from seg_backbone.volume import Mask, Volume
from vlm.body import body_grid
from vlm.regions import REGIONS
from vlm.scene import FACTS, MAX_INSTANCES, build_scene, describe, scan_facts, scene_classes

ARRAYS = ("visual", "pooled", "geometry", "facts")


@pytest.mark.parametrize("codes", ["LPS", "SRA", "PIL", "AIR"])
def test_orientation_changes_nothing(codes: str) -> None:
    straight, other = phantom_scene(*phantom()), phantom_scene(*turned(*phantom(), codes))
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(straight, name), getattr(other, name), atol=1e-4, err_msg=name)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_air_around_the_patient_changes_nothing(modality: str) -> None:
    volume, mask = phantom()
    straight = Volume(volume.array + (0 if modality == "CT" else 1000), volume.grid, modality), mask
    wide = padded(*straight)
    np.testing.assert_allclose(body_grid(wide[0]).affine, body_grid(straight[0]).affine)
    assert body_grid(wide[0]).shape == (34, 34, 30)
    features = features_of(volume.grid)
    before, after = (build_scene(v, find_instances(m, v), (), (), features) for v, m in (straight, wide))
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(before, name), getattr(after, name), atol=1e-6, err_msg=name)


def test_facts_of_the_scan() -> None:
    along_y = np.diag([0.0, 0.0, 5.0, 1.0])
    along_y[0, 1], along_y[1, 0] = -1.5, 2.0  # the first array axis runs along y
    facts = scan_facts("MR", Grid((100, 60, 20), along_y), ())
    assert facts.shape == (FACTS,) and facts[:2].tolist() == [0, 1]
    np.testing.assert_allclose(np.exp(facts[2:5]), [1.5, 2.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(facts[5:8] * 300, [90, 200, 100], rtol=1e-6)
    assert not facts[8:].any(), "nothing tells which region it is"
    seen = phantom_scene(*phantom()).facts[8:]
    assert dict(zip(REGIONS, seen, strict=True)) == dict.fromkeys(REGIONS, 0) | {"head and neck": 1}
    oblique = np.diag([0.0, 0.0, 5.0, 1.0])  # two array axes halfway between x and y: either may be the first
    oblique[:2, :2] = np.array([[1.5, -2.0], [1.5, 2.0]]) * np.sqrt(0.5)
    assert sorted(np.exp(scan_facts("CT", Grid((9, 9, 9), oblique), ())[2:5]).round(3)) == [1.5, 2.0, 5.0]


def test_ranks_and_sides() -> None:
    scene = phantom_scene(*phantom())
    volumes = [round(i.volume_ml, 3) for i in scene.instances if i.label == "tumour"]
    assert volumes == [4.096, 1.728, 0.512]  # cubes of 16, 12 and 8 mm
    first, second, third = scene.geometry[:3, 14:18]
    assert first.tolist() == [1, 0, 0, 0] and second.tolist() == [0, 1, 0, 0] and third.tolist() == [0, 0, 1, 1]
    assert scene.geometry[0, 20] == 1, "the largest of all"
    sides = {i.label: i.side for i in scene.instances if i.label.startswith("parotid")}
    assert sides == {"parotid_right": "right", "parotid_left": "left"}
    assert scene_classes(scene) == ("tumour", "parotid_right", "parotid_left", "larynx")


def test_empty_scan_has_no_rows() -> None:
    volume, mask = phantom()
    scene = phantom_scene(volume, Mask(np.zeros_like(mask.array), mask.grid, mask.labels))
    assert scene.pooled.shape == (0, 5) and scene.geometry.shape[0] == 0 and scene.visual.shape == (12, 12)


def test_at_most_so_many_instances_are_shown() -> None:
    volume, mask = phantom()
    ids = np.zeros_like(mask.array)
    ids[::4, ::8, ::8] = 1
    scene = phantom_scene(volume, Mask(ids, mask.grid, mask.labels))
    assert len(scene.instances) == MAX_INSTANCES == len(describe(scene.instances, "CT", scene.grid))


def test_a_cell_without_features_holds_the_nearest() -> None:
    volume, mask = phantom()
    every = features_of(volume.grid)
    lowest = {stage: points[:, 2] < -15 for stage, points in every.positions_mm.items()}
    for table in (every.vectors, every.positions_mm):
        table.update({stage: values[lowest[stage]] for stage, values in table.items()})
    cells = build_scene(volume, find_instances(mask, volume), (), (), every).visual[:, :6].reshape(2, 2, 3, 6)
    stage = max(every.vectors)
    top = every.positions_mm[stage][:, 2].max()
    above = every.vectors[stage][every.positions_mm[stage][:, 2] == top]
    assert all(np.isclose(above, cell).all(axis=1).any() for cell in cells[:, :, 2].reshape(-1, 6))
