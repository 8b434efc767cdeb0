"""The reference side of a question file: each question's type, group, strata, patient and checked reference answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.detection import Box
from eval.jsonl import read_jsonl
from eval.options import parse_choice
from eval.parse import normalise
from seg_backbone.errors import ConfigError, QuestionError

TYPES = ("classification", "multilabel", "counting", "measurement", "regression", "detection", "open")
NUMERIC = ("counting", "measurement", "regression")
# keys of questions that are told apart without being asked to
STRATA = ("property", "fact", "region", "modality", "dataset", "source", "wording", "synthetic")


class Reference(NamedTuple):
    """One question and what is right.

    group: its `property`, else its type. cluster: its `patient`, else its image. options: None where open.
    answer: an option (classification), a list of options (multilabel), a number in `unit` (counting, measurement,
    regression), a list of Box (detection), a string (open), or None where the question cannot be answered from the scan
    (`"answer": null`) and abstaining is right. strata: the values of the keys that results are told apart by, "" where
    the question lacks one.
    """

    id: str
    type: str
    group: str
    cluster: str
    options: tuple[str, ...] | None
    unit: str | None
    answer: Any
    strata: tuple[str, ...] = ()


def read_references(path: str | Path, strata: Sequence[str] = STRATA) -> list[Reference]:
    """Every question of a JSON-lines file that carries an `answer`. Raises QuestionError naming the line.

    A question without `type` has the type its answer shows: options -> classification, a list of strings ->
    multilabel, a list of boxes -> detection, a number with `unit` -> measurement, a whole number -> counting, another
    number -> regression, a string -> open. Boxes may also stand under `pixel_boxes`, as FLARE-MLLM's 2D sets have them.
    strata: names of keys. Raises ConfigError for one that no question has, unless it is among the usual STRATA.
    """
    references: dict[str, Reference] = {}
    lines: dict[str, int] = {}
    path, unseen = str(path), set(strata) - set(STRATA)
    shared: dict[Any, Any] = {}  # one object for equal tuples and strings
    for number, question in read_jsonl(path):
        where = f"{path}, line {number}"
        if not isinstance(question.get("id"), (str, int)) or question["id"] == "":
            raise QuestionError(where, "a question with an id", "none", "give every question its own id")
        if "answer" not in question:
            if not question.get("pixel_boxes"):
                continue
            question = {**question, "type": "detection", "answer": question["pixel_boxes"]}
        reference = _reference(where, question, strata, shared)
        if reference.id in references:
            found = f"{reference.id!r} again (first in line {lines[reference.id]})"
            raise QuestionError(where, "an id used once", found, "give every question its own id")
        references[reference.id] = reference
        lines[reference.id] = number
        unseen -= {key for key in unseen if question.get(key) is not None}
    if not references:
        raise QuestionError(path, "questions with a reference `answer`", "none", "name the file that holds the answers")
    for key in sorted(unseen):
        raise ConfigError("--by", f"a key of the questions in {path}", repr(key), "correct or drop it")
    return list(references.values())


def _reference(where: str, question: dict[str, Any], strata: Sequence[str], shared: dict[Any, Any]) -> Reference:
    kind = question.get("type") or _type_of(question)
    if kind not in TYPES:
        raise QuestionError(where, f"a type among {', '.join(TYPES)}", repr(kind), "correct the type")
    options = question.get("options") or None
    if options is not None and not (isinstance(options, list) and all(isinstance(one, str) for one in options)):
        raise QuestionError(where, "options as a list of strings", repr(options)[:80], "correct the options")
    unit = question.get("unit")
    if unit is not None and not isinstance(unit, str):
        raise QuestionError(where, "unit as a string", repr(unit)[:80], "correct the unit")
    cluster = str(question.get("patient") or question.get("image") or question["id"])
    values = tuple([_stratum(question.get(key)) for key in strata])
    options = tuple(options) if options else None
    group = str(question.get("property") or kind)
    try:
        answer = None if question["answer"] is None else _checked(kind, question["answer"], options)
    except (TypeError, ValueError) as error:
        raise QuestionError(where, f"a reference answer fit for {kind}", str(error), "correct the answer") from None
    share = shared.setdefault
    return Reference(
        id=str(question["id"]),
        type=share(kind, kind),
        group=share(group, group),
        cluster=share(cluster, cluster),
        options=share(options, options),
        unit=share(unit, unit),
        answer=share(answer, answer) if isinstance(answer, str) else answer,
        strata=share(values, values),
    )


def _stratum(value: Any) -> str:
    """A value that questions are told apart by, as text; "" where there is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _checked(kind: str, answer: Any, options: tuple[str, ...] | None) -> Any:
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    if kind == "detection":
        if isinstance(answer, dict):  # label -> its boxes
            answer = [{"label": label, "bbox": box} for label, boxes in answer.items() for box in boxes]
        if not isinstance(answer, list):
            raise ValueError(f"{answer!r:.120}, not a list of boxes")
        return [Box.from_json(record) for record in answer]
    if kind == "multilabel":
        if not isinstance(answer, list):
            raise ValueError(f"{answer!r:.120}, not a list of options")
        return [_option(str(one), options) for one in answer]
    if kind in NUMERIC:
        number = float(answer) if isinstance(answer, int | float) else float("nan")
        if not math.isfinite(number):
            raise ValueError(f"{answer!r:.120}, not a finite number")
        return number
    if isinstance(answer, list | dict):
        raise TypeError(f"{answer!r:.120}, not a string")
    return _option(str(answer), options) if kind == "classification" else str(answer)


def _option(answer: str, options: tuple[str, ...] | None) -> str:
    if options is None or answer in options:
        return answer
    named = next((option for option in options if normalise(option) == normalise(answer)), None)
    named = named or parse_choice(answer, options)
    if named is None:
        raise ValueError(f"{answer!r:.120}, none of the options {list(options)}")
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
