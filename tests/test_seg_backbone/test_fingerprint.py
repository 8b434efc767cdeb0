"""Shapes, crops and intensities of datasets that can be computed by hand."""

import json

import numpy as np
import pytest

from seg_backbone.errors import ConfigError, GridError, LabelError, ScanError
from seg_backbone.fingerprint import Fingerprint, fingerprint, read_channels
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.volume import Mask, Volume

SHAPE, SPACING = (6, 8, 10), (2.0, 3.0, 4.0)
STRAIGHT = np.diag([*SPACING, 1.0])


def write(folder, case, values, affine=STRAIGHT, channel_values=None, mask=True):
    """A case whose voxels are 0 but for a box of 4 x 6 x 5 at (1, 1, 2); `values` fills its first drawn voxels."""
    arrays = [np.zeros(SHAPE, np.int16) for _ in range(1 + (channel_values is not None))]
    ids = np.zeros(SHAPE, np.uint8)
    for array, given in zip(arrays, (values, channel_values), strict=False):
        array[1:5, 1:7, 2:7] = 5
        array[1, 1, 2 : 2 + len(given)] = given
    ids[1, 1, 2 : 2 + len(values)] = 1
    for number, array in enumerate(arrays):
        write_volume(Volume(array, Grid(SHAPE, affine), "MR"), folder / "imagesTr" / f"{case}_{number:04d}.nii.gz")
    if mask:
        write_mask(Mask(ids, Grid(SHAPE, affine)), folder / "labelsTr" / f"{case}.nii.gz")


def describe(folder, channels=("MR",), **more):
    labels = {"background": 0, "tumour": 1}
    text = json.dumps({"labels": labels, "channel_names": {str(n): c for n, c in enumerate(channels)}} | more)
    (folder / "dataset.json").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "D1" / "imagesTr").mkdir(parents=True)
    return tmp_path / "D1"


def test_shapes_crop_and_intensities_by_hand(folder):
    write(folder, "a", [10, 20, 30, 40])
    write(folder, "b", [100])  # one voxel counts as much as the four of the other case
    describe(folder)
    seen = []
    found = fingerprint(folder, lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert (found.channels, found.classes, found.outputs, found.training_cases) == (("MR",), ("tumour",), 2, 2)
    assert [case.case for case in found.cases] == ["a", "b"]
    for case in found.cases:
        assert (case.shape, case.cropped, case.spacing_mm) == (SHAPE, (4, 6, 5), SPACING)
    assert found.relative_size == pytest.approx(4 * 6 * 5 / (6 * 8 * 10))
    (values,) = found.intensities
    assert (values.minimum, values.maximum) == (10, 100)
    assert values.mean == pytest.approx((25 + 100) / 2)
    assert values.std == pytest.approx(np.sqrt((750 + 10000) / 2 - 62.5**2))  # 750: mean of the squares of a
    assert (values.percentile_00_5, values.percentile_99_5) == pytest.approx((10, 100), abs=0.5)
    assert 40 <= values.median <= 100  # half of the weight lies at 100


def test_modalities_of_the_cases(folder):
    write(folder, "a", [10, 20])
    write(folder, "b", [10, 20])
    describe(folder)
    assert fingerprint(folder).modalities == ("MR",)
    rows = [{"dataset": "D1", "case": case, "modality": kind} for case, kind in (("a", "MR"), ("b", "CT"))]
    (folder.parent / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert fingerprint(folder).modalities == ("CT", "MR")


def test_the_crop_is_what_any_channel_shows(folder):
    write(folder, "a", [10, 20], channel_values=[-7, -9])
    describe(folder, ("FLAIR", "T1"), numTraining=5)
    found = fingerprint(folder, threads=1)
    assert found.training_cases == 5
    assert [channel.minimum for channel in found.intensities] == [10, -9]
    assert [channel.mean for channel in found.intensities] == [15, -8]


def test_axes_are_canonical(folder):
    """The same scan, stored along other axes: superior, left, anterior."""
    write(folder, "a", [10, 20, 30, 40])
    straight = fingerprint(describe(folder))
    turned = np.zeros((4, 4))
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = 2.0, -3.0, 4.0, 1.0
    write(folder, "a", [10, 20, 30, 40], affine=turned)
    found = fingerprint(folder)
    (case,) = found.cases
    assert (case.shape, case.cropped, case.spacing_mm) == ((8, 10, 6), (6, 5, 4), (3.0, 4.0, 2.0))
    assert found.intensities == straight.intensities


def test_json_roundtrip(folder, tmp_path):
    write(folder, "a", [10, 20])
    found = fingerprint(describe(folder))
    (tmp_path / "f.json").write_text(found.to_json())
    assert Fingerprint.read(tmp_path / "f.json") == found
    for text in ("", "[]", "{}", found.to_json().replace("median", "middle")):
        (tmp_path / "f.json").write_text(text)
        with pytest.raises(ConfigError, match="f.json"):
            Fingerprint.read(tmp_path / "f.json")


def test_cases_without_mask_or_foreground(folder):
    write(folder, "a", [], mask=True)
    describe(folder)
    with pytest.raises(ConfigError, match="masks that show a class"):
        fingerprint(folder)
    write(folder, "b", [10], mask=False)
    write(folder, "c", [30])
    found = fingerprint(folder)
    assert [case.case for case in found.cases] == ["a", "c"]
    assert found.intensities[0].mean == 30
    for case in "ac":
        (folder / "labelsTr" / f"{case}.nii.gz").unlink()
    with pytest.raises(ConfigError, match="scans with masks"):
        fingerprint(folder)


def test_what_cannot_be_read(folder):
    write(folder, "a", [10, 20], channel_values=[1, 2])
    with pytest.raises(LabelError, match="dataset.json"):
        fingerprint(folder)
    describe(folder, ("FLAIR", "T1"))
    moved = STRAIGHT.copy()
    moved[0, 3] = 7
    write_volume(
        Volume(np.eye(6, 8)[..., None] * np.ones(10), Grid(SHAPE, moved), "MR"), folder / "imagesTr/a_0001.nii.gz"
    )
    with pytest.raises(GridError, match="a_0001"):
        fingerprint(folder)
    (folder / "imagesTr" / "a_0001.nii.gz").unlink()
    with pytest.raises(ScanError, match="a_0001"):
        fingerprint(folder)


def test_channels_of_a_description(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text('{"modality": {"1": "PET", "0": "CT"}}')
    assert read_channels(path) == (("CT", "PET"), 0)
    for text in ("{", "[]", "{}", '{"channel_names": {"1": "CT"}}', '{"channel_names": ["CT"]}'):
        path.write_text(text)
        with pytest.raises(LabelError, match="channel_names"):
            read_channels(path)
