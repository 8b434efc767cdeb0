"""CT-RATE VQA (of CT-CHAT): conversations about chest CT: long and short answers, multiple choice, reports.

Files: dataset/vqa/{train,valid}_vqa.json, an array of `id, image, conversations`, where a conversation is a list of
`{"from": "human" | "gpt", "value": text}`. Every question with its answer becomes a row. The marks <image>,
<long_answer>, <short_answer>, <multiple_choice> and <report_generation> leave the text; the last four become
`property`. `image` is the path below dataset/train_fixed or valid_fixed (train_1/train_1_a/train_1_a_1.nii.gz), to be
named with --scans; `patient` is its start. Conversations without a scan are left out and counted.
Licence: CC BY-NC-SA 4.0. Cite: Hamamci et al., Developing Generalist Foundation Models from a Multimodal Dataset for 3D
Computed Tomography, arXiv:2403.17834.

    [{"id": "multiple_choice_1", "image": "valid_7_a_1.nii.gz", "conversations": [
        {"from": "human", "value": "<image>\\nWhich side? (a) left (b) right<multiple_choice>"},
        {"from": "gpt", "value": "(b) right"}]}]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from seg_backbone.errors import QuestionError
from vlm.data.sources.question_source import YES_NO, QuestionSource, Record, choice, lettered
from vlm.data.sources.rad_3d import patient_of

MARKS = re.compile(r"<(image|long_answer|short_answer|multiple_choice|report_generation)>")
VOLUME = re.compile(r"((?:train|valid)_\d+)(_[a-z]+)(_\d+)(\.nii\.gz)?$")
COLUMNS = {"id": ("id",), "image": ("image",), "conversations": ("conversations",)}


def _convert(record: Record) -> Iterator[dict[str, Any]]:
    image = record.text("image")
    if not image:
        return
    turns = record.cells.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise QuestionError(record.place, "conversations as a list of turns", repr(turns)[:80], "correct the record")
    speakers = [turn.get("from") for turn in turns]
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        raise QuestionError(record.place, "turns of human and gpt by turns", repr(speakers)[:80], "correct the record")
    for asked, answered in zip(turns[::2], turns[1::2], strict=True):
        kinds = [kind for kind in MARKS.findall(str(asked.get("value", ""))) if kind != "image"]
        question = MARKS.sub("", str(asked.get("value", ""))).strip()
        answer = str(answered.get("value", "")).strip()
        row = {"image": _path(image), "question": question, "patient": patient_of(image)}
        if kinds:
            row["property"] = kinds[0]
        stem, options = lettered(question) if "multiple_choice" in kinds else (question, ())
        if options:
            yield row | {"question": stem} | choice(record.place, options, "", answer)
        elif answer.lower().rstrip(".") in YES_NO:
            yield row | choice(record.place, YES_NO, "", answer)
        else:
            yield row | {"type": "open", "answer": answer}


def _path(volume: str) -> str:
    found = VOLUME.match(volume)
    return f"{found[1]}/{found[1]}{found[2]}/{found[1]}{found[2]}{found[3]}.nii.gz" if found else volume


SOURCE = QuestionSource("ct-rate-vqa", ("*vqa*.json",), COLUMNS, _convert, required=("conversations",))
