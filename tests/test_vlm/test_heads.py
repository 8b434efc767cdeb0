"""Heads: every value is read off the selected instances, and the sentence says the same number."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from vlm.data.threshold import parse_threshold
from vlm.grounding import find_mentions
from vlm.heads import decode
from vlm.heads.classification import match_option
from vlm.heads.reading import Reading
from vlm.scene import Scene, scene_classes
from vlm.schema import Question


def read(scene: Scene, fact: str, selected: tuple[int, ...], text: str = "tumour", **extra: Any) -> dict[str, Any]:
    """Decode `fact` for a question whose pointer chose the instances with the given ids."""
    selection = np.array([0.95 if i.id in selected else 0.02 for i in scene.instances])
    question = Question("q", "scan", text, extra.pop("type", None), extra.pop("options", ()), extra.pop("unit", None))
    mention = find_mentions(text, scene_classes(scene))
    return decode(Reading(question, scene, mention, fact, 0.9, selection, parse_threshold(text), **extra))


def ids_of(scene: Scene, label: str) -> tuple[int, ...]:
    return tuple(i.id for i in scene.instances if i.label == label)


def test_counting(scene: Scene) -> None:
    out = read(scene, "count", ids_of(scene, "tumour"), "How many tumours?")
    assert out["value"] == 3 and "3 tumours" in out["text"] and len(out["evidence"]) == 3
    none = read(scene, "count", (), "How many tumours?")
    assert none["value"] == 0 and not none.get("abstained"), "none found is an answer"
    large = read(scene, "count", ids_of(scene, "tumour"), "How many tumours are larger than 1 ml?")
    assert large["value"] == 2 and {e["instance"] for e in large["evidence"]} == {1, 2}


@pytest.mark.parametrize(
    ("fact", "value", "unit"),
    [
        ("volume", 4.096, "ml"),  # 8 voxels of 2 mm: 16 mm cubed
        ("long_axis", 14 * 2**0.5, "mm"),  # the diagonal between voxel centres, 7 steps of 2 mm
        ("diameter_3d", 14 * 3**0.5, "mm"),
        ("craniocaudal", 16.0, "mm"),
        ("intensity", 80.0, "HU"),
    ],
)
def test_measurement(scene: Scene, fact: str, value: float, unit: str) -> None:
    out = read(scene, fact, (1,))
    assert out["value"] == pytest.approx(value, abs=1e-3) and out["unit"] == unit
    said = re.search(r"[\d.]+ (?:mm|ml|HU)", out["text"])
    assert said and float(said.group().split()[0]) == pytest.approx(value, abs=0.5)


def test_units_asked_for(scene: Scene) -> None:
    assert read(scene, "volume", (1,), unit="mm3")["value"] == pytest.approx(4096, abs=1)
    assert read(scene, "craniocaudal", (1,), unit="cm")["value"] == pytest.approx(1.6)
    other = read(scene, "craniocaudal", (1,), unit="ml")
    assert other["unit"] == "mm", "a unit that does not fit is not used"


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("How tall is the tumour in cm?", 1.6, "cm"),
        ("How tall is the tumour, in millimetres?", 16.0, "mm"),
        ("Height of the tumour in inches", 16 / 25.4, "inch"),
        ("How many ml is the tumour tall?", 16.0, "mm"),
        ("Height of the tumour in mmHg", 16.0, "mm"),
    ],
)
def test_units_in_words(scene: Scene, text: str, value: float, unit: str) -> None:
    out = read(scene, "craniocaudal", (1,), text)
    assert out["value"] == pytest.approx(value, abs=1e-3) and out["unit"] == unit and f" {unit} " in out["text"]


def test_nothing_to_measure_is_an_abstention_with_a_reason(scene: Scene) -> None:
    out = read(scene, "volume", (), "larynx volume")
    assert out["abstained"] and "larynx" in out["reason"] and "value" not in out


def test_distance(scene: Scene) -> None:
    right, left = ids_of(scene, "parotid_right")[0], ids_of(scene, "parotid_left")[0]
    out = read(scene, "distance", (right, left), "distance between the parotid glands")
    assert out["value"] == pytest.approx(np.hypot(48.0, 1.0), abs=1e-3)  # 24 voxels in x, half a voxel in y


def test_detection(scene: Scene) -> None:
    out = read(scene, "box", (1,))
    assert out["boxes"][0]["min_mm"] == [-29, -29, -23] and out["boxes"][0]["max_mm"] == [-13, -13, -7]
    assert read(scene, "box", ())["boxes"] == ()


def test_classification(scene: Scene) -> None:
    yes = read(scene, "presence", (1, 2, 3), "Is there a tumour?", options=("No", "Yes"))
    assert yes["choice"] == "Yes"
    no = read(scene, "presence", (), "Is the larynx visible?", options=("present", "absent"))
    assert no["choice"] == "absent" and "larynx" in no["text"]
    assert read(scene, "side", (1,), options=("left", "right"))["choice"] == "left"
    assert read(scene, "multiplicity", (1, 2))["choice"] == "multiple"
    right, left = ids_of(scene, "parotid_right")[0], ids_of(scene, "parotid_left")[0]
    larger = read(scene, "larger", (right, left), "parotid", options=("right parotid gland", "left parotid gland"))
    assert larger["choice"] == "left parotid gland"
    assert read(scene, "larger", (right, left), "parotid", options=("left", "right"))["choice"] == "left"
    assert read(scene, "modality", (), options=("MRI", "CT"))["choice"] == "CT"
    assert read(scene, "presence", (1,), options=("larynx", "tumour"))["choice"] == "tumour"
    refused = read(scene, "presence", (1,), options=("cat", "dog"))
    assert refused["abstained"] and "none of the options" in refused["reason"]


def test_region_takes_the_likeliest_option(scene: Scene) -> None:
    out = read(scene, "region", (), options=("a", "b"), score_options=lambda options: np.array([0.2, 0.8]))
    assert out["choice"] == "b" and out["confidence"] == pytest.approx(0.72)


def test_contents(scene: Scene) -> None:
    ids = (*ids_of(scene, "tumour"), *ids_of(scene, "parotid_left"))
    out = read(scene, "contents", ids, "what is there", options=("left parotid gland", "larynx", "tumour"))
    assert set(out["choices"]) == {"tumour", "left parotid gland"}


def test_regression(scene: Scene) -> None:
    out = read(scene, "fat_percent", (), quantiles=(10.0, 20.4, 31.0))
    assert out["value"] == 20.4 and out["interval"] == (10.0, 31.0) and "20 %" in out["text"]
    assert read(scene, "fat_percent", ())["abstained"], "no trained target"


def test_findings_and_off_topic(scene: Scene) -> None:
    out = read(scene, "findings", (1, 2, 3, 4, 5))
    assert out["text"].count("Tumour") == 3 and "4.1 ml" in out["text"]
    assert read(scene, "off_topic", ())["abstained"]


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        ("yes", ("B. No", "A. Yes"), "A. Yes"),
        ("left", ("Right side", "Left side"), "Left side"),
        ("left", ("left or right", "neither"), None),
        ("parotid_left", ("Left parotid", "Right parotid"), "Left parotid"),
        ("tumour", ("tumor", "cyst"), "tumor"),
        ("MR", ("Computed tomography", "Magnetic resonance imaging"), "Magnetic resonance imaging"),
    ],
)
def test_match_option(value: str, options: tuple[str, ...], expected: str | None) -> None:
    assert match_option(value, options) == expected
