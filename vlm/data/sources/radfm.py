"""RadFM and MedMD style: csv files of image, question and answer (radiology_vqa, PMC-VQA, VQA-RAD, SLAKE lists).

Files: *.csv with `image_path, question, answer`, or `img_root_dir, Figure_path, Question, Answer`, where the folder is
put before the name; PMC-VQA's own lists add `Choice A ... Choice D` and `Answer_label`. Options inside the question
("A: left B: right") become `options` where the answer is one of them.
Lists of captions and of diseases (`disease, label`) hold no questions and are refused.
Licence: that of each list's images; Radiopaedia's and PMC's are for non-commercial research.
Cite: Wu et al., Towards Generalist Foundation Model for Radiology, Nature Communications 16, 7866 (2025),
arXiv:2308.02463.

    image_path,question,answer
    radiopaedia/7/ct.nii.gz,Where is the mass?,in the left kidney
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any

from seg_backbone.errors import QuestionError
from vlm.data.sources.question_source import CHOICES, QuestionSource, Record, ask, choice, lettered

COLUMNS = {
    "image": ("image_path", "figure_path", "npy_path"),
    "root": ("img_root_dir",),
    "question": ("question",),
    "answer": ("answer",),
    "letter": ("answer_label",),
    **CHOICES,
}


def _convert(record: Record) -> Iterator[dict[str, Any]]:
    row = ask(record)
    row["image"] = (PurePosixPath(record.text("root")) / row["image"]).as_posix() if row["image"] else ""
    stem, options = lettered(row["question"])
    if "options" not in row and options and stem and record.text("answer"):
        with suppress(QuestionError):  # letters that are no options: the question stays as it is
            row |= choice(record.place, options, "", record.text("answer")) | {"question": stem}
    yield row


SOURCE = QuestionSource("radfm", ("*.csv",), COLUMNS, _convert)
