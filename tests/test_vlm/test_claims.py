"""Yes/no questions: what they claim, and that the answer is yes where it is so."""

import re

import pytest

from vlm.claims import STATES, as_asked, claimed, counted, is_claim, negated
from vlm.data.wordings import read_wordings
from vlm.grounding import Mention

NAMED = Mention(("spleen", "liver"), (), False)


@pytest.mark.parametrize(
    "text",
    [
        "No tumours?",
        "Is there no lesion?",
        "This scan is free of tumour, right?",
        "Is the scan tumour-free?",
        "Am I correct that nothing malignant is visible?",
        "Is the lesion absent?",
        "There's no cancer here, is there?",
        "Is the spleen missing?",
        "Can a tumour be excluded?",
        "Are there no tumours or masses?",
        "Is the larynx not visible?",
        "There isn't any lesion.",
        "Is it true that there is no tumour?",
        "Tell me whether there is no tumour.",
        "Is this scan without any tumour?",
    ],
)
def test_absence_is_claimed(text):
    assert negated("presence", text)


@pytest.mark.parametrize(
    "text",
    [
        "Is there a tumour?",
        "Isn't there a mass here?",
        "Is there not a tumour?",
        "Can't you see a tumour?",
        "A tumour, present or absent?",
        "Exclude tumours.",
        "Is there a tumour, or is there none?",
        "Is the tumour no larger than 200 mm?",
        "Is there a tumour, yes or no?",
        "Is it not true that there is no tumour without necrosis?",
    ],
)
def test_presence_is_claimed_or_asked(text):
    assert not negated("presence", text)


@pytest.mark.parametrize(
    ("fact", "text", "opposite"),
    [
        ("enlarged", "Is the spleen of normal size?", True),
        ("enlarged", "Is the spleen not enlarged?", True),
        ("enlarged", "Is there no splenomegaly?", True),
        ("enlarged", "Is the spleen larger than normal?", False),
        ("enlarged", "Is the spleen abnormally large?", False),
        ("enlarged", "Is the spleen normal in size or enlarged?", False),
        ("asymmetric", "Are the kidneys symmetric?", True),
        ("asymmetric", "Has the symmetry been lost?", False),
        ("fatty", "Is the liver normal?", True),
        ("fatty", "Is there more fat in the liver than normal?", False),
        ("measurable", "Is the lesion too small to be a target?", True),
        ("outlier", "Are all lesions of similar size?", True),
        ("outlier", "Is one of the lesions not like the others in size?", False),
    ],
)
def test_the_opposite_of_a_rule(fact, text, opposite):
    assert negated(fact, text) == opposite
    assert as_asked(fact, "yes", text) == ("no" if opposite else "yes")


@pytest.mark.parametrize(
    ("fact", "text", "values"),
    [
        ("side", "Is the tumour on the left?", ("left",)),
        ("side", "Is the tumour on the left or on the right?", None),
        ("side", "Which side?", None),
        ("modality", "Is this an MRI?", ("MR",)),
        ("modality", "Is this not a CT?", ("CT",)),
        ("modality", "This isn't a CT, is it?", ("MR",)),
        ("region", "Is this a chest scan?", ("chest",)),
        ("larger", "Is the spleen larger than the liver?", ("spleen",)),
        ("larger", "Is the spleen smaller than the liver?", ("liver",)),
        ("larger", "Is the spleen larger than the liver or is it the other way round?", None),
        ("denser", "Is the spleen less dense than the liver?", ("liver",)),
        ("composition", "Is the lesion cystic?", ("cystic",)),
        ("size_category", "Is it a T2 tumour?", ("T2",)),
    ],
)
def test_values_that_are_claimed(fact, text, values):
    assert claimed(fact, text, NAMED) == values


@pytest.mark.parametrize(
    ("text", "of_two"),
    [
        ("Are there two tumours?", True),
        ("More than one lesion?", True),
        ("No more than one lesion?", False),
        ("Is there exactly one tumour?", False),
        ("Are there at least 3 lesions?", False),
        ("Are both glands there?", True),
        ("Is there a tumour?", None),
        ("Single or multiple?", None),
        ("Is there a tumour larger than 5 cm?", None),
        ("Is there a tumour on slice 45?", None),
        ("Is the liver more than 1 litre?", None),
        ("Is there a tumour in both glands?", None),
        ("Does the scan show at most 2 lesions?", True),
    ],
)
def test_numbers_that_are_claimed(text, of_two):
    assert counted(text, 2) == of_two


def test_references_agree_with_the_words():
    assert as_asked("larger", "liver", "Which is smaller, the spleen or the liver?", ("spleen", "liver")) == "spleen"
    assert as_asked("larger", "liver", "Is the spleen smaller than the liver?", ("spleen", "liver")) == "liver"
    assert as_asked("side", "left", "Is it on the right?") == "left"


def test_held_out_wordings_of_facts_that_are_yes_or_no_claim_no_opposite():
    """None of them does; a rule that saw one in them would turn right answers round."""
    facts = read_wordings().facts
    for fact in STATES:
        for wording in facts[fact]["heldout"]:
            assert not negated(fact, re.sub(r"\{\w+\}", "the lesion", wording)), wording


@pytest.mark.parametrize(
    "text", ["Which side?", "Where is it?", "Describe the scan.", "Can you tell me how long it is?"]
)
def test_open_questions_claim_nothing(text):
    assert not is_claim(text)
