"""Measurement: a measured property of the instance selected, or a measure of how several relate."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.data.wordings import enumerate_things
from vlm.facts import FACTS, UNITS, asked_unit
from vlm.heads.counting import plural
from vlm.heads.measured import CALLED, Measured, name_of, volume_of
from vlm.heads.pairs import MEASURES_OF_PAIRS
from vlm.heads.ranks import chooses
from vlm.heads.reading import Reading, evidence, none_found, shared_name, shown
from vlm.plain_words import plain_line
from vlm.wholes import pieces_of, whole

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
_OF_SEVERAL = "The {how} {what} of {number} {things} is {value}: {each}."
_OF_EACH = "The {what} of each of {number} {things} in {unit}: {each}."
_MEDIAN = re.compile(r"\bmedian\b")
_AVERAGE = re.compile(r"\b(?:mean|average|averaged)\b")
_SUM = re.compile(r"\b(?:sum|total|combined|together|added|altogether)\b")
_EACH = re.compile(
    r"\b(?:each|every|individual(?:ly)?|respective(?:ly)?|one by one|per (?:lesion|nodule|tumou?r|structure|organ)"
    r"|(?:volume|size|length|diameter|height|width|dimension)s)\b"
)
_OF_LESIONS = re.compile(r"\bof (?:all |the )*(?:\w+ )?(?:lesions|tumou?rs|nodules|masses|metastases|cysts)\b")
_BOTH = re.compile(r"\b(?:both|all|combined|together|overall)\b")


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
    if fact in CALLED and fact != "volume" and re.search(r"\bboth\b", line) and not _SUM.search(line):
        return "each"
    ways = {"median": _MEDIAN, "mean": _AVERAGE, "total": _SUM, "each": _EACH} if fact in CALLED else {}
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
    name, called = plural(reading.thing()), CALLED[reading.fact].removeprefix("mean ")
    each = enumerate_things(f"{name_of(reading, i)} {shown(v)}" for i, v in zip(several, values, strict=True))
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
    return Measured(float(value), [instance], {"thing": name_of(reading, instance)})


def _total_volume(reading: Reading) -> Measured | None:
    chosen = reading.selected()
    if not chosen:
        return None
    several = reading.structures()
    volumes = [(name_of(reading, i), i.volume_ml) for i in several]
    if len(several) > MOST_LISTED:
        labels = dict.fromkeys(i.label for i in several)
        volumes = [(display(label), volume_of([i for i in several if i.label == label])) for label in labels]
    things = enumerate_things(f"{name} {volume:.1f} ml" for name, volume in volumes)
    return Measured(volume_of(chosen), chosen, {"things": things})


_MEASURES: dict[str, Callable[[Reading], Measured | None]] = MEASURES_OF_PAIRS | {
    "surface_area": _surface_area,
    "slice": _slice,
    "axis_ratio": _axis_ratio,
    "sphere_diameter": _sphere_diameter,
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
