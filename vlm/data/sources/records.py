"""A csv, tsv, json, jsonl or parquet file -> its rows, one at a time, in bounded memory, each with its line.

Rows go through the `datasets` library, which keeps them as an Arrow table in a scratch folder and maps it into memory.
csv cells stay text. Rows of csv and JSON lie in the table as JSON text: Arrow wants one type a column, while the public
sets mix numbers, strings and lists in one. A JSON array is streamed by ijson. What is wrong with one row (not UTF-8,
other cells than the header, broken or endless) is a fault of that row alone.
"""

from __future__ import annotations

import codecs
import csv
import glob
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from seg_backbone.errors import QuestionError
from vlm.schema import LONGEST_LINE

RECORD_KEYS = ("questions", "data", "annotations", "items")  # where a JSON object keeps its list of records
SEPARATORS = ",;\t|"
BATCH = 100  # rows that are held at once
WHOLE = 64 << 20  # bytes of a JSON array that is held at once where it cannot be streamed
Fault = tuple[str, str, str]  # expected, found, what to do
Found = tuple[str, str | Fault]  # place, and a row as JSON


def read_records(
    path: Path, scratch: Path, encoding: str | None = None
) -> Iterator[tuple[str, dict[str, Any] | QuestionError]]:
    """(place, row or what is wrong with it) in the file's order; place is "FILE:LINE", "FILE, record N" in a JSON
    array, or "FILE, row N" in parquet.

    scratch: an empty folder for Arrow tables, as large as the file. encoding: of csv and JSON; default UTF-8, or UTF-16
    where the file starts with its mark. Raises QuestionError where the file as a whole cannot be read: another suffix,
    a header that does not do, no rows.
    """
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its complaints are raised below, in our words
    suffix = path.suffix.lower()
    if suffix not in (*READERS, ".parquet"):
        raise QuestionError(path, "a .csv, .tsv, .json, .jsonl or .parquet file", repr(suffix), "convert it")
    try:
        if suffix == ".parquet":
            files = [glob.escape(str(path.resolve()))]
            table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(scratch))
        else:
            features = datasets.Features({name: datasets.Value("string") for name in ("place", "row", "fault")})
            told = {"path": str(path), "encoding": encoding}
            table = datasets.Dataset.from_generator(
                _as_text, features, str(scratch), gen_kwargs=told, fingerprint="records", writer_batch_size=BATCH
            )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, QuestionError):
            raise error.__cause__ from None
        _refuse(path, error.__cause__ or error)
    except ValueError as error:  # of pyarrow, and what `datasets` says of a file without rows
        _refuse(path, error if "no data" not in str(error) else ValueError("no rows"))
    for number, row in enumerate(_rows(table), start=1):
        if suffix == ".parquet":
            yield f"{path}, row {number}", row
        else:
            found = _decode(row["row"]) if row["row"] else tuple(json.loads(row["fault"]))
            yield row["place"], found if isinstance(found, dict) else QuestionError(row["place"], *found)


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow table, decoded a batch at a time: one by one takes twenty times as long."""
    for batch in table.iter(batch_size=BATCH):
        for cells in zip(*batch.values(), strict=True):
            yield dict(zip(batch, cells, strict=True))


def _as_text(path: str, encoding: str | None) -> Iterator[dict[str, str | None]]:
    """The rows and faults of a file as the table keeps them."""
    for place, found in READERS[Path(path).suffix.lower()](Path(path), encoding):
        text = found if isinstance(found, str) else None
        yield {"place": place, "row": text, "fault": None if text else json.dumps(found)}


def _csv(path: Path, encoding: str | None) -> Iterator[Found]:
    with _open(path, encoding) as file:
        lines = _Lines(file)
        header = next(lines, "")
        counted = {separator: header.count(separator) for separator in SEPARATORS}
        separator = "\t" if path.suffix.lower() == ".tsv" else max(SEPARATORS, key=counted.__getitem__)
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        names = [name or f"column {number}" for number, name in enumerate(names, start=1)]
        if broken := _undecoded(header):
            raise QuestionError(path, *broken)
        if len(set(names)) < max(len(names), 1):
            raise QuestionError(path, "a header line with names that differ", repr(header[:200]), "name every column")
        reader = csv.reader(lines, delimiter=separator, strict=True)
        end = 1
        while True:
            start, row, fault = end + 1, [], None
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                through = f" up to line {lines.number}" if lines.number > start else ""
                fault = ("a row of cells", f"{error}{through}", "mend its quotation marks")
            end = lines.number
            if any(start <= number <= end for number in lines.endless):
                fault = TOO_LONG
            while len(row) > len(names) and not row[-1]:  # separators that a spreadsheet left at the end
                row.pop()
            if row and len(row) != len(names):
                todo = "mend its quotation marks or separators"
                fault = fault or (f"{len(names)} cells, as in the header", f"{len(row)}", todo)
            fault = fault or _undecoded("".join(row))
            if row or fault:
                yield f"{path}:{start}", fault or json.dumps(dict(zip(names, row, strict=True)))


def _json_lines(path: Path, encoding: str | None) -> Iterator[Found]:
    with _open(path, encoding) as file:
        lines = _Lines(file)
        for line in lines:
            place = f"{path}:{lines.number}"
            if lines.number in lines.endless:
                yield place, TOO_LONG
            elif line.strip():
                yield place, _undecoded(line) or line.strip()


def _json(path: Path, encoding: str | None) -> Iterator[Found]:
    """The records of an array, of the array in an object under RECORD_KEYS, or else of lines."""
    import ijson

    count = 0
    with path.open("rb") as raw:
        file = _Watched(codecs.EncodedFile(raw, "utf-8", encoding) if encoding else raw)  # type: ignore[arg-type]
        try:
            start = 3 if raw.read(3) == codecs.BOM_UTF8 else 0
            raw.seek(start)
            where = _array(file)
            if where is not None:
                raw.seek(start)
                for record in ijson.items(file, where, use_float=True):
                    count, file.since = count + 1, 0
                    yield f"{path}, record {count}", json.dumps(record)
                return
        except _Endless:
            yield f"{path}, record {count + 1}", TOO_LONG
            return
        except (ijson.JSONError, UnicodeDecodeError, RecursionError) as error:
            records = _whole(path, encoding)
            for number, record in enumerate(records or [], start=1):
                if number > count:
                    broken = _undecoded(json.dumps(record, ensure_ascii=False))
                    yield f"{path}, record {number}", broken or json.dumps(record)
            if records is None:
                found = " ".join(str(error).split()) or type(error).__name__
                todo = "repair the file: what comes after cannot be read"
                yield f"{path}, record {count + 1}", ("rows that can be read", found, todo)
            return
    yield from _json_lines(path, encoding)


def _whole(path: Path, encoding: str | None) -> list[Any] | None:
    """The records of a file of moderate size that ijson refuses and Python reads: NaN, bytes of another encoding."""
    if path.stat().st_size > WHOLE:
        return None
    try:
        data = json.loads(path.read_text(encoding=encoding or "utf-8-sig", errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None
    if isinstance(data, dict):
        data = next((data[key] for key in RECORD_KEYS if key in data), None)
    return data if isinstance(data, list) else None


def _array(file: _Watched) -> str | None:
    """The ijson prefix of the records; None where the file starts with an object that has no list of them."""
    import ijson

    for prefix, event, _ in ijson.parse(file, multiple_values=True):
        file.since = 0
        if event == "start_array" and prefix in ("", *RECORD_KEYS):
            return f"{prefix}.item" if prefix else "item"
        if prefix == "" and event == "end_map":
            return None
    return "item"


READERS: dict[str, Callable[[Path, str | None], Iterator[Found]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}
TOO_LONG: Fault = ("one record a line", f"a record above {LONGEST_LINE >> 20} MiB", "break it into lines")


class _Lines:
    """The lines of a text file, none of them held beyond LONGEST_LINE: a longer one comes as "". number: of the last
    line, from 1. endless: the numbers of those that were longer."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.number = file, 0
        self.endless: set[int] = set()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.file.readline(LONGEST_LINE + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) <= LONGEST_LINE:
            return line
        self.endless.add(self.number)
        while line and not line.endswith(("\n", "\r")):
            line = self.file.readline(1 << 16)
        return "\n"


