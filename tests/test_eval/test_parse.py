"""What free text is read as."""

import pytest

from eval.options import parse_choice, parse_choices
from eval.parse import normalise, parse_count, parse_number
from eval.units import convert


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("The largest tumour is 84 mm long.", "mm", (84, "mm")),
        ("About 8.4 cm.", "mm", (8.4, "cm")),
        ("84 x 61 mm", "mm", (84, "mm")),
        ("It measures 84 × 61 x 40 mm", "mm", (84, "mm")),
        ("Lesion 2 has a volume of 1,204.5 mL", "ml", (1204.5, "ml")),
        ("120 cm³", "ml", (120, "cm3")),
        ("120 cm^3, 84 mm across", "mm", (84, "mm")),
        ("12.5", "mm", (12.5, None)),
        ("-35 HU", "HU", (-35, "hu")),
        ("30%", "%", (30, "%")),
        ("12 centimetres", "mm", (12, "centimeter")),
        ("120 ml", "mm", None),
        ("cannot tell", "mm", None),
        ("1.5e2", None, (150, None)),
        ("-0.5", None, (-0.5, None)),
    ],
)
def test_number(text, unit, expected):
    assert parse_number(text, unit) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There are 3 lesions, the largest 12 mm.", 3),
        ("One 12 mm lesion", 1),
        ("A 12 mm lesion and two others", 2),
        ("No lesions are seen.", 0),
        ("none", 0),
        ("Twelve", 12),
        ("several", None),
        ("", None),
        ("2.", 2),
    ],
)
def test_count(text, expected):
    assert parse_count(text) == expected


ORGANS = ["liver", "right kidney", "kidney", "spleen"]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("Liver.", ORGANS, "liver"),
        ("It is in the right kidney", ORGANS, "right kidney"),
        ("the kidney", ORGANS, "kidney"),
        ("liver or spleen", ORGANS, None),
        ("B", ORGANS, "right kidney"),
        ("(d)", ORGANS, "spleen"),
        ("D. spleen", ORGANS, "spleen"),
        ("The answer is C", ORGANS, "kidney"),
        ("Answer: A", ORGANS, "liver"),
        ("A tumour is seen", ORGANS, None),
        ("E", ORGANS, None),
        ("livery", ORGANS, None),
        ("Yes, there is no doubt", None, "yes"),
        ("No.", None, "no"),
        ("There is no tumour", ["Yes", "No"], "No"),
        ("perhaps", None, None),
        ("", ORGANS, None),
    ],
)
def test_choice(text, options, expected):
    assert parse_choice(text, options) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("liver; spleen", ["liver", "spleen"]),
        ("The spleen and the right kidney.", ["right kidney", "spleen"]),
        ("A, D", ["liver", "spleen"]),
        ("none of them", []),
        ("unsure", None),
        ("", None),
    ],
)
def test_choices(text, expected):
    assert parse_choices(text, ORGANS) == expected


def test_choices_without_options():
    assert parse_choices("oedema; mass", None) == ["oedema", "mass"]
    assert parse_choices("", None) is None


def test_normalise():
    assert normalise("The  Left-sided MASS, 2.5 cm.") == "left sided mass 2.5 cm"


@pytest.mark.parametrize(
    ("value", "unit", "target", "expected"),
    [
        (8.4, "cm", "mm", 84),
        (1, "l", "ml", 1000),
        (1500, "mm³", "ml", 1.5),
        (2, "cm^3", "cc", 2),
        (5, None, "mm", 5),
        (5, "HU", "hu", 5),
        (5, "mm", "ml", None),
        (5, "HU", "%", None),
    ],
)
def test_convert(value, unit, target, expected):
    assert convert(value, unit, target) == (None if expected is None else pytest.approx(expected))
