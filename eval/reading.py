"""One answer line and its question -> how the question ended, and what is compared with the reference.

Structured fields come first (`value`, `choice`, `choices`, `boxes`); where they are empty the text is read, and a JSON
object in the text counts as fields. A value that is there but broken (NaN, a box without corners, millilitres where
millimetres are asked for) is a fault: told by name, and the question unreadable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from eval.detection import Box
from eval.options import parse_choice, parse_choices
from eval.parse import declines, embedded, normalise, parse_boxes, parse_count, parse_number, plain
from eval.references import Reference
from eval.units import convert

ANSWERED, ABSTAINED, UNREADABLE, UNSCORED, MISSING = "answered", "abstained", "unreadable", "unscored", "missing"
STATES = (ANSWERED, ABSTAINED, UNREADABLE, UNSCORED, MISSING)
JUDGED = (ANSWERED, ABSTAINED, UNREADABLE)
_FIELDS = ("value", "unit", "choice", "choices", "boxes", "confidence", "abstained")
_TEXTS = ("text", "answer", "final_answer", "prediction", "response", "result", "option", "count", "label")


class Item(NamedTuple):
    """One question with its outcome. prediction: as `Reference.answer`, in the reference's unit; None unless answered.

    note: the error of an unscored line, the reason of an abstention, the text of an unreadable one. confidence: as
    stated with an answer, in [0, 1]; None where none was. probabilities: normalised option -> probability, of a
    classification.
    """

    reference: Reference
    state: str
    prediction: Any = None
    note: str = ""
    confidence: float | None = None
    probabilities: dict[str, float] | None = None


class Broken(ValueError):
    """What is wrong with a field of an answer; its text is the same for all answers that share the fault."""


def read_item(reference: Reference, answer: dict[str, Any] | None, faults: list[str] | None = None) -> Item:
    """The state of one question and, where answered, its prediction in the reference's unit.

    faults: takes what is wrong with the answer's fields, one sentence each.
    """
    faults = [] if faults is None else faults
    if answer is None:
        return Item(reference, MISSING)
    if answer.get("unscored"):
        return Item(reference, UNSCORED, note=str(answer["unscored"]))
    text = _text(answer)
    if (inner := embedded(text)) is not None:
        answer = _unpacked(answer, inner, reference.type)
        text = _text(answer)
    if answer.get("abstained"):
        return Item(reference, ABSTAINED, note=str(answer.get("reason") or ""))
    try:
        confidence = _confidence(answer)
    except Broken as fault:
        faults.append(str(fault))
        confidence = None
    try:
        prediction = READERS[reference.type](reference, answer, text)
    except Broken as fault:
        faults.append(str(fault))
        return Item(reference, UNREADABLE, note=str(fault))
    if prediction is None:
        if text.strip().lower() == "nan":
            faults.append("text is NaN")
        elif not text and not any(key in answer for key in ("text", *_FIELDS)):
            faults.append(f"no text, value, choice, choices or boxes among the keys {', '.join(sorted(answer))[:80]}")
        return Item(reference, ABSTAINED if declines(plain(text)) else UNREADABLE, note=text[:200])
    probabilities = None
    if reference.type == "classification":
        try:
            probabilities = _probabilities(reference, answer, prediction, confidence)
        except Broken as fault:
            faults.append(str(fault))
    return Item(reference, ANSWERED, prediction, "", confidence, probabilities)


def _unpacked(answer: dict[str, Any], inner: Any, kind: str) -> dict[str, Any]:
    """The answer with the fields of the JSON in its text where it has none of its own."""
    if kind == "detection" and not isinstance(inner, dict):
        return answer
    if isinstance(inner, list):
        return {**answer, "choices": inner} if kind == "multilabel" and answer.get("choices") is None else answer
    more = {key: inner[key] for key in _FIELDS if inner.get(key) is not None and answer.get(key) is None}
    said = next((inner[key] for key in _TEXTS if inner.get(key) is not None), None)
    if isinstance(said, list) and kind == "multilabel":
        more.setdefault("choices", said)
    elif isinstance(said, str | int | float):
        more["text"] = ("yes" if said else "no") if isinstance(said, bool) else str(said)
    return {**answer, **more} if more else answer


def _confidence(answer: dict[str, Any]) -> float | None:
    stated = answer.get("confidence")
    if stated is None:
        return None
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        raise Broken("confidence is not a number")
    if not 0 <= stated <= 1:
        raise Broken("confidence is NaN" if stated != stated else "confidence is outside 0..1")
    return float(stated)


def _probabilities(
    reference: Reference, answer: dict[str, Any], choice: str, confidence: float | None
) -> dict[str, float] | None:
    """Option -> probability, as stated under `probabilities`, else what `confidence` leaves: the choice has it, the
    other options share the rest evenly."""
    names = [normalise(option) for option in _offered(reference)]
    stated = answer.get("probabilities")
    if stated is not None:
        if not isinstance(stated, dict) or not all(isinstance(p, int | float) and 0 <= p <= 1 for p in stated.values()):
            raise Broken("probabilities are not option -> number in 0..1")
        given = {normalise(str(option)): float(p) for option, p in stated.items()}
        return {name: given.get(name, 0.0) for name in names or given}
    if confidence is None or len(names) < 2:
        return None
    rest = (1 - confidence) / (len(names) - 1)
    return {name: confidence if name == normalise(choice) else rest for name in names}


def _offered(reference: Reference) -> tuple[str, ...]:
    if reference.options:
        return reference.options
    return ("yes", "no") if normalise(str(reference.answer)) in ("yes", "no") else ()


def _read_choice(reference: Reference, answer: dict[str, Any], text: str) -> str | None:
    choice = answer.get("choice")
    if choice is None:
        if offered := _offered(reference):
            return parse_choice(text, offered)
        return text.strip() if normalise(text) and text.strip().lower() != "nan" and not declines(text) else None
    if isinstance(choice, float) and math.isnan(choice):
        raise Broken("choice is NaN")
    choice = ("yes" if choice else "no") if isinstance(choice, bool) else str(choice)
    if reference.options is None or choice in reference.options:
        return choice
    return parse_choice(choice, reference.options) or choice


def _read_choices(reference: Reference, answer: dict[str, Any], text: str) -> list[str] | None:
    choices = answer.get("choices")
    if choices is None:
        return parse_choices(text, reference.options) if text.strip().lower() != "nan" else None
    if isinstance(choices, str):
        return parse_choices(choices, reference.options)
    if not isinstance(choices, list) or not all(isinstance(choice, str | int) for choice in choices):
        raise Broken("choices is not a list of strings")
    if not reference.options:
        return [str(choice) for choice in choices]
    return [parse_choice(str(choice), reference.options) or str(choice) for choice in choices]


def _read_number(reference: Reference, answer: dict[str, Any], text: str) -> float | None:
    value, unit = answer.get("value"), answer.get("unit")
    if isinstance(value, str):
        text, value = f"{value} {unit}" if unit and reference.type != "counting" else value, None
    if value is None or isinstance(value, bool):
        if reference.type == "counting":
            value, unit = parse_count(text), None
        else:
            value, unit = parse_number(text, reference.unit) or (None, None)
        if value is None:
            return None
    if not isinstance(value, int | float):
        raise Broken("value is not a number")
    if not math.isfinite(value):
        raise Broken("value is NaN" if value != value else "value is infinite")
    converted = convert(float(value), str(unit) if unit is not None else None, reference.unit)
    if converted is None:
        raise Broken(f"unit is {unit}, the question's {reference.unit}")
    return converted


def _read_boxes(reference: Reference, answer: dict[str, Any], text: str) -> list[Box] | None:
    records = answer.get("boxes")
    if records is None:
        records = parse_boxes(text)
        if records is None:
            return None
        records = [_ordered(record) for record in records]
    if not isinstance(records, list):
        raise Broken("boxes is not a list")
    try:
        return [Box.from_json(record) for record in records]
    except ValueError as error:
        raise Broken(f"boxes: {str(error).partition(':')[0]}") from None


def _ordered(record: Any) -> Any:
    """Two corners read from a text, whichever comes first."""
    if not isinstance(record, list) or len(record) not in (4, 6):
        return record
    half = len(record) // 2
    pairs = list(zip(record[:half], record[half:], strict=True))
    return [min(pair) for pair in pairs] + [max(pair) for pair in pairs]


def _read_open(reference: Reference, answer: dict[str, Any], text: str) -> str | None:
    said = plain(text)
    if not said or said.lower() == "nan" or (len(said) < 300 and declines(said[:100])):
        return None
    return said


def _text(answer: dict[str, Any]) -> str:
    text = answer.get("text")
    return "" if text is None else text if isinstance(text, str) else str(text)


READERS: dict[str, Callable[[Reference, dict[str, Any], str], Any]] = {
    "classification": _read_choice,
    "multilabel": _read_choices,
    "counting": _read_number,
    "measurement": _read_number,
    "regression": _read_number,
    "detection": _read_boxes,
    "open": _read_open,
}
