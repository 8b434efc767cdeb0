"""Measurement: a measured property of the instance selected, or a measure of how several relate."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import asks_for_signed
from vlm.data.wordings import enumerate_things
from vlm.facts import FACTS, UNITS, asked_unit
from vlm.grounding import find_mentions
from vlm.heads.counting import plural
from vlm.heads.places import ahead_by, opposite, way_in
from vlm.heads.ranks import chooses
from vlm.heads.reading import Reading, evidence, none_found, shared_name, shown
from vlm.plain_words import fact_in, plain_line
from vlm.wholes import OF_THE_LARGEST, Whole, pieces_of, whole

_SAYS = {
    "long_axis": "The {thing} is {value} long (longest axial diameter).",
    "short_axis": "The {thing} has a short axis of {value}.",
    "diameter_3d": "The {thing} has a largest 3D diameter of {value}.",
    "craniocaudal": "The {thing} extends {value} from top to bottom.",
    "anteroposterior": "The {thing} extends {value} from front to back.",
    "transverse": "The {thing} extends {value} from left to right.",
    "volume": "The {thing} has a volume of {value}.",
    "surface_area": "The {thing} has a surface of {value}.",
    "intensity": "The {thing} has a mean {what} of {value}.",
    "intensity_spread": "The {what} of the {thing} has a standard deviation of {value}.",
    "slice": "The {thing} is largest on axial slice {value}, counted from 0 in the file.",
    "axis_ratio": "The long axis of the {thing} is {value} times its short axis.",
    "sphere_diameter": "A sphere of the volume of the {thing} has a diameter of {value}.",
    "distance": "The centres of the {a} and the {b} are {value} apart.",
    "offset": "The centre of the {a} lies {value} {way} that of the {b}.",
    "gap": "The {a} and the {b} come within {value} of each other (between voxel centres).",
    "volume_difference": "The {a} is {value} larger than the {b}.",
    "intensity_difference": "The mean {what} of the {a} is {value} above that of the {b}.",
    "intensity_ratio": "The mean {what} of the {a} is {value} times that of the {b}.",
    "volume_ratio": "The volume of the {a} is {value} times that of the {b}.",
    "share": "The {a} makes up {value} of the {b}.",
    "total_volume": "Together they have a volume of {value}: {things}.",
}
MOST_LISTED = 10  # structures of a sum; of more than that classes are listed
_SIGNED = "The {what} of the {a} minus that of the {b} is {value}."
_OF_SEVERAL = "The {how} {what} of {number} {things} is {value}: {each}."
_OF_EACH = "The {what} of each of {number} {things} in {unit}: {each}."
_CALLED = {  # fact of one instance -> what it is called where that of several is told
    "long_axis": "long axis",
    "short_axis": "short axis",
    "diameter_3d": "largest 3D diameter",
    "craniocaudal": "extent from top to bottom",
    "anteroposterior": "extent from front to back",
    "transverse": "extent from left to right",
    "volume": "volume",
    "intensity": "mean attenuation",
}
LENGTHS = tuple(name for name, fact in FACTS.items() if fact.attribute and fact.unit == "mm")
_DIFFERENCE_IN = re.compile(
    r"\bdiffer(?:ence|s)? (?:in|of) (?:length|height|width|depth|diameter|(?:long|short) axis)\b"
)
_OF_WHAT = re.compile(r"(?:per ?cent(?:age)?|%|fraction|share|proportion) of (?P<whole>.*)")
_LIES_IN = re.compile(r"(?P<those>.*?)\b(?:is|are|lies?|sits?|located|found|situated) (?:\w+ )?(?:in|within|inside)\b")
_PER_CENT = re.compile(r"\bper ?cent(?:age)?\b|%")
_MEDIAN = re.compile(r"\bmedian\b")
_AVERAGE = re.compile(r"\b(?:mean|average|averaged)\b")
_SUM = re.compile(r"\b(?:sum|total|combined|together|added|altogether)\b")
_EACH = re.compile(
    r"\b(?:each|every|individual(?:ly)?|respective(?:ly)?|one by one|per (?:lesion|nodule|tumou?r|structure|organ)"
    r"|(?:volume|size|length|diameter|height|width|dimension)s)\b"
)
_OF_LESIONS = re.compile(r"\bof (?:all |the )*(?:\w+ )?(?:lesions|tumou?rs|nodules|masses|metastases|cysts)\b")
_BOTH = re.compile(r"\b(?:both|all|combined|together|overall)\b")


class Measured(NamedTuple):
    """value in `unit`, by default the fact's, of `instances`; words: what the sentence says besides. says: the
    sentence, where it is not that of the fact.
    """

    value: float
    instances: list[Instance]
    words: dict[str, str]
    says: str | None = None
    unit: str | None = None


def decode(reading: Reading) -> dict[str, Any]:
    """value in `unit`: the one asked for, in words too, where it fits, else the fact's; None for MR intensities.

    Abstains where an instance meant is not in the mask.
    """
    found = _MEASURES.get(reading.fact, _of_one)(reading)
    return none_found(reading) if found is None else _say(reading, found)


def _of_one(reading: Reading) -> Measured | None:
    attribute = FACTS[reading.fact].attribute
    assert attribute is not None, "a fact without a measure of its own holds it in an attribute"
    how = joined(reading.fact, reading.question.question)
    several = reading.structures()
    family = shared_name(tuple(i.label for i in several if not is_lesion(i.label)))
    if reading.fact == "intensity" and family and not chooses(plain_line(reading.question.question)):
        how = "mean"  # of a left lung in lobes
    if how and len(several) > 1:
        return _of_several(reading, several, attribute, how)
    instance = reading.one()
    return _single(reading, instance, None if instance is None else getattr(instance, attribute))


def joined(fact: str, text: str) -> str | None:
    """How a text wants a measure of several structures: their "mean", "median", "total", "each", or None for one's.

    A "mean density" is the mean within each; that of several is wanted by "both" and the like.
    """
    line = text.lower()
    if fact == "intensity":
        return "mean" if _BOTH.search(line) or _OF_LESIONS.search(line) else "each" if _EACH.search(line) else None
    if fact in _CALLED and fact != "volume" and re.search(r"\bboth\b", line) and not _SUM.search(line):
        return "each"
    ways = {"median": _MEDIAN, "mean": _AVERAGE, "total": _SUM, "each": _EACH} if fact in _CALLED else {}
    return next((how for how, words in ways.items() if words.search(line)), None)


def _of_several(reading: Reading, several: list[Instance], attribute: str, how: str) -> Measured | None:
    """Sum, mean or median over structures, of intensities the mean over all their voxels; of each the largest one's."""
    values = [getattr(instance, attribute) for instance in several]
    if None in values:
        return None
    value = sum(values) / (len(values) if how == "mean" else 1)
    if how == "each":
        value = values[0]
    elif how == "median":
        value = float(np.median(values))
    elif reading.fact == "intensity":
        value = getattr(whole(pieces_of(several)), attribute)
    name, called = plural(reading.thing()), _CALLED[reading.fact].removeprefix("mean ")
    each = enumerate_things(f"{_name(reading, i)} {shown(v)}" for i, v in zip(several, values, strict=True))
    words = {
        "how": how,
        "unit": FACTS[reading.fact].unit or "",
        "what": called,
        "number": str(len(several)),
        "things": name,
        "each": each,
    }
    return Measured(value, several, words, _OF_EACH if how == "each" else _OF_SEVERAL)


