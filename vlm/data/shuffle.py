"""Questions with another patient's scan: what a model answers to them right, it did not read off the image.

Every image of a dataset is exchanged for one of another patient of the same dataset, so that its modality, its masks
and the classes it annotates stay what the question expects. An accuracy that does not fall with it is a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from seg_backbone.errors import QuestionError
from vlm.schema import Question


def shuffle_images(questions: Sequence[Question], seed: int = 0) -> list[Question]:
    """The same questions with the same answers in the same order, `image` exchanged; `shuffled_from` keeps the old one.

    Each image is dealt once, to questions of one other image. patient, dataset: keys of the questions; without them
    every image is a patient, and all are one dataset. Raises QuestionError where more than half of a dataset's images
    are of one patient, so that some would have to keep their own.
    """
    random, dealt = Random(seed), dict[str, str]()
    patients: dict[str, dict[str, list[str]]] = {}
    for question in questions:
        dataset, patient = (str(question.extra.get(key, "")) for key in ("dataset", "patient"))
        images = patients.setdefault(dataset, {}).setdefault(patient or question.image, [])
        images += [] if question.image in images else [question.image]
    for dataset, of in patients.items():
        groups = list(of.values())
        random.shuffle(groups)
        row, most = [image for group in groups for image in group], max(map(len, groups))
        if 2 * most > len(row):
            found = f"{most} of {len(row)} images of one patient"
            raise QuestionError(dataset or "questions", "images of several patients", found, "add patients")
        # a turn by the largest group leaves no image within its own
        dealt |= dict(zip(row, row[most:] + row[:most], strict=True))
    return [replace(q, image=dealt[q.image], extra=q.extra | {"shuffled_from": q.image}) for q in questions]
