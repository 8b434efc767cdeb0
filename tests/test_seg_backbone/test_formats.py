"""What counts as a scan, what it is called, and which reader takes it."""

from pathlib import Path

import pytest
from dicoms import ct_phantom, write_multiframe, write_series

from seg_backbone.errors import ScanError
from seg_backbone.io import case_name, find_scans, read_volume, write_volume


def names(scans):
    return [scan.name for scan in scans]


def test_a_folder_of_several_formats(tmp_path):
    phantom = ct_phantom()
    write_volume(phantom, tmp_path / "b.nii.gz")
    for name in ("a.NRRD", "c.mha", "d.mhd", "d.raw", "e.zip", "notes.txt", ".hidden.nii"):
        (tmp_path / name).touch()
    write_series(tmp_path / "patient" / "study" / "series", phantom)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").touch()
    scans, others = find_scans(tmp_path)
    assert names(scans) == ["a.NRRD", "b.nii.gz", "c.mha", "d.mhd", "e.zip", "patient"]
    assert others == ["empty", "notes.txt", "texts"]


def test_a_folder_of_slices_is_one_scan(tmp_path):
    write_series(tmp_path / "series", ct_phantom())
    (tmp_path / "series" / "README.txt").touch()
    write_volume(ct_phantom(), tmp_path / "series" / "other.nii")
    scans, others = find_scans(tmp_path / "series")
    assert names(scans) == ["series", "other.nii"]
    assert others == ["README.txt"]


def test_an_empty_folder(tmp_path):
    assert find_scans(tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("scan", "case"),
    [
        ("a/case_0000.nii.gz", "case"),
        ("case.nii", "case"),
        ("Case.NRRD", "Case"),
        ("case_1.mhd", "case_1"),
        ("IM1.dcm", "IM1"),
        ("a/IM.1", "IM.1"),
        ("study.zip", "study"),
        ("a/study/", "study"),
        ("a/../study/.", "study"),
        ("a/study#1.2.3", "study_1.2.3"),
        ("a/study.zip#1.2.3", "study_1.2.3"),
    ],
)
def test_case_names(scan, case):
    assert case_name(scan) == case_name(Path(scan)) == case


def test_the_name_of_a_folder_keeps_its_dots(tmp_path):
    (tmp_path / "visit.nii").mkdir()
    assert case_name(tmp_path / "visit.nii") == "visit.nii"


def test_a_file_with_a_hash_in_its_name(tmp_path):
    path = write_volume(ct_phantom(), tmp_path / "scan#2.nii.gz")
    assert read_volume(path).array.shape == (9, 8, 10)
    assert case_name(path) == "scan#2"


def test_content_decides_where_the_suffix_says_nothing(tmp_path):
    for name in ("IM0", "IM0.ima", "IM0.1"):
        write_multiframe(tmp_path / name, ct_phantom(), range(10))
        assert read_volume(tmp_path / name).modality_from == "header"
    with pytest.raises(ScanError, match="expected a DICOM folder or zip before the #"):
        read_volume(f"{write_volume(ct_phantom(), tmp_path / 'a.nii')}#1.2.3")
    with pytest.raises(ScanError, match="found no such file"):
        read_volume(tmp_path / "none#1.2.3")
