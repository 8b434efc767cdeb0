"""Folders of DICOM patients with RTSTRUCT or DICOM-SEG to nnU-Net raw folders that the trainer reads."""

import json

import numpy as np
import pytest
from dicoms import ct_phantom, write_rtstruct, write_series

from seg_backbone.cases import list_cases
from seg_backbone.io import read_mask, read_volume
from seg_backbone.io.dicom_seg import write_dicom_seg
from seg_backbone.labels import read_labels
from seg_backbone.volume import Mask


def square(grid, k, low, high):
    """A contour around the voxels low .. high (both in) of slice k."""
    (a, b), (c, d) = np.array(low) - 0.5, np.array(high) + 0.5
    return grid.voxel_to_world(np.array([(a, b, k), (c, b, k), (c, d, k), (a, d, k)]))


def blocks(grid, low, high, slices):
    return [square(grid, k, low, high) for k in slices]


@pytest.fixture
def patients(tmp_path):
    """P1 with organs, a tumour in one of them and targets; P2 with the cord; a series without a plan; other files."""
    folder = tmp_path / "patients"
    for name in ("P1", "P2", "P3"):
        write_series(folder / name / "CT", ct_phantom(), PatientID=name)
    grid = ct_phantom().grid
    rois = {
        "Lung_L": blocks(grid, (0, 0), (5, 5), range(2, 7)),
        "GTV-1": blocks(grid, (1, 1), (2, 2), (3, 4)),
        "GTV-2": blocks(grid, (7, 7), (7, 7), (3,)),
        "PTV70": blocks(grid, (0, 0), (4, 4), range(2, 6)),
        "CTV": blocks(grid, (1, 1), (3, 3), range(2, 6)),
        "BODY": blocks(grid, (0, 0), (8, 7), range(10)),
        "Heart": [],
    }
    write_rtstruct(folder / "P1" / "plan.dcm", folder / "P1" / "CT", rois, {"PTV70": "PTV"})
    write_rtstruct(folder / "plan2", folder / "P2" / "CT", {"SpinalCord": blocks(grid, (4, 4), (5, 5), range(10))})
    (folder / "LICENSE.txt").write_text("none")
    return folder


@pytest.fixture
def bring(run, tmp_path):
    def call(format_, path, *options):
        out = tmp_path / "raw" / "Dataset301_Dicom"
        code, stdout, stderr = run("data", "import", format_, path, "-o", out, *options)
        assert code == 0, stderr
        return {case.case: case for case in list_cases(out.parent, out.name)}, stdout, stderr

    return call


def voxels(mask, name):
    return np.argwhere(mask.of(name))


def test_structure_sets(patients, bring, run):
    cases, _, stderr = bring("rtstruct", patients)
    assert {name: case.annotated for name, case in cases.items()} == {
        "P1": ("lung_left", "tumour"),
        "P2": ("spinal_cord",),
    }
    first = cases["P1"]
    assert (first.modality, first.patient) == ("CT", "P1")
    np.testing.assert_array_equal(read_volume(first.image).array, ct_phantom().array)
    mask = read_mask(first.mask, first.labels)
    assert len(voxels(mask, "tumour")) == 2 * 2 * 2 + 1 and len(voxels(mask, "lung_left")) == 6 * 6 * 5 - 8
    assert mask.array[1, 1, 3] == first.labels["tumour"] and mask.array[0, 0, 6] == first.labels["lung_left"]
    targets = read_mask(first.image.parents[1] / "targetsTr" / "P1.nii.gz", {"PTV": 1, "CTV": 2})
    assert len(voxels(targets, "CTV")) == 9 * 4 and len(voxels(targets, "PTV")) == 25 * 4 - 9 * 4
    dataset = json.loads((first.image.parents[1] / "dataset.json").read_text())
    assert dataset["labels"] == {"background": 0, "lung_left": 1, "spinal_cord": 2, "tumour": 3}
    assert dataset["target_labels"] == {"background": 0, "PTV": 1, "CTV": 2} and dataset["numTraining"] == 2
    told = stderr.splitlines()
    assert "tumour = GTV-1 (1), GTV-2 (1)" in told and "not imported: BODY (1)" in told
    assert "left out: 1 CT or MR series without RTSTRUCT" in told
    assert any(line.startswith("overlap: tumour over lung_left, 0.0 ml in 1 cases") for line in told)
    assert "Heart" not in stderr, "an ROI without contours was not drawn"
    assert run("data", "check", first.image.parents[1])[0] == 2, "P1 and P2 have the same voxels"