def _surface_area(reading: Reading) -> Measured | None:
    instance = reading.one()
    areas = [reading.scene.relations.surface_area_cm2(piece) for piece in pieces_of([instance] if instance else [])]
    return _single(reading, instance, None if None in areas else sum(filter(None, areas)))


def _slice(reading: Reading) -> Measured | None:
    instance = reading.one()
    return _single(reading, instance, None if instance is None else float(instance.slice["index"]))


def _axis_ratio(reading: Reading) -> Measured | None:
    instance = reading.one()
    ratio = instance.long_axis_mm / instance.short_axis_mm if instance and instance.short_axis_mm else None
    return _single(reading, instance, ratio)


def _sphere_diameter(reading: Reading) -> Measured | None:
    instance = reading.one()
    return _single(reading, instance, (6000 * instance.volume_ml / math.pi) ** (1 / 3) if instance else None)


def _single(reading: Reading, instance: Instance | None, value: float | None) -> Measured | None:
    if instance is None or value is None:
        return None
    return Measured(float(value), [instance], {"thing": _name(reading, instance)})


def _distance(reading: Reading) -> Measured | None:
    return _of_pair(reading, lambda a, b: float(np.linalg.norm(np.subtract(a.center_mm, b.center_mm))))


def _offset(reading: Reading) -> Measured | None:
    """Along one axis, between the centres."""
    pair, way = reading.pair(), way_in(reading.question.question)
    if pair is None or way is None:
        return None
    ahead = ahead_by(way, *pair)
    words = {"a": _name(reading, pair[0]), "b": _name(reading, pair[1]), "way": way if ahead > 0 else opposite(way)}
    return Measured(abs(ahead), [*pair], words)


