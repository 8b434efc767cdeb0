"""Rereading: what the words of a question say beyond doubt, whatever the network made of it; answers on phantoms."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vlm.data.threshold import parse_threshold
from vlm.facts import NAMES
from vlm.grounding import find_mentions
from vlm.heads import decode
from vlm.heads.ranks import Rank, parse_rank
from vlm.heads.reading import Reading
from vlm.infer.rereading import reread
from vlm.infer.scope import not_understood, refusal, unclear, unmeasured
from vlm.scene import Scene, scene_classes
from vlm.schema import Question


def read(scene: Scene, text: str, fact: str, sure: float = 0.9, selected: float = 0.1, **how: Any) -> Reading:
    """What a network without a clue makes of a question: it selects every instance with one probability."""
    mention = find_mentions(text, scene_classes(scene))
    selection = np.full(len(scene.instances), selected)
    question = Question("q", "scan", text, **how)
    return Reading(question, scene, mention, fact, sure, selection, parse_threshold(text))


def answer(scene: Scene, text: str, fact: str, sure: float = 0.9, off_topic: float = 0.0, **how: Any) -> dict[str, Any]:
    return decode(reread(read(scene, text, fact, sure, **how), off_topic, NAMES)[0])


@pytest.mark.parametrize(
    ("text", "fact", "choice", "says"),
    [
        ("No tumours?", "presence", "no", "No: 3 were found."),
        ("Is there no larynx?", "presence", "yes", "Yes: no larynx was found."),
        ("Is there a left parotid?", "presence", "yes", "Yes, there is a left parotid gland."),
        ("Are there two tumours?", "presence", "no", "No: 3 were found."),
        ("Are there at least two tumours?", "multiplicity", "yes", "Yes: 3 were found."),
        ("Does it show a left parotid and a larynx?", "presence", "no", "No, no larynx was found."),
        ("Does it show a left parotid or a larynx?", "presence", "yes", "Yes, there is a left parotid gland."),
        ("Is the left parotid larger than 5 cm?", "presence", "no", "No, the left parotid gland has a long axis of"),
        ("Is the left parotid larger than 5 cm?", "larger", "no", "No, the left parotid gland has a long axis of"),
        (
            "Is there a tumour of at least 4 ml?",
            "presence",
            "yes",
            "Yes, of 3 the largest tumour has a volume of 4.1 ml.",
        ),
        ("Is the left parotid bigger than the right one?", "larger", "yes", "Yes. The left parotid gland is larger"),
        ("Is the left parotid smaller than the right one?", "larger", "no", "No. The left parotid gland is larger"),
        (
            "Which parotid is smaller, the left or the right?",
            "larger",
            "parotid_right",
            "The left parotid gland is larger",
        ),
        ("Which is longer, the left or the right parotid?", "denser", "parotid_left", "larger by its 3D diameter"),
        ("Is this an MRI?", "modality", "no", "No. This is a CT scan."),
        ("Are the parotids of the same size?", "enlarged", "no", "No: "),
        ("What is the largest organ?", "nearest", "parotid_left", "The left parotid gland has the largest volume of 2"),
        ("Which is the smallest structure?", "contents", "parotid_right", "smallest volume of 3 structures"),
        ("Which structure is the densest?", "slice", "tumour", "highest mean attenuation of 3 structures: 80 HU."),
        ("Which organ is closest to the left parotid?", "nearest", "parotid_right", "next to the right parotid gland"),
    ],
)
def test_choices(scene: Scene, text: str, fact: str, choice: str, says: str) -> None:
    out = answer(scene, text, fact)
    assert out["choice"] == choice and says in out["text"], out["text"]


def test_yes_or_no_fits_the_options(scene: Scene) -> None:
    out = answer(scene, "No tumours?", "presence", options=("Yes", "No"))
    assert out["choice"] == "No"
    assert answer(scene, "No tumours?", "presence", options=("(A) yes", "(B) no"))["choice"] == "(B) no"
    state = answer(scene, "Are the tumours absent?", "presence", options=("present", "absent"))
    assert state["choice"] == "present", "options that state a fact are no answer to the words"
    assert answer(scene, "Is this an MRI?", "modality", options=("CT", "MR"))["choice"] == "CT"


@pytest.mark.parametrize(
    ("text", "fact", "value"),
    [
        ("How many organs are there?", "count", 2),
        ("How many structures are there?", "count", 3),
        ("How many parotids?", "count", 2),
        ("What is the craniocaudal extent of the largest organ?", "craniocaudal", 8.0),
        ("What is the volume of the left parotid?", "volume", 4 * 5 * 4 * 0.008),
        ("How tall is the left parotid?", "off_topic", 8.0),
        ("How thick is the left parotid?", "intensity", 9.6),
        ("Total volume of the parotids", "total_volume", (4 * 5 * 4 + 4 * 4 * 4) * 0.008),
    ],
)
def test_values_of_classes_that_the_pointer_never_saw(scene: Scene, text: str, fact: str, value: float) -> None:
    off_topic = 0.9 if fact == "off_topic" else 0.0
    assert answer(scene, text, fact, sure=0.4, off_topic=off_topic)["value"] == pytest.approx(value, abs=1e-3)


def test_a_measure_is_compared_where_a_question_says_with_what(scene: Scene) -> None:
    short = answer(scene, "Is the short axis of the left parotid above 4 mm?", "presence")
    assert short["choice"] == "yes" and short["type"] == "classification" and short["value"] == pytest.approx(9.6)
    gap = answer(scene, "Is the gap between the left and the right parotid less than 10 mm?", "gap")
    assert gap["choice"] == "no" and gap["text"].startswith("No. The ")
    far = answer(scene, "Is the left parotid more than 3 cm from the right parotid?", "presence")
    assert far["choice"] == "yes" and "come within" in far["text"]
    touching = answer(scene, "Does the left parotid touch the right parotid?", "presence")
    assert touching["choice"] == "no" and "come within" in touching["text"]
    named = answer(scene, "Is the mean attenuation of the left parotid above 30 HU?", "intensity")
    assert named["choice"] == "yes" and named["value"] == pytest.approx(40.0)


def test_a_pointer_that_tells_structures_of_one_name_apart_is_believed(scene: Scene) -> None:
    reading = read(scene, "Where is the more voluminous parotid?", "box")
    chosen = np.array([0.8 if i.label == "parotid_left" else 0.1 for i in scene.instances])
    (box,) = decode(reread(replace(reading, selection=chosen), 0.0, NAMES)[0])["boxes"]
    assert box["label"] == "parotid_left"


def test_lesions_of_one_side(scene: Scene) -> None:
    left, right = (sum(i.label == "tumour" and i.side == side for i in scene.instances) for side in ("left", "right"))
    assert answer(scene, "How many tumours are on the left?", "count")["value"] == left
    assert answer(scene, "How many tumours are on the right?", "count")["value"] == right
    assert answer(scene, "There are tumours, right?", "presence")["choice"] == "yes"


@pytest.mark.parametrize(
    ("text", "rank"),
    [
        ("What is the largest organ?", Rank("volume_ml", False, 1, True, True)),
        ("Name the smallest structure", Rank("volume_ml", True, 1, False, True)),
        ("Which organ is the second largest?", Rank("volume_ml", False, 2, True, True)),
        ("Which organ has the greatest volume?", Rank("volume_ml", False, 1, True, True)),
        ("What is the longest structure?", Rank("diameter_3d_mm", False, 1, False, True)),
        ("How long is the largest organ?", Rank("volume_ml", False, 1, True, False)),
        ("What is the volume of the smallest structure?", Rank("volume_ml", True, 1, False, False)),
        ("How big is the largest tumour?", None),
        ("What is the largest diameter of the liver?", None),
        ("On which slice is the tumour largest?", None),
    ],
)
def test_ranks_among_structures(text: str, rank: Rank | None) -> None:
    assert parse_rank(text, 1) == rank


@pytest.mark.parametrize("fact", ["count", "presence", "box", "volume", "distance"])
def test_words_that_nobody_knows_are_not_read_off_a_lesion(scene: Scene, fact: str) -> None:
    tumour = replace(scene, instances=[i for i in scene.instances if i.label == "tumour"][:1])
    for shown in (scene, tumour):
        reason = unclear(read(shown, f"What of the flurbs, {fact}?", fact, selected=0.9))
        assert reason and "flurbs" in reason
    assert unclear(read(tumour, "How many tumours?", "count", selected=0.9)) is None
    assert unclear(read(tumour, "How long is it?", "long_axis", selected=0.9)) is None
    assert unclear(read(tumour, "Anything suspicious?", "presence", selected=0.9)) is None


@pytest.mark.parametrize(
    ("text", "sure", "reason"),
    [
        ("Wie groß ist der Tumor?", 0.9, "English"),
        ("Quel est le volume de la tumeur ?", 0.9, "English"),
        ("Имеется ли опухоль?", 0.9, "English"),
        ("asdf qwer", 0.2, "not clear what is asked"),
        ("Will the patient die in the hospital?", 0.9, None),
        ("How long is the tumour?", 0.9, None),
    ],
)
def test_other_languages_and_nonsense(scene: Scene, text: str, sure: float, reason: str | None) -> None:
    found = not_understood(read(scene, text, "volume", sure))
    assert (found is None) == (reason is None) and (reason or "") in (found or "")


def test_quantities_that_are_not_measured(scene: Scene) -> None:
    for text in ("What is the median HU of the tumour?", "Perimeter of the tumour?", "Dose to the left parotid?"):
        assert "is measured here" in (unmeasured(read(scene, text, "intensity")) or "")
    times = "How many times larger is the left parotid than the right one?"
    assert "ratio of sizes" in (unmeasured(read(scene, times, "volume_difference")) or "")
    assert unmeasured(read(scene, "HU ratio of the left to the right parotid?", "intensity_ratio")) is None
    beside = "Is the left parotid behind the right parotid?"
    assert "press on each other" in (unmeasured(read(scene, beside, "presence")) or "")
    assert unmeasured(read(scene, "Is there a left or a right parotid?", "presence")) is None
    assert unmeasured(read(scene, "The dose depends on it. How long is the tumour?", "long_axis")) is None
    assert unmeasured(read(scene, "Maximum diameter of the tumour?", "long_axis")) is None


def test_cysts_of_the_kidney_tell_nothing_of_the_liver(scene: Scene) -> None:
    cysts = replace(scene, instances=[], classes=("kidney_cyst_left", "kidney_left", "liver"))
    for text, known in (("Is there a tumour in the liver?", False), ("Is there a tumour in the left kidney?", True)):
        reason = refusal(cysts, find_mentions(text, cysts.classes), "count", 0.0, given=True)
        assert (reason is None) == known
