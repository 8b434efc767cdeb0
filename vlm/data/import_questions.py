"""A public question set -> the contract's question rows, one JSON object a line, checked before they are written."""

from __future__ import annotations

import codecs
import json
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from seg_backbone.errors import ConfigError, QuestionError
from seg_backbone.io import replacing
from vlm.data.sources.question_source import QuestionSource, Record, match_columns
from vlm.data.sources.records import read_records
from vlm.schema import Question

KEYS = ("id", "image", "question", "type", "options", "unit", "answer", "region")  # of the contract
TABLES = (".csv", ".tsv", ".parquet")  # files whose rows all have the same columns


@dataclass
class Imported:
    """What an import did. by_type: type ("any" where undeclared) -> questions written. columns: role -> column names
    that were taken for it. no_scan: rows that ask nothing about a scan. left_out: rows, and files, that are faulty.
    folder: what `image` is relative to."""

    folder: Path
    by_type: Counter[str] = field(default_factory=Counter)
    columns: dict[str, dict[str, None]] = field(default_factory=dict)
    no_scan: int = 0
    left_out: int = 0


def import_questions(
    source: QuestionSource,
    path: str | Path,
    out: str | Path,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    encoding: str | None = None,
    tell: Callable[[QuestionError], None] = lambda fault: None,
) -> Imported:
    """Write the questions of PATH, a file of the source or a folder of such files, to `out`.

    A row's id is the source's own, else SOURCE:FILE:ROW. Columns without a role are passed through; what is empty is
    left out. columns: role -> column name, before the source's own names. skip_bad: leave faulty rows and files out;
    without it nothing is written where there is one. tell: called with every fault, but for one that is alone and is
    raised. progress: called with (files done, files, file). encoding: of the files, default UTF-8. Raises ConfigError
    for an unknown role or encoding, QuestionError for faults.
    """
    path, out, chosen = Path(path), Path(out), dict(columns or {})
    if unknown := sorted(set(chosen) - set(source.columns)):
        known = ", ".join(source.columns)
        raise ConfigError("--columns", f"roles among {known}", ", ".join(unknown), "write ROLE=COLUMN")
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise ConfigError("--encoding", "an encoding that Python knows", repr(encoding), "for example cp1252") from None
    files = [file for file in _files(source, path) if file.resolve() != out.resolve()]
    result = Imported(path if path.is_dir() else path.parent)
    seen: set[str] = set()
    first: QuestionError | None = None
    with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for done, file in enumerate(files):
            if progress:
                progress(done, len(files), file.name)
            with tempfile.TemporaryDirectory(prefix=".import-", dir=out.parent) as scratch:
                for row in _questions(source, file, Path(scratch), result, chosen, seen, encoding):
                    if not isinstance(row, QuestionError):
                        kind, line = row
                        result.by_type[kind] += 1
                        lines.write(line + "\n")
                        continue
                    result.left_out += 1
                    if result.left_out == 2 and first:
                        tell(first)
                    if skip_bad or result.left_out > 1:
                        tell(row)
                    else:
                        first = row
        if first:
            raise (
                first
                if result.left_out == 1
                else QuestionError(
                    path, "rows without faults", f"{result.left_out} with, told above", "mend them, or --skip-bad"
                )
            )
        if skip_bad and result.left_out and not result.by_type and path.is_file():
            raise QuestionError(path, "a row without faults", f"{result.left_out} with", "mend them")
        if unused := [f"{role}={column}" for role, column in chosen.items() if role not in result.columns]:
            raise ConfigError("--columns", "columns of the file", ", ".join(unused), "check the spelling")
    return result


def _files(source: QuestionSource, path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = {file for file in path.rglob("*") if any(fnmatch(file.name.lower(), one.lower()) for one in source.files)}
    found = {file for file in found if file.is_file() and not source.superseded(file)}
    if not found:
        what = "a folder without them" if path.is_dir() else "no such file"
        raise QuestionError(path, f"files like {', '.join(source.files)}", what, "check the path")
    return sorted(file for file in found if not file.name.startswith("."))


def _questions(
    source: QuestionSource,
    file: Path,
    scratch: Path,
    result: Imported,
    chosen: Mapping[str, str],
    seen: set[str],
    encoding: str | None,
) -> Iterator[tuple[str, str] | QuestionError]:
    """(type, JSON line) of the questions of one file, and the faults in their places; counts the rest in `result`."""
    inner = file.relative_to(result.folder)
    matched: dict[tuple[str, ...], dict[str, str]] = {}
    records = enumerate(read_records(file, scratch, encoding), start=1)
    while True:
        try:
            number, (place, row) = next(records)
        except StopIteration:
            return
        except QuestionError as error:  # the file as a whole
            yield error
            return
        if isinstance(row, QuestionError):
            yield row
            continue
        names = tuple(row)
        if names not in matched:
            matched[names] = match_columns(names, source.columns, chosen)
            for role, name in matched[names].items():
                result.columns.setdefault(role, {})[name] = None
        try:
            for role in source.required:
                if role not in matched[names]:
                    expected = f"a column for {role} ({', '.join(source.columns[role])})"
                    todo = f"name it: --columns {role}=COLUMN"
                    if file.suffix.lower() in TABLES:
                        yield QuestionError(file, expected, ", ".join(names), todo)
                        return
                    raise QuestionError(place, expected, ", ".join(names), todo)
            record = _record(row, matched[names], inner, result.folder, place)
            asked = list(source.convert(record))
            result.no_scan += not asked
            for turn, data in enumerate(asked, start=1):
                name = record.text("id") or f"{source.name}:{inner.with_suffix('').as_posix()}:{number}"
                data["id"] = name if len(asked) == 1 else f"{name}-{turn}"
                question = Question.from_json({"source": source.name, **record.rest, **data}, place)
                if question.id in seen:
                    raise QuestionError(place, "ids that differ", f"{question.id!r} again", "rename one")
                seen.add(question.id)
                yield question.type or "any", _line(question, place)
        except QuestionError as error:
            yield error


def _record(row: Mapping[str, Any], roles: Mapping[str, str], file: Path, folder: Path, place: str) -> Record:
    """The row by role, without what is empty. A column without a role that is called like a key of the contract is kept
    as original_NAME."""
    row = {name: value for name, value in row.items() if not _empty(value)}
    cells = {role: row[name] for role, name in roles.items() if name in row}
    rest = {name: value for name, value in row.items() if name not in roles.values()}
    rest = {f"original_{name}" if name in KEYS else name: value for name, value in rest.items()}
    return Record(cells, rest, file, folder, place)


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _line(question: Question, place: str) -> str:
    """The JSON line; dates in ISO 8601. Raises QuestionError for what JSON or UTF-8 cannot hold."""
    try:
        line = json.dumps(question.to_json(), ensure_ascii=False, default=_date)
        line.encode("utf-8")
    except (TypeError, UnicodeEncodeError) as error:
        raise QuestionError(place, "values that JSON can hold", str(error), "drop or repair the column") from None
    return line


def _date(value: Any) -> str:
    if not isinstance(value, date):
        raise TypeError(type(value).__name__)
    return value.isoformat()
