"""Questions and answers as JSON: what is wrong is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seg_backbone.errors import QuestionError
from vlm.facts import FACTS, facts_of
from vlm.schema import TYPES, Answer, Question, read_questions

GOOD = {"id": "1", "image": "a.nii.gz", "question": "How many?", "type": "counting", "patient": "p"}


def test_round_trip_keeps_every_key() -> None:
    assert Question.from_json(GOOD).to_json() == GOOD


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "JSON object"),
        ("[]", "JSON object"),
        (json.dumps(GOOD | {"type": "guess"}), "guess"),
        (json.dumps({"id": "1", "image": "a"}), "no question"),
        (json.dumps(GOOD | {"options": "a;b"}), "list of strings"),
        (json.dumps(GOOD) + "\n" + json.dumps(GOOD), "again"),
    ],
)
def test_bad_lines(line: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(QuestionError, match=expected) as caught:
        list(read_questions(path))
    assert f"{path}:" in str(caught.value) and "\n" not in str(caught.value)


def test_an_answer_has_every_key_of_the_contract() -> None:
    keys = set(Answer("1", "counting", "There are 2.", value=2).to_json())
    assert keys >= {
        "id", "type", "text", "value", "unit", "choice", "choices", "boxes", "evidence", "confidence", "abstained",
        "reason", "unscored", "seconds", "model",
    }  # fmt: skip


def test_every_fact_answers_a_type() -> None:
    assert {fact.kind for fact in FACTS.values()} == set(TYPES)
    assert all(facts_of(kind) for kind in TYPES)
