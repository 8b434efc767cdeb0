"""Public sets of annotated scans, tiny ones in their layout, to nnU-Net raw folders that the trainer reads."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from seg_backbone.cases import list_cases
from seg_backbone.io import read_mask, read_volume
from vlm.data.sources.openkbp import SHAPE

AFFINE = np.diag([-2.0, -2.0, 3.0, 1.0])


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array), affine), path)
    return path


def scan(path, seed=0, shape=(6, 5, 4)):
    return save(path, np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16))


def mask(path, *values):
    array = np.zeros((6, 5, 4), dtype=np.uint8)
    array[0, 0, : len(values)] = values
    return save(path, array)


def listing(folder):
    """Relative paths and contents of every file, to see that nothing changed."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def bring(run, tmp_path):
    """Import a folder `source` into raw/Dataset201_X; returns its cases by name."""

    def call(format_, *options):
        before = listing(tmp_path / "source")
        out = tmp_path / "raw" / "Dataset201_X"
        code, _, stderr = run("data", "import", format_, tmp_path / "source", "-o", out, *options)
        assert code == 0, stderr
        assert listing(tmp_path / "source") == before
        found = run("data", "check", out)[1].splitlines()
        small = (
            "a single case",
            "no mask shows",
            "an empty mask",
            "the same voxels",
        )  # true of a fixture, no fault of the import
        assert not [line for line in found if not any(words in line for words in small)]
        return {case.case: case for case in list_cases(out.parent, out.name)}

    return call


@pytest.fixture
def source(tmp_path):
    return tmp_path / "source"


