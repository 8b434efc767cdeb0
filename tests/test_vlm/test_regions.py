"""Regions of the body: what structures in view tell, and what they do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seg_backbone.lesions import Instance
from vlm.grounding import find_mentions
from vlm.heads import decode
from vlm.heads.reading import Reading
from vlm.regions import REGIONS, STATED, region_of, regions_in_view
from vlm.scene import Scene, scene_classes
from vlm.schema import Question


@pytest.mark.parametrize(
    ("label", "region"),
    [
        ("parotid_left", "head and neck"),
        ("brainstem", "head and neck"),
        ("lung_upper_lobe_left", "chest"),
        ("ribs", "chest"),
        ("liver_tumour", "abdomen"),
        ("kidney_right", "abdomen"),
        ("urinary_bladder", "pelvis"),
        ("femur_left", "limb or trunk soft tissue"),
        ("tumour", None),
        ("esophagus", None),
        ("spinal_cord", None),
        ("aorta", None),
        ("hypophysis", None),
    ],
)
def test_what_a_structure_tells(label: str, region: str | None) -> None:
    assert region_of(label) == region


def named(scene: Scene, *labels: str, probability: float | None = None) -> list[Instance]:
    rows = zip(scene.instances, labels, strict=False)
    return [replace(instance, label=label, probability=probability) for instance, label in rows]


def test_one_structure_that_a_model_found_tells_nothing(scene: Scene) -> None:
    drawn = named(scene, "larynx", "tumour", "lung_left")
    assert {r: [i.label for i in found] for r, found in regions_in_view(drawn).items()} == {
        "head and neck": ["larynx"],
        "chest": ["lung_left"],
    }
    assert regions_in_view(named(scene, "larynx", "tumour", "lung_left", probability=0.9)) == {}
    found = regions_in_view(named(scene, "larynx", "lung_left", "lung_right", "mandible", "heart", probability=0.9))
    assert list(found) == ["chest", "head and neck"], "those of most structures first"
    pieces = regions_in_view(named(scene, "larynx", "larynx", probability=0.9))
    assert pieces == {}, "two pieces of one structure are one structure"
    assert regions_in_view([]) == {} and set(STATED.values()) <= set(REGIONS)


def test_the_region_is_answered_by_what_is_in_view(scene: Scene) -> None:
    def ask(instances: list[Instance], options: tuple[str, ...] = (), text: str = "Which region?") -> dict[str, Any]:
        shown = replace(scene, instances=instances)
        question, mention = Question("q", "s", text, options=options), find_mentions(text, scene_classes(shown))
        likely = {"score_options": lambda options: np.eye(len(options))[-1]}
        return decode(Reading(question, shown, mention, "region", 0.9, np.zeros(len(instances)), **likely))

    one = ask(named(scene, "liver", "tumour"))
    assert one["choice"] == "abdomen" and one["text"] == "Abdomen: liver in view." and one["confidence"] == 0.9
    assert ask(named(scene, "liver", "lung_left"))["choice"] == "abdomen, chest"
    assert ask(named(scene, "liver", "lung_left", "lung_right"), ("Abdomen", "Pelvis"))["choice"] == "Abdomen"
    assert ask(named(scene, "lung_left"), ("thorax", "head"))["choice"] == "thorax"
    assert ask(named(scene, "tumour"))["choice"] == REGIONS[-1], "nothing tells: the likeliest"
    assert ask(named(scene, "liver"), ("A", "B"))["choice"] == "B"
