"""Question and Answer: what a user sends and gets, and their JSON (one object a line).

Unknown is a value. An answer is in exactly one of four states: answered; none found (answered, with a count of 0 or a
"no"); abstained, with a `reason`; unscored, with the error of a failed attempt.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from seg_backbone.errors import QuestionError

TYPES = ("classification", "multilabel", "detection", "counting", "measurement", "regression", "open")
LONGEST_LINE = 16 << 20  # bytes; a question with its reference is far below, a file without line ends far above


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
        missing = [key for key in ("id", "image", "question") if data.get(key) is None or not str(data[key]).strip()]
        if missing:
            found = f"no {', '.join(missing)} among the keys {_short(list(data))}"
            raise QuestionError(source, "id, image and question", found, "rename or add what is missing")
        if not isinstance(data["id"], str | int) or isinstance(data["id"], bool):
            raise QuestionError(source, "an id of letters or a whole number", repr(data["id"]), "write a string")
        for key in ("image", "question", "unit"):
            if not isinstance(data.get(key), str | None):
                raise QuestionError(source, f"{key} as a string", _short(data[key]), "write a string")
        kind = data.get("type")
        check_type(kind, source)
        options = data.get("options") or ()
        if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
            raise QuestionError(source, "options as a list of strings", _short(options), "write a JSON list")
        try:
            " ".join((str(data["id"]), data["image"], data["question"], *options)).encode("utf-8")
        except UnicodeEncodeError:
            raise QuestionError(source, "whole characters", "half of a surrogate pair", "repair the text") from None
        known = {"id", "image", "question", "type", "options", "unit", "answer"}
        extra = {key: value for key, value in data.items() if key not in known}
        return Question(
            str(data["id"]),
            data["image"],
            data["question"],
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
    """One answer; its fields are those of the JSON line. Lengths in mm, volumes in ml, boxes in RAS mm.

    unknown: structures that the question names and the answer could not take into account.
    """

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
    unknown: tuple[str, ...] = ()

    def stream(self) -> Iterator[str | Answer]:
        """The words of the text one by one, then the answer itself."""
        yield from re.split(r"(?<= )", self.text)
        yield self

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
            "unknown": list(self.unknown),
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
    """The questions of a JSONL file in order. Raises QuestionError with the line number at the first fault."""
    for _, question in scan_questions(path):
        if isinstance(question, QuestionError):
            raise question
        yield question


def scan_questions(
    path: str | Path, images: str | Path | None = None
) -> Iterator[tuple[int, Question | QuestionError]]:
    """(line number from 1, question or what is wrong with it) of every line that is not blank, in order.

    images: the folder that `image` is relative to, to have every image looked for; None looks for none. Faults: not
    UTF-8, not a JSON object, a line above LONGEST_LINE bytes, a key missing or of the wrong type, an unknown type, an
    id used before, an image that is not there. Memory stays within one line and the ids. Raises QuestionError where
    the file as a whole cannot be read: missing, or UTF-16.
    """
    for number, _, question in locate_questions(path, images):
        yield number, question


def locate_questions(
    path: str | Path, images: str | Path | None = None
) -> Iterator[tuple[int, int, Question | QuestionError]]:
    """What `scan_questions` yields, with the byte where the line starts in between: `question_at` goes back there."""
    path = Path(path)
    if not path.is_file():
        raise QuestionError(path, "a JSONL file of questions", "no such file", "check the path")
    seen: dict[str, int] = {}
    there: dict[str, bool] = {}
    for number, start, line in _lines(path):
        place = f"{path}:{number}"
        try:
            question = Question.from_json(_decode(line, place), place)
            if question.id in seen:
                raise QuestionError(
                    place, "ids that differ", f"{question.id!r} again (line {seen[question.id]})", "rename one"
                )
            seen[question.id] = number
            if images is not None:
                if question.image not in there:
                    image = str(Path(images) / question.image)
                    path_without_series = image.rpartition("#")[0]  # PATH#UID is one series of a DICOM folder
                    there[question.image] = os.path.exists(image) or os.path.exists(path_without_series)
                if not there[question.image]:
                    todo = "check the path, or name the folder of the scans with --scans"
                    raise QuestionError(place, "an image", f"no such file: {Path(images) / question.image}", todo)
        except QuestionError as error:
            yield number, start, error
        else:
            yield number, start, question


def question_at(file: BinaryIO, start: int) -> Question:
    """The question on the line that starts at a byte. Raises QuestionError where there is none (any more)."""
    file.seek(start)
    place = f"{file.name} at byte {start}"
    return Question.from_json(_decode(file.readline(LONGEST_LINE).removeprefix(codecs.BOM_UTF8), place), place)


def _lines(path: Path) -> Iterator[tuple[int, int, bytes | None]]:
    """(number, first byte, line) of every line that is not blank; None for one above LONGEST_LINE, never held whole."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise QuestionError(path, "UTF-8 text", "UTF-16", "save it as UTF-8")
        file.seek(0)
        number = end = 0
        while line := file.readline(LONGEST_LINE + 1):
            number, start, end = number + 1, end, end + len(line)
            if len(line) > LONGEST_LINE:
                while line and not line.endswith(b"\n"):
                    line = file.readline(1 << 16)
                    end += len(line)
                yield number, start, None
            elif line.strip():
                yield number, start, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _decode(line: bytes | None, place: str) -> Any:
    if line is None:
        found = f"a line above {LONGEST_LINE >> 20} MiB"
        raise QuestionError(place, "one question a line", found, "break the file into lines")
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at {error.start}"
        raise QuestionError(place, "UTF-8 text", found, "save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise QuestionError(place, "a JSON object", f"broken JSON ({error})", "write one object a line") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
