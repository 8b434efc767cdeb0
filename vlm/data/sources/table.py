"""Any csv, tsv, json, jsonl or parquet file of questions, its columns matched by name or by --columns.

Columns: `image`, `question`, and as there are `id, answer, type, options, unit, region, choice_a` ... `choice_j` and
`letter` (of the right choice); each under the names below, or as `--columns question=Q,answer=A,image=path` tells.
`image` may be a list: the first is asked about, all are `images`. `options` is a list or "a;b". A `type` is one of the
contract's; without it the answer tells it. An answer of several labels is a list or "a;b", of detection a list of boxes
with min_mm and max_mm. Other columns are passed through. csv may be separated by semicolons, tabs or bars.
Licence and citation: yours.

    path,Q,A
    case_7.nii.gz,How many lesions are there?,2
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from seg_backbone.errors import QuestionError
from vlm.data.sources.question_source import CHOICES, QuestionSource, Record, ask, choice, number, options_of, parse
from vlm.schema import check_type

COLUMNS = {
    "id": ("id", "qid", "uid", "question id"),
    "image": ("image", "image path", "path", "scan", "volume name", "image id", "image name", "file"),
    "question": ("question", "prompt"),
    "answer": ("answer", "reference", "ground truth"),
    "letter": ("answer choice", "correct option", "correct choice"),
    "options": ("options", "choices"),
    "type": ("type",),
    "unit": ("unit",),
    "region": ("region",),
    **CHOICES,
}


def _convert(record: Record) -> Iterator[dict[str, Any]]:
    images = record.cells.get("image")
    if isinstance(images, list) and images and all(isinstance(image, str) for image in images):
        first = replace(record, cells={**record.cells, "image": images[0]})
        yield from (row | {"images": images} for row in _convert(first))
        return
    answer = record.cells.get("answer")
    kind = record.text("type").lower() or None
    check_type(kind, record.place)
    if kind is None and isinstance(answer, list):
        kind = "detection" if answer and isinstance(answer[0], dict) else "multilabel"
    base = {role: record.text(role) for role in ("image", "question", "unit", "region") if role in record.cells}
    if kind is None:
        shown = {**ask(record), **base}
        measured = "unit" in base and shown.get("type") in ("counting", "regression")
        yield {**shown, "type": "measurement"} if measured else shown
        return
    row: dict[str, Any] = {**base, "type": kind}
    options = options_of(record)
    if options:
        row["options"] = list(options)
    if answer is None and not record.text("letter"):
        yield row
    elif kind in ("counting", "measurement", "regression"):
        found = number(record.text("answer"))
        if not found:
            raise QuestionError(record.place, f"a number for {kind}", repr(answer), "correct the row")
        yield {**found, **row}
    elif kind == "classification" and options:
        yield {**row, **choice(record.place, options, record.text("letter"), record.text("answer"))}
    elif kind in ("multilabel", "detection") and isinstance(answer, str):
        listed = parse(answer) if answer.lstrip().startswith("[") else [one.strip() for one in answer.split(";")]
        if not isinstance(listed, list):
            raise QuestionError(record.place, f"a list for {kind}", repr(answer), "correct the row")
        yield {**row, "answer": listed}
    else:
        yield {**row, "answer": answer}


SOURCE = QuestionSource("table", ("*.csv", "*.tsv", "*.json", "*.jsonl", "*.parquet"), COLUMNS, _convert)
