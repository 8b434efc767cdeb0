"""`vlm data synthesise` on scans that ship with the project: what it writes, that all of it says synthetic, faults."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from phantoms import SCANS

from seg_backbone.cases import list_cases
from seg_backbone.io import read_mask, read_volume
from seg_backbone.labels import read_labels
from seg_backbone.lesions import find_instances
from vlm.schema import read_questions

TORSO, CT, MR = "Dataset105_Torso", "Dataset102_SarcomaCT", "Dataset103_SarcomaMR"
LIVER = ("--inside", "liver", "--count", "2-4", "--sizes", "tiny,small,medium", "--lesion-free")


@pytest.fixture(scope="module")
def torso(tmp_path_factory):
    """Two synthetic copies of the torso, made once by the command."""
    from typer.testing import CliRunner

    from vlm.cli.data import app

    out = tmp_path_factory.mktemp("raw") / "Dataset301_Synthetic"
    made = CliRunner().invoke(
        app, ["synthesise", str(SCANS / TORSO), "-o", str(out), *LIVER, "--copies", "2", "--json"]
    )
    assert made.exit_code == 0, made.output
    return out, json.loads(made.stdout)


def test_it_writes_a_dataset_that_says_synthetic_everywhere(torso, run):
    out, said = torso
    names = ["torso_000_synthetic1", "torso_000_synthetic2"]
    assert said["synthetic"] is True and said["cases"] == 2 and said["skipped"] == said["failed"] == {}
    assert said["tumours"] == sum(said["by_size"].values()) == said["by_place"]["liver"]
    described = json.loads((out / "dataset.json").read_text())
    assert described["synthetic"] is True and described["numTraining"] == 2
    assert described["synthesis"]["recipe"]["inside"] == ["liver"]
    rows = [json.loads(line) for line in (out.parent / "manifest.jsonl").read_text().splitlines()]
    assert [row["case"] for row in rows] == names and all(row["synthetic"] is True for row in rows)
    assert {row["patient"] for row in rows} == {"torso_000"} and all("tumour" in row["annotated"] for row in rows)
    assert sorted(path.name for path in (out / "imagesTr").iterdir()) == [f"{name}_0000.nii.gz" for name in names]
    for name in names:
        record = json.loads((out / "synthetic" / f"{name}.json").read_text())
        assert record["synthetic"] is True and all(one["synthetic"] is True for one in record["tumours"])
    cases = list_cases(out.parent, out.name)
    assert [files.case for files in cases] == names and all(files.synthetic for files in cases)
    faults = run("data", "check", out)[1]
    assert not [line for line in faults.splitlines() if "no mask shows" not in line], faults


def test_the_tumours_are_in_the_liver_of_the_scan_and_as_recorded(torso):
    out, _ = torso
    labels = read_labels(out / "dataset.json")
    real = read_volume(SCANS / TORSO / "imagesTr" / "torso_000_0000.nii.gz", "CT")
    organs = read_mask(SCANS / TORSO / "labelsTr" / "torso_000.nii.gz", labels)
    masks = []
    for files in list_cases(out.parent, out.name):
        volume, mask = read_volume(files.image, "CT"), read_mask(files.mask, labels)
        assert volume.grid.same_as(real.grid, 1e-4) and volume.array.dtype == real.array.dtype
        tumours = json.loads((out / "synthetic" / f"{files.case}.json").read_text())["tumours"]
        found = find_instances(mask, volume).of("tumour")
        assert sorted(i.voxels for i in found) == sorted(t["voxels"] for t in tumours) and 2 <= len(found) <= 4
        where = mask.of("tumour")
        assert organs.of("liver")[where].mean() > 0.8  # later ones may have pushed earlier ones a little
        assert volume.array[where].mean() < real.array[organs.of("liver")].mean() - 15
        masks.append(where)
    assert (masks[0] != masks[1]).any()


def test_questions_carry_the_mark_and_results_keep_it_apart(run, tmp_path):
    out = tmp_path / "Dataset302_Synthetic"
    assert run("data", "synthesise", SCANS / CT, "-o", out, "--count", 3, "--sizes", "small")[0] == 0
    code, _, stderr = run("data", "questions", out, "-o", tmp_path / "synthetic.jsonl", "--per-case", 200)
    assert code == 0, stderr
    asked = list(read_questions(tmp_path / "synthetic.jsonl"))
    assert asked and all(question.extra["synthetic"] is True for question in asked)
    assert 4 in [question.answer for question in asked if question.type == "counting"]  # with the real one
    run("data", "questions", SCANS / CT, "-o", tmp_path / "real.jsonl")
    real = list(read_questions(tmp_path / "real.jsonl"))
    assert real and not any("synthetic" in question.extra for question in real)
    both, answers = tmp_path / "both.jsonl", tmp_path / "answers.jsonl"
    both.write_text((tmp_path / "synthetic.jsonl").read_text() + (tmp_path / "real.jsonl").read_text())
    answers.write_text("".join(json.dumps({"id": q.id, "text": "yes", "value": 2}) + "\n" for q in (*asked, *real)))
    scores = tmp_path / "scores"
    code, _, stderr = run("evaluate", "answers", answers, "--reference", both, "-o", scores, "--resamples", 20)
    assert code == 0, stderr
    types = json.loads((scores / "metrics.json").read_text())["types"]
    parts = [own["by"]["synthetic"] for own in types.values() if len(own["by"].get("synthetic", {})) == 2]
    assert parts and all(set(part) == {"yes", ""} for part in parts)
    assert f"{len(asked)} questions are about synthetic tumours" in (scores / "report.html").read_text()


def test_masks_are_not_evaluated_on_it(torso, run, tmp_path):
    out, _ = torso
    for protocol in ("corrected", "flare24"):
        code, _, stderr = run(
            "evaluate", "masks", out / "labelsTr", out / "labelsTr", "--protocol", protocol, "-o", tmp_path / "scores"
        )
        assert code == 2 and "synthetic tumours in torso_000_synthetic1" in stderr


def test_an_interrupted_run_goes_on_and_gives_the_same(torso, run, tmp_path):
    whole, _ = torso
    out = tmp_path / "raw" / whole.name
    shutil.copytree(whole, out)
    for part in ("imagesTr", "labelsTr", "synthetic"):
        next((out / part).glob("*synthetic2*")).unlink()
    kept = (out / "imagesTr" / "torso_000_synthetic1_0000.nii.gz").stat().st_mtime_ns
    options = ("-o", out, *LIVER, "--copies", 2)
    assert run("data", "synthesise", SCANS / TORSO, *options)[0] == 0
    assert (out / "imagesTr" / "torso_000_synthetic1_0000.nii.gz").stat().st_mtime_ns == kept
    for name in ("imagesTr/torso_000_synthetic2_0000.nii.gz", "labelsTr/torso_000_synthetic2.nii.gz"):
        again, before = (np.asarray(nib.load(folder / name).dataobj) for folder in (out, whole))
        assert (again == before).all()
    assert len((out.parent / "manifest.jsonl").read_text().splitlines()) == 2
    code, _, stderr = run("data", "synthesise", SCANS / TORSO, *options, "--seed", 1)
    assert code == 2 and "drawn otherwise" in stderr


def test_mr_and_ct_of_a_body_beside_a_real_tumour(run, tmp_path):
    """Both annotate the tumour; the real one stays and the manifest's other lines, too."""
    (tmp_path / "manifest.jsonl").write_text('{"dataset": "Other", "case": "x"}\n')
    for number, dataset in enumerate((CT, MR)):
        out = tmp_path / f"Dataset30{number}_Synthetic"
        code, stdout, stderr = run("data", "synthesise", SCANS / dataset, "-o", out, "--count", 2, "--sizes", "small")
        assert code == 0, stderr
        assert stdout == "2 synthetic tumours in 1 cases: 2 small\n"
        (files,) = list_cases(tmp_path, out.name)
        volume = read_volume(files.image, files.modality)
        found = find_instances(read_mask(files.mask, {"tumour": 1}), volume).of("tumour")
        real = find_instances(read_mask(SCANS / dataset / "labelsTr" / "sarc_001.nii.gz", {"tumour": 1})).of("tumour")
        assert len(found) == len(real) + 2 and found[0].volume_ml == pytest.approx(real[0].volume_ml, rel=0.1)
        (record,) = (out / "synthetic").iterdir()
        units = {tumour["contrast_unit"] for tumour in json.loads(record.read_text())["tumours"]}
        assert units == ({"HU"} if dataset == CT else {"relative"})
    datasets = [json.loads(line)["dataset"] for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert datasets == ["Other", "Dataset300_Synthetic", "Dataset301_Synthetic"]


def test_a_recipe_file_and_regions(run, tmp_path):
    regions = tmp_path / "regions"
    regions.mkdir()
    image = nib.load(SCANS / TORSO / "labelsTr" / "torso_000.nii.gz")
    half = np.zeros(image.shape, dtype=np.uint8)
    half[: image.shape[0] // 2] = 1
    nib.save(nib.Nifti1Image(half, image.affine), regions / "torso_000.nii.gz")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("label: metastasis\ninside: [body]\ncount: 3\nsizes: {tiny: 1, small: 1}\nmass_effect: 0\n")
    out = tmp_path / "raw" / "Dataset302"
    options = ("--recipe", recipe, "--regions", regions, "--lesion-free")
    code, _, stderr = run("data", "synthesise", SCANS / TORSO, "-o", out, *options)
    assert code == 0, stderr
    labels = read_labels(out / "dataset.json")
    assert labels["metastasis"] == 118
    mask = read_mask(out / "labelsTr" / "torso_000_synthetic1.nii.gz", labels)
    where = mask.of("metastasis")
    assert where.any() and half[where].all()


@pytest.mark.parametrize(
    ("dataset", "options", "words"),
    [
        (TORSO, ("--inside", "liver"), "tumour is not annotated.*--lesion-free"),
        (TORSO, ("--inside", "livre", "--lesion-free"), "livre"),
        (CT, ("--inside", "liver"), "liver"),
        (CT, ("--count", "none"), "count"),
        (CT, ("--count", "3-1"), "count"),
        (CT, ("--sizes", "huge"), "huge"),
        (CT, ("--recipe", "nowhere.yaml"), "nowhere.yaml"),
        (CT, ("--regions", "nowhere"), "nowhere"),
        (CT, ("--label", "body"), "inside"),
        ("manifest.jsonl", (), "nnU-Net raw"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, dataset, options, words):
    import re

    code, _, stderr = run("data", "synthesise", SCANS / dataset, "-o", tmp_path / "out", *options)
    last = stderr.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and re.search(words, last)
    assert not (tmp_path / "out").exists() and not (tmp_path / "manifest.jsonl").exists()


def test_a_broken_scan_is_told_and_the_others_are_made(run, tmp_path):
    folder = tmp_path / "raw" / CT
    shutil.copytree(SCANS / CT, folder)
    (folder / "imagesTr" / "sarc_002_0000.nii.gz").write_bytes(b"broken")
    out = tmp_path / "raw" / "Dataset303"
    code, stdout, stderr = run("data", "synthesise", folder, "-o", out, "--sizes", "small")
    assert code == 1 and "sarc_002" in stderr and stdout.count("in 1 cases")
    code, _, stderr = run("data", "synthesise", out, "-o", tmp_path / "raw" / "Dataset304")
    assert code == 2 and "real scans" in stderr
    code, _, stderr = run("data", "synthesise", folder, "-o", folder / "inside")
    assert code == 2 and "outside of the dataset" in stderr
