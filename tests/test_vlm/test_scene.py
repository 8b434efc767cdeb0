"""Scenes: what the language model is shown depends on the patient, not on how the file is stored."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import features_of, padded, phantom, phantom_scene, turned

from seg_backbone.geometry import Grid
from seg_backbone.lesions import find_instances
from seg_backbone.predict import Features
from seg_backbone.volume import Mask, Volume
from vlm.body import body_grid
from vlm.encoders.pooling import visual_cells
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


def test_a_cell_holds_what_lies_about_it() -> None:
    """Against the formula, on a box of 80 x 40 x 20 mm: two cells of 40 mm along x, features at 0 and 40 mm from it."""
    body = Grid((40, 20, 10), np.diag([2.0, 2.0, 2.0, 1.0]))  # its low corner at -1, its centre at (39, 19, 9)
    features = Features({0: np.array([[1.0], [3.0]])}, {0: np.array([[19.0, 19.0, 9.0], [59.0, 19.0, 9.0]])})
    cells = visual_cells(features, body, (2, 1, 1))
    far = np.exp(-2.0)  # one cell away: two standard deviations
    assert cells[:, 0] == pytest.approx([(1 + 3 * far) / (1 + far), (3 + far) / (1 + far)])
    np.testing.assert_allclose(cells[:, 1:], [[-0.2, 0, 0, 0.4, 0.4, 0.2], [0.2, 0, 0, 0.4, 0.4, 0.2]], atol=1e-6)
    distant = Features(features.vectors, {0: features.positions_mm[0] + [0, 0, 1e4]})
    assert np.isfinite(visual_cells(distant, body, (4, 4, 4))).all()
