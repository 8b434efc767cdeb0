"""JSON lines with the line number kept, so that every complaint can name it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from seg_backbone.errors import QuestionError


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every non-blank line. Raises QuestionError: no file, not UTF-8 JSON objects."""
    path = Path(path)
    if not path.is_file():
        raise QuestionError(path, "a JSON-lines file", "no such file", "check the path")
    records = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except UnicodeDecodeError as error:
        raise QuestionError(path, "UTF-8 text", f"other bytes ({error.reason})", "save it as UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise QuestionError(
                f"{path}, line {number}", "a JSON object", f"broken JSON ({error})", "repair it"
            ) from None
        if not isinstance(record, dict):
            raise QuestionError(
                f"{path}, line {number}", "a JSON object", type(record).__name__, "write one object a line"
            )
        records.append((number, record))
    return records


def digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, so that a score says which file it came from."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
