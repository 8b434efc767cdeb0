"""Reference masks -> questions with answers.

Enters a case (scan, mask, what it annotates), leaves `Question`s whose answers are measured on the reference instances
by the code that also answers, and which name those instances (`instances`), so that a pointer can learn to select them.

What is asked
- Only about classes that the case annotates, and classes that its body region cannot contain (`absent`). Anything else
  is unknown: neither "yes" nor "no" nor 0 would be true.
- A lesion may come in any number. Every other class is one structure: its largest piece counts, and it is not measured
  where a second piece holds more than 5 % of it, or where its end is the end of the drawing (ENDLESS).
- No comparison is asked where two volumes, or a measure and its threshold, are too near to call.
- Answers are balanced within a case as far as its content allows, options are shuffled.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import cc3d
import numpy as np

from seg_backbone.cases import CaseFiles, list_cases, split_cases
from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.io import read_mask, read_volume
from seg_backbone.labels import LESIONS
from seg_backbone.lesions import BODY_HU, Instance, Instances, find_instances
from seg_backbone.relations import Relations
from seg_backbone.volume import Volume
from vlm.body import body_grid
from vlm.claims import as_asked
from vlm.data.drafts import DRAFTS, SOURCES, Draft, Scene, Thing
from vlm.data.targets import Targets, Told
from vlm.data.wordings import PARTS, Wordings, read_wordings
from vlm.facts import FACTS
from vlm.schema import Question

FAT_HU = (-190.0, -30.0)  # adipose tissue on CT (Yoshizumi et al., Radiology 211:283-286, 1999)
ENDLESS = ("spinal_cord", "esophagus")  # drawn as far as a plan needed them: their extent and volume mean nothing
BROKEN = 0.05  # a second piece above this share of the first: one structure in two parts


def generate(
    root: str | Path,
    datasets: Sequence[str],
    split: Mapping[str, list[str]] | None = None,
    part: str = "all",
    wordings_part: str = "train",
    per_case: int = 16,
    seed: int = 0,
    absent: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    include_open: bool = False,
    targets: Targets | None = None,
) -> Iterator[Question]:
    """Questions about the cases of ROOT/DATASET for every dataset, in name order; the same for the same arguments.

    split, part: as in seg_backbone.cases; part "all" takes every case. wordings_part: "train", "heldout", or "both" for
    one of them by chance a case. absent: dataset -> canonical classes that its region cannot contain. progress: called
    with (cases done, cases, case). targets: of a user's table, asked about too. `image` is relative to the dataset's
    folder, or to `root` with several datasets. Without cases there are no questions; about what a model labelled there
    are none either.
    Raises ConfigError for an unknown part or a missing split, and the errors of the readers.
    """
    if wordings_part not in (*PARTS, "both"):
        raise ConfigError("--wordings", "train, heldout or both", repr(wordings_part), "choose one")
    if part != "all" and (split is None or part not in ("training", *split)):
        known = ", ".join(("training", *split, "all")) if split else "all (a split file gives more)"
        raise ConfigError("--part", f"a part among {known}", repr(part), "choose one, or pass --split")
    targets = targets or Targets()
    root, wordings = Path(root), read_wordings().with_targets(targets)
    cases = [case for dataset in datasets for case in list_cases(root, dataset) if not case.pseudo]
    if part != "all":
        cases = split_cases(cases, dict(split or {}), part)
    base = root / datasets[0] if len(datasets) == 1 else root
    paired = _ct_of_patients(root) if any(case.modality == "MR" for case in cases) else {}
    for done, files in enumerate(cases):
        if progress:
            progress(done, len(cases), files.case)
        random = Random(f"{seed}/{files.dataset}/{files.case}/{wordings_part}")
        volume = read_volume(files.image, files.modality)
        instances = Instances([], np.zeros(volume.grid.shape, dtype=np.uint32))
        if files.mask is not None and files.labels:
            instances = find_instances(read_mask(files.mask, files.labels), volume)
        ct = volume if volume.modality == "CT" else None
        if ct is None and files.patient in paired:
            ct = read_volume(paired[files.patient], "CT")
        yield from questions_of_case(
            files,
            instances,
            body_grid(volume),
            wordings,
            random.choice(PARTS) if wordings_part == "both" else wordings_part,
            random,
            per_case=per_case,
            absent=(absent or {}).get(files.dataset, ()),
            image=files.image.relative_to(base).as_posix(),
            fat=fat_percent(ct) if ct is not None else None,
            fat_from="this scan" if ct is volume else "paired CT",
            include_open=include_open,
            relations=Relations(instances.map, volume.grid),
            told=targets.of(files),
        )
    if progress:
        progress(len(cases), len(cases), "")


def questions_of_case(
    files: CaseFiles,
    instances: Iterable[Instance],
    body: Grid,
    wordings: Wordings,
    part: str,
    random: Random,
    per_case: int = 16,
    absent: Sequence[str] = (),
    image: str | None = None,
    fat: float | None = None,
    fat_from: str = "this scan",
    include_open: bool = False,
    relations: Relations | None = None,
    told: Mapping[str, Told] | None = None,
) -> list[Question]:
    """At most `per_case` questions about one case: every fact in turn, in random order, until all is asked.

    instances: of the reference mask; none for a case without a mask, about which only the scan itself is asked.
    body: the part of the scan's grid that holds the body. part: of the wordings. absent: canonical classes known not to
    be in view. image: what to write as the path, the scan's own by default. fat: share of the body, in per cent;
    fat_from: where it was measured. include_open: questions without a reference answer too: `findings`, `off_topic` and
    what no rule can tell. relations: of the instances; without them their boxes serve. told: what a user's table says
    of the case, by fact.
    """
    low, high = body.extent_mm()
    scene = Scene(
        things=_things(files, list(instances), absent, wordings),
        modality=files.modality,
        region=files.region,
        fat=fat,
        fat_from=fat_from,
        wordings=wordings,
        part=part,
        random=random,
        relations=relations or Relations(),
        space_ml=float(np.prod(high - low)) / 1000,
    )
    pools = {fact: _balanced(draft(scene), random) for fact, draft in DRAFTS.items()}
    for fact, (value, choices) in (told or {}).items():
        answer = int(value) if FACTS[fact].kind == "counting" else value
        pools[fact] = [Draft({}, answer, options=scene.shuffled(choices), extra={"source": "table"})]
    if not include_open:
        pools = {fact: [draft for draft in pool if draft.answer is not None] for fact, pool in pools.items()}
    chosen: list[Question] = []
    for number in range(max(map(len, pools.values()), default=0)):
        for fact in scene.shuffled(fact for fact, pool in pools.items() if number < len(pool)):
            if len(chosen) == per_case:
                return chosen
            chosen.append(_question(files, image or str(files.image), fact, number, pools[fact][number], scene))
    return chosen


def fat_percent(volume: Volume) -> float | None:
    """The share of the body on a CT that is fat, in per cent; None without a body.

    Body: the largest 26-connected component above -300 HU. Fat: its voxels within [-190, -30] HU, the usual window of
    adipose tissue (Yoshizumi et al., Radiology 211:283-286, 1999). Muscle, organs and bone count as body, gas does not.
    """
    assert volume.modality == "CT", "Hounsfield units are needed"
    body = cc3d.largest_k(volume.array > BODY_HU, k=1, connectivity=26) > 0
    if not body.any():
        return None
    values = volume.array[body]
    return float(100.0 * np.mean((values >= FAT_HU[0]) & (values <= FAT_HU[1])))


def _question(files: CaseFiles, image: str, fact: str, number: int, draft: Draft, scene: Scene) -> Question:
    about: dict[str, object] = {
        "fact": fact,
        "instances": [instance.id for instance in draft.chosen],
        "patient": files.patient,
        "dataset": files.dataset,
        "wording": scene.part,
        "source": SOURCES.get(fact, "reference mask"),
    }
    if files.synthetic:
        about["synthetic"] = True
    text = scene.wordings.fill(fact, scene.part, scene.random, **draft.slots)
    answer = as_asked(fact, draft.answer, text, draft.options)
    return Question(
        id=f"{files.dataset}/{files.case}/{fact}/{number}",
        image=image,
        question=text,
        type=FACTS[fact].kind,
        options=draft.options,
        unit=FACTS[fact].unit,
        answer=round(answer, 3) if isinstance(answer, float) else answer,
        extra=about | dict(draft.extra),
    )


def _things(
    files: CaseFiles, instances: list[Instance], absent: Sequence[str], wordings: Wordings
) -> tuple[Thing, ...]:
    annotated = files.annotated if files.mask is not None and files.labels else ()
    things = {}
    for label in dict.fromkeys((*annotated, *absent)):
        found = sorted((i for i in instances if i.label == label), key=lambda i: i.rank)
        lesion = label in LESIONS
        whole = lesion or len(found) < 2 or found[1].volume_ml <= BROKEN * found[0].volume_ml
        pieces = tuple(found if lesion else found[:1])
        things[label] = Thing(label, lesion, False, pieces, whole, whole and label not in ENDLESS)
    for group, labels in wordings.groups.items():
        members = [things[label] for label in labels if label in things and things[label].whole]
        if len(members) == len(labels):
            pieces = tuple(sorted((p for m in members for p in m.pieces), key=lambda p: -p.volume_ml))
            things[group] = Thing(group, False, True, pieces, True, all(m.sized for m in members))
    return tuple(things.values())


def _balanced(drafts: Iterable[Draft], random: Random) -> list[Draft]:
    """The drafts so that different answers take turns, in random order otherwise."""
    by_answer: dict[str, list[Draft]] = {}
    for draft in drafts:
        by_answer.setdefault(json.dumps(draft.answer), []).append(draft)
    rows = list(by_answer.values())
    random.shuffle(rows)
    for row in rows:
        random.shuffle(row)
    return [draft for turn in itertools.zip_longest(*rows) for draft in turn if draft is not None]


def _ct_of_patients(root: Path) -> dict[str, Path]:
    """Patient -> a CT of theirs in any dataset of `root`."""
    folders = sorted(folder.name for folder in root.iterdir() if (folder / "imagesTr").is_dir())
    cases = [case for dataset in folders for case in list_cases(root, dataset)]
    return {case.patient: case.image for case in cases if case.modality == "CT" and not case.synthetic}
