"""FLARE-MLLM (FLARE25 task 5, FLARE26 task 3): 19 sets of 2D images with seven kinds of questions.

Files: SPLIT/MODALITY/DATASET/DATASET_questions_*.json beside imagesTr, imagesVal or imagesTs: an array of records, or
an object that holds one, with `TaskType, Modality, ImageName (a name or a list), Question, Answer, Split`. In a folder
X_questions_val_withGT.json is read instead of X_questions_val.json, the same questions without answers. Of several
images the first is `image` and all are `images`. Options are read from the question ("A. no, B. yes"); answers of
several labels are separated by semicolons. Boxes are pixels of a 2D image, which the contract has no place
for: detection answers are kept as text in `pixel_boxes`, without `answer`. `property` is the task type with the set.
Licence: that of each of the 19 sets, for research. Cite: FLARE-MedFM/FLARE-Task5-MLLM-2D (MICCAI FLARE 2025).

    [{"TaskType": "Classification", "Modality": "Ultrasound", "ImageName": "imagesTr/7.png",
      "Question": "Is there a nodule? A. no, B. yes", "Answer": "B", "Split": "train"}]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from seg_backbone.errors import QuestionError
from vlm.data.sources.question_source import QuestionSource, Record, choice, lettered, number, parse

TYPES = {
    "classification": "classification",
    "binary classification": "classification",
    "multi label classification": "multilabel",
    "multilabel classification": "multilabel",
    "detection": "detection",
    "object detection": "detection",
    "instance detection": "detection",
    "counting": "counting",
    "cell counting": "counting",
    "regression": "regression",
    "report generation": "open",
}
FOLDERS = ("imagesTr", "imagesVal", "imagesTs", "images")
COLUMNS = {
    "id": ("uid", "id"),
    "task": ("task type", "task"),
    "image": ("image name", "image", "images"),
    "question": ("question",),
    "answer": ("answer",),
}


def _convert(record: Record) -> Iterator[dict[str, Any]]:
    task = re.sub(r"[\s_-]+", " ", record.text("task")).strip().lower()
    if task not in TYPES:
        raise QuestionError(record.place, f"a TaskType among {', '.join(TYPES)}", repr(task), "correct the record")
    kind = TYPES[task]
    named = record.cells.get("image")
    images = [_image(record, str(name)) for name in (named if isinstance(named, list) else [named]) if name]
    row: dict[str, Any] = {"image": images[0] if images else "", "question": record.text("question"), "type": kind}
    row["property"] = f"{task} {record.file.parent.name}".strip()
    if len(images) > 1:
        row["images"] = images
    given = record.cells.get("answer")
    boxes = given if kind == "detection" else None
    labels = given if kind == "multilabel" and isinstance(given, list) else None
    answer = ";".join(map(str, labels)) if labels is not None else record.text("answer") if boxes is None else ""
    answered = answer not in ("", "None")  # the hidden splits have none
    stem, options = lettered(row["question"]) if kind in ("classification", "multilabel") else ("", ())
    if options:
        row |= {"question": stem, "options": list(options)}
    if boxes is not None:
        row["pixel_boxes"] = parse(boxes) or boxes if isinstance(boxes, str) else boxes
    elif not answered:
        pass
    elif kind == "classification":
        row |= choice(record.place, options, "", answer) if options else {"answer": answer}
    elif kind == "multilabel":
        parts = [label.strip() for label in re.split("[;,]" if options else ";", answer) if label.strip()]
        row["answer"] = [choice(record.place, options, "", one)["answer"] for one in parts] if options else parts
    elif kind == "open":
        row["answer"] = answer
    elif found := number(answer):
        row["answer"] = found["answer"]
    else:
        raise QuestionError(record.place, f"a number for {task}", repr(answer), "correct the record")
    yield row


def _image(record: Record, name: str) -> str:
    """The image beside the record's file: as named, else in the folder of images that has it; else as named."""
    beside = PurePosixPath(record.file.parent.as_posix())
    places = [beside / name, *(beside / folder / PurePosixPath(name).name for folder in FOLDERS)]
    return next((place for place in places if (record.folder / place).is_file()), places[0]).as_posix()


def _has_answers_beside(file: Path) -> bool:
    """Whether the same questions lie beside it with their answers: X_questions_val_withGT.json."""
    return file.with_name(f"{file.stem}_withGT{file.suffix}").is_file()


SOURCE = QuestionSource("flare-mllm", ("*questions*.json",), COLUMNS, _convert, superseded=_has_answers_beside)
