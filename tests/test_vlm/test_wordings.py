"""The table of wordings is complete, its parts share nothing, and thresholds in words are read back."""

import math
import re
from pathlib import Path
from random import Random

import pytest
import yaml

from seg_backbone.errors import InputError
from vlm.data import wordings
from vlm.data.threshold import OPERATORS, Threshold, parse_threshold
from vlm.data.wordings import PARTS, SLOTS, enumerate_things, placeholders, read_wordings
from vlm.facts import FACTS

WORDINGS = read_wordings()
SLOTS_FILLED = {slot: slot.upper() for slot in SLOTS}


@pytest.mark.parametrize("fact", FACTS)
def test_every_fact_has_enough_wordings_that_can_be_filled(fact):
    train, heldout = (WORDINGS.facts[fact][part] for part in PARTS)
    least = (40, 12) if fact == "off_topic" else (20, 6)
    assert len(set(train)) >= least[0]
    assert len(set(heldout)) >= least[1]
    for text in train + heldout:
        assert placeholders(text) <= set(SLOTS)
        assert "{" not in text.format(**SLOTS_FILLED)


@pytest.mark.parametrize("fact", FACTS)
def test_the_parts_share_no_wording(fact):
    train, heldout = (
        {re.sub(r"\W+", " ", text.lower()).strip() for text in WORDINGS.facts[fact][part]} for part in PARTS
    )
    assert not train & heldout


def test_no_wording_serves_two_facts():
    owners = {}
    for fact, parts in WORDINGS.facts.items():
        for text in parts["train"] + parts["heldout"]:
            assert owners.setdefault(text.lower(), fact) == fact


def test_names_are_held_out_too():
    for label, parts in WORDINGS.names.items():
        assert not set(dict(parts["train"])) & set(dict(parts["heldout"])), label
    held = dict(WORDINGS.names["tumour"]["heldout"])
    random = Random(0)
    assert not {WORDINGS.name("tumour", "train", random)[0] for _ in range(200)} & set(held)
    assert {WORDINGS.name("tumour", "heldout", random)[0] for _ in range(200)} & set(held)


def test_a_phrase_carries_rank_side_and_size():
    random = Random(0)
    threshold = Threshold("volume_ml", ">", 5.0, "ml")
    phrase = WORDINGS.phrase("liver", "train", random, rank="smallest", side="left", size=threshold)
    assert phrase["thing"] == f"the {phrase['noun']}"
    assert any(word in phrase["things"] for word in WORDINGS.ranks["smallest"]["train"])
    assert "left" in phrase["things"]
    assert "livers" in phrase["things"]
    assert parse_threshold(phrase["thing"]) == threshold
    assert WORDINGS.phrase("esophagus", "heldout", Random(1))["some"].split()[0] in ("a", "an")


def test_filling_repeats_with_the_seed_and_varies_without():
    def texts(seed, part):
        random = Random(seed)
        return [WORDINGS.fill("volume", part, random, thing="the liver", noun="liver") for _ in range(60)]

    assert texts(1, "train") == texts(1, "train")
    assert len(set(texts(1, "train"))) > 30
    assert all("liver" in text.lower() for text in texts(2, "heldout"))
    with pytest.raises(InputError, match="larger"):
        WORDINGS.fill("larger", "train", Random(0), thing="the liver")


def test_a_given_size_is_used():
    random = Random(0)
    for _ in range(100):
        assert "SIZE" in WORDINGS.fill("presence", "train", random, thing="x", noun="x", size="SIZE").upper()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize(("attribute", "unit"), [("volume_ml", "ml"), ("long_axis_mm", "mm")])
def test_a_size_in_words_is_read_back(part, op, attribute, unit):
    random = Random(0)
    for value in (0.25, 5.0, 12.0, 150.0, 1200.0):
        for _ in range(30):
            text = WORDINGS.size(Threshold(attribute, op, value, unit), part, random)
            found = parse_threshold(f"How many lesions {text} are there?")
            assert found is not None, text
            assert (found.attribute, found.op, found.unit) == (attribute, op, unit), text
            assert math.isclose(found.value, value), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How many tumours are larger than 5 ml?", ("volume_ml", ">", 5)),
        ("lesions over 2 cm", ("long_axis_mm", ">", 20)),
        ("at least 10 mm", ("long_axis_mm", ">=", 10)),
        ("smaller than 3 cc", ("volume_ml", "<", 3)),
        ("bigger than 1.5cm", ("long_axis_mm", ">", 15)),
        ("tumours > 20 mm", ("long_axis_mm", ">", 20)),
        ("volume>=5ml", ("volume_ml", ">=", 5)),
        ("≤ 7 mm", ("long_axis_mm", "<=", 7)),
        ("under 1 litre", ("volume_ml", "<", 1000)),
        ("no larger than 5 ml", ("volume_ml", "<=", 5)),
        ("not smaller than 12 mm", ("long_axis_mm", ">=", 12)),
        ("20 mm or more", ("long_axis_mm", ">=", 20)),
        ("4,5 cm or less", ("long_axis_mm", "<=", 45)),
        ("exceeding 3 cubic centimeters", ("volume_ml", ">", 3)),
        ("more than about 500 mm3", ("volume_ml", ">", 0.5)),
        ("ARE THERE MASSES ABOVE 30 MM", ("long_axis_mm", ">", 30)),
    ],
)
def test_thresholds(text, expected):
    found = parse_threshold(text)
    assert found is not None
    assert (found.attribute, found.op) == expected[:2]
    assert math.isclose(found.value, expected[2])


@pytest.mark.parametrize(
    "text",
    [
        "What is the long axis in mm?",
        "largest 3D diameter in mm",
        "Is there more than one tumour?",
        "more than 3 lesions",
        "less than 5 minutes",
        "Which is larger, the left or the right parotid?",
        "a 5 mm slice",
        "volume in cm3",
        "",
    ],
)
def test_what_is_no_threshold(text):
    assert parse_threshold(text) is None


def test_lists_read_as_prose():
    assert enumerate_things(["a"]) == "a"
    assert enumerate_things(["a", "b", "c"]) == "a, b and c"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda train, held: train["facts"].pop("volume"), "volume"),
        (
            lambda train, held: held["facts"]["side"]["wordings"].append(train["facts"]["side"]["wordings"][0]),
            "in both",
        ),
        (lambda train, held: train["facts"]["side"]["wordings"].append("Where is {organ}?"), "organ"),
        (lambda train, held: held.pop("names"), "names"),
    ],
)
def test_a_faulty_table_is_refused(tmp_path, spoil, message):
    folder = Path(wordings.__file__).parent
    tables = [yaml.safe_load((folder / f"wordings_{part}.yaml").read_text()) for part in PARTS]
    spoil(*tables)
    for part, table in zip(PARTS, tables, strict=True):
        (tmp_path / f"wordings_{part}.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(InputError, match=message):
        read_wordings(tmp_path)


def test_a_term_stands_in_a_frame():
    random, fact = Random(0), next(fact for fact in FACTS if WORDINGS.terms[fact]["train"])
    slots = {"thing": "the XX", "noun": "XX", "a": "the XX", "b": "the YY"}
    texts = [WORDINGS.fill(fact, "train", random, **slots).lower() for _ in range(300)]
    used = {term for term in WORDINGS.terms[fact]["train"] if any(term.lower() in text for text in texts)}
    assert len(used) > len(WORDINGS.terms[fact]["train"]) / 2
    assert all("xx" in text and "{" not in text for text in texts)
