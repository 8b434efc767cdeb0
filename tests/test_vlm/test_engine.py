"""Engine and batch: mechanics that hold whatever the weights are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from phantoms import LABELS

from seg_backbone.errors import CheckpointError, GridError, QuestionError, ScanError
from seg_backbone.io import read_volume
from vlm.grounding import find_mentions
from vlm.infer.batch import run_batch
from vlm.infer.engine import Engine
from vlm.infer.scope import refusal
from vlm.scene import scene_classes
from vlm.schema import Answer


def test_given_masks_are_measured_exactly(engine: Engine, phantom_files: Path) -> None:
    scan = engine.open(phantom_files / "scan_0000.nii.gz", phantom_files / "masks" / "scan.nii.gz", LABELS)
    assert [(i.label, round(i.volume_ml, 3)) for i in scan.scene.instances][:3] == [
        ("tumour", 4.096),
        ("tumour", 1.728),
        ("tumour", 0.512),
    ]
    again = engine.open((scan.volume.array, scan.volume.grid.affine))
    assert again.scene.modality == "CT" and not again.given_mask


def test_ask_streams_and_checks(engine: Engine, phantom_files: Path) -> None:
    scan = engine.open(phantom_files / "scan_0000.nii.gz", phantom_files / "masks" / "scan.nii.gz", LABELS)
    for kind in ("counting", "measurement", "detection", "classification", "multilabel", "regression", "open", None):
        answer = engine.ask(scan, "Tell me about the tumour", kind)
        assert answer.text and answer.abstained == (answer.reason is not None)
        assert 0 <= answer.confidence <= 1
        assert kind in (None, "open", answer.type)
    *words, last = engine.stream(scan, "How many tumours are there?")
    assert isinstance(last, Answer) and "".join(map(str, words)) == last.text
    with pytest.raises(QuestionError, match="counting"):
        engine.ask(scan, "How many?", "countng")


def test_anatomy_out_of_reach_is_refused_not_denied(engine: Engine, phantom_files: Path) -> None:
    scan = engine.open(phantom_files / "scan_0000.nii.gz")
    answer = engine.ask(scan, "How many livers are there?", "counting")
    assert answer.abstained and "liver" in (answer.reason or "") and answer.value is None
    volume = replace(scan.volume, modality="MR")
    blind = engine.open(volume)
    mention = find_mentions("left parotid volume", scene_classes(blind.scene))
    assert "MR" in (refusal(blind.scene, mention, "volume", 0.0, given=False) or "")


def test_bad_input(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError):
        engine.open(tmp_path / "none.nii.gz")
    with pytest.raises(CheckpointError, match="models that ship"):
        Engine.load(tmp_path)
    volume = read_volume(phantom_files / "scan_0000.nii.gz")
    with pytest.raises(GridError):
        engine.open((volume.array[:30], volume.grid.affine), phantom_files / "masks" / "scan.nii.gz", LABELS)


def questions_file(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_batch_resumes_and_retries(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    rows = [{"id": str(n), "image": "scan_0000.nii.gz", "question": "How many tumours?"} for n in range(3)]
    rows.append({"id": "lost", "image": "torn_0000.nii.gz", "question": "How many tumours?"})
    (phantom_files / "torn_0000.nii.gz").write_bytes(b"the disk was full")
    questions, answers = questions_file(tmp_path, rows), tmp_path / "answers.jsonl"
    first = run_batch(engine, questions, answers, phantom_files, limit=2)
    assert (first.answered, first.kept, first.unscored) == (2, 0, 0)
    kept = answers.read_text().splitlines()
    answers.write_text("\n".join(kept) + '\n{"id": "2", "ty')  # killed while writing
    second = run_batch(engine, questions, answers, phantom_files)
    assert (second.answered, second.kept, second.unscored) == (1, 2, 1)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "2", "lost"]
    assert answers.read_text().splitlines()[:2] == kept, "what was answered is not answered again"
    assert "a NIfTI file" in lines[3]["unscored"]
    third = run_batch(engine, questions, answers, phantom_files)
    assert (third.answered, third.kept, third.unscored) == (0, 3, 1), "the unscored is tried again"


def test_batch_from_given_masks(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    rows = [{"id": "1", "image": "scan_0000.nii.gz", "question": "Describe the findings", "type": "open"}]
    answers = tmp_path / "answers.jsonl"
    questions = questions_file(tmp_path, rows)
    result = run_batch(engine, questions, answers, phantom_files, phantom_files / "masks", LABELS)
    assert result.answered == 1 and json.loads(answers.read_text())["model"].startswith("tiny@")


def test_batch_will_not_overwrite_another_file(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    questions = questions_file(tmp_path, [{"id": "1", "image": "scan_0000.nii.gz", "question": "How many?"}])
    other = tmp_path / "notes.txt"
    other.write_text("one\ntwo\n")
    with pytest.raises(QuestionError):
        run_batch(engine, questions, other, phantom_files)
    assert other.read_text() == "one\ntwo\n"
