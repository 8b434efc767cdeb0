"""DeepTumorVQA 1.0 and 2.0: 42 subtypes of questions on tumours in 9,262 abdominal CT, most answered by measuring.

Files: benchmark/test_qa.json (`{"questions": [...]}`) or test_qa.jsonl and train/*.csv with `qid, image_id, question,
answer, mc_question, correct_option, question_type, question_subtype, spacing, shape, ...`; 1.0 has `image, question,
answer`. `property` is the subtype; it decides the type: counting, measurement in the unit that the question names,
regression, yes/no, or a choice among the options of `mc_question` (passed through with `correct_option`, for multiple
choice of all). `image` is ct/ID/ct.nii.gz beside test_qa.json, as released, and ID/ct.nii.gz for the training scans,
which come from AbdomenAtlas3.0Mini: name its folder with --scans.
Licence: CC BY 4.0 for the questions; the scans have their own.
Cite: Chen et al., DeepTumorVQA, arXiv:2605.09679 (2.0) and arXiv:2505.18915 (1.0).

    {"qid": "q1", "image_id": "CASE_7", "question": "How many cysts has the left kidney?", "answer": "2",
     "mc_question": "How many cysts has the left kidney? A: 1 B: 2 C: 3 D: 4", "correct_option": "B",
     "question_subtype": "lesion counting"}
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from seg_backbone.errors import QuestionError
from vlm.data.sources.question_source import (
    YES_NO,
    QuestionSource,
    Record,
    ask,
    choice,
    lettered,
    number,
    unit_in,
)

TYPES = {
    "lesion counting": "counting",
    "lesion count by location": "counting",
    "organ volume measurement": "measurement",
    "lesion volume measurement": "measurement",
    "organ hu measurement": "measurement",
    "tumor organ hu difference": "measurement",
    "tumor burden percentage": "measurement",
    "largest lesion diameter": "measurement",
    "organ aggregation": "measurement",
    "organ hu ratio": "regression",
    "largest lesion slice": "regression",
}
UNITS = {"organ hu measurement": "HU", "tumor organ hu difference": "HU", "tumor burden percentage": "%"}
COLUMNS = {
    "id": ("qid", "id"),
    "image": ("image_id", "image"),
    "question": ("question",),
    "answer": ("answer",),
    "letter": ("correct_option",),
    "property": ("question_subtype",),
}

KEPT = {"property": "property", "correct_option": "letter"}


def _convert(record: Record) -> Iterator[dict[str, Any]]:
    subtype, answer = record.text("property"), record.text("answer")
    row = {"image": _image(record), "question": record.text("question")}
    row |= {key: record.text(role) for key, role in KEPT.items() if role in record.cells}
    kind = TYPES.get(subtype.lower())
    if kind:
        found = number(answer)
        if answer and not found:
            raise QuestionError(record.place, f"a number for {subtype}", repr(answer), "correct the row")
        given = (found or {}).get("unit")
        unit = given or unit_in(row["question"]) or UNITS.get(subtype.lower()) if kind == "measurement" else None
        yield row | {"type": kind} | ({"answer": found["answer"]} if found else {}) | ({"unit": unit} if unit else {})
        return
    _, options = lettered(str(record.rest.get("mc_question") or ""))
    if answer.lower().rstrip(".") in YES_NO:
        yield row | choice(record.place, YES_NO, "", answer)
    elif options:
        yield row | choice(record.place, options, record.text("letter"), answer)
    else:
        yield ask(record) | row


def _image(record: Record) -> str:
    name = record.text("image")
    if not name or "." in name:
        return name
    if record.file.stem == "test_qa":
        return (record.file.parent / "ct" / name / "ct.nii.gz").as_posix()
    return f"{name}/ct.nii.gz"


SOURCE = QuestionSource("deeptumorvqa", ("*_qa.json", "*_qa.csv", "*_qa_pool.csv"), COLUMNS, _convert)
