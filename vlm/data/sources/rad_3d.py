"""3D-RAD: six tasks on chest CT of CT-RATE, from observation to change over time, open and multiple choice.

Files: {train,test}/TaskN_Name/Subtask.csv with `Task, Subtask, VolumeName, Question, Answer, QuestionType,
AnswerChoice, Choice A ... Choice D`, where "-" stands for no choice. `property` is the folder and file name, `patient`
the start of the volume's name. An answer like "2 cm" is a measurement, "7-8 mm" stays open text.
Licence: MIT for the questions (repository Tang-xiaoxiao/3D-RAD); the scans are CT-RATE's, CC BY-NC-SA 4.0.
Cite: Gai et al., 3D-RAD: A Comprehensive 3D Radiology Med-VQA Dataset, NeurIPS 2025, arXiv:2506.11147.

    Task,Subtask,VolumeName,Question,Answer,QuestionType,AnswerChoice,Choice A,Choice B,Choice C,Choice D
    3,1,test_7_a_1.nii.gz,How wide is the nodule?,2 cm,Open,-,-,-,-,-
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from vlm.data.sources.question_source import CHOICES, QuestionSource, Record, ask

COLUMNS = {
    "image": ("volume name", "image"),
    "question": ("question",),
    "answer": ("answer",),
    "letter": ("answer choice",),
    **CHOICES,
}


def patient_of(volume: str) -> str:
    """The patient in the name of a CT-RATE volume: "train_12_a_2.nii.gz" -> "train_12"; other names as they are."""
    found = re.match(r"(train|valid|test)_\d+", volume)
    return found[0] if found else volume


def _convert(record: Record) -> Iterator[dict[str, Any]]:
    row = ask(record)
    subtask = "/".join(record.file.with_suffix("").parts[-2:])
    yield row | {"property": subtask, "patient": patient_of(row["image"])}


SOURCE = QuestionSource("3d-rad", ("*.csv",), COLUMNS, _convert)
