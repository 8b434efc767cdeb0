"""Questions of unusual shape: options in their text, two ranks at once, extents compared, levels, names left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from abdomen import answer, build_abdomen, read

from seg_backbone.labels import display
from seg_backbone.lesions import Instance
from vlm.heads.choose import match_option
from vlm.heads.reading import may_hold, shared_name
from vlm.infer.comparisons import extents_compared
from vlm.infer.scope import told_in_part
from vlm.infer.several import measures_in, ranks_in, with_options
from vlm.infer.turns import Turn, in_full
from vlm.scene import Scene
from vlm.schema import Answer, Question


@pytest.fixture(scope="module")
def abdomen() -> Scene:
    return build_abdomen()


def asked(text: str) -> Question:
    return Question("q", "scan", text)


@pytest.mark.parametrize(
    ("text", "question", "options"),
    [
        ("Which modality? A) MRI B) CT", "Which modality?", ("A. MRI", "B. CT")),
        ("Volume? (a) <5 ml (b) 5-10 ml", "Volume?", ("A. <5 ml", "B. 5-10 ml")),
        ("How many?\nA. 1\nB. 2\nC. 3", "How many?", ("A. 1", "B. 2", "C. 3")),
        ("Is vitamin A. bad?", "Is vitamin A. bad?", ()),
        ("Is hepatitis B. here? Or A. there?", "Is hepatitis B. here? Or A. there?", ()),
    ],
)
def test_options_in_the_text(text: str, question: str, options: tuple[str, ...]) -> None:
    taken = with_options(asked(text))
    assert (taken.question, taken.options) == (question, options)
    given = replace(asked(text), options=("x", "y"))
    assert with_options(given) == given, "options that are given stay"


def test_options_with_letters_and_other_words() -> None:
    assert match_option("CT", ("A) MRI", "B) CT")) == "B) CT"
    assert match_option("MR", ("A. T1 MRI", "B. CT")) == "A. T1 MRI"
    assert match_option("MR", ("T1 MRI", "T2 MRI")) is None
    assert match_option("multiple", ("unifocal", "multifocal")) == "multifocal"


@pytest.mark.parametrize(
    ("text", "each"),
    [
        (
            "What are the largest and the smallest organ?",
            ("What are the largest organ?", "What are the smallest organ?"),
        ),
        (
            "which is biggest organ and which is smallest organ?",
            ("which is biggest organ?", "which is smallest organ?"),
        ),
        (
            "Volume of the largest and smallest liver lesion",
            ("Volume of the largest liver lesion", "Volume of the smallest liver lesion"),
        ),
        ("Distance between the largest and the smallest lesion?", ()),
        ("Is the largest and densest organ the liver?", ()),
        ("What is the largest organ?", ()),
    ],
)
def test_two_ranks(text: str, each: tuple[str, ...]) -> None:
    assert tuple(question.question for question in ranks_in(asked(text))) == each


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Is the liver longer from front to back than from left to right?", "yes"),  # 48 mm, 40 mm
        ("Is the liver wider than it is deep?", "no"),
        ("Is the spleen narrower than it is tall?", "yes"),  # 16 mm, 24 mm
        ("Is the liver larger than the spleen?", None),
        ("Is the liver longer than 5 cm?", None),
    ],
)
def test_two_extents_of_one(abdomen: Scene, text: str, choice: str | None) -> None:
    parts = extents_compared(read(abdomen, text, "transverse"))
    assert (parts and parts["choice"]) == choice


@pytest.mark.parametrize(
    ("text", "fact", "choice"),
    [
        ("At which vertebral level is the largest liver tumour?", "slice", "vertebrae_L1"),  # z 24 of 20 to 26
        ("What level is the left kidney at, vertebral level?", "slice", "vertebrae_L2"),  # z 14 of 12 to 18
        ("Is the spleen closer to the liver or to the pancreas?", "distance", "pancreas"),  # 18 mm
        ("Is the spleen closer to the pancreas or to the liver?", "distance", "pancreas"),
        ("Which is closer to the liver: the spleen or the pancreas?", "distance", "pancreas"),
        ("Is the largest liver tumour on the right?", "larger", "yes"),
        ("Is the largest liver tumour on the left?", "larger", "no"),
        ("Are the liver tumours larger than the kidney tumour?", "larger", "yes"),
    ],
)
def test_choices(abdomen: Scene, text: str, fact: str, choice: str) -> None:
    assert answer(abdomen, text, fact)["choice"] == choice, text


def test_the_farthest_of_the_options(abdomen: Scene) -> None:
    options = ("A. liver", "B. spleen", "C. left kidney")
    text = "Which of the following is located most inferiorly?"
    assert answer(abdomen, text, "position", options=options)["choice"] == "C. left kidney"
    text = "Which of these is the smallest?"
    assert answer(abdomen, text, "larger", options=options[:2])["choice"] == "B. spleen"


def test_structures_left_out_are_not_counted(abdomen: Scene) -> None:
    assert answer(abdomen, "How many organs are there?", "count")["value"] == 8
    assert answer(abdomen, "How many organs are there, not counting the vertebrae?", "count")["value"] == 5


def test_by_how_much(abdomen: Scene) -> None:
    reading = read(abdomen, "Which kidney is larger and by how much?", "larger")
    assert measures_in(reading) == ("larger", "volume_difference")


def test_a_lesion_is_in_no_organ_that_its_name_rules_out(abdomen: Scene) -> None:
    assert may_hold("liver", "tumour") and may_hold("liver", "liver_tumor") and may_hold("kidney_left", "kidney_cyst")
    assert not may_hold("liver", "pancreas_tumour") and may_hold("vertebrae_L1", "bone_lesion")
    labels = {"liver_tumor": "pancreas_tumour"}
    renamed = tuple(replace(i, label=labels.get(i.label, i.label)) for i in abdomen.instances)
    scene = replace(abdomen, instances=renamed, classes=tuple(labels.get(name, name) for name in abdomen.classes))
    reading = read(scene, "No liver lesions, right?", "presence")
    parts = told_in_part(reading, {"evidence": (), "text": "Yes, no lesion was found."}, True)
    assert parts["abstained"] and "in the liver" in parts["reason"], "no label names such lesions"
    assert not reading.meant()


def test_vertebrae_are_said_by_their_level() -> None:
    assert display("vertebrae_L3") == "L3 vertebra" and display("vertebra_T12") == "T12 vertebra"
    assert shared_name(("vertebrae_L1", "vertebrae_T12")) == "vertebra"


def turn(scene: Scene, *labels: str) -> Turn:
    subject = tuple[Instance, ...](i for i in scene.instances if i.label in labels)
    return Turn("", "", Answer("", "", ""), "box", subject, (), labels)


@pytest.mark.parametrize(
    ("text", "about", "full"),
    [
        ("Is the other kidney bigger?", "kidney_left", "Is the right kidney bigger than the left kidney?"),
        ("Is the other kidney bigger?", "kidney_tumor", "Is the right kidney bigger than the left kidney?"),
        ("Does the other kidney hold a cyst?", "kidney_left", "Does the right kidney hold a cyst?"),
        ("Is the largest on the right?", "liver_tumor", "Is the largest liver tumor on the right?"),
        ("Which one is closer to the spleen?", "liver_tumor", "Which liver tumor is closest to the spleen?"),
        ("Which is farthest from the spleen?", "liver_tumor", "Which liver tumor is farthest from the spleen?"),
        ("Is the liver the largest?", "liver_tumor", "Is the liver the largest?"),
        ("Is the largest on the right?", "spleen", "Is the largest on the right?"),
        ("Is the other kidney bigger?", "spleen", "Is the other kidney bigger?"),
    ],
)
def test_names_left_out(abdomen: Scene, text: str, about: str, full: str) -> None:
    assert in_full(text, [turn(abdomen, about)], abdomen) == full
