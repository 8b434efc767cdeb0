"""The reference side of a question file: each question's type, group, patient and checked reference answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eval.detection import Box
from eval.jsonl import read_jsonl
from eval.parse import normalise, parse_choice
from seg_backbone.errors import QuestionError

TYPES = ("classification", "multilabel", "counting", "measurement", "regression", "detection", "open")
NUMERIC = ("counting", "measurement", "regression")


@dataclass(frozen=True)
class Reference:
    """One question and what is right.

    group: its `property`, else its type. cluster: its `patient`, else its image. options: None where open.
    answer: an option (classification), a list of options (multilabel), a number in `unit` (counting, measurement,
    regression), a list of Box (detection), a string (open), or None where the question cannot be answered from the scan
    (`"answer": null`) and abstaining is right.
    """

    id: str
    type: str
    group: str
    cluster: str
    options: tuple[str, ...] | None
    unit: str | None
    answer: Any


def read_references(path: str | Path) -> list[Reference]:
    """Every question of a JSON-lines file that carries an `answer` key. Raises QuestionError naming the line.

    A question without `type` has the type its answer shows: options -> classification, a list of strings ->
    multilabel, a list of boxes -> detection, a number with `unit` -> measurement, a whole number -> counting, another
    number -> regression, a string -> open.
    """
    references: dict[str, Reference] = {}
    for number, question in read_jsonl(path):
        where = f"{path}, line {number}"
        if not isinstance(question.get("id"), str | int) or question["id"] == "":
            raise QuestionError(where, "a question with an id", "none", "give every question its own id")
        if "answer" not in question:
            continue
        reference = _reference(where, question)
        if reference.id in references:
            raise QuestionError(where, "an id used once", f"{reference.id!r} again", "give every question its own id")
        references[reference.id] = reference
    if not references:
        raise QuestionError(path, "questions with a reference `answer`", "none", "name the file that holds the answers")
    return list(references.values())


def _reference(where: str, question: dict[str, Any]) -> Reference:
    kind = question.get("type") or _type_of(question)
    if kind not in TYPES:
        raise QuestionError(where, f"a type among {', '.join(TYPES)}", repr(kind), "correct the type")
    options = question.get("options") or None
    if options is not None and not (isinstance(options, list) and all(isinstance(one, str) for one in options)):
        raise QuestionError(where, "options as a list of strings", repr(options)[:80], "correct the options")
    reference = Reference(
        id=str(question["id"]),
        type=kind,
        group=str(question.get("property") or kind),
        cluster=str(question.get("patient") or question.get("image") or question["id"]),
        options=tuple(options) if options else None,
        unit=question.get("unit"),
        answer=None,
    )
    if question["answer"] is None:
        return reference
    try:
        return replace(reference, answer=_checked(kind, question["answer"], reference.options))
    except (TypeError, ValueError) as error:
        raise QuestionError(where, f"a reference answer fit for {kind}", str(error), "correct the answer") from None


def _checked(kind: str, answer: Any, options: tuple[str, ...] | None) -> Any:
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    if kind == "detection":
        if not isinstance(answer, list):
            raise ValueError(f"{answer!r}, not a list of boxes")
        return [Box.from_json(record) for record in answer]
    if kind == "multilabel":
        if not isinstance(answer, list):
            raise ValueError(f"{answer!r}, not a list of options")
        return [_option(str(one), options) for one in answer]
    if kind in NUMERIC:
        number = float(answer) if isinstance(answer, int | float) else float("nan")
        if not math.isfinite(number):
            raise ValueError(f"{answer!r}, not a finite number")
        return number
    if isinstance(answer, list | dict):
        raise TypeError(f"{answer!r}, not a string")
    return _option(str(answer), options) if kind == "classification" else str(answer)


def _option(answer: str, options: tuple[str, ...] | None) -> str:
    if options is None:
        return answer
    named = next((option for option in options if option == answer), None)
    named = named or next((option for option in options if normalise(option) == normalise(answer)), None)
    named = named or parse_choice(answer, options)
    if named is None:
        raise ValueError(f"{answer!r}, none of the options {list(options)}")
    return named


def _type_of(question: dict[str, Any]) -> str:
    answer = question["answer"]
    if isinstance(answer, list):
        return "detection" if answer and isinstance(answer[0], dict) else "multilabel"
    if question.get("options") or isinstance(answer, bool):
        return "classification"
    if isinstance(answer, int | float):
        return "measurement" if question.get("unit") else "counting" if float(answer).is_integer() else "regression"
    return "open"
