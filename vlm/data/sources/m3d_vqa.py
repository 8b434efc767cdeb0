"""M3D-VQA: questions on plane, phase, organ, abnormality and location of 3D CT, multiple choice or yes/no.

Files: M3D_VQA_*.csv with `Image Path, Question Type, Question, Choice A ... Choice D, Answer, Answer Choice`, and
M3D_VQA_yn_*.csv without choices. Images are .npy arrays scaled to 0..1 without a grid: use the NIfTI scans they came
from to measure on them. The `Question Type` (a number from 1 or its name) becomes `property`.
Licence: Apache-2.0 as the repository BAAI-DCAI/M3D states; the scans come from Radiopaedia, under its terms.
Cite: Bai et al., M3D: Advancing 3D Medical Image Analysis with Multi-Modal Large Language Models, arXiv:2404.00578.

    Image Path,Question Type,Question,Choice A,Choice B,Choice C,Choice D,Answer,Answer Choice
    ct/7/axial.npy,3,Which organ is enlarged?,Liver,Spleen,Kidney,Bladder,Spleen,B
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlm.data.sources.question_source import CHOICES, QuestionSource, Record, ask

PROPERTIES = dict(zip("12345", ("plane", "phase", "organ", "abnormality", "location"), strict=True))
COLUMNS = {
    "image": ("image path", "image"),
    "question": ("question",),
    "answer": ("answer",),
    "letter": ("answer choice",),
    "property": ("question type",),
    **CHOICES,
}


def _convert(record: Record) -> Iterator[dict[str, Any]]:
    property_ = record.text("property").removesuffix(".0")
    yield ask(record) | {"property": PROPERTIES.get(property_, property_.lower() or "question")}


SOURCE = QuestionSource("m3d-vqa", ("*VQA*.csv",), COLUMNS, _convert)
