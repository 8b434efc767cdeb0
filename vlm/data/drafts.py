"""Drafts: what may be asked about a scene and what the answer is; one function a fact.

Enters a `Scene` (the things in one case), leaves `Draft`s: the words that fill a wording's placeholders, the reference
answer, measured by the code that also answers, and the instances that the question selects.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from seg_backbone.labels import display
from seg_backbone.lesions import Instance
from seg_backbone.relations import Relations
from vlm import rules
from vlm.data.threshold import ATTRIBUTES, Threshold
from vlm.data.wordings import Wordings, enumerate_things
from vlm.facts import FACTS
from vlm.grounding import split_side
from vlm.regions import REGIONS, STATED, regions_in_view

CLEAR = 1.05  # volumes in a smaller ratio are not ranked
OBVIOUS = 1.5  # volumes in a larger ratio are not compared: anatomy alone tells
MARGIN = 1.15  # thresholds lie at least this factor away from every measure they judge
FARTHEST = 3.0  # and at most this factor away from the one they were made for
DENSER_HU = 10.0  # means that differ by less are not ranked
SOLID_HU = 20.0  # ratios are not taken over means nearer to 0 than this
SURE = 0.1  # a rule is asked about only where the measure is at least this share away from its limit
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
    """A case as the drafts below see it. fat: per cent of the body that is fat, None where no CT tells. relations:
    what is measured between its instances. space_ml: the volume of the body's box.
    """

    things: tuple[Thing, ...]
    modality: str
    region: str
    fat: float | None
    fat_from: str
    wordings: Wordings
    part: str
    random: Random
    relations: Relations
    space_ml: float

    @property
    def organs(self) -> list[Thing]:
        """Single structures in view that are no lesions."""
        return [thing for thing in self.things if thing.pieces and not (thing.group or thing.lesion)]

    @property
    def lesions(self) -> list[Thing]:
        """Kinds of lesions in view."""
        return [thing for thing in self.things if thing.pieces and thing.lesion]

    def home(self, lesion: Instance) -> Instance | None:
        """The organ that a lesion lies in."""
        return self.relations.home(lesion, (thing.pieces[0] for thing in self.organs))

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
            yield from _placed(scene, thing, len)
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
            dense = fact.startswith("intensity")
            fits = thing.whole and scene.modality == "CT" if dense else thing.sized and value > 0
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
            yield from _placed(scene, thing, lambda kept: [{"label": display(i.label)} | i.box.to_json() for i in kept])
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

    for slots, first, second in _pairs(scene):
        yield draft(slots, first, second)
    for thing in scene.things:
        if thing.sized and len(thing.pieces) == 2:
            yield draft(_only(scene.phrase(thing), "things"), *thing.pieces)


def _ends(scene: Scene) -> list[tuple[Thing, Instance, dict[str, str]]]:
    """The instances that a comparison or distance may have at its ends, and how to single them out."""
    return [(t, i, h) for t, i, h in _singles(scene) if t.sized and not t.group and ("rank" in h or not t.lesion)]


def _pairs(scene: Scene) -> Iterator[tuple[dict[str, str], Instance, Instance]]:
    """Two different instances and the slots a and b that name them."""
    for pair in itertools.combinations(_ends(scene), 2):
        (thing, first, how), (other, second, how_other) = scene.random.sample(pair, 2)
        if first.id != second.id:
            slots = {"a": scene.phrase(thing, **how)["thing"], "b": scene.phrase(other, **how_other)["thing"]}
            yield slots, first, second


def _gap(scene: Scene) -> Iterator[Draft]:
    for slots, first, second in _pairs(scene):
        yield Draft(slots, scene.relations.gap_mm(first, second), (first, second))
    for thing in scene.things:
        if thing.sized and len(thing.pieces) == 2:
            answer = scene.relations.gap_mm(*thing.pieces)
            yield Draft(_only(scene.phrase(thing), "things"), answer, thing.pieces)


def _difference(first: Instance, second: Instance, attribute: str) -> float:
    """That of the first minus that of the second; without a sign for two of one class."""
    difference = float(getattr(first, attribute) - getattr(second, attribute))
    return difference if first.label != second.label else abs(difference)


def _volume_difference(scene: Scene) -> Iterator[Draft]:
    for slots, first, second in _pairs(scene):
        small, large = sorted((first.volume_ml, second.volume_ml))
        if large > CLEAR * small:
            yield Draft(slots, _difference(first, second, "volume_ml"), (first, second))


def _dense_pairs(scene: Scene) -> Iterator[tuple[dict[str, str], Instance, Instance, float, float]]:
    """Pairs on a CT with their mean HU."""
    for slots, first, second in _pairs(scene) if scene.modality == "CT" else ():
        if first.intensity_mean is not None and second.intensity_mean is not None:
            yield slots, first, second, first.intensity_mean, second.intensity_mean


def _intensity_difference(scene: Scene) -> Iterator[Draft]:
    for slots, first, second, *_ in _dense_pairs(scene):
        yield Draft(slots, _difference(first, second, "intensity_mean"), (first, second))


def _intensity_ratio(scene: Scene) -> Iterator[Draft]:
    for slots, first, second, one, other in _dense_pairs(scene):
        if min(abs(one), abs(other)) > SOLID_HU and first.label != second.label:  # the names tell which is divided
            yield Draft(slots, one / other, (first, second))


def _denser(scene: Scene) -> Iterator[Draft]:
    for slots, first, second, one, other in _dense_pairs(scene):
        if abs(one - other) > DENSER_HU and first.label != second.label:
            label = (first if one > other else second).label
            options = scene.shuffled((display(first.label), display(second.label)))
            yield Draft(slots, display(label), (first, second), options)


def _surface_area(scene: Scene) -> Iterator[Draft]:
    for thing, instance, how in _singles(scene):
        if thing.sized:
            area = scene.relations.surface_area_cm2(instance)
            yield Draft(_only(scene.phrase(thing, **how), "thing", "noun"), area, (instance,))


def _slice(scene: Scene) -> Iterator[Draft]:
    for thing, instance, how in _singles(scene):
        if thing.sized:
            slots = _only(scene.phrase(thing, **how), "thing", "noun")
            yield Draft(slots, float(instance.slice["index"]), (instance,))


def _total_volume(scene: Scene) -> Iterator[Draft]:
    for thing in scene.things:
        if thing.sized and len(thing.pieces) > 1:
            total = sum(piece.volume_ml for piece in thing.pieces)
            yield Draft(_only(scene.phrase(thing), "things"), total, thing.pieces)
            yield from _placed(scene, thing, lambda kept: sum(p.volume_ml for p in kept), empty=False)
    sized = [thing for thing in scene.organs if thing.sized]
    if len(sized) > 1:
        listed = scene.random.sample(sized, scene.random.randint(2, min(3, len(sized))))
        pieces = tuple(thing.pieces[0] for thing in listed)
        slots = {"list": enumerate_things(scene.phrase(thing)["thing"] for thing in listed)}
        yield Draft(slots, sum(piece.volume_ml for piece in pieces), pieces)


def _share(scene: Scene) -> Iterator[Draft]:
    sized = [thing for thing in scene.organs if thing.sized]
    for thing in scene.lesions:
        slots = scene.phrase(thing)
        for organ in sized:
            inside = tuple(piece for piece in thing.pieces if scene.home(piece) is organ.pieces[0])
            part, whole = sum(piece.volume_ml for piece in inside), organ.pieces[0].volume_ml
            name = f"the {slots['things']}" if len(thing.pieces) > 1 else slots["thing"]
            named = {"a": name, "b": scene.phrase(organ)["thing"]}
            if inside:
                yield Draft(named, 100 * part / (part + whole), (*inside, organ.pieces[0]))
    if len(sized) > 1:
        first, second = sorted(scene.random.sample(sized, 2), key=lambda thing: thing.pieces[0].volume_ml)
        named = {"a": scene.phrase(first)["thing"], "b": scene.phrase(second)["thing"]}
        share = 100 * first.pieces[0].volume_ml / second.pieces[0].volume_ml
        yield Draft(named, share, (first.pieces[0], second.pieces[0]))


def _placed(
    scene: Scene, thing: Thing, answer: Callable[[tuple[Instance, ...]], Any], empty: bool = True
) -> Iterator[Draft]:
    """Drafts about the lesions in one organ: code finds which lie there, so the pointer's candidates are all.

    empty: also about organs without any.
    """
    homes = {piece.id: scene.home(piece) for piece in thing.pieces} if thing.lesion and scene.organs else {}
    for organ in scene.random.sample(scene.organs, min(2, len(scene.organs))) if homes else ():
        kept = tuple(piece for piece in thing.pieces if homes[piece.id] is organ.pieces[0])
        extra = {"place": organ.label, "candidates": [piece.id for piece in thing.pieces]}
        if kept or empty:
            yield Draft(_only(scene.phrase(thing, place=organ.label), "things"), answer(kept), kept, extra=extra)


def _nearest(scene: Scene) -> Iterator[Draft]:
    organs = {thing.pieces[0].label: thing.pieces[0] for thing in scene.organs}
    for thing, instance, how in _singles(scene):
        if thing.lesion and len(organs) > 1:
            organ = scene.relations.nearest(instance, organs.values())
            assert organ is not None, "there are organs"
            others = [label for label in organs if label != organ.label]
            labels = [organ.label, *scene.random.sample(others, min(3, len(others)))]
            slots = _only(scene.phrase(thing, **how), "thing", "noun")
            yield Draft(slots, display(organ.label), (instance,), scene.shuffled(map(display, labels)))


def _most_affected(scene: Scene) -> Iterator[Draft]:
    organs = {thing.pieces[0].label: thing for thing in scene.organs}
    for thing in scene.lesions if len(organs) > 1 else ():
        labels = scene.random.sample(list(organs), min(4, len(organs)))
        every = [organ.pieces[0] for organ in organs.values()]
        held = dict.fromkeys(labels, 0.0)
        for piece in thing.pieces:
            organ = scene.relations.nearest(piece, every)
            assert organ is not None, "there are organs"
            if organ.label in held:
                held[organ.label] += piece.volume_ml
        first, second = sorted(held.values(), reverse=True)[:2]
        if first > CLEAR * second:
            slots = _only(scene.phrase(thing), "things")
            slots["list"] = enumerate_things(scene.phrase(organs[label])["thing"] for label in labels)
            best = max(held, key=lambda label: held[label])
            yield Draft(slots, display(best), thing.pieces, scene.shuffled(map(display, labels)))


def _verdict(
    scene: Scene, verdict: rules.Verdict, options: Iterable[str], slots: dict[str, str], *chosen: Instance
) -> Iterator[Draft]:
    """A question that a rule answers, where the case is clear; without an answer where there is no rule."""
    if verdict.clear > SURE:
        yield Draft(slots, verdict.answer, chosen, scene.shuffled(options), {"rule": verdict.rule})


def _rule_of_one(fact: str) -> Callable[[Scene], Iterator[Draft]]:
    def drafts(scene: Scene) -> Iterator[Draft]:
        for thing, instance, how in _singles(scene):
            if not thing.sized or thing.lesion == (fact == "enlarged") or (thing.group and fact == "enlarged"):
                continue
            slots = _only(scene.phrase(thing, **how), "thing", "noun")
            options: tuple[str, ...] = ("yes", "no")
            if fact == "composition":
                verdict, options = rules.composition(instance, scene.modality), ("cystic", "solid")
            elif fact == "size_category":
                verdict, options = rules.size_category(instance), rules.categories()
            else:
                verdict = (rules.enlarged if fact == "enlarged" else rules.measurable)(instance)
            yield from _verdict(scene, verdict, options, slots, instance)

    return drafts


def _asymmetric(scene: Scene) -> Iterator[Draft]:
    sized = [thing for thing in scene.organs if thing.sized]
    for pair in itertools.combinations(sized, 2):
        if split_side(pair[0].label)[0] == split_side(pair[1].label)[0]:
            first, second = scene.random.sample(pair, 2)
            slots = {"a": scene.phrase(first)["thing"], "b": scene.phrase(second)["thing"]}
            ends = first.pieces[0], second.pieces[0]
            yield from _verdict(scene, rules.asymmetric(*ends), ("yes", "no"), slots, *ends)


def _fatty(scene: Scene) -> Iterator[Draft]:
    organs = [thing.pieces[0] for thing in scene.organs if thing.label in ("liver", "spleen")]
    yield from _verdict(scene, rules.fatty(organs, scene.modality), ("yes", "no"), {}, *organs)


def _outlier(scene: Scene) -> Iterator[Draft]:
    for thing in scene.lesions:
        slots = _only(scene.phrase(thing), "things")
        if len(thing.pieces) >= rules.FEWEST:
            yield from _verdict(scene, rules.outlier(thing.pieces), ("yes", "no"), slots, *thing.pieces)


def _clustered(scene: Scene) -> Iterator[Draft]:
    for thing in scene.lesions:
        homes = [scene.home(piece) for piece in thing.pieces]
        one = homes[0] if homes[0] is not None and all(home is homes[0] for home in homes) else None
        verdict = rules.clustered(thing.pieces, one.volume_ml if one else scene.space_ml)
        if len(thing.pieces) >= rules.FEWEST:
            slots = _only(scene.phrase(thing), "things")
            yield from _verdict(scene, verdict, ("clustered", "scattered"), slots, *thing.pieces)


def _modality(scene: Scene) -> Iterator[Draft]:
    yield Draft({}, scene.modality, options=scene.shuffled(("CT", "MR")))


def _region(scene: Scene) -> Iterator[Draft]:
    seen = regions_in_view(piece for thing in scene.things if not thing.group for piece in thing.pieces)
    region = next(iter(seen), STATED.get(scene.region))
    if region and len(seen) < 2:
        yield Draft({}, region, options=scene.shuffled(REGIONS))


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
    "gap": _gap,
    "volume_difference": _volume_difference,
    "intensity_difference": _intensity_difference,
    "intensity_ratio": _intensity_ratio,
    "denser": _denser,
    "surface_area": _surface_area,
    "slice": _slice,
    "total_volume": _total_volume,
    "share": _share,
    "nearest": _nearest,
    "most_affected": _most_affected,
    "outlier": _outlier,
    "clustered": _clustered,
    "asymmetric": _asymmetric,
    "fatty": _fatty,
    **{fact: _rule_of_one(fact) for fact in ("enlarged", "composition", "size_category", "measurable")},
    "fat_percent": _fat,
    **dict.fromkeys(OPEN_FACTS, _no_answer),
}
SOURCES = {
    "side": "reference mask; midline of the body in view",
    "modality": "manifest",
    "region": "structures in view; manifest where none tells",
    "fat_percent": "CT voxels within -190 to -30 HU",
    **dict.fromkeys(OPEN_FACTS, "none"),
}


def _only(slots: Mapping[str, str], *names: str) -> dict[str, str]:
    return {name: slots[name] for name in names}
