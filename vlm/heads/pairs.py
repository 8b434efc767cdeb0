"""Measures of two: distances, differences, ratios, and the share of one structure in another."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import asks_for_signed
from vlm.data.wordings import enumerate_things
from vlm.facts import FACTS
from vlm.grounding import find_mentions
from vlm.heads.counting import plural
from vlm.heads.measured import CALLED, Measured, name_of, volume_of
from vlm.heads.places import ahead_by, opposite, way_in
from vlm.heads.reading import Reading
from vlm.plain_words import fact_in
from vlm.wholes import pieces_of

_SIGNED = "The {what} of the {a} minus that of the {b} is {value}."
LENGTHS = tuple(name for name, fact in FACTS.items() if fact.attribute and fact.unit == "mm")
_DIFFERENCE_IN = re.compile(
    r"\bdiffer(?:ence|s)? (?:in|of) (?:length|height|width|depth|diameter|(?:long|short) axis)\b"
)
_OF_WHAT = re.compile(r"(?:per ?cent(?:age)?|%|fraction|share|proportion) of (?P<whole>.*)")
_LIES_IN = re.compile(r"(?P<those>.*?)\b(?:is|are|lies?|sits?|located|found|situated) (?:\w+ )?(?:in|within|inside)\b")
_PER_CENT = re.compile(r"\bper ?cent(?:age)?\b|%")


def _distance(reading: Reading) -> Measured | None:
    return _of_pair(reading, lambda a, b: float(np.linalg.norm(np.subtract(a.center_mm, b.center_mm))))


def _offset(reading: Reading) -> Measured | None:
    """Along one axis, between the centres."""
    pair, way = reading.pair(), way_in(reading.question.question)
    if pair is None or way is None:
        return None
    ahead = ahead_by(way, *pair)
    words = {"a": name_of(reading, pair[0]), "b": name_of(reading, pair[1]), "way": way if ahead > 0 else opposite(way)}
    return Measured(abs(ahead), [*pair], words)


def _gap(reading: Reading) -> Measured | None:
    gap_mm = reading.scene.relations.gap_mm
    return _of_pair(reading, lambda a, b: min(gap_mm(i, j) for i in pieces_of([a]) for j in pieces_of([b])))


def _volume_difference(reading: Reading) -> Measured | None:
    """In ml, or where it is asked for in per cent of the one named second, or of a length in mm."""
    length, pair = fact_in(reading.question.question, LENGTHS), reading.pair()
    if length and pair and _DIFFERENCE_IN.search(reading.question.question.lower()):
        sizes = {i.id: float(getattr(i, FACTS[length].attribute or "")) for i in pair}
        first, second = sorted(pair, key=lambda i: -sizes[i.id])
        words = {"a": name_of(reading, first), "b": name_of(reading, second), "what": CALLED[length]}
        says = "The {what} of the {a} is {value} more than that of the {b}."
        return Measured(sizes[first.id] - sizes[second.id], [first, second], words, says, "mm")
    if pair and _PER_CENT.search(reading.question.question.lower()):
        first, second = pair
        value = 100 * (first.volume_ml - second.volume_ml) / second.volume_ml
        words = {
            "a": name_of(reading, first),
            "b": name_of(reading, second),
            "how": "larger" if value > 0 else "smaller",
        }
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
    words = {"a": name_of(reading, first), "b": name_of(reading, second)}
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
            return Measured(100 * volume_of(part) / volume_of(around), around, names, shown_as)
    elif pair := reading.pair():
        small, large = sorted(pair, key=lambda i: i.volume_ml)
        if said := _OF_WHAT.search(reading.question.question.lower()):  # "what per cent of the liver is the spleen?"
            whole_of = find_mentions(said["whole"], tuple(i.label for i in pair)).classes[:1]
            small, large = sorted(pair, key=lambda i: i.label in whole_of) if whole_of else (small, large)
        part, around = [small], [large]
        names = {"a": name_of(reading, small), "b": name_of(reading, large)}
    else:
        return _none_in(reading, chosen)
    value = 100 * volume_of(part) / volume_of(around)
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
    return Measured(
        100 * volume_of(inside) / volume_of(every), every, words, "The {a} holds {value} of all {b} by volume."
    )


def _none_in(reading: Reading, organs: list[Instance]) -> Measured | None:
    """0 % where it is asked which part of organs lesions are that lie elsewhere."""
    lesions = [name for name in reading.mention.classes if is_lesion(name)]
    if not lesions or not organs or not any(is_lesion(i.label) for i in reading.scene.instances):
        return None
    where = enumerate_things(dict.fromkeys(display(i.label) for i in organs))
    return Measured(0.0, organs, {"a": display(lesions[0]), "b": where}, "No {a} lies in the {b}: {value}.")


def _mean(instance: Instance) -> float:
    return instance.intensity_mean or 0.0


MEASURES_OF_PAIRS: dict[str, Callable[[Reading], Measured | None]] = {
    "distance": _distance,
    "offset": _offset,
    "gap": _gap,
    "volume_difference": _volume_difference,
    "intensity_difference": _intensity_difference,
    "intensity_ratio": _intensity_ratio,
    "volume_ratio": _volume_ratio,
    "share": _share,
}
