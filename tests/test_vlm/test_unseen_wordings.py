"""What the words of a question say whatever a network makes of it, on an abdomen of several lesions and broken organs.

The reading given is that of a network without a clue: every instance with one probability.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from abdomen import ML, answer, build_abdomen, read

from seg_backbone.geometry import Grid
from seg_backbone.volume import Volume
from vlm.body import body_place, is_cut
from vlm.data.threshold import Threshold, parse_threshold
from vlm.facts import FACTS, NAMES, SAID, asked_unit
from vlm.grounding import find_mentions
from vlm.heads import decode
from vlm.heads.choose import match_number, match_option
from vlm.heads.ranks import LesionRank, parse_lesion_ranks
from vlm.infer.mending import mend
from vlm.infer.rereading import reread
from vlm.infer.scope import refusal, unmeasured
from vlm.infer.several import measures_in, statements_in
from vlm.scene import Scene, scene_classes
from vlm.wholes import Whole, pieces_of, whole


@pytest.fixture(scope="module")
def abdomen() -> Scene:
    return build_abdomen()


# Lesions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fact", "value"),
    [
        ("How many liver tumours are there?", "count", 3),
        ("How many kidneys does the patient have?", "off_topic", 2),
        ("How many lesions, excluding cysts?", "count", 4),
        ("How many lesions are in the right kidney?", "count", 1),
        ("How many lesions does the liver harbour?", "count", 3),
        ("How many liver tumours measure between 5 and 12 mm?", "count", 1),
        ("How many organs have a volume over 70 ml?", "volume", 1),
        ("What is the volume of the largest hepatic lesion?", "volume", 512 * ML),
        ("Volume of the second largest liver lesion?", "volume", 64 * ML),
        ("Volume of the next-to-largest liver tumour?", "volume", 64 * ML),
        ("HU of the smallest liver tumour?", "intensity", 80.0),
        ("Volume of the bigger liver tumour", "volume", 512 * ML),
        ("What is the mean volume of the liver tumours?", "total_volume", (512 + 64 + 8) * ML / 3),
        ("Combined volume of the liver tumours?", "total_volume", (512 + 64 + 8) * ML),
        ("What percentage of the left kidney is occupied by tumour?", "share", 100 * 27 / (8 * 8 * 12)),
        ("What percentage of the spleen is tumour?", "share", 0.0),
        ("Distance between the two largest liver tumours", "distance", float(np.hypot(10 * 2, np.hypot(4, 4)))),
        ("How much denser is the liver than the largest liver tumour?", "intensity_difference", 20.0),
        ("HU of the less voluminous kidney", "intensity", 34.0),
        ("What is the mean density of the bulkier kidney?", "intensity", 30.0),
        ("What is the craniocaudal extent of the biggest kidney?", "craniocaudal", 24.0),
        ("Volume of the left kidney including its tumour", "volume", 8 * 8 * 12 * ML),
        ("Volume of the uppermost liver tumour", "volume", 8 * ML),
        ("Volume of the most inferior liver tumour", "volume", 64 * ML),
        ("What is the volume of the liver tumour closest to the spleen?", "volume", 512 * ML),
        ("Per cent difference in volume between the spleen and the pancreas", "volume_difference", 700.0),
        ("Ratio spleen to pancreas", "intensity_ratio", 8.0),
        ("mean liver tumour volume", "intensity", (512 + 64 + 8) * ML / 3),
        ("tumour load - liver", "most_affected", 100 * (512 + 64 + 8) / (20 * 24 * 20)),
        ("Hepatic tumour burden in ml", "share", (512 + 64 + 8) * ML),
        ("On how many slices does the spleen lie?", "slice", 12),
        ("Aspect ratio of the spleen, long axis divided by short axis", "long_axis", 1.104),
        (
            "Diameter of the largest liver tumour if it were a sphere",
            "diameter_3d",
            (6000 * 512 * ML / np.pi) ** (1 / 3),
        ),
        ("Narrowest spacing between the outer walls of the spleen and the pancreas", "distance", 18.0),
        ("How many ROIs are there?", "off_topic", 11),
        ("Smallest distance from the liver tumours to the left kidney", "distance", float(np.linalg.norm([42, 2, 2]))),
        ("Which of the liver tumours is the largest and how many ml is it?", "volume", 512 * ML),
    ],
)
def test_values(abdomen: Scene, text: str, fact: str, value: float) -> None:
    assert answer(abdomen, text, fact)["value"] == pytest.approx(value, abs=1e-3), text


@pytest.mark.parametrize(
    ("text", "fact", "choice"),
    [
        ("Which kidney has the tumour?", "larger", "kidney_left"),
        ("Which kidney contains a cyst?", "presence", "kidney_right"),
        ("Which organ carries the higher tumour burden, the liver or the left kidney?", "most_affected", "liver"),
        ("Are all liver tumours smaller than 3 mm?", "presence", "no"),
        ("Does any liver tumour exceed 1 cm?", "presence", "yes"),
        ("Is the largest liver tumour above 5 cm?", "presence", "no"),
        ("Are there at least five liver tumours?", "count", "no"),
        ("Does the right kidney have a tumour?", "presence", "no"),
        ("Does the right kidney have a lesion?", "presence", "yes"),
        ("Is the left kidney lower than the right one?", "denser", "no"),
        ("Is the spleen to the left of the liver?", "presence", "yes"),
        ("Which kidney lies higher?", "larger", "kidney_left"),
        ("Is the pancreas closer to the liver than the spleen?", "distance", "yes"),
        ("Which is farther from the liver: the spleen or the pancreas?", "distance", "spleen"),
        ("Is the mean density of the spleen above that of the liver?", "intensity", "no"),
        ("Is the spleen denser than 40 HU?", "denser", "yes"),
        ("Is the liver the largest organ?", "presence", "yes"),
        ("Is the spleen the longest structure?", "diameter_3d", "no"),
        ("Does L1 lie above or below L2?", "presence", "above"),
        ("The lowest tumour lies in which organ?", "box", "kidney_left"),
        ("pancreas or spleen - which has the bigger volume", "volume", "spleen"),
        ("Does the patient have a cyst in the left kidney?", "presence", "no"),
        ("Which ROI has the highest mean HU?", "intensity", "vertebrae_L2"),
        ("In which direction is the spleen longest?", "long_axis", "from front to back"),
        ("bigger kidney?", "enlarged", "kidney_left"),
        ("Is the spleen thicker than the pancreas?", "denser", "yes"),
        ("What is the biggest contoured organ?", "nearest", "liver"),
        ("Do you see the liver, the spleen and the pancreas?", "presence", "yes"),
    ],
)
def test_choices(abdomen: Scene, text: str, fact: str, choice: str) -> None:
    assert answer(abdomen, text, fact)["choice"] == choice, text


def test_several_at_once(abdomen: Scene) -> None:
    held = answer(abdomen, "Name all organs that contain a lesion", "contents")
    assert set(held["choices"]) == {"liver", "left kidney", "right kidney"}
    options = ("liver", "spleen", "left kidney")
    some = answer(abdomen, "Which of these contain a lesion?", "contents", type="multilabel", options=options)
    assert set(some["choices"]) == {"liver", "left kidney"}
    each = answer(abdomen, "Volume of each liver tumour", "volume")
    assert each["value"] == pytest.approx(512 * ML, abs=1e-3) and "largest liver tumor 4.1" in each["text"]
    assert measures_in(read(abdomen, "Long axis x short axis of the spleen, cm", "short_axis")) == (
        "long_axis",
        "short_axis",
    )
    assert measures_in(read(abdomen, "Spleen: long and short axis", "long_axis")) == ("long_axis", "short_axis")
    spread = read(abdomen, "mean and std of HU in the spleen", "intensity_spread")
    assert measures_in(spread) == ("intensity", "intensity_spread")
    assert measures_in(read(abdomen, "Volume of the liver and of the spleen", "volume")) == ("volume",)
    assert measures_in(read(abdomen, "Is the length or the volume larger?", "volume")) == ("volume",)
    right = answer(abdomen, "Which organs lie on the patient's right side?", "side")
    assert set(right["choices"]) == {"liver", "right kidney", "liver tumor", "kidney cyst"}
    (box,) = answer(abdomen, "Where is the pancreas?", "box")["boxes"]
    assert (box["min_mm"][0], box["max_mm"][0]) == pytest.approx((-21, -1)), "one organ in two pieces"


def test_what_options_tell(abdomen: Scene) -> None:
    sizes = ("A: under 1 ml", "B: 1 to 10 ml")
    assert answer(abdomen, "Category of the largest liver tumour?", "size_category", options=sizes)["unit"] == "ml"
    stated = ("A. The liver is larger than the spleen", "B. The spleen is larger than the liver.")
    assert statements_in(stated) == ("The liver is larger than the spleen", "The spleen is larger than the liver.")
    assert statements_in(("the liver", "the spleen")) == ()
    assert (
        match_option("vertebrae_L2", ("L1", "L2")) == "L2"
        and match_option("liver", ("1. liver", "2. spleen")) == "1. liver"
    )


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("Does it exceed fifty-five millimetres?", "Does it exceed 55 millimetres?"),
        ("Wich kidney has the larger voulme?", "which kidney has the larger volume?"),
        ("Is one of two tumours wide, with lengths extending?", "Is one of two tumours wide, with lengths extending?"),
    ],
)
def test_slips_and_numbers_in_words(text: str, mended: str) -> None:
    assert mend(text) == mended


def test_units_asked_for() -> None:
    assert asked_unit("Spleen height, cm") == "cm" and asked_unit("larger than 3 cm") is None
    assert asked_unit("length in cm and volume in ml", "ml") == "ml"


@pytest.mark.parametrize(
    ("text", "classes", "places"),
    [
        ("Are there enlarged nodes in the mediastinum?", ("mediastinal_lymph_node",), ()),
        ("metastatic burden in the skeleton", ("bone_metastasis",), ()),
        ("Does the hip contain a metastasis?", ("bone_metastasis",), ("hip_left",)),
        ("The kidneys, any cyst?", ("kidney_left", "renal_cyst"), ("kidney_left",)),
        ("Just like liver minus spleen, hip minus kidney?", ("hip_left", "kidney_left"), ()),
    ],
)
def test_names_of_lesions_by_their_organ(text: str, classes: tuple[str, ...], places: tuple[str, ...]) -> None:
    known = ("mediastinal_lymph_node", "bone_metastasis", "hip_left", "kidney_left", "renal_cyst", "liver", "spleen")
    mention = find_mentions(text, known)
    assert set(classes) <= set(mention.classes) and mention.places == places and not mention.others
    assert "liver" not in mention.classes


def test_a_lesion_in_an_organ_whose_lesions_no_label_names_is_refused(abdomen: Scene) -> None:
    for text in ("Does the spleen contain a lesion?", "Is there a lesion in the spleen?"):
        reading = read(abdomen, text, "presence")
        assert reading.mention.places == ("spleen",), "the spleen is the place, not what is looked for"
        assert "in the spleen" in (refusal(abdomen, reading.mention, "volume", 0.0, True) or "")


@pytest.mark.parametrize(
    ("text", "ranks"),
    [
        ("the second largest liver lesion", [LesionRank("volume_ml", False, 2, 1)]),
        ("the two largest tumours", [LesionRank("volume_ml", False, 1, 2)]),
        (
            "the largest and the smallest lesion",
            [LesionRank("volume_ml", False, 1, 1), LesionRank("volume_ml", True, 1, 1)],
        ),
        ("the largest diameter of the lesion", []),
        ("Which lesion is the densest?", [LesionRank("intensity_mean", False, 1, 1)]),
    ],
)
def test_ranks_of_lesions(text: str, ranks: list[LesionRank]) -> None:
    assert parse_lesion_ranks(text) == ranks


# Organs -------------------------------------------------------------------------------------------------------------


def test_a_box_of_the_larger_of_two(abdomen: Scene) -> None:
    for text, label in (
        ("Mark the more voluminous kidney", "kidney_left"),
        ("Where is the smaller kidney?", "kidney_right"),
    ):
        (box,) = answer(abdomen, text, "box")["boxes"]
        assert box["label"] == label


def test_an_organ_in_pieces_is_measured_whole(abdomen: Scene) -> None:
    volume = answer(abdomen, "What is the volume of the pancreas?", "volume")
    assert volume["value"] == pytest.approx((6 + 3) * 16 * ML) and volume["text"].startswith("The pancreas has")
    assert [item["volume_ml"] for item in volume["evidence"]] == pytest.approx([96 * ML, 48 * ML]), "piece by piece"
    assert answer(abdomen, "HU of the pancreas?", "intensity")["value"] == pytest.approx(42.0)
    assert answer(abdomen, "How wide is the pancreas?", "transverse")["value"] == pytest.approx(20.0)
    reading = read(abdomen, "What is the volume of the largest piece of the pancreas?", "volume")
    largest = np.array([0.9 if i.label == "pancreas" and i.rank == 1 else 0.1 for i in abdomen.instances])
    assert decode(replace(reading, selection=largest))["value"] == pytest.approx(96 * ML), "one that the pointer chose"


def test_pieces_join_as_their_voxels_do(abdomen: Scene) -> None:
    first, second = (i for i in abdomen.instances if i.label == "pancreas")
    both = whole([second, first])
    assert isinstance(both, Whole) and both.id == first.id and both.voxels == 144
    values = np.repeat([40.0, 46.0], [96, 48])
    assert (both.intensity_mean, both.intensity_std) == pytest.approx((values.mean(), values.std()))
    assert both.center_mm == pytest.approx((96 * np.array(first.center_mm) + 48 * np.array(second.center_mm)) / 144)
    assert pieces_of([both]) == [first, second] and whole([first]) is first


def test_structures_of_one_name_are_measured_together_unless_words_choose(abdomen: Scene) -> None:
    both = answer(abdomen, "What is the volume of the kidneys?", "volume")
    assert both["value"] == pytest.approx((8 * 8 * 12 - 27 + 8 * 7 * 10 - 8) * ML) and len(both["evidence"]) == 2
    assert "value" not in answer(abdomen, "Volume of the kidney", "volume"), "which one is not told"
    text = "Volume of the other kidney"
    reading = read(abdomen, text, "volume")
    right = np.array([0.9 if i.label == "kidney_right" else 0.1 for i in abdomen.instances])
    one = decode(reread(replace(reading, selection=right), 0.0, NAMES)[0])
    assert one["value"] == pytest.approx((8 * 7 * 10 - 8) * ML), "the pointer tells them apart"


def test_families_of_numbered_labels(abdomen: Scene) -> None:
    assert answer(abdomen, "How many lumbar vertebrae are visible?", "count")["value"] == 2
    assert answer(abdomen, "How many vertebrae?", "count")["text"] == "There are 3 vertebrae."
    assert find_mentions("volume of the L2 vertebra", scene_classes(abdomen)).classes == ("vertebrae_L2",)


def test_neighbours_and_order(abdomen: Scene) -> None:
    beside = answer(abdomen, "Which organs are adjacent to the liver?", "contents")
    assert beside["choices"] == () and beside["text"] == "No structure touches it."
    ordered = answer(abdomen, "Rank the spleen, the liver and the pancreas by volume", "total_volume")
    assert ordered["choices"] == ("liver", "spleen", "pancreas")


def test_a_description_is_of_what_is_named(abdomen: Scene) -> None:
    text = answer(abdomen, "Describe the left kidney.", "findings")["text"]
    assert "left kidney" in text and "Kidney tumor" in text and "liver" not in text.lower()
    assert "vertebra" not in answer(abdomen, "Describe the abdomen.", "region")["text"]


def test_minus_has_a_sign(abdomen: Scene) -> None:
    less = answer(abdomen, "Spleen volume minus liver volume", "volume_difference")
    assert less["value"] < 0 and "minus" in less["text"]
    assert answer(abdomen, "Difference in volume between spleen and liver", "volume_difference")["value"] > 0


# Of the scan --------------------------------------------------------------------------------------------------------


def test_what_the_file_says(abdomen: Scene) -> None:
    assert answer(abdomen, "How many slices does the scan have?", "count")["value"] == 40
    assert answer(abdomen, "What is the slice thickness?", "volume")["value"] == 2.0
    assert "120 x 80 x 80 mm" in answer(abdomen, "What is the field of view?", "region")["text"]
    assert not set(SAID) & set(NAMES) and all(FACTS[name].about for name in SAID), "no network learns them"


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("Was contrast given?", "modality"),
        ("Is this a male or a female?", "modality"),
        ("Is the bladder full?", "presence"),
        ("Does the tumour invade the spleen?", "presence"),
        ("Is the spleen larger than a fist?", "presence"),
        ("Is the liver completely in view?", "presence"),
        ("How many organs are bigger than the spleen?", "count"),
        ("What lies directly below the spleen?", "box"),
        ("Is it bigger than a tennis ball?", "enlarged"),
        ("How heavy is the spleen?", "volume"),
    ],
)
def test_what_no_mask_tells(abdomen: Scene, text: str, fact: str) -> None:
    assert unmeasured(read(abdomen, text, fact)), text


def test_a_crop_of_a_limb_has_no_midline() -> None:
    grid = Grid((30, 30, 10), np.diag([3.0, 3, 3, 1]))
    body = np.full(grid.shape, -1000, np.int16)
    body[:, 5:25] = 0
    crop = Volume(body, grid, "CT", "crop")
    assert is_cut(crop, body_place(crop))
    x, y = np.meshgrid(np.arange(30) - 14.5, np.arange(30) - 14.5, indexing="ij")
    round_body = np.where((x**2 + y**2 < 144)[..., None], 0, np.full(grid.shape, -1000)).astype(np.int16)
    scan = Volume(round_body, grid, "CT", "whole")
    assert not is_cut(scan, body_place(scan))


# Numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "options", "choice"),
    [
        (162.3, "mm", ("3 cm", "16 cm", "30 cm"), "16 cm"),
        (593.1, "ml", ("A. <50 mL", "B. 50-200 mL", "C. >500 mL"), "C. >500 mL"),
        (95.8, "mm", ("0-5 cm", "5-10 cm", ">10 cm"), "5-10 cm"),
        (2, None, ("0", "1", "2", "3 or more"), "2"),
        (42.0, "HU", ("yes", "no"), None),
    ],
)
def test_options_that_are_numbers(value: float, unit: str | None, options: tuple[str, ...], choice: str | None) -> None:
    assert match_number(value, unit, options) == choice


@pytest.mark.parametrize(
    ("text", "threshold"),
    [
        ("tumours between 1 and 3 cm", Threshold("long_axis_mm", ">=", 10.0, "mm", 30.0)),
        ("a volume between 20 and 35 ml", Threshold("volume_ml", ">=", 20.0, "ml", 35.0)),
        ("is its mean HU higher than 40?", Threshold("intensity_mean", ">", 40.0, "HU")),
        ("nodes with a short axis over 1 cm", Threshold("short_axis_mm", ">", 10.0, "mm")),
        ("at least 15 cm tall", Threshold("craniocaudal_mm", ">=", 150.0, "mm")),
    ],
)
def test_thresholds(text: str, threshold: Threshold) -> None:
    assert parse_threshold(text) == threshold
    assert Threshold(**threshold.to_json()) == threshold


def test_ends_of_a_range_are_within_it() -> None:
    limit = Threshold("long_axis_mm", ">=", 10.0, "mm", 30.0)
    assert [limit.holds(value) for value in (9.9, 10.0, 30.0, 30.1)] == [False, True, True, False]
    assert limit.said() == "between 10 and 30 mm"


# The pointer --------------------------------------------------------------------------------------------------------


def test_the_pointer_is_believed_where_words_choose_that_code_does_not_know(abdomen: Scene) -> None:
    tumours = [i for i in abdomen.instances if i.label == "liver_tumor"]
    text = "What is the volume of the anterior liver tumour?"
    reading = read(abdomen, text, "volume")
    chosen = np.array([0.9 if i is tumours[2] else 0.1 for i in abdomen.instances])
    out = decode(reread(replace(reading, selection=chosen), 0.0, NAMES)[0])
    assert out["value"] == pytest.approx(8 * ML)
