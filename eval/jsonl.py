"""JSON lines with the line number kept, so that every complaint can name it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import orjson

from seg_backbone.errors import QuestionError


def read_jsonl(path: str | Path, holding: Collection[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every non-blank line, one line in memory at a time.

    holding: where given, lines that hold none of these as a string or a whole number are passed over, which is faster.
    Raises QuestionError: no file, not UTF-8 JSON objects.
    """
    path = Path(path)
    if not path.is_file():
        raise QuestionError(path, "a JSON-lines file", "no such file", "check the path")
    wanted = _wanted(holding) if holding else None
    with path.open("rb") as file:  # bytes: in text, JSON strings may hold U+2028, which is no end of line here
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.isspace() or (wanted is not None and not wanted.search(line)):
                continue
            try:
                record = _parsed(line)
            except UnicodeDecodeError as error:
                found = f"other bytes ({error.reason})"
                raise QuestionError(f"{path}, line {number}", "UTF-8 text", found, "save it as UTF-8") from None
            except (ValueError, RecursionError) as error:
                found = f"broken JSON ({error})"
                raise QuestionError(f"{path}, line {number}", "a JSON object", found, "repair it") from None
            if not isinstance(record, dict):
                found = type(record).__name__
                raise QuestionError(f"{path}, line {number}", "a JSON object", found, "write one object a line")
            yield number, record


def _parsed(line: bytes) -> Any:
    """The line's JSON; what orjson refuses (NaN and infinities, very deep nesting) is left to the slower parser."""
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line.decode("utf-8"))


def _wanted(words: Collection[str]) -> re.Pattern[bytes]:
    """What finds any of the words as JSON strings, escaped or not, or as whole numbers."""
    strings = {json.dumps(word, ensure_ascii=plain)[1:-1].encode() for word in words for plain in (True, False)}
    patterns = [b'"(?:' + b"|".join(map(re.escape, sorted(strings))) + b')"']
    if numbers := [word.encode() for word in sorted(words) if word.isdecimal()]:
        patterns.append(rb"[\s:](?:" + b"|".join(numbers) + rb")[\s,}]")
    return re.compile(b"|".join(patterns))


def digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, so that a score says which file it came from."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