def test_msd(source, bring, tmp_path):
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    scan(source / "imagesTr" / "p_1.nii.gz")
    mask(source / "labelsTr" / "p_1.nii.gz", 1, 2)
    scan(source / "imagesTs" / "p_2.nii.gz", 1)
    (source / "imagesTr" / "._p_1.nii.gz").write_bytes(b"left by an archiver")
    (source / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": labels}))
    cases = bring("msd")
    assert list(cases) == ["p_1"] and cases["p_1"].annotated == ("pancreas", "tumour")
    assert cases["p_1"].image.is_symlink() and cases["p_1"].image.resolve() == source / "imagesTr" / "p_1.nii.gz"
    assert (tmp_path / "raw" / "Dataset201_X" / "imagesTs" / "p_2_0000.nii.gz").is_symlink()


def test_msd_of_several_channels(source, bring):
    array = np.arange(6 * 5 * 4 * 2, dtype=np.int16).reshape(6, 5, 4, 2)
    save(source / "imagesTr" / "b_1.nii.gz", array)
    mask(source / "labelsTr" / "b_1.nii.gz", 1)
    data = {"modality": {"1": "T1w", "0": "FLAIR"}, "labels": {"0": "background", "1": "edema"}}
    (source / "dataset.json").write_text(json.dumps(data))
    image = bring("msd")["b_1"]
    assert image.modality == "MR"
    np.testing.assert_array_equal(read_volume(image.image).array, array[..., 0])
    second = image.image.with_name("b_1_0001.nii.gz")
    np.testing.assert_array_equal(read_volume(second).array, array[..., 1])
    np.testing.assert_array_equal(nib.load(second).affine, AFFINE)
    described = json.loads((image.image.parents[1] / "dataset.json").read_text())
    assert described["channel_names"] == {"0": "FLAIR", "1": "T1w"}


@pytest.mark.parametrize(
    ("name", "classes"), [("kits", ("kidney", "tumour", "cyst")), ("kits19", ("kidney", "tumour"))]
)
def test_kits(source, bring, name, classes):
    scan(source / "case_00007" / "imaging.nii.gz")
    mask(source / "case_00007" / "segmentation.nii.gz", 1, 2)
    mask(source / "case_00007" / "instances" / "kidney_1.nii.gz", 1)
    scan(source / "case_00210" / "imaging.nii.gz", 1)
    cases = bring(name, "--copy")
    assert list(cases) == ["case_00007"] and cases["case_00007"].annotated == classes
    assert not cases["case_00007"].image.is_symlink() and not cases["case_00007"].mask.is_symlink()


def test_kits21_and_masks_without_a_scan(source, bring, run, tmp_path):
    scan(source / "case_00007" / "imaging.nii.gz")
    mask(source / "case_00007" / "aggregated_MAJ_seg.nii.gz", 1, 3)
    mask(source / "case_00008" / "segmentation.nii.gz", 1)
    case = bring("kits")["case_00007"]
    assert case.annotated == ("kidney", "tumour", "cyst") and read_mask(case.mask).array.max() == 3
    _, _, stderr = run("data", "import", "kits", source, "-o", tmp_path / "raw" / "Dataset202_Y")
    assert f"left out: {source / 'case_00008' / 'segmentation.nii.gz'}: no imaging.nii.gz beside" in stderr


def test_capitals_folders_of_labelled_scans_and_masks_alone(source, run, bring, tmp_path):
    scan(source / "labeled" / "imagesTr" / "FLARE22_Tr_0007_0000.NII.GZ")
    mask(source / "labeled" / "labelsTr" / "FLARE22_Tr_0007.NII.GZ", 13)
    mask(source / "labeled" / "labelsTr" / "FLARE22_Tr_0008.nii.gz", 13)
    cases = bring("flare22")
    assert list(cases) == ["FLARE22_Tr_0007"] and cases["FLARE22_Tr_0007"].mask
    _, _, stderr = run("data", "import", "flare22", source, "-o", tmp_path / "raw" / "Dataset202_Y")
    assert "FLARE22_Tr_0008.nii.gz: a mask without a scan" in stderr


def test_amos(source, bring):
    for number, part in (("0001", "Tr"), ("0507", "Va")):
        scan(source / f"images{part}" / f"amos_{number}.nii.gz")
        mask(source / f"labels{part}" / f"amos_{number}.nii.gz", 6, 15)
    cases = bring("amos")
    assert {name: case.modality for name, case in cases.items()} == {"amos_0001": "CT", "amos_0507": "MR"}
    assert cases["amos_0507"].labels["liver"] == 6 and len(cases["amos_0507"].annotated) == 15
    assert cases["amos_0001"].region == "abdomen"


def test_btcv(source, bring):
    scan(source / "RawData" / "Training" / "img" / "img0007.nii.gz")
    mask(source / "RawData" / "Training" / "label" / "label0007.nii.gz", 10)
    scan(source / "RawData" / "Testing" / "img" / "img0061.nii.gz", 1)
    cases = bring("btcv")
    assert list(cases) == ["0007"] and cases["0007"].labels["portal_and_splenic_veins"] == 10


def test_flare22_and_a_file_that_is_not_compressed(source, bring):
    scan(source / "images" / "FLARE22_Tr_0007_0000.nii")
    mask(source / "labels" / "FLARE22_Tr_0007.nii.gz", 13)
    case = bring("flare22")["FLARE22_Tr_0007"]
    assert len(case.annotated) == 13 and "tumour" not in case.labels and not case.image.is_symlink()
    original = read_volume(source / "images" / "FLARE22_Tr_0007_0000.nii").array
    np.testing.assert_array_equal(read_volume(case.image).array, original)


def test_flare23_annotates_what_occurs(source, bring):
    scan(source / "imagesTr2200" / "FLARE23_0001_0000.nii.gz")
    mask(source / "labelsTr2200" / "FLARE23_0001.nii.gz", 1, 14)
    scan(source / "imagesTr2200" / "FLARE23_0002_0000.nii.gz", 1)
    mask(source / "labelsTr2200" / "FLARE23_0002.nii.gz", 14)
    mask(source / "labelsTr2200" / "20230507-fix" / "FLARE23_0002.nii.gz", 4)
    scan(source / "unlabeledTr1800" / "FLARE23_0003_0000.nii.gz", 2)
    cases = bring("flare23")
    assert {name: case.annotated for name, case in cases.items()} == {
        "FLARE23_0001": ("liver", "tumour"),
        "FLARE23_0002": ("pancreas",),
    }
    assert read_mask(cases["FLARE23_0002"].mask).array.max() == 4, "the corrected mask"


@pytest.mark.parametrize("name", ["flare24", "flare25"])
def test_flare24_and_25(source, bring, name):
    scan(source / "imagesTr" / "L_0001_0000.nii.gz")
    mask(source / "labelsTr" / "L_0001.nii.gz", 1)
    case = bring(name)["L_0001"]
    assert (case.labels, case.annotated) == ({"tumour": 1}, ("tumour",))


def test_totalsegmentator(source, bring):
    for number, structures in ((1, {"liver": (1, 1), "kidney_left": (0, 1, 1)}), (2, {"liver": ()})):
        scan(source / f"s000{number}" / ("ct.nii.gz" if number == 1 else "mri.nii.gz"))
        for name, values in structures.items():
            mask(source / f"s000{number}" / "segmentations" / f"{name}.nii.gz", *values)
    cases = bring("totalsegmentator")
    assert cases["s0001"].labels == {"kidney_left": 1, "liver": 2}
    assert cases["s0001"].annotated == ("kidney_left", "liver") and cases["s0002"].annotated == ("liver",)
    assert cases["s0002"].modality == "MR"
    merged = read_mask(cases["s0001"].mask)
    assert merged.array[0, 0].tolist() == [2, 1, 1, 0], "the first name keeps a voxel of two"
    np.testing.assert_array_equal(merged.grid.affine, AFFINE)


def test_openkbp(source, bring):
    case = source / "train-pats" / "pt_7"
    case.mkdir(parents=True)
    (case / "voxel_dimensions.csv").write_text("3.5\n4.0\n2.5\n")
    index = {name: np.ravel_multi_index(place, SHAPE) for name, place in PLACES.items()}
    (case / "ct.csv").write_text(f",data\n{index['ct']},1100\n{index['bright']},70000\n")
    for name in ("Mandible", "PTV56", "PTV70"):
        (case / f"{name}.csv").write_text(f",data\n{index[name]},\n")
    found = bring("openkbp")["pt_7"]
    volume, drawn = read_volume(found.image), read_mask(found.mask, found.labels)
    assert volume.grid.orientation == "LPS" and volume.grid.spacing_mm == pytest.approx((4.0, 3.5, 2.5))
    assert volume.array[20, 10, 127 - 30] == 100 and volume.array[21, 10, 97] == 3095 and volume.array[0, 0, 0] == -1000
    assert np.argwhere(drawn.array == found.labels["mandible"]).tolist() == [[60, 50, 127]]
    assert found.annotated == ("mandible",) and found.region == "head and neck"
    targets = read_mask(found.image.parents[1] / "targetsTr" / "pt_7.nii.gz").array
    assert targets[5, 5, 122] == 3 and np.count_nonzero(targets) == 1, "the higher dose counts"


PLACES = {  # row (toward posterior), column (toward left), slice (downward)
    "ct": (10, 20, 30),
    "bright": (10, 21, 30),
    "Mandible": (50, 60, 0),
    "PTV56": (5, 5, 5),
    "PTV70": (5, 5, 5),
}


def test_the_manifest_keeps_other_datasets(source, bring, run, tmp_path):
    scan(source / "imagesTr" / "L_0001_0000.nii.gz")
    mask(source / "labelsTr" / "L_0001.nii.gz", 1)
    other = {"dataset": "Dataset101_Y", "case": "y", "annotated": ["liver"]}
    manifest = tmp_path / "raw" / "manifest.jsonl"
    manifest.parent.mkdir()
    manifest.write_text(json.dumps(other) + "\n" + json.dumps({"dataset": "Dataset201_X", "case": "gone"}) + "\n")
    bring("flare24")
    assert [json.loads(line) for line in manifest.read_text().splitlines()] == [
        other,
        {"dataset": "Dataset201_X", "case": "L_0001", "modality": "CT", "annotated": ["tumour"]},
    ]
    code, _, stderr = run("data", "import", "flare24", source, "-o", tmp_path / "raw" / "Dataset201_X")
    assert code == 2 and "one that exists" in stderr
    manifest.write_text("torn")
    code, _, stderr = run("data", "import", "flare24", source, "-o", tmp_path / "raw" / "Dataset202_Z")
    assert code == 2 and str(manifest) in stderr and not (tmp_path / "raw" / "Dataset202_Z").exists()


def test_cases_that_cannot_be_read_are_left_out(source, run, tmp_path):
    scan(source / "images" / "a_0000.nii.gz")
    mask(source / "labels" / "a.nii.gz", 1)
    scan(source / "images" / "b_0000.nii.gz", 1)
    (source / "labels" / "b.nii.gz").write_bytes(b"torn")
    out = tmp_path / "raw" / "Dataset201_X"
    code, stdout, stderr = run("data", "import", "flare23", source, "-o", out, "--skip-bad", "--json")
    assert code == 0 and f"left out: {source / 'labels' / 'b.nii.gz'}: expected" in stderr
    assert json.loads(stdout)["labelled"] == 1 and len(json.loads(stdout)["faults"]) == 1
    assert [case.case for case in list_cases(out.parent, out.name)] == ["a"]
    (source / "labels" / "a.nii.gz").write_bytes(b"torn")
    code, _, stderr = run("data", "import", "flare23", source, "-o", out.with_name("Dataset202_Y"), "--skip-bad")
    assert code == 2 and "cases of flare23" in stderr and not out.with_name("Dataset202_Y").exists()


def break_msd(source: Path) -> None:
    scan(source / "imagesTr" / "b_1.nii.gz")
    mask(source / "labelsTr" / "b_1.nii.gz", 1)
    data = {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "edema"}}
    (source / "dataset.json").write_text(json.dumps(data))


