"""Which classes a text names: synonyms, plurals, sides, and anatomy the checkpoint does not know."""

from __future__ import annotations

import pytest

from seg_backbone.labels import WORDS
from vlm.grounding import find_mentions, mentions_in, one_slip, split_side

ALL = tuple(WORDS)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("How big is the tumor?", {"tumour"}),
        ("MASSES?", {"tumour"}),
        ("volume of the left parotid gland", {"parotid_left"}),
        ("left-sided parotid", {"parotid_left"}),
        ("Which parotid gland is larger?", {"parotid_left", "parotid_right"}),
        ("left or right parotid", {"parotid_left", "parotid_right"}),
        ("oesophagus visible?", {"esophagus"}),
        ("distance from the lesion to the cord", {"tumour", "spinal_cord"}),
        ("What is the capital of France?", set()),
        ("", set()),
        ("both parotids", {"parotid_left", "parotid_right"}),
        ("oesophageal volume", {"esophagus"}),
        ("the laryngeal extent", {"larynx"}),
        ("mandibular height", {"mandible"}),
        ("the tumor's volume", {"tumour"}),
        ("left-sided mass", {"tumour"}),
        ("Right-sided parotid's volume", {"parotid_right"}),
    ],
)
def test_known_classes(text: str, classes: set[str]) -> None:
    assert set(find_mentions(text, ALL).classes) == classes


@pytest.mark.parametrize(
    ("text", "others"),
    [("How large is the liver?", ("liver",)), ("left kidney volume", ("kidney",)), ("tumour volume", ())],
)
def test_anatomy_that_is_not_among_the_classes(text: str, others: tuple[str, ...]) -> None:
    assert find_mentions(text, ALL).others == others


def test_a_class_of_the_vocabulary_that_the_labels_lack_is_another() -> None:
    assert find_mentions("larynx volume", ("tumour",)).others == ("larynx",)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("tumuor", {"tumour"}),  # swapped
        ("tumours", {"tumour"}),
        ("tumuors", {"tumour"}),
        ("tumur", {"tumour"}),  # left out
        ("lesiion", {"tumour"}),  # added
        ("oesphagus", {"esophagus"}),
        ("mandibel", {"mandible"}),
        ("left paratid gland", {"parotid_left"}),  # exchanged
        ("brainsten", {"brainstem"}),
        ("larinxx", set()),  # two slips
        ("mess", set()),  # too short
    ],
)
def test_one_slip_of_the_fingers(text: str, classes: set[str]) -> None:
    assert set(find_mentions(text, ALL).classes) == classes


def test_slips_in_other_anatomy_and_in_foreign_classes() -> None:
    assert find_mentions("volume of the pancraes", ALL).others == ("pancreas",)
    assert find_mentions("the left kindey", ("kidney_left", "kidney_right")).classes == ("kidney_left",)


@pytest.mark.parametrize(
    "text",
    [
        "discord", "record", "recording", "accord", "massive", "massage", "masseter", "jawline", "regrowth", "tumult",
        "humour", "rumours", "dancer", "lesson", "legion", "cancel", "bullet", "session", "module", "discordant",
        "submandibular gland", "vocal cords", "spermatic cord", "body mass index", "muscle mass", "growth plates",
    ],
)  # fmt: skip
def test_false_friends(text: str) -> None:
    mention = find_mentions(f"What about the {text}?", ALL)
    assert mention.classes == () and not mention.lesions


def test_a_false_friend_of_anatomy_is_told() -> None:
    assert find_mentions("volume of the vocal cords", ALL).others == ("vocal cord",)
    assert find_mentions("volume of the submandibular gland", ALL).others == ("submandibular gland",)
    assert find_mentions("vocal cords", ("vocal_cord",)).classes == ("vocal_cord",)


@pytest.mark.parametrize("word", ["tumour", "oesophagus"])
def test_one_slip_is_one_edit(word: str) -> None:
    for n in range(len(word)):
        assert one_slip(word, word[:n] + word[n + 1 :]) and one_slip(word, word[:n] + "z" + word[n:])
        assert one_slip(word, word[:n] + "z" + word[n + 1 :])
    assert one_slip(word, word) and one_slip(word, word[1] + word[0] + word[2:])
    assert not one_slip(word, "zz" + word) and not one_slip(word, "z" + word[1:-1] + "z")


def test_foreign_classes_of_a_given_mask() -> None:
    labels = ("liver", "kidney_left", "kidney_right", "liver_lesion")
    assert find_mentions("volume of the left kidney", labels).classes == ("kidney_left",)
    assert "liver_lesion" in find_mentions("how many masses", labels).classes
    assert find_mentions("volume of the liver", labels).others == ()


def test_options_count_where_the_words_name_nothing() -> None:
    assert set(mentions_in("Which is larger?", ("left parotid", "right parotid"), ALL).classes) == {
        "parotid_left",
        "parotid_right",
    }
    assert mentions_in("Is the larynx there?", ("mandible",), ALL).classes == ("larynx",)


def test_split_side() -> None:
    assert split_side("parotid_left") == ("parotid", "left") and split_side("left_kidney") == ("kidney", "left")
    assert split_side("spinal_cord") == ("spinal_cord", None)