class _Endless(Exception):
    """A record goes on beyond LONGEST_LINE."""


class _Watched:
    """A binary file that raises _Endless once more than LONGEST_LINE bytes were read `since` the last reset."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.since = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.since += len(data)
        if self.since > LONGEST_LINE:
            raise _Endless
        return data


def _open(path: Path, encoding: str | None) -> TextIO:
    """The text of a file; bytes that are not of its encoding become what `_undecoded` finds."""
    if encoding is None:
        with path.open("rb") as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        encoding = "utf-16" if wide else "utf-8-sig"
    return path.open(encoding=encoding, errors="surrogateescape", newline="")


def _undecoded(text: str) -> Fault | None:
    if text.isascii():
        return None
    byte = next((ord(letter) - 0xDC00 for letter in text if 0xDC80 <= ord(letter) <= 0xDCFF), None)
    todo = "save it as UTF-8, or name its --encoding, for example cp1252"
    return None if byte is None else ("UTF-8 text", f"byte 0x{byte:02x}", todo)


def _decode(line: str) -> dict[str, Any] | Fault:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return "a JSON object", f"broken JSON ({error})", "repair it"
    return row if isinstance(row, dict) else ("a JSON object", type(row).__name__, "repair it")


def _refuse(path: Path, error: BaseException) -> NoReturn:
    found = " ".join(str(error).split()) or type(error).__name__
    raise QuestionError(path, "rows that can be read", found, "repair the file") from None
