"""What a question set has to say of itself, and the steps that the sets share: columns, options, answers.

A source names the columns of its files by role (`image`, `question`, `answer`, ...) and turns one row into questions of
the contract. Names are matched without case, blanks and punctuation, because releases spell them differently.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seg_backbone.errors import QuestionError

LETTERS = "abcdefghij"
YES_NO = ("yes", "no")
EMPTY = ("", "-", "nan", "none", "n/a")  # what stands in a choice that a question does not have
CHOICES = {f"choice_{letter}": (f"choice {letter}", f"option {letter}") for letter in LETTERS}
MARKER = re.compile(r"(?<![A-Za-z0-9])\(?([A-Ja-j])(?:[):]\s*|\.\s+)")  # "A. ", "b)", "(c) ", "D:"
MARKED = re.compile(r"\(?([a-j])(?:[).:]\s*(.*))?", flags=re.DOTALL)  # "b", "(b)", "b. text"
NUMBER = re.compile(r"([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*(mm³|mm\^?3|cm³|cm\^?3|mm|cm|ml|mL|cc|l|HU|%)?\.?")
UNIT = re.compile(r"(?:\b(?:in|of)\s+|\()(mm³|mm\^?3|cm³|cm\^?3|mm|cm|ml|mL|cc|HU|%)(?![A-Za-z])")


@dataclass(frozen=True)
class Record:
    """One row. cells: role -> value, empty ones left out; rest: the other columns by their own names; file: the row's
    file, relative to what is imported; folder: what `image` is relative to; place: for complaints."""

    cells: Mapping[str, Any]
    rest: Mapping[str, Any]
    file: Path
    folder: Path
    place: str

    def text(self, role: str) -> str:
        """The cell as stripped text, a truth value as yes or no; "" where there is none.

        Raises QuestionError for a list, an object or bytes.
        """
        value = self.cells.get(role, "")
        if isinstance(value, bool):
            return YES_NO[not value]
        if not isinstance(value, str | int | float):
            raise QuestionError(self.place, f"{role} as text", type(value).__name__, "take another column")
        return str(value).strip()


@dataclass(frozen=True)
class QuestionSource:
    """A question set. files: patterns of its files below a folder. columns: role -> names, the first one found counts.
    required: the roles that every row has a column for.

    convert: a row -> rows of the contract without `id` and `source`; none where the row asks nothing about a scan.
    Raises QuestionError where the row contradicts itself. superseded: whether another file says all of one, and more.
    """

    name: str
    files: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    convert: Callable[[Record], Iterable[dict[str, Any]]]
    required: tuple[str, ...] = ("image", "question")
    superseded: Callable[[Path], bool] = lambda file: False


def match_columns(
    names: Iterable[str], columns: Mapping[str, tuple[str, ...]], chosen: Mapping[str, str]
) -> dict[str, str]:
    """Role -> column name. chosen: role -> column that the user named, which must be among `names` to count."""
    known = {_plain(name): name for name in reversed(list(names))}
    found = {}
    for role, spellings in columns.items():
        for spelling in (chosen[role],) if role in chosen else spellings:
            if _plain(spelling) in known:
                found[role] = known[_plain(spelling)]
                break
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def ask(record: Record) -> dict[str, Any]:
    """A row of the contract from a question with or without options: `choice_a`, ... or `options`, `answer`, `letter`.

    The type is the one that the answer shows: options or yes/no -> classification, a number with a unit -> measurement,
    a whole number -> counting, another number -> regression, other text -> open; without an answer it is left out.
    """
    answer, letter = record.text("answer"), record.text("letter")
    letter = "" if letter.lower() in EMPTY else letter
    options = options_of(record)
    row = {"image": record.text("image"), "question": record.text("question")}
    if options:
        return row | choice(record.place, options, letter, answer)
    if answer.lower().rstrip(".") in YES_NO:
        return row | choice(record.place, YES_NO, "", answer)
    return row | (number(answer) or ({"type": "open", "answer": answer} if answer else {}))


def options_of(record: Record) -> tuple[str, ...]:
    """The options of a row: its `choice_a`, `choice_b`, ... columns, or a list in `options` ("a;b", '["a", "b"]')."""
    listed = record.cells.get("options")
    if listed is None:
        cells = {role[-1]: record.text(role) for role in CHOICES if role in record.cells}
        cells = {letter: cell for letter, cell in cells.items() if cell.lower() not in EMPTY}
        marks = {letter: re.match(rf"\(?{letter}[:).]\s*", cell, re.IGNORECASE) for letter, cell in cells.items()}
        marked = all(marks.values())  # "A: left" under Choice A, and so in all
        return tuple(
            cell[mark.end() :] if marked and (mark := marks[letter]) else cell for letter, cell in cells.items()
        )
    if isinstance(listed, str):
        listed = parse(listed) if listed.strip().startswith("[") else listed.split(";")
    if not isinstance(listed, list) or not listed:
        raise QuestionError(record.place, "options as a list", repr(listed), 'write "a;b" or a JSON list')
    return tuple(str(option).strip() for option in listed)


def parse(text: str) -> Any:
    """The value that a JSON or Python literal stands for; None for neither."""
    for reader in (json.loads, ast.literal_eval):
        try:
            return reader(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def lettered(text: str) -> tuple[str, tuple[str, ...]]:
    """ "Which side? A. left, B. right" -> ("Which side?", ("left", "right")); (text, ()) without letters from A on."""
    marks = list(MARKER.finditer(text))
    for first in range(len(marks) - 2, -1, -1):
        chain = marks[first:]
        letters = "".join(mark[1].lower() for mark in chain)
        if LETTERS.startswith(letters):
            ends = [mark.start() for mark in chain[1:]] + [len(text)]
            options = tuple(
                text[mark.end() : end].strip().rstrip(",;").strip() for mark, end in zip(chain, ends, strict=True)
            )
            stem = re.sub(r"(choices|options)\s*:?\s*$", "", text[: chain[0].start()].strip(), flags=re.IGNORECASE)
            return stem.strip(), options
    return text.strip(), ()


def choice(place: str, options: tuple[str, ...], letter: str, answer: str) -> dict[str, Any]:
    """type, options and, where there is one, the answer as one of them: named by `letter`, else by `answer`, which may
    be the option's words, its letter, or both. Raises QuestionError where none is meant, or two different ones are."""
    row: dict[str, Any] = {"type": "classification", "options": list(options)}
    if not letter and not answer:
        return row
    plain = [option.lower().rstrip(".") for option in options]
    words = answer.lower().rstrip(".")
    marked = MARKED.fullmatch(letter.lower() or words)
    if marked and marked[2] and not letter:
        words = marked[2]
    spelled = plain.index(words) if words in plain else None
    named = LETTERS.index(marked[1]) if marked and (letter or spelled is None or marked[2]) else spelled
    if named is None or named >= len(options):
        raise QuestionError(place, f"an answer among {list(options)}", repr(letter or answer), "correct the row")
    if spelled is not None and plain[spelled] != plain[named]:
        found = f"{options[named]!r} by its letter and {options[spelled]!r} by its words"
        raise QuestionError(place, "one answer", found, "correct the row")
    return row | {"answer": options[named]}


def number(text: str) -> dict[str, Any] | None:
    """type, answer and unit of a text that is one number, with or without a unit; None for other text."""
    found = NUMBER.fullmatch(text.strip())
    if not found:
        return None
    value = float(found[1])
    if found[2]:
        return {"type": "measurement", "answer": value, "unit": found[2]}
    return {"type": "counting", "answer": int(value)} if value.is_integer() else {"type": "regression", "answer": value}


def unit_in(question: str) -> str | None:
    """The unit that a question asks for: "in mm", "(cm^3)"; None where it names none."""
    found = UNIT.search(question)
    return found[1] if found else None
