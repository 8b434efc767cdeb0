"""Questions about how structures relate: sums, offsets, sides, containment, shares; and several questions in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from abdomen import answer, build_abdomen, read

from vlm.claims import counted
from vlm.data.threshold import parse_per_cent, parse_threshold
from vlm.infer.comparisons import totals_compared
from vlm.infer.engine import Engine
from vlm.infer.scope import unmeasured
from vlm.infer.several import clauses_in
from vlm.regions import region_in, regions_said
from vlm.scene import Scene
from vlm.schema import Question


@pytest.fixture(scope="module")
def abdomen() -> Scene:
    return build_abdomen()


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Is the spleen bigger than both kidneys together?", "no"),  # 9.2 ml, 5.9 + 4.4 ml
        ("Are the kidneys together larger than the spleen?", "yes"),
        ("Is the spleen smaller than the left and right kidney combined?", "yes"),
        ("Is the spleen larger than the left kidney?", None),
        ("Is the spleen denser than both kidneys together?", None),
        ("Do the kidneys together exceed the spleen in volume?", "yes"),
        ("Which has more volume, both kidneys together or the spleen?", "the left kidney and the right kidney"),
        ("Which has more volume, the left kidney or the spleen?", None),
    ],
)
def test_sums_are_compared(abdomen: Scene, text: str, choice: str | None) -> None:
    parts = totals_compared(read(abdomen, text, "larger"))
    assert (parts and parts["choice"]) == choice


@pytest.mark.parametrize(
    ("text", "fact", "choice"),
    [
        ("Is the cyst on the same side as the kidney tumour?", "side", "no"),
        ("Are the liver tumour and the kidney tumour on opposite sides?", "side", "yes"),
        ("Are the lesions confined to the liver?", "presence", "no"),
        ("Are there lesions outside the liver?", "presence", "yes"),
        ("Are the liver tumours confined to the liver?", "presence", "yes"),
        ("Is the largest lesion in the liver?", "presence", "yes"),
        ("Is the smallest lesion located in the left kidney?", "presence", "no"),
        ("Is the renal cyst in the left or right kidney?", "larger", "kidney_right"),
        ("Is the lesion in the liver or the spleen?", "nearest", "liver"),
        ("Is the tumour load larger in the liver or the left kidney?", "larger", "liver"),
        ("Do both kidneys have lesions?", "contents", "yes"),
        ("Do both kidneys have a cyst?", "presence", "no"),
        ("Is the cyst darker than the kidney?", "denser", "yes"),  # 5 HU, and 34 HU of the one that it lies in
        ("Which has more lesions, the liver or the left kidney?", "denser", "liver"),
        ("Are the liver tumours all on the same side?", "side", "yes"),
        ("Are all lesions on the same side?", "side", "no"),
        ("Which is larger, the largest liver tumour or the kidney tumour?", "larger", "liver_tumor"),
        ("Which is smaller, the liver tumour or the kidney cyst?", "larger", "kidney_cyst"),
        ("Where is the L1 vertebra relative to the L2 vertebra?", "box", "above"),
        ("Is the T12 vertebra within 2 cm of the L1 vertebra?", "presence", "yes"),  # 6 mm between voxels
        ("Is the T12 vertebra within 5 mm of the L1 vertebra?", "presence", "no"),
        ("Is the tumour bigger than the cyst?", "larger", "yes"),
        ("Is the tumour smaller than the cyst?", "larger", "no"),
        ("Which of the organs is smallest in volume?", "nearest", "pancreas"),
        ("Which is the densest of the structures?", "contents", "vertebrae_L2"),
    ],
)
def test_choices(abdomen: Scene, text: str, fact: str, choice: str) -> None:
    assert answer(abdomen, text, fact)["choice"] == choice


def test_an_organ_among_options_holds_lesions(abdomen: Scene) -> None:
    options = ("A. Spleen", "B. Pancreas", "C. Liver", "D. Stomach")
    assert (
        answer(abdomen, "Which of these organs contains a tumor?", "contents", options=options)["choice"] == "C. Liver"
    )


@pytest.mark.parametrize(
    ("text", "fact", "value"),
    [
        ("How many mm is the L2 vertebra below the L1 vertebra?", "count", 16),
        ("How far above the L2 vertebra is the T12 vertebra?", "distance", 32),
        ("How far is the largest liver tumour from the nearest vertebra?", "distance", 31.177),  # to L1
        ("What percentage of all tumour volume lies in the liver?", "share", 100 * 584 / 611),  # without the cyst
        ("Median length of the liver lesions?", "long_axis", 8.485),
        ("What is the RECIST sum of diameters?", "long_axis", 39.598),
        ("Distance from the kidney tumour to the spleen surface?", "distance", 23.324),
        ("By what percentage is the left kidney larger than the right?", "share", 100 * (741 / 552 - 1)),
        ("Difference in height between the left and the right kidney?", "volume_difference", 4),  # 24 mm, 20 mm
        ("What is the mean HU of the tumours in the liver?", "intensity", (512 * 40 + 64 * 44 + 8 * 80) / 584),
        ("How long is each vertebra?", "off_topic", 14.142),  # of the largest, 10 mm and 10 mm between centres
        ("Can you measure the height of both kidneys?", "craniocaudal", 24),
        ("Measure the liver.", "intensity", 72.128),
        ("How many organs contain lesions?", "count", 3),
        ("What are the lengths of all lesions?", "count", 19.799),  # of the largest
        ("How big is the spleen?", "off_topic", 26.077),  # between voxel centres, 14 mm and 22 mm apart
    ],
)
def test_values(abdomen: Scene, text: str, fact: str, value: float) -> None:
    assert answer(abdomen, text, fact)["value"] == pytest.approx(value, abs=2e-3)


def test_limits_in_per_cent(abdomen: Scene) -> None:
    said = answer(abdomen, "Is the liver tumour burden more than 10%?", "share")
    assert (said["choice"], said["value"]) == ("no", pytest.approx(6.083))
    assert answer(abdomen, "Do the tumours make up at least 5 per cent of the liver?", "share")["choice"] == "yes"
    assert answer(abdomen, "Is more than half of the liver replaced by tumour?", "share")["choice"] == "no"
    assert parse_per_cent("How many per cent?") is None


def test_organs_of_a_density(abdomen: Scene) -> None:
    said = answer(abdomen, "Which organs are denser than 100 HU?", "denser")
    assert said["choices"] == ("L1 vertebra", "L2 vertebra", "T12 vertebra")


def test_lesions_by_organ(abdomen: Scene) -> None:
    assert answer(abdomen, "How many lesions are there per organ?", "count")["text"] == (
        "There are 5 lesions. By organ: liver 3, left kidney 1, right kidney 1."
    )


def test_a_length_is_that_of_the_whole_organ(abdomen: Scene) -> None:
    assert read(abdomen, "How long is the spleen?", "long_axis").fact == "long_axis"
    spleen = next(i for i in abdomen.instances if i.label == "spleen")
    object.__setattr__(spleen, "craniocaudal_mm", 400.0)
    assert read(abdomen, "How long is the spleen?", "long_axis").fact == "craniocaudal"
    assert read(abdomen, "How long is the long axis of the spleen?", "long_axis").fact == "long_axis"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("Which segment is the lesion in?", "nearest"),
        ("How many lesions lie in the upper half of the liver?", "count"),
        ("What muscle does it arise from?", "region"),
        ("Is it deep or superficial?", "anteroposterior"),
        ("Is the cyst Bosniak I?", "presence"),
    ],
)
def test_parts_that_no_mask_has_are_refused(abdomen: Scene, text: str, fact: str) -> None:
    assert unmeasured(read(abdomen, text, fact))


def test_sizes_that_are_stated() -> None:
    stated = parse_threshold("Does it measure 2 cm?")
    assert stated and [stated.holds(value) for value in (14.9, 15, 24, 26)] == [False, True, True, False]
    exact = parse_threshold("a lesion measuring 2.0 cm")
    assert exact and [exact.holds(value) for value in (19.4, 19.6, 20.6)] == [False, True, False]
    within = parse_threshold("Is its volume within 50 and 100 ml?")
    assert within and (within.value, within.most) == (50, 100)
    any_way = parse_threshold("Does it exceed 10 cm in any dimension?")
    assert any_way and any_way.attribute == "diameter_3d_mm"


def test_a_statement_of_one_is_of_exactly_one() -> None:
    assert counted("There is one liver lesion", 3) is False and counted("There is one liver lesion", 1) is True
    assert counted("Is there one lesion?", 3) is None


def test_regions_in_a_question() -> None:
    assert regions_said("Is this a head CT or an abdominal CT?") == {"head and neck", "abdomen"}
    assert region_in("Describe the chest") == "chest" and region_in("chest or abdomen?") is None


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        (
            "How many lesions are there and how big is the largest?",
            ("How many lesions are there?", "how big is the largest?"),
        ),
        ("Is there a tumour? If so, on which side?", ("Is there a tumour?", "on which side?")),
        ("Is there a cyst, and if so where is it?", ("Is there a cyst?", "where is it?")),
        ("Which kidney is larger and by how much?", ()),
        ("What is the length and width of the tumour?", ()),
        ("The dose depends on it. What is its volume?", ()),
    ],
)
def test_clauses(text: str, clauses: tuple[str, ...]) -> None:
    assert clauses_in(Question("q", "scan", text)) == clauses


def test_clauses_are_answered_in_turn(engine: Engine, phantom_files: Path) -> None:
    labels = json.loads((phantom_files / "labels.json").read_text())
    scan = engine.open(phantom_files / "scan_0000.nii.gz", phantom_files / "masks" / "scan.nii.gz", labels)
    tumours = [i for i in scan.scene.instances if i.label == "tumour"]
    said = engine.ask(scan, "How many tumours are there and what is the volume of the largest?")
    assert (said.type, said.value) == ("counting", len(tumours))
    assert f"{max(i.volume_ml for i in tumours):.1f}"[:2] in said.text and " ml" in said.text
    assert engine.ask(scan, "How many flurbs are there and where are they?").abstained
