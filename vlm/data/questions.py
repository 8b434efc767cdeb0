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
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import cc3d
import numpy as np

from seg_backbone.cases import CaseFiles, list_cases, split_cases
from seg_backbone.errors import ConfigError
from seg_backbone.io import read_mask, read_volume
from seg_backbone.labels import LESIONS, display
from seg_backbone.lesions import BODY_HU, Instance, find_instances
from seg_backbone.volume import Volume
from vlm.data.threshold import ATTRIBUTES, Threshold
from vlm.data.wordings import PARTS, Wordings, enumerate_things, read_wordings
from vlm.facts import FACTS
from vlm.schema import Question

FAT_HU = (-190.0, -30.0)  # adipose tissue on CT (Yoshizumi et al., Radiology 211:283-286, 1999)
ENDLESS = ("spinal_cord", "esophagus")  # drawn as far as a plan needed them: their extent and volume mean nothing
BROKEN = 0.05  # a second piece above this share of the first: one structure in two parts
CLEAR = 1.05  # volumes in a smaller ratio are not ranked
OBVIOUS = 1.5  # volumes in a larger ratio are not compared: anatomy alone tells
MARGIN = 1.15  # thresholds lie at least this factor away from every measure they judge
FARTHEST = 3.0  # and at most this factor away from the one they were made for
REGIONS = {"head and neck": "head and neck", "soft tissue": "limb or trunk soft tissue"}  # manifest -> option
REGION_OPTIONS = ("head and neck", "limb or trunk soft tissue", "chest", "abdomen")
OPEN_FACTS = ("findings", "off_topic")


@dataclass(frozen=True)
class Thing:
    """What a name stands for in one scan: a class, or a group of classes ("parotid glands").

    pieces: its instances, largest first; empty where the scan lacks it. whole: not broken into parts. sized: its
    extent and volume may be asked for.
    """

    label: str
    lesion: bool
    group: bool
    pieces: tuple[Instance, ...]
    whole: bool
    sized: bool


@dataclass(frozen=True, eq=False)
class Scene:
    """A case as the drafts below see it. fat: per cent of the body that is fat, None where no CT tells."""

    things: tuple[Thing, ...]
    modality: str
    region: str
    fat: float | None
    fat_from: str
    wordings: Wordings
    part: str
    random: Random

    def phrase(self, thing: Thing, **how: Any) -> dict[str, str]:
        """The slots that name a thing; see Wordings.phrase."""
        return self.wordings.phrase(thing.label, self.part, self.random, **how)

    def shuffled(self, options: Iterable[str]) -> tuple[str, ...]:
        """The options in a random order."""
        options = list(options)
        self.random.shuffle(options)
        return tuple(options)


@dataclass(frozen=True)
class Draft:
    """A question without its text. chosen: the instances that it selects."""

    slots: Mapping[str, str]
    answer: Any
    chosen: tuple[Instance, ...] = ()
    options: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


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
) -> Iterator[Question]:
    """Questions about the cases of ROOT/DATASET for every dataset, in name order; the same for the same arguments.

    split, part: as in seg_backbone.cases; part "all" takes every case. wordings_part: "train", "heldout", or "both" for
    one of them by chance a case. absent: dataset -> canonical classes that its region cannot contain. progress: called
    with (cases done, cases, case). `image` is relative to the dataset's folder, or to `root` with several datasets.
    Without cases there are no questions.
    Raises ConfigError for an unknown part or a missing split, and the errors of the readers.
    """
    if wordings_part not in (*PARTS, "both"):
        raise ConfigError("--wordings", "train, heldout or both", repr(wordings_part), "choose one")
    if part != "all" and (split is None or part not in ("training", *split)):
        known = ", ".join(("training", *split, "all")) if split else "all (a split file gives more)"
        raise ConfigError("--part", f"a part among {known}", repr(part), "choose one, or pass --split")
    root, wordings = Path(root), read_wordings()
    cases = [case for dataset in datasets for case in list_cases(root, dataset)]
    if part != "all":
        cases = split_cases(cases, dict(split or {}), part)
    base = root / datasets[0] if len(datasets) == 1 else root
    paired = _ct_of_patients(root) if any(case.modality == "MR" for case in cases) else {}
    for done, files in enumerate(cases):
        if progress:
            progress(done, len(cases), files.case)
        random = Random(f"{seed}/{files.dataset}/{files.case}/{wordings_part}")
        volume = read_volume(files.image, files.modality)
        instances: list[Instance] = []
        if files.mask is not None and files.labels:
            instances = find_instances(read_mask(files.mask, files.labels), volume).list
        ct = volume if volume.modality == "CT" else None
        if ct is None and files.patient in paired:
            ct = read_volume(paired[files.patient], "CT")
        yield from questions_of_case(
            files,
            instances,
            volume,
            wordings,
            random.choice(PARTS) if wordings_part == "both" else wordings_part,
            random,
            per_case=per_case,
            absent=(absent or {}).get(files.dataset, ()),
            image=files.image.relative_to(base).as_posix(),
            fat=fat_percent(ct) if ct is not None else None,
            fat_from="this scan" if ct is volume else "paired CT",
            include_open=include_open,
        )
    if progress:
        progress(len(cases), len(cases), "")


