"""A mask as DICOM-SEG and back by highdicom: the same voxels, at the same place, with names and codes."""

import highdicom as hd
import numpy as np
import pytest
from dicoms import AFFINES, RAS, ct_phantom, write_multiframe, write_series
from pydicom import dcmread

from seg_backbone.errors import ScanError
from seg_backbone.io import read_volume, write_volume
from seg_backbone.io.dicom_seg import SNOMED, write_dicom_seg
from seg_backbone.labels import FLARE23_LABELS, WORDS
from seg_backbone.volume import Mask

LABELS = {"tumour": 14, "liver": 1, "parotid_left": 3, "my_structure_of_interest": 7}


def mask_of(scan):
    """Four blocks of classes on the grid of a scan; the liver has none."""
    volume = read_volume(scan)
    ids = np.zeros(volume.grid.shape, dtype=np.uint8)
    ids[1:4, 2:4, 3:6] = 14
    ids[6, 7, 9] = ids[0, 0, 0] = 3
    ids[8, 0, 2:5] = 7
    return Mask(ids, volume.grid, LABELS)


def read_back(path, grid):
    """(segment label -> boolean (i, j, k) array on `grid`), placed by the SEG's own affine."""
    segmentation = hd.seg.segread(path)
    found = {}
    for number in segmentation.segment_numbers:
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True)
        points = np.argwhere(volume.array) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
        index = grid.world_to_voxel(points @ RAS[:3, :3])
        assert np.abs(index - index.round()).max() < 1e-3
        array = np.zeros(grid.shape, dtype=bool)
        array[tuple(index.round().astype(int).T)] = True
        found[segmentation.get_segment_description(number).segment_label] = array
    return found


@pytest.mark.parametrize("plane", AFFINES)
@pytest.mark.parametrize("multiframe", [False, True])
def test_roundtrip_through_highdicom(tmp_path, plane, multiframe):
    scan = tmp_path / "scan"
    if multiframe:
        write_multiframe(scan, ct_phantom(plane), [3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    else:
        write_series(scan, ct_phantom(plane))
    mask = mask_of(scan)
    assert (
        write_dicom_seg(mask, scan, tmp_path / "out" / "scan.seg.dcm", "default@1a2b") == tmp_path / "out/scan.seg.dcm"
    )
    found = read_back(tmp_path / "out" / "scan.seg.dcm", mask.grid)
    names = {3: "left parotid gland", 7: "my structure of interest", 14: "tumour"}
    assert list(found) == list(names.values())  # in order of their ids, without the class that is not there
    for value, name in names.items():
        np.testing.assert_array_equal(found[name], mask.array == value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan.seg.dcm"]


def test_codes_references_and_origin(tmp_path):
    write_series(tmp_path / "scan", ct_phantom())
    write_dicom_seg(mask_of(tmp_path / "scan"), tmp_path / "scan", tmp_path / "a.dcm", "default@1a2b")
    segmentation = hd.seg.segread(tmp_path / "a.dcm")
    parotid, mine, tumour = (segmentation.get_segment_description(number) for number in (1, 2, 3))
    assert (tumour.segmented_property_type.value, tumour.segmented_property_type.meaning) == ("108369006", "Neoplasm")
    assert tumour.segmented_property_category.value == "49755003"
    assert (parotid.segmented_property_type.value, parotid.segmented_property_category.value) == (
        "45289007",
        "91723000",
    )
    side = parotid.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodeValue, side.CodeMeaning) == ("7771000", "Left")
    assert mine.segmented_property_type.scheme_designator == "99FLAREVLM"
    assert (segmentation.ManufacturerModelName, segmentation.SoftwareVersions) == ("default", "1a2b")
    slices = {str(dcmread(path).SOPInstanceUID) for path in (tmp_path / "scan").iterdir()}
    assert {uid for _, _, uid in segmentation.get_source_image_uids()} <= slices


def test_every_class_of_ours_has_a_code():
    for name in (*WORDS, *FLARE23_LABELS):
        assert name.removesuffix("_left").removesuffix("_right") in SNOMED


def test_a_small_tilt_and_one_series_of_several(tmp_path):
    def tilt(k, data):
        data.ImagePositionPatient[1] += 0.02 * k

    write_series(tmp_path / "scan", ct_phantom(), prefix="A")
    uid = write_series(tmp_path / "scan", ct_phantom(), tilt, prefix="B")
    scan = f"{tmp_path / 'scan'}#{uid}"
    write_dicom_seg(mask_of(scan), scan, tmp_path / "a.dcm", "default")
    assert hd.seg.segread(tmp_path / "a.dcm").number_of_segments == 3


def test_a_dicom_seg_beside_the_slices_is_no_second_series(tmp_path):
    write_series(tmp_path, ct_phantom())
    mask = mask_of(tmp_path)
    write_dicom_seg(mask, tmp_path, tmp_path / "scan.seg.dcm", "default")
    np.testing.assert_array_equal(read_volume(tmp_path).array, ct_phantom().array)
    with pytest.raises(ScanError, match="expected a CT or MR series"):
        read_volume(tmp_path / "scan.seg.dcm")


def test_an_empty_mask_writes_nothing(tmp_path):
    write_series(tmp_path / "scan", ct_phantom())
    mask = mask_of(tmp_path / "scan")
    empty = Mask(np.zeros_like(mask.array), mask.grid, LABELS)
    assert write_dicom_seg(empty, tmp_path / "scan", tmp_path / "a.dcm", "default") is None
    assert not (tmp_path / "a.dcm").exists()


def test_what_a_dicom_seg_cannot_refer_to(tmp_path):
    scan = write_volume(ct_phantom(), tmp_path / "scan.nii.gz")
    with pytest.raises(ScanError, match="expected a DICOM scan for a DICOM-SEG"):
        write_dicom_seg(mask_of(scan), scan, tmp_path / "a.dcm", "default")
    write_series(tmp_path / "bare", ct_phantom(), lambda k, data: data.__delattr__("FrameOfReferenceUID"))
    with pytest.raises(
        ScanError, match="expected headers that a DICOM-SEG can refer to.*Frame Of Reference UID"
    ) as caught:
        write_dicom_seg(mask_of(tmp_path / "bare"), tmp_path / "bare", tmp_path / "a.dcm", "default")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.dcm").exists()
