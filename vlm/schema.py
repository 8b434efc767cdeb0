"""Question and Answer: what a user sends and gets, and their JSON (one object a line).

Unknown is a value. An answer is in exactly one of four states: answered; none found (answered, with a count of 0 or a
"no"); abstained, with a `reason`; unscored, with the error of a failed attempt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seg_backbone.errors import QuestionError

TYPES = ("classification", "multilabel", "detection", "counting", "measurement", "regression", "open")


@dataclass(frozen=True)
class Question:
    """One question about one scan.

    image: path as written in the file (relative to `--scans` or to the file). answer: the reference, never shown to
    the model. extra: every other key of the JSON object, passed through.
    """

    id: str
    image: str
    question: str
    type: str | None = None
    options: tuple[str, ...] = ()
    unit: str | None = None
    answer: Any = None
    extra: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_json(data: Any, source: str = "question") -> Question:
        """Check and build. Raises QuestionError naming `source`."""
        if not isinstance(data, dict):
            raise QuestionError(source, "a JSON object", type(data).__name__, "write one object a line")
        missing = [key for key in ("id", "image", "question") if not str(data.get(key, "")).strip()]
        if missing:
            raise QuestionError(source, "id, image and question", f"no {', '.join(missing)}", "add what is missing")
        kind = data.get("type")
        check_type(kind, source)
        options = data.get("options") or ()
        if isinstance(options, str) or not all(isinstance(option, str) for option in options):
            raise QuestionError(source, "options as a list of strings", repr(options), "write a JSON list")
        known = {"id", "image", "question", "type", "options", "unit", "answer"}
        extra = {key: value for key, value in data.items() if key not in known}
        return Question(
            str(data["id"]),
            str(data["image"]),
            str(data["question"]),
            kind,
            tuple(options),
            data.get("unit"),
            data.get("answer"),
            extra,
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object, keys without a value left out."""
        data = {
            "id": self.id,
            "image": self.image,
            "question": self.question,
            "type": self.type,
            "options": list(self.options) or None,
            "unit": self.unit,
            "answer": self.answer,
        }
        return {key: value for key, value in data.items() if value is not None} | self.extra


@dataclass(frozen=True)
class Answer:
    """One answer; its fields are those of the JSON line. Lengths in mm, volumes in ml, boxes in RAS mm."""

    id: str
    type: str
    text: str
    value: float | int | None = None
    unit: str | None = None
    interval: tuple[float, float] | None = None
    choice: str | None = None
    choices: tuple[str, ...] | None = None
    boxes: tuple[dict[str, Any], ...] | None = None
    evidence: tuple[dict[str, Any], ...] = ()
    confidence: float = 0.0
    abstained: bool = False
    reason: str | None = None
    unscored: str | None = None
    seconds: float = 0.0
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the contract; every key is always there."""
        return {
            "id": self.id,
            "type": self.type,
            "text": self.text,
            "value": self.value,
            "unit": self.unit,
            "interval": list(self.interval) if self.interval else None,
            "choice": self.choice,
            "choices": list(self.choices) if self.choices is not None else None,
            "boxes": list(self.boxes) if self.boxes is not None else None,
            "evidence": list(self.evidence),
            "confidence": round(self.confidence, 4),
            "abstained": self.abstained,
            "reason": self.reason,
            "unscored": self.unscored,
            "seconds": round(self.seconds, 3),
            "model": self.model,
        }


def check_type(kind: str | None, source: str) -> None:
    """Raises QuestionError where `kind` is neither None nor one of TYPES."""
    if kind is not None and kind not in TYPES:
        raise QuestionError(source, f"a type among {', '.join(TYPES)}", repr(kind), "correct it or leave it out")


def read_questions(path: str | Path) -> Iterator[Question]:
    """The questions of a JSONL file in order. Raises QuestionError with the line number; ids must differ."""
    path = Path(path)
    if not path.is_file():
        raise QuestionError(path, "a JSONL file of questions", "no such file", "check the path")
    seen: set[str] = set()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                data = json.loads(line)
            except ValueError as error:
                raise QuestionError(place, "a JSON object", f"{error}", "write one object a line") from None
            question = Question.from_json(data, place)
            if question.id in seen:
                raise QuestionError(place, "ids that differ", f"{question.id!r} again", "rename one")
            seen.add(question.id)
            yield question
