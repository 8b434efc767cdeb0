"""Which classes a text names: synonyms, plurals, sides, and anatomy the checkpoint does not know."""

from __future__ import annotations

import pytest

from seg_backbone.labels import WORDS
from vlm.grounding import find_mentions, mentions_in, split_side

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
