"""Engine: mechanics that hold whatever the weights are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantoms import LABELS

from seg_backbone.errors import CheckpointError, GridError, QuestionError, ScanError
from seg_backbone.io import read_volume
from vlm.grounding import find_mentions
from vlm.heads import decode
from vlm.heads.reading import Reading
from vlm.infer.engine import Engine
from vlm.infer.scope import refusal, told_in_part, unclear, unmeasured
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
    assert engine.ask(scan, " ?! ").reason == "there is no question in it"
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
        ("volume", "How many ml is it?", "parotid_left", True),
        ("volume", "How many ml is it?", "tumour", False),
        ("volume", "Volume of the bump, please", "tumour", False),
        ("count", "How many encephalic trunks?", "parotid_left", True),
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


ONLY_GIVEN = "the given labels do not name the "


@pytest.mark.parametrize(
    ("fact", "text", "given", "reason"),
    [
        ("total_volume", "Volume of the liver and the left parotid together?", False, "find the liver"),
        ("total_volume", "Volume of the liver and the left parotid together?", True, ONLY_GIVEN + "liver"),
        ("total_volume", "Volume of the liver, the spleen and the left parotid?", True, "the liver and the spleen"),
        ("total_volume", "Volume of both parotids?", False, None),
        ("distance", "How far is the liver from the left parotid?", False, "find the liver"),
        ("count", "How many of these are there: liver, left parotid?", True, ONLY_GIVEN + "liver"),
        ("box", "Where are the liver and the left parotid?", False, None),
        ("volume", "Volume of the liver and of the left parotid?", False, None),
        ("volume", "How big is the liver tumour?", False, "find the liver"),
        ("presence", "Is there a tumour in the liver?", False, "find the liver"),
        ("count", "How many tumours of the left kidney are there?", False, "find the kidney"),
        ("count", "How many tumours of the left kidney are there?", True, None),
        ("count", "How many tumours are in the larynx?", False, None),
        ("modality", "Is this liver scan a CT?", False, None),
    ],
)
def test_what_is_known_in_part(scene: Scene, fact: str, text: str, given: bool, reason: str | None) -> None:
    found = refusal(scene, find_mentions(text, scene_classes(scene)), fact, 0.0, given)
    assert (reason or "") in (found or "") and (found is None) == (reason is None), found


def answered(scene: Scene, fact: str, text: str, *labels: str, given: bool = False) -> dict[str, Any]:
    """The parts of an answer whose pointer chose the instances of some classes."""
    selection = np.array([float(i.label in labels) for i in scene.instances])
    mention = find_mentions(text, scene_classes(scene))
    reading = Reading(Question("q", "scan", text), scene, mention, fact, 0.9, selection)
    return told_in_part(reading, decode(reading), given)


def test_an_answer_in_part_says_what_is_not_known(scene: Scene) -> None:
    boxes = answered(scene, "box", "Where are the liver and the left parotid?", "parotid_left")
    assert [box["label"] for box in boxes["boxes"]] == ["parotid_left"] and boxes["unknown"] == ("liver",)
    assert boxes["text"].endswith("Not known: this checkpoint was not trained to find the liver.")
    there = answered(scene, "presence", "Is there a liver or a left parotid?", "parotid_left")
    assert there["choice"] == "yes" and there["unknown"] == ("liver",)
    nothing = answered(scene, "presence", "Is there a liver or a larynx?")
    assert nothing["abstained"] and "liver" in nothing["reason"] and "choice" not in nothing
    cyst = answered(scene, "presence", "Does the left parotid contain a cyst?", "parotid_left")
    assert cyst["abstained"] and "the cyst" in cyst["reason"]
    lesions = answered(scene, "count", "How many liver tumours are there?", "tumour", given=True)
    assert lesions["value"] == 3 and lesions["text"].endswith("Not known: the given labels do not name the liver.")
    whole = answered(scene, "volume", "Volume of the left parotid?", "parotid_left")
    assert "unknown" not in whole and "Not known" not in whole["text"]


def test_what_was_not_trained_here_is_missing_too(scene: Scene) -> None:
    blind = replace(scene, modality="MR", untrained=("parotid_left",))
    mention = find_mentions("Volume of the tumour and the left parotid together", scene_classes(blind))
    reason = refusal(blind, mention, "total_volume", 0.0, given=False)
    assert reason == "this checkpoint was not trained to find the left parotid gland on MR"
    part = answered(blind, "box", "Where are the tumours and the left parotid?", "tumour")
    assert len(part["boxes"]) == 3 and part["unknown"] == ("left parotid gland",)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("Is the left parotid compressed?", "compressed"),
        ("Is this tumour malignant?", "malignant"),
        ("Does the larynx look normal?", "normal"),
        ("Is there a malignant tumour?", None),
        ("Is the larynx visible?", None),
        ("Is the tumour larger than 5 cm?", None),
    ],
)
def test_a_state_that_no_mask_shows_is_not_affirmed(scene: Scene, text: str, state: str | None) -> None:
    mention, selection = find_mentions(text, scene_classes(scene)), np.ones(len(scene.instances))
    reason = unmeasured(Reading(Question("q", "scan", text), scene, mention, "presence", 0.9, selection))
    assert (reason is None) == (state is None) and (state or "") in (reason or "")


def test_without_a_class_of_lesions_none_is_denied(scene: Scene) -> None:
    organs = [i for i in scene.instances if i.label != "tumour"]
    healthy = replace(scene, instances=organs, classes=("parotid_left", "parotid_right"))
    for fact, text in (("presence", "Is there a tumour?"), ("count", "How many masses are there?")):
        reason = refusal(healthy, find_mentions(text, scene_classes(healthy)), fact, 0.0, given=False)
        assert reason == "this checkpoint was not trained to find any lesion"


def test_bad_input(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError):
        engine.open(tmp_path / "none.nii.gz")
    with pytest.raises(CheckpointError, match="models that ship"):
        Engine.load(tmp_path)
    volume = read_volume(phantom_files / "scan_0000.nii.gz")
    with pytest.raises(GridError):
        engine.open((volume.array[:30], volume.grid.affine), phantom_files / "masks" / "scan.nii.gz", LABELS)
