"""Shuffled images: every question gets another patient's scan, and answers that were read off the image fall."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantoms import LABELS, phantom, tiny_models

from seg_backbone.errors import QuestionError
from seg_backbone.io import write_mask, write_volume
from seg_backbone.lesions import find_instances
from seg_backbone.volume import Mask
from vlm.data.shuffle import shuffle_images
from vlm.heads.reading import Focus
from vlm.infer.engine import Engine
from vlm.schema import Question, read_questions

Run = Callable[..., tuple[int, str, str]]


def question(number: int, image: str, **extra: str) -> Question:
    return Question(f"q{number}", image, "How many tumours are there?", "counting", answer=number, extra=extra)


@pytest.mark.parametrize("seed", range(5))
def test_every_image_is_another_patients(seed: int) -> None:
    patients = {"a": ["a1", "a2", "a3"], "b": ["b1"], "c": ["c1", "c2"], "d": ["d1"]}
    rows = [(image, patient) for patient, images in patients.items() for image in images]
    asked = [question(n, image, patient=patient, dataset="D") for n, (image, patient) in enumerate(rows * 2)]
    dealt = shuffle_images(asked, seed)
    owner = {image: patient for image, patient in rows}
    assert [q.id for q in dealt] == [q.id for q in asked] and [q.answer for q in dealt] == [q.answer for q in asked]
    assert all(owner[q.image] != q.extra["patient"] and q.extra["shuffled_from"] != q.image for q in dealt)
    assert sorted({q.image for q in dealt}) == sorted(owner), "each is dealt once"
    assert [q.image for q in dealt[:7]] == [q.image for q in dealt[7:]], "questions of one image stay together"
    assert dealt == shuffle_images(asked, seed)


def test_images_stay_in_their_dataset() -> None:
    asked = [question(n, f"{d}{n}", dataset=d) for n in range(4) for d in ("CT", "MR")]
    assert all(q.image.startswith(str(q.extra["dataset"])) for q in shuffle_images(asked))


def test_one_patient_has_no_other() -> None:
    with pytest.raises(QuestionError, match="2 of 3 images of one patient"):
        shuffle_images([question(n, f"i{n}", patient=p) for n, p in enumerate("aab")])
    assert shuffle_images([]) == []


def test_answers_follow_the_image(run: Run, llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three scans with one, two and three tumours, a reading that is always right: shuffled, each count is wrong."""
    volume, mask = phantom()
    pieces = find_instances(mask, volume)
    tumours = [i.id for i in pieces if i.label == "tumour"]
    for number in (1, 2, 3):
        kept = Mask(np.where(np.isin(pieces.map, tumours[number:]), 0, mask.array), mask.grid, LABELS)
        write_volume(volume, tmp_path / f"scan{number}_0000.nii.gz")
        write_mask(kept, tmp_path / "masks" / f"scan{number}.nii.gz")
    lines = [json.dumps(question(n, f"scan{n}_0000.nii.gz", patient=str(n)).to_json()) for n in (1, 2, 3)]
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    engine = Engine.load(tiny_models(tmp_path, llm_folder), "cpu")
    read = engine.model.interpret

    def rightly(scene, opened, question, focus=None):  # type: ignore[no-untyped-def]
        lesions = tuple(i.id for i in scene.instances if i.label == "tumour")
        reading, _ = read(scene, opened, question, Focus("count", lesions))
        return replace(reading, fact_probability=1.0), 0.0

    monkeypatch.setattr(engine.model, "interpret", rightly)
    monkeypatch.setattr("vlm.infer.engine.Engine.load", lambda *given: engine)
    assert run("data", "shuffle", tmp_path / "questions.jsonl", "-o", tmp_path / "shuffled.jsonl", "--seed", 1)[0] == 0
    shares = []
    for name in ("questions", "shuffled"):
        files = ("--masks", tmp_path / "masks", "--labels", tmp_path / "labels.json", "--model", tmp_path / "vlm")
        code, _, err = run("batch", tmp_path / f"{name}.jsonl", "-o", tmp_path / f"{name}_answers.jsonl", *files)
        assert code == 0, err
        answers = map(json.loads, (tmp_path / f"{name}_answers.jsonl").read_text().splitlines())
        right = {q.id: q.answer for q in read_questions(tmp_path / "questions.jsonl")}
        shares.append([answer["value"] == right[answer["id"]] for answer in answers])
    assert shares == [[True] * 3, [False] * 3]


def test_the_file_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(question(1, "a").to_json()))
    assert run("data", "shuffle", tmp_path / "q.jsonl", "-o", tmp_path / "q.jsonl")[0] == 2
    assert run("data", "shuffle", tmp_path / "none.jsonl", "-o", tmp_path / "x.jsonl")[0] == 2
