"""What free text is read as."""

import pytest

from eval.options import parse_choice, parse_choices
from eval.parse import declines, normalise, parse_boxes, parse_count, parse_number
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
        ("5.2 cm x 3.1 cm", "mm", (5.2, "cm")),
        ("5.5 × 4.2 × 3.8 cm (AP × TR × CC)", "mm", (5.5, "cm")),
        ("8,4 cm", "mm", (8.4, "cm")),
        ("1.204,5 ml", "ml", (1204.5, "ml")),
        ("1 204 ml", "ml", (1204, "ml")),
        ("0,123 ml", "ml", (0.123, "ml")),
        (".5 cm", "mm", (0.5, "cm")),
        ("80-90 mm", "mm", (85, "mm")),
        ("between 80 and 90 mm", "mm", (85, "mm")),
        ("84 ± 3 mm", "mm", (84, "mm")),
        ("−35 HU", "HU", (-35, "hu")),
        ("minus 35 Hounsfield units", "HU", (-35, "hounsfieldunit")),
        ("The 3D tumour (T2) measures 84mm", "mm", (84, "mm")),
        ("Lesion 2 is 84", "mm", (84, None)),
        ("1. The tumour: 84", "mm", (84, None)),
        ("In slice 41, 34", "mm", (34, None)),
        ("Answer: **84 mm**", "mm", (84, "mm")),
        ("<think>maybe 30 mm</think> 84 mm", "mm", (84, "mm")),
        (r"$\boxed{84\text{ mm}}$", "mm", (84, "mm")),
        ("At first 30 mm. Final answer: 84 mm", "mm", (84, "mm")),
        ("eighty-four millimetres", "mm", (84, "millimeter")),
        ("two point five cm", "mm", (2.5, "cm")),
        ("1.2 × 10^3 mm³", "ml", (1200, "mm3")),
        ("1.2×10³ mm3", "mm3", (1200, "mm3")),
        ("84 cubic centimetres", "ml", (84, "cubiccentimeter")),
        ("I am 95% sure it is 84 mm", "mm", (84, "mm")),
        ("12.5 per cent", "%", (12.5, "percent")),
        ("45-year-old", "years", (45, "year")),
        ("70 kg", "kg", (70, None)),
        ("3/5", None, None),
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
        ("3.0", 3),
        ("twenty-one nodules", 21),
        ("A solitary lesion of 12 mm", 1),
        ("2-3 lesions", None),
        ("between 2 and 3", None),
        ("more than 10", None),
        ("2 in the left and 3 in the right, 5 in total", 5),
        ("The total number of lesions is 6.", 6),
        ("1. liver lesion\n2. spleen lesion\nTotal count: 2", 2),
        ("T2-weighted scan, slice 41: 4 lesions", 4),
        ("approximately 1,204 cells", 1204),
        ("There are two (2) lesions.", 2),
        ("I cannot determine the number; there is no contrast", None),
        ("-2", None),
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
        ("**B**", ORGANS, "right kidney"),
        ("[B]", ORGANS, "right kidney"),
        ("b", ORGANS, "right kidney"),
        ("B - right kidney", ORGANS, "right kidney"),
        ("The final answer is: (D).", ORGANS, "spleen"),
        (r"\boxed{B}", ORGANS, "right kidney"),
        ("option 2", ORGANS, "right kidney"),
        ("<think>A or B</think>\nC", ORGANS, "kidney"),
        ("Not the liver but the spleen", ORGANS, "spleen"),
        ("The liver.\n\nExplanation: the spleen is normal", ORGANS, "liver"),
        ("I cannot tell if it is in the liver", ORGANS, None),
        ("(b) Spleen", ["A. liver", "B. spleen"], "B. spleen"),
        ("spleen", ["A. liver", "B. spleen"], "B. spleen"),
        ("Tumor", ["tumour", "cyst"], "tumour"),
        ("MRI", ["CT", "MR"], "MR"),
        ("not malignant", ["benign", "malignant"], "benign"),
        ("no contrast", ["no contrast", "contrast"], "no contrast"),
        ("There are 3 lesions", ["2", "3", "4"], "3"),
        ("(A)", ["2", "3", "4"], "2"),
        ("I don't see any lesion", None, "no"),
        ("A tumour is present", None, "yes"),
        ("No doubt a lesion is there", None, "yes"),
        ("Is there a tumour? Yes.", None, "yes"),
        ("Not sure, yes or no", None, None),
        ("Yes", ["present", "absent"], "present"),
        ("No, it is not there", ["present", "absent"], "absent"),
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
        ("- liver\n- spleen", ["liver", "spleen"]),
        ("A and D", ["liver", "spleen"]),
        ("A. liver; D. spleen", ["liver", "spleen"]),
        ("liver and spleen but not the kidney", ["liver", "spleen"]),
        ("Answer: Livers, Spleen.", ["liver", "spleen"]),
        ("All of the above", ORGANS),
        ("I cannot determine that", None),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The lesion is at [10, 20, 5, 40, 52, 31].", [[10, 20, 5, 40, 52, 31]]),
        ("(10, 20, 5) to (40, 52, 31)", [[10, 20, 5, 40, 52, 31]]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("<box>1,2,3,4,5,6</box>", [[1, 2, 3, 4, 5, 6]]),
        ('{"7": [[1, 2, 3, 4]]}', [{"bbox": [1, 2, 3, 4], "label": "7"}]),
        ('```json\n[{"bbox": [1, 2, 3, 4]}]\n```', [{"bbox": [1, 2, 3, 4]}]),
        ("No lesion is seen.", []),
        ("[]", []),
        ("I cannot see it", None),
        ("in the liver", None),
    ],
)
def test_boxes(text, expected):
    assert parse_boxes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I’m sorry, I cannot help with that.", True),
        ("This cannot be determined from the scan.", True),
        ("N/A", True),
        ("There is not enough information", True),
        ("No image was provided.", True),
        ("The tumour cannot be resected.", False),
        ("No lesion.", False),
        ("", False),
    ],
)
def test_declines(text, expected):
    assert declines(text) is expected
