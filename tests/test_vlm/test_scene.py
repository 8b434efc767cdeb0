"""Scenes: what the language model is shown depends on the patient, not on how the file is stored."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from phantoms import phantom, phantom_scene

from seg_backbone.geometry import Grid
from seg_backbone.volume import Mask, Volume
from vlm.scene import MAX_INSTANCES, describe, scene_classes


def turned(volume: Volume, mask: Mask, codes: str) -> tuple[Volume, Mask]:
    """The same phantom with its array axes stored as `codes`."""
    transform = nib.orientations.ornt_transform(
        nib.io_orientation(volume.grid.affine), nib.orientations.axcodes2ornt(codes)
    )
    array = nib.apply_orientation(volume.array, transform)
    ids = nib.apply_orientation(mask.array, transform)
    affine = volume.grid.affine @ nib.orientations.inv_ornt_aff(transform, volume.grid.shape)
    grid = Grid(array.shape, affine)
    return Volume(array, grid, "CT", "phantom"), Mask(ids, grid, mask.labels)


@pytest.mark.parametrize("codes", ["LPS", "SRA", "PIL", "AIR"])
def test_orientation_changes_nothing(codes: str) -> None:
    straight, other = phantom_scene(*phantom()), phantom_scene(*turned(*phantom(), codes))
    for name in ("visual", "pooled", "geometry", "facts"):
        np.testing.assert_allclose(getattr(straight, name), getattr(other, name), atol=1e-4, err_msg=name)


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