def questions_of_case(
    files: CaseFiles,
    instances: Iterable[Instance],
    volume: Volume,
    wordings: Wordings,
    part: str,
    random: Random,
    per_case: int = 16,
    absent: Sequence[str] = (),
    image: str | None = None,
    fat: float | None = None,
    fat_from: str = "this scan",
    include_open: bool = False,
) -> list[Question]:
    """At most `per_case` questions about one case: every fact in turn, in random order, until all is asked.

    instances: of the reference mask; none for a case without a mask, about which only the scan itself is asked.
    part: of the wordings. absent: canonical classes known not to be in view. image: what to write as the path, the
    scan's own by default. fat: share of the body, in per cent; fat_from: where it was measured. include_open:
    `findings` and `off_topic` too, which have no reference answer.
    """
    scene = Scene(
        things=_things(files, list(instances), absent, wordings),
        modality=volume.modality,
        region=files.region,
        fat=fat,
        fat_from=fat_from,
        wordings=wordings,
        part=part,
        random=random,
    )
    pools = {fact: _balanced(draft(scene), random) for fact, draft in DRAFTS.items()}
    if not include_open:
        pools = {fact: pool for fact, pool in pools.items() if fact not in OPEN_FACTS}
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
    about = {
        "fact": fact,
        "instances": [instance.id for instance in draft.chosen],
        "patient": files.patient,
        "dataset": files.dataset,
        "wording": scene.part,
        "source": SOURCES.get(fact, "reference mask"),
    }
    return Question(
        id=f"{files.dataset}/{files.case}/{fact}/{number}",
        image=image,
        question=scene.wordings.fill(fact, scene.part, scene.random, **draft.slots),
        type=FACTS[fact].kind,
        options=draft.options,
        unit=FACTS[fact].unit,
        answer=round(draft.answer, 3) if isinstance(draft.answer, float) else draft.answer,
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


# Selecting ----------------------------------------------------------------------------------------------------------


def _singles(scene: Scene) -> Iterator[tuple[Thing, Instance, dict[str, str]]]:
    """Every instance that a phrase can single out, and how: {} for "the tumour", {"rank": "largest"} and so on."""
    for thing in scene.things:
        count = len(thing.pieces)
        if count == 1 and not thing.group:
            yield thing, thing.pieces[0], {}
        if thing.lesion and count == 1:
            yield thing, thing.pieces[0], {"rank": "largest"}
        if thing.group and count == 2 and _ranked(thing.pieces, 0):
            yield thing, thing.pieces[0], {"rank": "larger"}
            yield thing, thing.pieces[1], {"rank": "smaller"}
        if thing.lesion and count > 1:
            for rank, place in (("largest", 0), ("second", 1), ("smallest", count - 1)):
                if _ranked(thing.pieces, place) and not (rank == "second" and count == 2):
                    yield thing, thing.pieces[place], {"rank": rank}
            for side in ("left", "right"):
                there = [piece for piece in thing.pieces if piece.side == side]
                if len(there) == 1:
                    yield thing, there[0], {"side": side}


def _ranked(pieces: Sequence[Instance], place: int) -> bool:
    """Whether the volume at `place` (largest first) differs clearly from its neighbours'."""
    volumes = [piece.volume_ml for piece in pieces[max(0, place - 1) : place + 2]]
    return all(high > CLEAR * low for high, low in itertools.pairwise(volumes))


def _thresholds(pieces: Sequence[Instance], random: Random) -> Iterator[Threshold]:
    """Two thresholds made for one of the pieces, one that keeps it and one that does not, near no piece's measure."""
    for keeps in (True, False) if pieces else ():
        unit, op = random.choice(("ml", "mm")), random.choice((">", ">", ">=", "<", "<", "<="))
        attribute = ATTRIBUTES[unit]
        factor = random.uniform(MARGIN, FARTHEST)
        measure = getattr(random.choice(pieces), attribute)
        value = float(f"{measure * (factor if keeps == (op[0] == '<') else 1 / factor):.2g}")
        measures = [getattr(piece, attribute) for piece in pieces]
        if value > 0 and all(m > 0 and max(m / value, value / m) > (1 + MARGIN) / 2 for m in measures):
            yield Threshold(attribute, op, value, unit)


def _kept(pieces: Sequence[Instance], threshold: Threshold) -> tuple[tuple[Instance, ...], dict[str, Any]]:
    """The pieces that a threshold keeps, and the keys that tell of it."""
    extra = {"threshold": threshold.to_json(), "candidates": [piece.id for piece in pieces]}
    return tuple(piece for piece in pieces if threshold.keeps(piece)), extra


# One function a fact: a scene in, its drafts out --------------------------------------------------------------------


def _presence(scene: Scene) -> Iterator[Draft]:
    def draft(slots: dict[str, str], chosen: tuple[Instance, ...], extra: dict[str, Any] | None = None) -> Draft:
        return Draft(slots, "yes" if chosen else "no", chosen, scene.shuffled(("yes", "no")), extra or {})

    lacking = any(not thing.pieces for thing in scene.things)  # else "yes" is true of all: ask few, and thresholds
    plain = scene.things if lacking else scene.random.sample(scene.things, min(2, len(scene.things)))
    for thing in scene.things:
        names = ("some", "things") if thing.lesion else ("things",) if thing.group else ("thing", "noun")
        if thing in plain:
            yield draft(_only(scene.phrase(thing), *names), thing.pieces)
        for threshold in _thresholds(thing.pieces, scene.random) if thing.sized and not thing.group else ():
            kept, extra = _kept(thing.pieces, threshold)
            if thing.lesion:
                yield draft(_only(scene.phrase(thing, size=threshold), *names), kept, extra)
            else:
                size = scene.wordings.size(threshold, scene.part, scene.random)
                yield draft(_only(scene.phrase(thing), *names) | {"size": size}, kept, extra)


def _count(scene: Scene) -> Iterator[Draft]:
    for thing in scene.things:
        if thing.lesion or thing.group:
            yield Draft(_only(scene.phrase(thing), "things", "noun"), len(thing.pieces), thing.pieces)
            for threshold in _thresholds(thing.pieces, scene.random) if thing.sized else ():
                kept, extra = _kept(thing.pieces, threshold)
                yield Draft(_only(scene.phrase(thing, size=threshold), "things"), len(kept), kept, extra=extra)
    structures = [thing for thing in scene.things if not thing.group and len(thing.pieces) < 2]
    sized = [thing for thing in structures if thing.sized and thing.pieces]
    for among, with_size in ((structures, False), (sized, True), (sized, True)):
        if len(among) < 2:
            continue
        listed = scene.random.sample(among, scene.random.randint(2, min(4, len(among))))
        slots = {"list": enumerate_things(scene.phrase(thing)["thing"] for thing in listed)}
        pieces = tuple(piece for thing in listed for piece in thing.pieces)
        if not with_size:
            yield Draft(slots, len(pieces), pieces)
            continue
        for threshold in _thresholds(pieces, scene.random):
            kept, extra = _kept(pieces, threshold)
            slots = slots | {"size": scene.wordings.size(threshold, scene.part, scene.random)}
            yield Draft(slots, len(kept), kept, extra=extra)


def _measure(fact: str) -> Callable[[Scene], Iterator[Draft]]:
    attribute = FACTS[fact].attribute
    assert attribute is not None, f"{fact} is not measured on an instance"

    def drafts(scene: Scene) -> Iterator[Draft]:
        for thing, instance, how in _singles(scene):
            value = getattr(instance, attribute)
            fits = thing.whole and scene.modality == "CT" if fact == "intensity" else thing.sized and value > 0
            if fits and value is not None:
                yield Draft(_only(scene.phrase(thing, **how), "thing", "noun"), value, (instance,))

    return drafts


def _box(scene: Scene) -> Iterator[Draft]:
    def draft(slots: dict[str, str], chosen: tuple[Instance, ...], extra: dict[str, Any] | None = None) -> Draft:
        return Draft(slots, [{"label": display(i.label)} | i.box.to_json() for i in chosen], chosen, extra=extra or {})

    for thing, instance, how in _singles(scene):
        if thing.sized:
            yield draft(_only(scene.phrase(thing, **how), "thing", "noun"), (instance,))
    for thing in scene.things:
        if thing.lesion or (thing.group and thing.sized):
            yield draft(_only(scene.phrase(thing), "things"), thing.pieces)
            for threshold in _thresholds(thing.pieces, scene.random):
                kept, extra = _kept(thing.pieces, threshold)
                yield draft(_only(scene.phrase(thing, size=threshold), "things"), kept, extra)


def _side(scene: Scene) -> Iterator[Draft]:
    for thing, instance, how in _singles(scene):
        if (thing.lesion or thing.group) and instance.side != "midline" and "side" not in how:
            slots = _only(scene.phrase(thing, **how), "thing", "noun")
            yield Draft(slots, instance.side, (instance,), scene.shuffled(("left", "right")))


def _multiplicity(scene: Scene) -> Iterator[Draft]:
    for thing in scene.things:
        if (thing.lesion or thing.group) and thing.pieces:
            answer = "single" if len(thing.pieces) == 1 else "multiple"
            slots = _only(scene.phrase(thing), "noun", "things")
            yield Draft(slots, answer, thing.pieces, scene.shuffled(("single", "multiple")))


def _larger(scene: Scene) -> Iterator[Draft]:
    structures = [thing for thing in scene.things if thing.sized and thing.pieces and not (thing.group or thing.lesion)]
    for pair in itertools.combinations(structures, 2):
        first, second = scene.random.sample(pair, 2)
        small, large = sorted((first, second), key=lambda thing: thing.pieces[0].volume_ml)
        ratio = large.pieces[0].volume_ml / small.pieces[0].volume_ml
        if CLEAR < ratio < OBVIOUS:
            slots = {"a": scene.phrase(first)["thing"], "b": scene.phrase(second)["thing"]}
            options = scene.shuffled((display(first.label), display(second.label)))
            yield Draft(slots, display(large.label), (first.pieces[0], second.pieces[0]), options)


def _distance(scene: Scene) -> Iterator[Draft]:
    def draft(slots: dict[str, str], first: Instance, second: Instance) -> Draft:
        return Draft(slots, float(np.linalg.norm(np.subtract(first.center_mm, second.center_mm))), (first, second))

    ends = [(t, i, h) for t, i, h in _singles(scene) if t.sized and not t.group and ("rank" in h or not t.lesion)]
    for pair in itertools.combinations(ends, 2):
        (thing, first, how), (other, second, how_other) = scene.random.sample(pair, 2)
        if first.id != second.id:
            slots = {"a": scene.phrase(thing, **how)["thing"], "b": scene.phrase(other, **how_other)["thing"]}
            yield draft(slots, first, second)
    for thing in scene.things:
        if thing.sized and len(thing.pieces) == 2:
            yield draft(_only(scene.phrase(thing), "things"), *thing.pieces)


def _modality(scene: Scene) -> Iterator[Draft]:
    yield Draft({}, scene.modality, options=scene.shuffled(("CT", "MR")))


def _region(scene: Scene) -> Iterator[Draft]:
    if scene.region in REGIONS:
        yield Draft({}, REGIONS[scene.region], options=scene.shuffled(REGION_OPTIONS))


def _contents(scene: Scene) -> Iterator[Draft]:
    known = [thing for thing in scene.things if not thing.group]
    if len(known) > 1:
        options = scene.shuffled(display(thing.label) for thing in known)
        there = {display(thing.label) for thing in known if thing.pieces}
        chosen = tuple(piece for thing in known for piece in thing.pieces)
        yield Draft({}, [option for option in options if option in there], chosen, options)


def _fat(scene: Scene) -> Iterator[Draft]:
    if scene.fat is not None:
        yield Draft({}, scene.fat, extra={} if scene.fat_from == "this scan" else {"measured_on": scene.fat_from})


def _no_answer(scene: Scene) -> Iterator[Draft]:
    yield Draft({}, None)


DRAFTS: dict[str, Callable[[Scene], Iterator[Draft]]] = {
    "presence": _presence,
    "side": _side,
    "multiplicity": _multiplicity,
    "larger": _larger,
    "modality": _modality,
    "region": _region,
    "contents": _contents,
    "box": _box,
    "count": _count,
    **{fact: _measure(fact) for fact, about in FACTS.items() if about.attribute},
    "distance": _distance,
    "fat_percent": _fat,
    **dict.fromkeys(OPEN_FACTS, _no_answer),
}
SOURCES = {
    "side": "reference mask; midline of the body in view",
    "modality": "manifest",
    "region": "manifest",
    "fat_percent": "CT voxels within -190 to -30 HU",
    **dict.fromkeys(OPEN_FACTS, "none"),
}


def _only(slots: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: slots[name] for name in names}


def _ct_of_patients(root: Path) -> dict[str, Path]:
    """Patient -> a CT of theirs in any dataset of `root`."""
    folders = sorted(folder.name for folder in root.iterdir() if (folder / "imagesTr").is_dir())
    cases = [case for dataset in folders for case in list_cases(root, dataset)]
    return {case.patient: case.image for case in cases if case.modality == "CT"}