def break_flare23(source: Path) -> None:
    scan(source / "images" / "a_0000.nii.gz")
    (source / "labels").mkdir()
    (source / "labels" / "a.nii.gz").write_bytes(b"torn")


def twice(source: Path) -> None:
    scan(source / "imagesTr" / "a.nii.gz")
    scan(source / "imagesVa" / "a_0000.nii.gz")


def twice_kits(source: Path) -> None:
    scan(source / "kits19" / "case_00007" / "imaging.nii.gz")
    scan(source / "kits23" / "case_00007" / "imaging.nii.gz")


def break_nii(source: Path) -> None:
    (source / "a.nii").write_bytes(b"torn")


def break_openkbp(source: Path) -> None:
    (source / "ct.csv").write_text(",data\n3000000,1\n")
    (source / "voxel_dimensions.csv").write_text("1\n1\n1\n")


def no_scan(source: Path) -> None:
    mask(source / "s1" / "segmentations" / "liver.nii.gz", 1)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("msd", None, "dataset.json"),
        ("msd", break_msd, "expected 4D"),
        ("kits", None, "imaging.nii.gz"),
        ("kits", twice_kits, "one folder a case"),
        ("btcv", None, "NIfTI scans"),
        ("amos", twice, "one scan a case"),
        ("flare22", break_nii, "expected a NIfTI file"),
        ("flare23", break_flare23, "labels/a.nii.gz"),
        ("totalsegmentator", no_scan, "ct.nii.gz or mri.nii.gz"),
        ("openkbp", break_openkbp, "indices below 2097152"),
    ],
)
def test_a_folder_of_another_kind_leaves_nothing_behind(run, source, tmp_path, name, damage, says):
    source.mkdir()
    if damage:
        damage(source)
    code, stdout, stderr = run("data", "import", name, source, "-o", tmp_path / "raw" / "Dataset201_X")
    assert (code, stdout) == (2, "") and says in stderr and stderr.count("\n") == 1
    assert not (tmp_path / "raw").exists() or not any((tmp_path / "raw").iterdir())


def test_the_source_is_never_written_to(run, source, tmp_path):
    scan(source / "imagesTr" / "a.nii.gz")
    for out in (source, source / "raw" / "Dataset201_X"):
        code, _, stderr = run("data", "import", "btcv", source, "-o", out)
        assert code == 2 and "outside of the source" in stderr
    assert [path.name for path in source.iterdir()] == ["imagesTr"]
