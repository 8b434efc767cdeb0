"""What can be guessed from the words of a question alone, and leaving out until it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from vlm.data.guess import LIMIT, question_only, rebalance
from vlm.schema import Question


def ask(number: int, text: str, kind: str, answer: Any, options: Sequence[str] = ()) -> Question:
    return Question(
        f"q{number}", "scan", text, kind, tuple(options), answer=answer, extra={"patient": f"p{number % 40}"}
    )


def yes_no(count: int, told: float, seed: int = 0) -> list[Question]:
    """Is there a larynx (mostly yes) or a tumour (mostly no)? told: share of the answers that the word tells."""
    random = Random(seed)
    made = []
    for number in range(count):
        organ = random.choice(("larynx", "tumour"))
        answer = "yes" if (organ == "larynx") == (random.random() < told) else "no"
        made.append(ask(number, f"Is the {organ} in view?", "classification", answer, random.sample(("yes", "no"), 2)))
    return made


def test_a_word_that_tells_is_found_and_a_coin_is_not() -> None:
    told = question_only(yes_no(400, 0.9))["classification"]
    assert told.guesses == 400 and told.chance == 0.5 and told.right == pytest.approx(0.9, abs=0.04)
    assert question_only(yes_no(400, 0.5))["classification"].right == pytest.approx(0.5, abs=0.08)


def test_what_is_guessed_is_left_out() -> None:
    asked = yes_no(400, 0.9)
    left, found = rebalance(asked)
    assert found["classification"].right <= LIMIT * 0.5 + 1e-3
    assert len(left) == found["classification"].guesses == 400 - found["classification"].left_out
    assert [q for q in asked if q in left] == left, "in order"
    rare = [q for q in asked if (q.answer == "yes") != ("larynx" in q.question)]
    assert sum(q in left for q in rare) > 0.9 * len(rare), "the rare answers stay"
    again, nothing = rebalance(left)
    assert again == left and nothing["classification"].left_out == 0
    fair = yes_no(400, 0.55)
    assert rebalance(fair)[0] == fair


def test_counts_and_options_are_judged_too() -> None:
    counts = [ask(n, "How many tumours are there?", "counting", 1 if n % 3 else n % 4) for n in range(200)]
    found = question_only(counts)["counting"]
    assert found.chance == 0.25 and found.right > 0.7, "there are 0, 1, 2 and 3, but mostly 1"
    left, after = rebalance(counts)
    assert after["counting"].right <= LIMIT * after["counting"].chance + 0.02 and 0 < len(left) < 200

    organs = ("larynx", "mandible", "brainstem")
    random = Random(0)
    contents = [
        ask(n, "What is in view?", "multilabel", ["larynx", *random.sample(organs[1:], random.choice((0, 2)))], organs)
        for n in range(80)
    ]
    # the larynx is always in view, of the others half
    assert question_only(contents)["multilabel"].right == pytest.approx(2 / 3, abs=0.08)
    left, after = rebalance(contents)
    assert after["multilabel"].right <= LIMIT * 0.5 + 1e-3
    assert all(len(q.options) > 1 and set(q.answer) <= set(q.options) for q in left)


def test_few_questions_or_one_patient_are_not_judged() -> None:
    few = yes_no(10, 1.0)
    assert question_only(few) == {} and rebalance(few) == (few, {})
    lengths = [ask(n, "How long is it?", "measurement", 10.0 + n) for n in range(50)]
    unanswered = [ask(n, "Is it there?", "classification", None, ("yes", "no")) for n in range(50)]
    alone = [Question(f"q{n}", "scan", "Is it?", "classification", ("yes", "no"), answer="yes") for n in range(50)]
    for asked in (lengths, unanswered, alone, []):
        assert rebalance(asked) == (asked, {})
