"""Engine: mechanics that hold whatever the weights are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantoms import LABELS

from seg_backbone.errors import CheckpointError, GridError, QuestionError, ScanError
from seg_backbone.io import read_volume
from vlm.grounding import find_mentions
from vlm.heads.reading import Reading
from vlm.infer.engine import Engine
from vlm.infer.scope import refusal, unclear
from vlm.scene import Scene, scene_classes
from vlm.schema import Answer, Question


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
    with pytest.raises(QuestionError, match="at most 8000 characters"):
        engine.ask(scan, "How many? " * 1000)


def test_anatomy_out_of_reach_is_refused_not_denied(engine: Engine, phantom_files: Path) -> None:
    scan = engine.open(phantom_files / "scan_0000.nii.gz")
    answer = engine.ask(scan, "How many livers are there?", "counting")
    assert answer.abstained and "liver" in (answer.reason or "") and answer.value is None
    volume = replace(scan.volume, modality="MR")
    blind = engine.open(volume)
    mention = find_mentions("left parotid volume", scene_classes(blind.scene))
    assert "MR" in (refusal(blind.scene, mention, "volume", 0.0, given=False) or "")


@pytest.mark.parametrize(
    ("fact", "text", "label", "refused"),
    [
        ("volume", "Volume of the encephalic trunk?", "parotid_left", True),
        ("volume", "Volume of the encephalic trunk in this scan?", "parotid_left", True),
        ("volume", "Volume of the left parotid?", "parotid_left", False),
        ("volume", "How many ml is it?", "parotid_left", False),
        ("volume", "Volume of the bump, please", "tumour", False),
        ("count", "How many encephalic trunks?", "parotid_left", False),
    ],
)
def test_an_organ_is_not_guessed_by_a_word_that_names_none(scene: Scene, fact, text, label, refused) -> None:
    chosen = next(n for n, i in enumerate(scene.instances) if i.label == label)
    selection = np.eye(len(scene.instances))[chosen]
    mention = find_mentions(text, scene_classes(scene))
    reading = Reading(Question("q", "scan", text), scene, mention, fact, 0.9, selection, None)
    reason = unclear(reading)
    assert (reason is not None) == refused
    assert not reason or "left parotid gland" in reason


def test_bad_input(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError):
        engine.open(tmp_path / "none.nii.gz")
    with pytest.raises(CheckpointError, match="models that ship"):
        Engine.load(tmp_path)
    volume = read_volume(phantom_files / "scan_0000.nii.gz")
    with pytest.raises(GridError):
        engine.open((volume.array[:30], volume.grid.affine), phantom_files / "masks" / "scan.nii.gz", LABELS)
