"""Examples from files of questions that somebody answered (`vlm data import`), for a model that writes its answers.

Enters a JSONL file of questions and its scans; leaves one example a scan, whose instances are those that the
segmentation model finds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from seg_backbone.boxes import Box
from seg_backbone.cases import CaseFiles
from seg_backbone.io import read_volume, replacing
from seg_backbone.lesions import Instance
from seg_backbone.predict import Segmenter
from seg_backbone.volume import Volume
from vlm.body import body_place
from vlm.encoders import Encoder
from vlm.encoders.pooling import Cells, instance_features, visual_cells
from vlm.scene import Scene, largest, scene_of
from vlm.schema import Question, read_questions
from vlm.train.examples import Example


@dataclass(frozen=True)
class QuestionFile:
    """file: JSONL of questions with answers. validation: another one, about other patients, watched meanwhile. scans:
    the folder that `image` is relative to, by default that of each file. weight: share of the scenes.
    """

    file: Path
    validation: Path | None = None
    scans: Path | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        for key in ("file", "validation", "scans"):  # strings, where they come from a file
            if getattr(self, key) is not None:
                object.__setattr__(self, key, Path(getattr(self, key)))


def load_answered(
    source: QuestionFile,
    part: str,
    segmenter: Segmenter,
    encoder: Encoder,
    cache: Path,
    most: int,
    cells: Cells,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Example]:
    """The scans of a part, "training" or "validation", with their questions; at most `most` scans, spread evenly.

    Questions without an answer are left out. What is seen of a scan is cached by its voxels, the models and cells.
    Raises QuestionError at the first fault of the file, and what the readers of scans raise.
    """
    file = source.file if part == "training" else source.validation
    if file is None:
        return []
    cache.mkdir(parents=True, exist_ok=True)
    asked: dict[str, list[Question]] = {}
    for question in read_questions(file):
        if question.answer is not None:
            asked.setdefault(question.image, []).append(question)
    images = list(asked)
    keep = np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)
    examples = []
    for number, image in enumerate(images[n] for n in keep):
        path = (source.scans or file.parent) / image
        volume = read_volume(path)
        scene = _scene(volume, segmenter, encoder, cache, cells)
        patient = str(asked[image][0].extra.get("patient", image))
        files = CaseFiles(str(source.file), image, patient, volume.modality, path, None, {}, ())
        examples.append(Example(scene, files, (), None, asked=tuple(asked[image])))
        if progress:
            progress(f"encoding scans of {file.name}", number + 1, len(keep))
    return examples


def _scene(volume: Volume, segmenter: Segmenter, encoder: Encoder, cache: Path, cells: Cells) -> Scene:
    settings = f"{segmenter.version} {encoder.version} {cells} about the body {volume.modality}".encode()
    voxels = np.ascontiguousarray(volume.array)
    digest = hashlib.sha256(settings + volume.grid.affine.tobytes())
    digest.update(voxels.data)
    place, store = body_place(volume), cache / f"found_{digest.hexdigest()[:20]}.npz"
    if not store.is_file():
        found = segmenter(volume, fast=True, keep_stages=encoder.shared_stages)
        features = found.features if encoder.shared_stages else encoder(volume)
        shown = largest(found.instances)
        visual = visual_cells(features, volume.grid.cropped(place), cells)
        pooled = instance_features(features, found.instances, shown, volume.grid)
        listed = json.dumps([asdict(instance) for instance in shown])
        with replacing(store) as temporary:
            np.savez(temporary, visual=visual, pooled=pooled, instances=listed)
    saved = np.load(store)
    rows = [Instance(**row) for row in json.loads(str(saved["instances"]))]
    instances = [replace(row, box=Box(**row.box)) for row in rows]  # type: ignore[arg-type]  # a dict, from the file
    untrained = tuple(segmenter.untrained(volume.modality))
    return scene_of(volume, place, instances, segmenter.plan.classes, untrained, saved["visual"], saved["pooled"])