def test_names_of_ones_own(patients, bring, tmp_path):
    (tmp_path / "names.yaml").write_text("trunk: [body]\ntumour: [gtv-1]\nleave out: ['*']\n")
    cases, stdout, _ = bring("rtstruct", patients / "P1", "--classes", tmp_path / "names.yaml", "--json")
    assert cases["P1"].annotated == ("trunk", "tumour")
    done = json.loads(stdout)
    assert done["labelled"] == 1 and done["overlaps"] == {
        "tumour over trunk": [1, pytest.approx(8 * 9.375e-4, abs=1e-3)]
    }


def test_a_class_mostly_under_others_is_not_annotated(patients, bring):
    grid = ct_phantom().grid
    rois = {
        "Lungs": blocks(grid, (0, 0), (8, 3), range(2, 7)),
        "Lung_L": blocks(grid, (0, 0), (3, 3), range(2, 7)),
        "Lung_R": blocks(grid, (5, 0), (8, 3), range(2, 7)),
    }
    write_rtstruct(patients / "P1" / "plan.dcm", patients / "P1" / "CT", rois)
    cases, _, stderr = bring("rtstruct", patients / "P1")
    case = cases["P1"]
    assert case.annotated == ("lung_left", "lung_right")
    assert "P1: lungs is not annotated, 89% of it lies under others" in stderr
    assert not voxels(read_mask(case.mask, case.labels), "lungs").size


def test_of_two_structure_sets_the_newer_one_counts(patients, bring):
    grid = ct_phantom().grid
    rois = {"GTV": blocks(grid, (5, 5), (6, 6), (8,))}
    write_rtstruct(patients / "P1" / "a.dcm", patients / "P1" / "CT", rois, date="20210101")
    write_rtstruct(
        patients / "P1" / "b.dcm",
        patients / "P1" / "CT",
        {"GTV": rois["GTV"] * 1 + blocks(grid, (0, 0), (1, 1), (9,))},
        date="20190101",
    )
    cases, _, stderr = bring("rtstruct", patients / "P1")
    mask = read_mask(cases["P1"].mask, cases["P1"].labels)
    assert voxels(mask, "tumour").tolist() == [[5, 5, 8], [5, 6, 8], [6, 5, 8], [6, 6, 8]]
    assert "P1: tumour of a.dcm, the newest of several structure sets" in stderr
    assert cases["P1"].annotated == ("lung_left", "tumour"), "what only the older one draws stays"


def test_a_series_found_by_its_frame_of_reference(patients, bring):
    """Pseudonymised exports often lose the reference to the series."""

    def lose(data):
        del data.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence

    rois = {"Cord": blocks(ct_phantom().grid, (4, 4), (5, 5), range(10))}
    write_rtstruct(patients / "P1" / "plan.dcm", patients / "P1" / "CT", rois, edit=lose)
    assert bring("rtstruct", patients)[0]["P1"].annotated == ("spinal_cord",)


def test_two_series_of_one_patient(patients, bring):
    write_series(patients / "P1" / "again", ct_phantom(), PatientID="P1")
    rois = {"Cord": blocks(ct_phantom().grid, (4, 4), (5, 5), range(10))}
    write_rtstruct(patients / "P1" / "z.dcm", patients / "P1" / "again", rois)
    cases, *_ = bring("rtstruct", patients / "P1")
    assert {name: case.patient for name, case in cases.items()} == {"P1-s1": "P1", "P1-s2": "P1"}