def _gap(reading: Reading) -> Measured | None:
    gap_mm = reading.scene.relations.gap_mm
    return _of_pair(reading, lambda a, b: min(gap_mm(i, j) for i in pieces_of([a]) for j in pieces_of([b])))


def _volume_difference(reading: Reading) -> Measured | None:
    """In ml, or where it is asked for in per cent of the one named second, or of a length in mm."""
    length = fact_in(reading.question.question, LENGTHS)
    if length and _DIFFERENCE_IN.search(reading.question.question.lower()) and (pair := reading.pair()):
        first, second = sorted(pair, key=lambda i: -getattr(i, FACTS[length].attribute or ""))
        value = getattr(first, FACTS[length].attribute or "") - getattr(second, FACTS[length].attribute or "")
        words = {"a": _name(reading, first), "b": _name(reading, second), "what": _CALLED[length]}
        return Measured(
            value, [first, second], words, "The {what} of the {a} is {value} more than that of the {b}.", "mm"
        )
    if _PER_CENT.search(reading.question.question.lower()) and (pair := reading.pair()):
        first, second = pair
        value = 100 * (first.volume_ml - second.volume_ml) / second.volume_ml
        words = {"a": _name(reading, first), "b": _name(reading, second), "how": "larger" if value > 0 else "smaller"}
        return Measured(abs(value), [first, second], words, "The {a} is {value} {how} than the {b}.", "%")
    return _of_pair(reading, lambda a, b: a.volume_ml - b.volume_ml, higher_first=True)


def _intensity_difference(reading: Reading) -> Measured | None:
    return _of_pair(reading, lambda a, b: _mean(a) - _mean(b), higher_first=True)


def _intensity_ratio(reading: Reading) -> Measured | None:
    pair = reading.pair()
    if pair is None or not _mean(pair[1]):
        return None
    return _of_pair(reading, lambda a, b: _mean(a) / _mean(b))


def _volume_ratio(reading: Reading) -> Measured | None:
    return _of_pair(reading, lambda a, b: a.volume_ml / b.volume_ml)


def _of_pair(
    reading: Reading, measure: Callable[[Instance, Instance], float], higher_first: bool = False
) -> Measured | None:
    """A measure of the two instances in the order of the question's words, or so that it is not negative."""
    pair = reading.pair()
    if pair is None:
        return None
    first, second = pair
    signed = higher_first and asks_for_signed(reading.question.question) and first.label != second.label
    if higher_first and not signed and measure(first, second) < 0:
        first, second = second, first
    words = {"a": _name(reading, first), "b": _name(reading, second)}
    if signed and reading.fact == "volume_difference":
        words["what"] = "volume"
    return Measured(measure(first, second), [first, second], words, _SIGNED if signed else None)


def _share(reading: Reading) -> Measured | None:
    """Lesions: their part of the organ and themselves together (a mask of an organ leaves out its lesions). Else: the
    volume of the smaller structure in per cent of the larger one's, unless the words say of which one.
    """
    chosen = reading.selected()
    lesions = [i for i in chosen if is_lesion(i.label)]
    others = [i for i in chosen if not is_lesion(i.label)]
    if others and (among := _of_all_lesions(reading, lesions, others)):
        return among
    if lesions and others:
        part, around = lesions, lesions + others
        kinds = list(dict.fromkeys(display(i.label) for i in lesions))
        names = {"a": kinds[0], "b": enumerate_things(dict.fromkeys(display(i.label) for i in others))}
        if len(lesions) > 1:
            names["a"] = f"{len(lesions)} {plural(kinds[0] if len(kinds) == 1 else 'lesion')}"
            shown_as = "The {a} make up {value} of the {b}."
            return Measured(100 * _volume(part) / _volume(around), around, names, shown_as)
    elif pair := reading.pair():
        small, large = sorted(pair, key=lambda i: i.volume_ml)
        if said := _OF_WHAT.search(reading.question.question.lower()):  # "what per cent of the liver is the spleen?"
            whole_of = find_mentions(said["whole"], tuple(i.label for i in pair)).classes[:1]
            small, large = sorted(pair, key=lambda i: i.label in whole_of) if whole_of else (small, large)
        part, around = [small], [large]
        names = {"a": _name(reading, small), "b": _name(reading, large)}
    else:
        return _none_in(reading, chosen)
    value = 100 * _volume(part) / _volume(around)
    return Measured(value, list({i.id: i for i in (*part, *around)}.values()), names)


