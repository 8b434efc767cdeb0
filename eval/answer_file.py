"""A file of answers, ours or another system's -> answer records with their place, one at a time.

Ours are the JSON lines that `vlm batch` writes. Any other model's are welcome as plain texts: a csv or tsv file with a
column of ids and one of texts, JSON lines of such rows, a JSON list of them, or one JSON object id -> text (the form in
which FLARE-MLLM predictions are handed in). Columns are found by name, without regard to case, blanks and underscores.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from eval.jsonl import read_jsonl
from seg_backbone.errors import QuestionError

ID_NAMES = ("id", "uid", "question id", "qid", "identifier", "case id", "name")
TEXT_NAMES = (
    *("text", "prediction", "predicted answer", "model answer", "model output", "generated answer", "generated text"),
    *("generation", "response", "completion", "output", "predicted", "pred", "answer"),
)
STRUCTURED = ("value", "choice", "choices", "boxes", "abstained", "unscored")
RECORD_KEYS = ("answers", "predictions", "results", "data", "items")  # where a JSON object keeps its list of records


def read_answer_file(
    path: str | Path, id_column: str | None = None, text_column: str | None = None, holding: Collection[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, answer) in the file's order; place is "line 12" or "record 12", the answer has `id` and, where the file
    has texts, `text`, beside all its other keys.

    id_column, text_column: names that overrule the usual ones. holding: as in `read_jsonl`.
    Raises QuestionError: no such file, a suffix other than
    .jsonl, .ndjson, .json, .csv or .tsv, not UTF-8, broken lines, a row with more cells than columns, no column of ids
    or of answers (naming those found), an answer without id.
    """
    path = Path(path)
    table = path.suffix.lower() in (".csv", ".tsv")
    known: dict[tuple[str, ...], dict[str, str]] = {}
    for place, record in _records(path, holding):
        columns = known.get(names := tuple(record))
        if columns is None:
            where = str(path) if table else f"{path}, {place}"
            columns = known[names] = _columns(where, names, id_column, text_column, table)
        key = record.get(columns["id"])
        if not isinstance(key, str | int) or isinstance(key, bool) or str(key).strip() == "":
            found = "none" if key in (None, "") else repr(key)
            raise QuestionError(f"{path}, {place}", "an answer with an id", found, "write the question's id")
        answer = record if columns["id"] == "id" else {**record, "id": key}
        if "text" in columns and columns["text"] != "text":
            answer = {**answer, "text": record.get(columns["text"])}
        yield place, answer


def _records(path: Path, holding: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    suffix = path.suffix.lower()
    if not path.is_file():
        raise QuestionError(path, "a file of answers", "no such file", "check the path")
    if suffix in (".csv", ".tsv"):
        return _rows(path, "\t" if suffix == ".tsv" else ",")
    if suffix == ".json":
        return _json(path)
    if suffix in (".jsonl", ".ndjson"):
        return ((f"line {number}", record) for number, record in read_jsonl(path, holding))
    raise QuestionError(path, "a .jsonl, .json, .csv or .tsv file", repr(suffix), "convert or rename it")


def _rows(path: Path, separator: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a csv file. Empty cells are left out, JSON of boxes, choices and probabilities decoded."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = [name.strip() for name in next(reader, [])]
            if not header or len(set(header)) < len(header):
                raise QuestionError(path, "a header line with names that differ", repr(header), "name every column")
            line = reader.line_num + 1
            for cells in reader:
                if len(cells) > len(header):
                    found = f"{len(cells)} cells for {len(header)} columns"
                    raise QuestionError(f"{path}, line {line}", "a cell a column", found, "quote texts with separators")
                if any(cells):
                    yield (
                        f"line {line}",
                        _typed({n: c for n, c in zip(header, cells, strict=False) if c.strip()}, header),
                    )
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise QuestionError(path, "UTF-8 text", f"other bytes ({error.reason})", "save it as UTF-8") from None
        except csv.Error as error:
            where = f"{path}, line {reader.line_num}"
            raise QuestionError(where, "a csv row", str(error), "quote texts with separators or quotes") from None


def _typed(row: dict[str, Any], header: Sequence[str]) -> dict[str, Any]:
    """A csv row with the types that the contract has; what does not fit stays text, for the reader to complain of."""
    for name in ("value", "confidence"):
        with suppress(KeyError, ValueError):
            row[name] = float(row[name])
    for name in ("boxes", "choices", "probabilities"):
        with suppress(KeyError, ValueError):
            row[name] = json.loads(row[name])
    if "abstained" in row:
        row["abstained"] = row["abstained"].strip().lower() in ("true", "1", "yes")
    return dict.fromkeys(header) | row


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise QuestionError(path, "UTF-8 text", f"other bytes ({error.reason})", "save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise QuestionError(path, "JSON", f"broken JSON ({error})", "repair it, or name it .jsonl") from None
    if isinstance(content, dict):
        inner = next((content[key] for key in RECORD_KEYS if isinstance(content.get(key), list)), None)
        if inner is None:
            content = [
                {"id": key} | (text if isinstance(text, dict) else {"text": text}) for key, text in content.items()
            ]
        else:
            content = inner
    if not isinstance(content, list):
        raise QuestionError(path, "a list of answers, or an object id -> text", type(content).__name__, "convert it")
    for number, record in enumerate(content, 1):
        if not isinstance(record, dict):
            found = type(record).__name__
            raise QuestionError(f"{path}, record {number}", "a JSON object", found, "write one object an answer")
        yield f"record {number}", record


def _columns(
    where: str, names: Sequence[str], id_column: str | None, text_column: str | None, table: bool
) -> dict[str, str]:
    """Role -> the column that has it. Raises QuestionError naming the columns found; a table needs one of texts or of
    structured answers."""
    known = {_plain(name): name for name in reversed(names)}
    found = {}
    for role, chosen, usual in (("id", id_column, ID_NAMES), ("text", text_column, TEXT_NAMES)):
        spellings = usual if chosen is None else (chosen,)
        column = next((known[_plain(name)] for name in spellings if _plain(name) in known), None)
        if column is not None:
            found[role] = column
        elif role == "id" or (table and (chosen is not None or not set(STRUCTURED) & set(names))):
            wanted = f"a column {chosen!r}" if chosen else f"a column for the {role} ({', '.join(usual[:4])}, ...)"
            raise QuestionError(where, wanted, f"columns {', '.join(names)}", f"name it with --{role}-column")
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-]+", " ", name).strip().lower()