def test_the_masks_of_vlm_segment_come_back(bring, tmp_path):
    labels = {"tumour": 14, "liver": 1, "parotid_left": 3, "my_structure_of_interest": 7}
    folder = tmp_path / "patients"
    write_series(folder / "P1" / "CT", ct_phantom())
    grid = read_volume(folder / "P1" / "CT").grid
    ids = np.random.default_rng(0).choice([0, 0, 3, 7, 14], grid.shape).astype(np.uint8)
    drawn = Mask(ids, grid, labels)
    write_dicom_seg(drawn, folder / "P1" / "CT", folder / "P1.seg.dcm", "default@1a2b")
    cases, _, stderr = bring("dicom-seg", folder)
    case = cases["P1"]
    assert case.annotated == ("my_structure_of_interest", "parotid_left", "tumour") and "overlap" not in stderr
    mask = read_mask(case.mask, read_labels(case.image.parents[1] / "dataset.json"))
    assert mask.grid.same_as(grid)
    for name in case.annotated:
        np.testing.assert_array_equal(mask.of(name), drawn.of(name))


def test_lesions_in_objects_of_their_own_are_joined(bring, tmp_path):
    folder = tmp_path / "patients"
    write_series(folder / "CT", ct_phantom(), PatientID="A/1 b")
    grid = read_volume(folder / "CT").grid
    for number in (1, 2):
        ids = np.zeros(grid.shape, dtype=np.uint8)
        ids[number, 2, 3] = 1
        write_dicom_seg(Mask(ids, grid, {"tumour": 1}), folder / "CT", folder / f"{number}.dcm", "x")
    cases, *_ = bring("dicom-seg", folder)
    assert voxels(read_mask(cases["A-1-b"].mask, {"tumour": 1}), "tumour").tolist() == [[1, 2, 3], [2, 2, 3]]
    assert cases["A-1-b"].patient == "A/1 b"


def uneven(k, data):
    data.ImagePositionPatient[2] += 2 * (k > 4)


def test_a_case_that_cannot_be_read_stops_the_import_or_is_left_out(patients, run, tmp_path):
    folder, out = patients / "P0", tmp_path / "raw" / "Dataset301_Dicom"
    write_series(folder / "CT", ct_phantom(), uneven, PatientID="P0")
    rois = {"Cord": blocks(ct_phantom().grid, (4, 4), (5, 5), range(4))}
    write_rtstruct(folder / "plan.dcm", folder / "CT", rois)
    code, stdout, stderr = run("data", "import", "rtstruct", patients, "-o", out)
    assert (code, stdout) == (2, "") and "slices 2.50 mm apart" in stderr and stderr.count("\n") == 1
    assert not out.parent.exists() or not any(out.parent.iterdir())
    code, stdout, stderr = run("data", "import", "rtstruct", patients, "-o", out, "--skip-bad", "--json")
    assert code == 0 and json.loads(stdout)["labelled"] == 2 and len(json.loads(stdout)["faults"]) == 1
    assert sum(line.startswith("left out: ") and "2.50 mm apart" in line for line in stderr.splitlines()) == 1
    assert [case.case for case in list_cases(out.parent, out.name)] == ["P1", "P2"]


def only_helpers(folder):
    write_rtstruct(folder / "p.dcm", folder / "CT", {"BODY": blocks(ct_phantom().grid, (0, 0), (8, 7), range(10))})


def other_series(folder):
    write_series(folder.parent / "elsewhere", ct_phantom())
    write_rtstruct(folder / "p.dcm", folder.parent / "elsewhere", {"GTV": []})


def torn(folder):
    first = next((folder / "CT").iterdir())
    first.write_bytes(first.read_bytes()[:200])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: None, "expected RTSTRUCT objects, found 1 CT and MR series, no RTSTRUCT"),
        (only_helpers, "names left out: BODY"),
        (other_series, "CT or MR series of the 1 RTSTRUCT"),
        (torn, "a complete DICOM file"),
    ],
)
def test_a_folder_of_another_kind_leaves_nothing_behind(run, tmp_path, damage, says):
    folder = tmp_path / "patients"
    write_series(folder / "CT", ct_phantom())
    damage(folder)
    code, stdout, stderr = run("data", "import", "rtstruct", folder, "-o", tmp_path / "raw" / "Dataset301_X")
    assert (code, stdout) == (2, "") and says in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "raw").exists() or not any((tmp_path / "raw").iterdir())


def test_names_are_for_structures(run, tmp_path):
    for name, says in (("kits", "rtstruct or dicom-seg"), ("table", "a set of scans")):
        code, _, stderr = run("data", "import", name, tmp_path, "-o", tmp_path / "x", "--classes", tmp_path / "n.yaml")
        assert code == 2 and "--classes" in stderr and says in stderr