def _of_all_lesions(reading: Reading, inside: list[Instance], organs: list[Instance]) -> Measured | None:
    """Of the volume of all lesions the part that lies in organs: "how much of the tumour volume is in the liver?"."""
    said = _OF_WHAT.search(reading.question.question.lower())
    lies = _LIES_IN.match(said["whole"]) if said else None  # not "the share of the tumours in the liver"
    whole_of = find_mentions(lies["those"] if lies else "", reading.mention.classes)
    every = [i for i in reading.scene.instances if is_lesion(i.label) and i.label in whole_of.classes]
    if not every or set(whole_of.classes) & {i.label for i in organs}:
        return None
    where = enumerate_things(dict.fromkeys(display(i.label) for i in organs))
    words = {"a": where, "b": plural(reading.thing())}
    return Measured(100 * _volume(inside) / _volume(every), every, words, "The {a} holds {value} of all {b} by volume.")


def _none_in(reading: Reading, organs: list[Instance]) -> Measured | None:
    """0 % where it is asked which part of organs lesions are that lie elsewhere."""
    lesions = [name for name in reading.mention.classes if is_lesion(name)]
    if not lesions or not organs or not any(is_lesion(i.label) for i in reading.scene.instances):
        return None
    where = enumerate_things(dict.fromkeys(display(i.label) for i in organs))
    return Measured(0.0, organs, {"a": display(lesions[0]), "b": where}, "No {a} lies in the {b}: {value}.")


def _total_volume(reading: Reading) -> Measured | None:
    chosen = reading.selected()
    if not chosen:
        return None
    several = reading.structures()
    volumes = [(_name(reading, i), i.volume_ml) for i in several]
    if len(several) > MOST_LISTED:
        labels = dict.fromkeys(i.label for i in several)
        volumes = [(display(label), _volume([i for i in several if i.label == label])) for label in labels]
    things = enumerate_things(f"{name} {volume:.1f} ml" for name, volume in volumes)
    return Measured(_volume(chosen), chosen, {"things": things})


_MEASURES: dict[str, Callable[[Reading], Measured | None]] = {
    "surface_area": _surface_area,
    "slice": _slice,
    "axis_ratio": _axis_ratio,
    "sphere_diameter": _sphere_diameter,
    "distance": _distance,
    "offset": _offset,
    "gap": _gap,
    "volume_difference": _volume_difference,
    "intensity_difference": _intensity_difference,
    "intensity_ratio": _intensity_ratio,
    "volume_ratio": _volume_ratio,
    "share": _share,
    "total_volume": _total_volume,
}


def _say(reading: Reading, found: Measured) -> dict[str, Any]:
    value, unit = found.value, found.unit or FACTS[reading.fact].unit
    what = "attenuation"
    if reading.scene.modality != "CT" and reading.fact.startswith("intensity"):
        unit, what = None, "signal (arbitrary units)"
    wanted = reading.question.unit or asked_unit(reading.question.question, unit)
    base, factor = UNITS.get((wanted or "").lower(), (None, 1.0))
    if wanted and unit and base == unit:
        value, unit = value * factor, wanted
    value = round(value, 3)
    with_unit = f"{value:.0f}" if unit == "slice" else f"{shown(value)} {unit}" if unit else shown(value)
    text = (found.says or _SAYS[reading.fact]).format(**{"value": with_unit, "what": what} | found.words)
    compared: dict[str, Any] = {}
    if reading.limit and reading.question.type is None:
        answer = "yes" if reading.limit.holds(found.value) else "no"
        compared, text = {"type": "classification", "choice": answer}, f"{answer.capitalize()}. {text}"
    return compared | {
        "text": text,
        "value": value,
        "unit": unit,
        "evidence": evidence(found.instances),
        "confidence": reading.confidence(found.instances),
    }


def _volume(instances: list[Instance]) -> float:
    return sum(instance.volume_ml for instance in instances)


def _mean(instance: Instance) -> float:
    return instance.intensity_mean or 0.0


def _name(reading: Reading, instance: Instance) -> str:
    if isinstance(instance, Whole) and reading.fact not in OF_THE_LARGEST:
        return display(instance.label)
    same = [i for i in reading.scene.instances if i.label == instance.label]
    ranks = {1: "largest ", 2: "second largest ", 3: "third largest "}
    lead = "" if len(same) == 1 else ranks.get(instance.rank, "smallest " if instance.rank == len(same) else "")
    piece = f"{lead}piece of the " if lead and not is_lesion(instance.label) else lead
    return piece + display(instance.label)
