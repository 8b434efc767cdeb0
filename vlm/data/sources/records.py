"""A csv, tsv, json, jsonl or parquet file -> its rows, one at a time, in bounded memory.

Files go through the `datasets` library, which writes them as Arrow tables into a scratch folder and maps these into
memory. csv cells stay text. JSON goes through it as lines of text and is decoded here: Arrow wants one type a column,
while the public sets mix numbers, strings and lists in one. A JSON array is streamed into lines by ijson before.
"""

from __future__ import annotations

import csv
import glob
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from seg_backbone.errors import QuestionError

RECORD_KEYS = ("questions", "data", "annotations", "items")  # where a JSON object keeps its list of records


def read_records(path: Path, scratch: Path) -> Iterator[tuple[str, dict[str, Any] | QuestionError]]:
    """(place, row or what is wrong with it) in the file's order; place is "FILE:LINE" or "FILE, row N".

    scratch: an empty folder for Arrow tables, as large as the file. Raises QuestionError where the file as a
    whole cannot be read: another suffix, not UTF-8, broken csv or JSON array, no rows.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        for number, row in enumerate(_rows(_csv(path, scratch)), start=1):
            yield f"{path}, row {number}", row
    elif suffix == ".parquet":
        for number, row in enumerate(_rows(_load("parquet", path, path, scratch)), start=1):
            yield f"{path}, row {number}", row
    elif suffix in (".json", ".jsonl", ".ndjson"):
        lines = path if suffix != ".json" else _json_lines(path, scratch)
        for number, row in enumerate(_rows(_load("text", lines, path, scratch)), start=1):
            if line := row["text"].removeprefix("\ufeff").strip():
                place = f"{path}:{number}" if lines == path else f"{path}, record {number}"
                yield place, _decode(line, place)
    else:
        raise QuestionError(path, "a .csv, .tsv, .json, .jsonl or .parquet file", repr(suffix), "convert it")


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow table, decoded a batch at a time: one by one takes twenty times as long."""
    for batch in table.iter(batch_size=1000):
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(batch, cells, strict=True))


def _decode(line: str, place: str) -> dict[str, Any] | QuestionError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return QuestionError(place, "a JSON object", f"broken JSON ({error})", "repair it")
    return row if isinstance(row, dict) else QuestionError(place, "a JSON object", type(row).__name__, "repair it")


def _csv(path: Path, scratch: Path) -> Any:
    """The table of a csv file, every cell text."""
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file, delimiter=separator), [])
    except UnicodeDecodeError as error:
        _refuse(path, error)
    names = [name.strip() or f"column {number}" for number, name in enumerate(header, start=1)]
    if len(set(names)) < max(len(names), 1):
        raise QuestionError(path, "a header line with names that differ", repr(header), "name every column")
    from datasets import Features, Value

    features = Features({name: Value("string") for name in names})
    options = {"names": names, "header": 0, "sep": separator, "encoding": "utf-8-sig", "keep_default_na": False}
    return _load("csv", path, path, scratch, features=features, **options)


def _load(builder: str, file: Path, source: Path, scratch: Path, **options: Any) -> Any:
    """A memory-mapped Arrow table of the file. source: the name for complaints."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its complaints are raised below, in our words
    if not file.stat().st_size:
        _refuse(source, ValueError("no rows"))
    files = [glob.escape(str(file.resolve()))]
    try:
        return datasets.load_dataset(builder, data_files=files, split="train", cache_dir=str(scratch), **options)
    except datasets.exceptions.DatasetGenerationError as error:
        _refuse(source, error.__cause__ or error)
    except ValueError as error:  # what it says of a file without rows
        _refuse(source, error if "no data" not in str(error) else ValueError("no rows"))


def _json_lines(path: Path, scratch: Path) -> Path:
    """One record a line, from an array, from the array in an object under RECORD_KEYS, or `path` where it is lines."""
    import ijson

    lines = scratch / "records.jsonl"
    try:
        with path.open("rb") as file, lines.open("w", encoding="utf-8") as out:
            if file.read(3) != b"\xef\xbb\xbf":
                file.seek(0)
            start, where = file.tell(), _array(file)
            if where is None:
                return path
            file.seek(start)
            for record in ijson.items(file, where, use_float=True):
                out.write(json.dumps(record) + "\n")
    except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
        _refuse(path, error)
    return lines


def _array(file: Any) -> str | None:
    """The ijson prefix of the records; None where the file starts with an object that has no list of them."""
    import ijson

    for prefix, event, _ in ijson.parse(file, multiple_values=True):
        if event == "start_array" and prefix in ("", *RECORD_KEYS):
            return f"{prefix}.item" if prefix else "item"
        if prefix == "" and event == "end_map":
            return None
    return "item"


def _refuse(path: Path, error: BaseException) -> NoReturn:
    if isinstance(error, UnicodeDecodeError):
        raise QuestionError(path, "UTF-8 text", f"other bytes ({error.reason})", "save it as UTF-8") from None
    found = " ".join(str(error).split()) or type(error).__name__
    raise QuestionError(path, "rows that can be read", found, "repair the file") from None
