"""What the language model learns from: scenes of real training cases, invented scenes, and questions about both.

A real scene holds the instances of the reference mask with the encoder's features. An invented one borrows a real
scan's visual tokens and fills it with instances drawn from many scans, renamed, resized and moved, so that counts,
ranks, sides and names vary as they do not in data with one tumour a patient. Its answers stay true of its instances.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np

from seg_backbone.boxes import Box
from seg_backbone.cases import CaseFiles, DatasetEntry, list_cases, read_split, split_cases
from seg_backbone.io import read_mask, read_volume, replacing
from seg_backbone.labels import LESIONS, WORDS
from seg_backbone.lesions import Instance, find_instances
from vlm.body import body_place
from vlm.data.questions import fat_percent, questions_of_case
from vlm.data.targets import Targets, Told
from vlm.data.wordings import Wordings
from vlm.encoders import Encoder
from vlm.encoders.pooling import CELLS, Cells, instance_features, visual_cells
from vlm.scene import Scene, largest, scene_of
from vlm.schema import Question


@dataclass(frozen=True, eq=False)
class Example:
    """A scene and where its questions come from. fat: per cent of the body that is fat, None where unknown. told: what
    a user's table says of the scan, by fact. asked: questions that somebody answered, instead of drawn ones.
    """

    scene: Scene
    files: CaseFiles
    absent: tuple[str, ...]
    fat: float | None
    told: Mapping[str, Told] = field(default_factory=dict)
    asked: tuple[Question, ...] = ()


def load_examples(
    data: Path,
    datasets: Sequence[DatasetEntry],
    split: Path | None,
    part: str,
    encoder: Encoder,
    cache: Path,
    most: int,
    progress: Callable[[str, int, int], None] | None = None,
    cells: Cells = CELLS,
    targets: Targets | None = None,
) -> list[Example]:
    """Scenes of the cases of a part, at most `most` a dataset, spread evenly; cases without a mask are left out, those
    with synthetic tumours are in the part "training" alone.

    Features are cached by scan, mask, encoder and cells. targets: of a user's table.
    """
    cache.mkdir(parents=True, exist_ok=True)
    table = read_split(split) if split else {}
    jobs = []
    for entry in datasets:
        files = [case for case in split_cases(list_cases(data, entry.name), table, part) if case.mask and case.labels]
        if part != "training":
            files = [case for case in files if not case.synthetic]
        keep = np.linspace(0, len(files) - 1, min(most, len(files))).round().astype(int)
        jobs += [(files[n], entry) for n in keep]
    fats: dict[str, float | None] = {}
    examples = []
    for number, (files, entry) in enumerate(jobs):
        example = _load(files, entry, encoder, cache, cells, fats)
        examples.append(replace(example, told=targets.of(files)) if targets else example)
        if progress:
            progress("encoding scans", number + 1, len(jobs))
    # an MR has no Hounsfield units: its share of fat is that of the same patient's CT, where there is one
    return [replace(e, fat=fats.get(e.files.patient)) if e.scene.modality == "MR" else e for e in examples]


def questions_about(example: Example, wordings: Wordings, random: Random, count: int, part: str) -> list[Question]:
    """`count` questions at most: of every fact in turn, freshly worded, or of those that come with the example."""
    if example.asked:
        return random.sample(example.asked, min(count, len(example.asked)))
    return questions_of_case(
        example.files,
        example.scene.instances,
        example.scene.body,
        wordings,
        part,
        random,
        per_case=count,
        absent=example.absent,
        fat=example.fat,
        include_open=True,
        told=example.told,
    )


def invent(pool: Sequence[Example], names: Sequence[str], random: Random) -> Example:
    """An invented scene. pool: real examples to borrow from; names: classes outside the vocabulary to rename to."""
    base = random.choice(pool)
    foreign = [name.replace(" ", "_") for name in names]
    known = [name for name in WORDS if name not in LESIONS]
    lesion = LESIONS[0]
    organs = random.sample(known if random.random() < 0.5 else foreign, random.randint(0, 6))
    if random.random() < 0.3:
        organs = sorted({*organs, "parotid_left", "parotid_right"})
    missing = random.sample([n for n in (*known, *foreign) if n not in organs], 3)
    counts = {lesion: random.choice((0, 0, 1, 1, 2, 3, 4, 6))} | dict.fromkeys(organs, 1)
    donors = [(e, n) for e in pool for n in range(len(e.scene.instances))]
    low, high = base.scene.body.extent_mm()
    made: list[tuple[Instance, np.ndarray]] = []
    for label, number in counts.items():
        drawn = []
        for _ in range(number):
            donor, row = random.choice(donors)
            centre = [random.uniform(a, b) for a, b in zip(low, high, strict=True)]
            moved = _moved(donor.scene.instances[row], label, centre, float((low + high)[0] / 2), random)
            drawn.append((moved, donor.scene.pooled[row]))
        drawn.sort(key=lambda item: -item[0].volume_ml)
        made += [(replace(i, rank=rank), pooled) for rank, (i, pooled) in enumerate(drawn, start=1)]
    instances = [replace(instance, id=number) for number, (instance, _) in enumerate(made, start=1)]
    channels = base.scene.pooled.shape[1]
    pooled = np.stack([p for _, p in made]) if made else np.zeros((0, channels), dtype=np.float32)
    labels = {name: number for number, name in enumerate(counts, start=1)}
    scene = replace(base.scene.showing(instances, pooled), classes=tuple(counts))
    files = replace(base.files, annotated=tuple(counts), labels=labels, mask=base.files.image)
    return Example(scene, files, tuple(missing), base.fat)


def _load(
    files: CaseFiles, entry: DatasetEntry, encoder: Encoder, cache: Path, cells: Cells, fats: dict[str, float | None]
) -> Example:
    assert files.mask is not None, "cases without a mask are left out"
    volume = read_volume(files.image, files.modality)
    instances = find_instances(read_mask(files.mask, files.labels), volume)
    shown, place = largest(i for i in instances if i.label in files.annotated), body_place(volume)
    if volume.modality == "CT":
        fats[files.patient] = fat_percent(volume)
    settings = f"{encoder.version} {cells} about the body".encode()
    key = hashlib.sha256(files.image.read_bytes() + files.mask.read_bytes() + settings).hexdigest()[:20]
    store = cache / f"{key}.npz"
    if not store.is_file():
        features = encoder(volume)
        visual = visual_cells(features, volume.grid.cropped(place), cells)
        pooled = instance_features(features, instances, shown, volume.grid)
        with replacing(store) as temporary:
            np.savez(temporary, visual=visual, pooled=pooled)
    saved = np.load(store)
    named = replace(volume, source=files.case)
    scene = scene_of(named, place, shown, files.annotated, (), saved["visual"], saved["pooled"])
    return Example(scene, files, entry.absent, fats.get(files.patient))


def _moved(donor: Instance, label: str, centre: list[float], middle_x: float, random: Random) -> Instance:
    """A copy of an instance under another name and place, every length scaled by one factor."""
    scale = float(np.exp(random.uniform(-1.0, 0.6)))
    half = [size * scale / 2 for size in donor.box.size_mm]
    x, y, z = centre
    low = (x - half[0], y - half[1], z - half[2])
    high = (x + half[0], y + half[1], z + half[2])
    named = label.rpartition("_")[2]
    away = x - middle_x
    side = named if named in ("left", "right") else "midline" if abs(away) <= 5 else "right" if away > 0 else "left"
    shift = random.uniform(-60, 60)
    return replace(
        donor,
        label=label,
        volume_ml=donor.volume_ml * scale**3,
        long_axis_mm=donor.long_axis_mm * scale,
        short_axis_mm=donor.short_axis_mm * scale,
        diameter_3d_mm=donor.diameter_3d_mm * scale,
        craniocaudal_mm=donor.craniocaudal_mm * scale,
        center_mm=(x, y, z),
        box=Box(low, high),
        side=side,
        intensity_mean=None if donor.intensity_mean is None else donor.intensity_mean + shift,
        probability=random.uniform(0.6, 1.0),
    )
