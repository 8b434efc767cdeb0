"""`vlm evaluate` end to end, and what the package must not import."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from seg_backbone.errors import ConfigError, GridError, QuestionError
from seg_backbone.geometry import Grid
from seg_backbone.io.nifti import write_mask
from seg_backbone.volume import Mask
from vlm.cli.evaluate import app

ROOT = Path(__file__).parents[2]


@pytest.fixture
def questions(tmp_path):
    """Paths of questions and answers; half the answers are right."""
    asked = [{"id": str(i), "image": f"{i}.nii.gz", "question": "?", "type": "counting", "answer": 1} for i in range(4)]
    given = [{"id": str(i), "value": 1 + i % 2} for i in range(4)]
    for name, records in (("questions", asked), ("answers", given)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"


@pytest.fixture
def folders(tmp_path):
    """Prediction and reference folder with one equal case, labels in a file."""
    array = np.zeros((6, 6, 6), dtype=np.uint8)
    array[2:4, 2:4, 2:4] = 1
    for side in ("pred", "ref"):
        write_mask(Mask(array, Grid(array.shape, np.eye(4))), tmp_path / side / "a.nii.gz")
    (tmp_path / "labels.json").write_text('{"tumour": 1, "larynx": 2}')
    (tmp_path / "manifest.jsonl").write_text('{"case": "a", "annotated": ["tumour"]}\n')
    return tmp_path / "pred", tmp_path / "ref", tmp_path / "labels.json"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_answers(questions, tmp_path):
    reference, answers = questions
    options = ["--compare", f"other={answers}", "--baseline-train", reference, "--resamples", 20]
    result = run("answers", answers, "--reference", reference, "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "| counting | exact | 4 | 0.500 [" in result.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["types"]["counting"]["metrics"]["exact"]["value"] == 0.5
    assert metrics["compared"]["majority/median"]["types"]["counting"]["metrics"]["exact"]["value"] == 1.0
    with (tmp_path / "out" / "per_case.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    assert (tmp_path / "out" / "table.md").read_text() == result.stdout
    written = ["metrics.json", "per_case.csv", "report.html", "table.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written


def test_masks(folders, tmp_path):
    pred, ref, labels = folders
    arguments = ["masks", pred, ref, "--protocol", "corrected", "--labels", labels, "-o", tmp_path / "out", "--json"]
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)
    assert metrics["classes"]["tumour"]["dsc"] == {"mean": 1.0, "interval": None}
    assert metrics["classes"]["larynx"]["not_annotated"] == 1  # the manifest beside the folder was found
    assert metrics["classes"]["larynx"]["dsc"]["mean"] is None
    assert "corrected" in (tmp_path / "out" / "table.md").read_text()


def test_masks_of_one_patient_are_drawn_together(folders, tmp_path):
    """Three cases of two patients: the first's two are one cluster. One patient alone has no interval."""
    pred, ref, labels = folders
    array = np.zeros((6, 6, 6), dtype=np.uint8)
    array[2:4, 2:4, 2:4] = 1
    for case, shift in (("b", 1), ("c", 0)):
        for side, mask in ((pred, np.roll(array, shift, axis=0)), (ref, array)):
            write_mask(Mask(mask, Grid(array.shape, np.eye(4))), side / f"{case}.nii.gz")
    intervals = []
    for patients in ("112", "111"):
        lines = [{"case": case, "patient": number} for case, number in zip("abc", patients, strict=True)]
        (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
        result = run("masks", pred, ref, "--labels", labels, "-o", tmp_path / "out", "--json", "--jobs", 1)
        assert result.exit_code == 0, result.output
        intervals.append(json.loads(result.stdout)["classes"]["tumour"]["dsc"]["interval"])
    assert intervals == [[0.75, 1.0], None]  # (1 + 0.5) / 2 and 1: the single case b never stands alone
    with (tmp_path / "out" / "per_case.csv").open() as file:
        assert {(row["case"], row["patient"]) for row in csv.DictReader(file)} == {(case, "1") for case in "abc"}


def test_users_mistakes_reach_the_top_level_as_input_errors(questions, folders, tmp_path):
    reference, answers = questions
    out = ("-o", tmp_path / "out")
    assert isinstance(run("answers", tmp_path / "no.jsonl", "--reference", reference, *out).exception, QuestionError)
    bad = run("answers", answers, "--reference", reference, "--compare", "nameless", *out)
    assert isinstance(bad.exception, ConfigError)
    pred, ref, labels = folders
    assert isinstance(run("masks", pred, ref, "--protocol", "mine", *out).exception, ConfigError)
    (tmp_path / "mm.json").write_text('{"tumour": -1}')
    tolerances = ("--labels", labels, "--tolerances", tmp_path / "mm.json")
    assert isinstance(run("masks", pred, ref, *tolerances, *out).exception, ConfigError)
    assert isinstance(run("masks", pred, ref, "--protocol", "flare24", "--allow-missing", *out).exception, ConfigError)
    write_mask(Mask(np.ones((2, 2, 2), np.uint8), Grid((2, 2, 2), np.eye(4))), pred / "a.nii.gz")
    assert isinstance(run("masks", pred, ref, "--labels", labels, *out).exception, GridError)
    assert not (tmp_path / "out").exists()


def test_scoring_loads_neither_torch_nor_transformers_nor_vlm():
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "eval").rglob("*.py")]
    modules = ", ".join(".".join(path.parts) for path in files if path.stem != "__init__")
    code = f"import sys, {modules}; print([m for m in ('torch', 'transformers', 'vlm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy():
    code = (
        "import sys, vlm.cli.evaluate; print([m for m in ('numpy', 'scipy', 'nibabel', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_texts_of_another_model(tmp_path):
    """A csv of texts: unit, letter, words and a refusal are read; columns, strata and a metric of one's own."""
    asked = [
        {"type": "measurement", "unit": "mm", "answer": 84, "region": "neck"},
        {"type": "classification", "options": ["liver", "spleen"], "answer": "spleen", "region": "abdomen"},
        {"type": "counting", "answer": 2, "region": "abdomen"},
        {"type": "open", "answer": "a soft tissue mass", "region": "neck"},
        {"type": "multilabel", "options": ["liver", "spleen"], "answer": ["liver"], "region": "abdomen"},
    ]
    records = [{"id": f"q{n}", "image": f"{n}.nii.gz", "question": "?", **one} for n, one in enumerate(asked)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, records)))
    said = [
        "About 8.4 cm.",
        "The answer is (B).",
        '"There are two lesions, really."',
        "A soft-tissue mass",
        "I cannot tell.",
    ]
    (tmp_path / "a.csv").write_text(
        "uid,said\n" + "".join(f'q{n},"{one.strip(chr(34))}"\n' for n, one in enumerate(said))
    )
    (tmp_path / "mine.py").write_text(
        "def same(given, truth):\n    return [g.lower() == t for g, t in zip(given, truth)]\n"
    )
    options = ["--text-column", "said", "--report-metric", f"mine={tmp_path / 'mine.py'}:same", "--resamples", 20]
    result = run("answers", tmp_path / "a.csv", "--reference", tmp_path / "q.jsonl", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    types = json.loads((tmp_path / "out" / "metrics.json").read_text())["types"]
    headlines = {kind: own["headline"]["judged"] for kind, own in types.items()}
    assert headlines == {"measurement": 1, "classification": 1, "counting": 1, "open": 1, "multilabel": 0}
    assert types["multilabel"]["counts"]["abstained"] == 1
    assert types["open"]["metrics"]["mine"]["value"] == 0
    assert "## By region" in result.stdout and "## FLARE-MLLM" in result.stdout
