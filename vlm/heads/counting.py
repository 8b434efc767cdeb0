"""Counting: the number of instances selected; where no class of the mask serves, what a table taught (ordinal.py)."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.heads import ordinal
from vlm.heads.ranks import SHOWN
from vlm.heads.reading import Reading, evidence

_PER_ORGAN = re.compile(
    r"\b(?:per|by|(?:in|of|for) (?:each|every)) (?:organ|structure|kidney|lung|lobe|bone)\b|\beach organ\b"
)
_THAT_HOLD = re.compile(
    r"\bhow many (?:\w+ )?(?:organs|structures|kidneys|lungs|lobes|bones|vertebrae|glands|sites) "
    r"(?:contain|have|hold|harbou?r|show|carry|are (?:affected|involved)|with)\b"
)


def decode(reading: Reading) -> dict[str, Any]:
    """value: an integer, 0 where none is selected (an answer, not an abstention).

    Of organs of several classes (ribs, kidneys) each class counts once, in however many pieces its mask has it.
    """
    if reading.fact != "count":
        return ordinal.decode(reading)
    lesions = reading.mention.lesions or any(map(is_lesion, reading.mention.classes))
    if lesions and _THAT_HOLD.search(reading.question.question.lower()):
        return _holders(reading)
    chosen = reading.selected()
    organs = len({i.label for i in chosen if not is_lesion(i.label)})
    count = sum(is_lesion(i.label) for i in chosen) + organs if organs > 1 else len(chosen)
    limit = ""
    if reading.threshold:
        limit = f" with a {SHOWN[reading.threshold.attribute][0]} {reading.threshold.said()}"
    thing = reading.thing()
    text = f"There {'is' if count == 1 else 'are'} {count} {thing if count == 1 else plural(thing)}{limit}."
    if _PER_ORGAN.search(reading.question.question.lower()):
        text += _by_organ(reading, [i for i in chosen if is_lesion(i.label)])
    return {
        "text": text,
        "value": count,
        "evidence": evidence(chosen),
        "confidence": reading.confidence(chosen),
    }


def _holders(reading: Reading) -> dict[str, Any]:
    """How many structures hold a lesion: "How many organs contain lesions?"."""
    lesions = [i for i in reading.selected() if is_lesion(i.label)]
    homes = {home.label: home for home in reading.homes(lesions)}
    listed = f": {', '.join(map(display, homes))}" if homes else ""
    return {
        "text": f"Structures with lesions: {len(homes)}{listed}.",
        "value": len(homes),
        "evidence": evidence([*homes.values()]),
        "confidence": reading.confidence(lesions),
    }


def _by_organ(reading: Reading, lesions: list[Instance]) -> str:
    """A sentence with the number of lesions in each organ; "" for none."""
    numbers = Counter(home.label for home in reading.homes(lesions))
    listed = ", ".join(f"{display(label)} {number}" for label, number in numbers.most_common())
    return f" By organ: {listed}." if listed else ""


def plural(thing: str) -> str:
    """tumour -> tumours, mass -> masses, metastasis -> metastases, larynx -> larynxes; vertebra -> vertebrae."""
    if thing.endswith("vertebra"):
        return thing + "e"
    if thing.endswith(("ae", "cartilages", "discs", "lesions")):
        return thing
    if thing.endswith("sis"):
        return thing[:-2] + "es"
    return thing + ("es" if thing.endswith(("s", "x", "ch")) else "s")
