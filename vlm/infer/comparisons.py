"""Comparisons that no single fact holds: two extents of one structure, and volumes of which one is a sum.

Enters a Reading, leaves the parts of an answer, or None for another question.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from seg_backbone.labels import display
from seg_backbone.lesions import Instance
from vlm.claims import is_claim
from vlm.data.wordings import enumerate_things
from vlm.facts import FACTS
from vlm.grounding import find_mentions
from vlm.heads import decode
from vlm.heads.choose import match_option
from vlm.heads.ranks import compared_by
from vlm.heads.reading import Reading, evidence, shown
from vlm.plain_words import plain_line, says
from vlm.scene import scene_classes

_FIELDS = {fact.attribute: name for name, fact in FACTS.items() if fact.attribute}
_AS_COMPARED = {
    "wide": "wider",
    "broad": "broader",
    "tall": "taller",
    "high": "taller",
    "deep": "deeper",
    "long": "longer",
}
_LESS = re.compile(r"\b(?:shorter|narrower|smaller|thinner|shallower|less)\b")
_TOGETHER = re.compile(r"\b(?:together|combined|altogether|in total|both|sum|and)\b")
_OTHER_HALF = re.compile(r" (?:than|or|exceeds?) ")


def extents_compared(reading: Reading) -> dict[str, Any] | None:
    """The answer to a yes/no question that compares two extents of one structure, "longer from front to back than from
    left to right?", "wider than it is tall?"; None for another question.
    """
    question = reading.question
    first, than, second = question.question.lower().partition(" than ")
    named = set(reading.mention.classes)
    if not than or not is_claim(question.question) or reading.threshold or reading.limit or len(named) > 1:
        return None
    second = re.sub(rf"\b({'|'.join(_AS_COMPARED)})\b", lambda word: _AS_COMPARED[word[1]], second)
    facts = [_FIELDS[field] for field in map(compared_by, (first, second)) if field != "volume_ml"]
    if len(set(facts)) != 2 or question.type not in (None, "classification", "open"):
        return None
    here, there = (decode(replace(reading, fact=fact)) for fact in facts)
    if here.get("value") is None or there.get("value") is None:
        return None
    ahead = here["value"] < there["value"] if _LESS.search(first) else here["value"] > there["value"]
    answer = "yes" if ahead else "no"
    text = f"{answer.capitalize()}. {here['text']} {there['text']}"
    choice = match_option(answer, question.options) if question.options else answer
    return here | {"type": "classification", "text": text, "value": None, "unit": None, "choice": choice}


def totals_compared(reading: Reading) -> dict[str, Any] | None:
    """The answer to a question that compares volumes of which one is a sum: "Is the spleen larger than both kidneys
    together?", "Which has more volume, the kidneys together or the spleen?"; None for another question.
    """
    question, scene = reading.question, reading.scene
    text = question.question.lower()
    halves, claim = _OTHER_HALF.split(text), is_claim(question.question)
    if len(halves) != 2 or not _TOGETHER.search(text) or not (claim or says("which_of_two", plain_line(text))):
        return None
    if compared_by(text) != "volume_ml" or says("of_density", plain_line(text)):
        return None
    named = [find_mentions(half, scene_classes(scene)).classes for half in halves]
    ends = [[i for i in scene.instances if i.label in labels] for labels in named]
    several = any(len({i.label for i in end}) > 1 for end in ends)
    if not (all(ends) and several) or set(named[0]) & set(named[1]):
        return None
    volumes, names = [sum(i.volume_ml for i in end) for end in ends], [_names(end) for end in ends]
    first_is_it = volumes[0] < volumes[1] if _LESS.search(halves[0]) else volumes[0] > volumes[1]
    answer = ("yes" if first_is_it else "no") if claim else names[not first_is_it]
    said = f"{shown(volumes[0])} ml of {names[0]} against {shown(volumes[1])} ml of {names[1]}."
    used = [i for end in ends for i in end]
    return {
        "type": "classification",
        "text": f"{answer[:1].upper()}{answer[1:]}: {said}",
        "choice": match_option(answer, question.options) if question.options else answer,
        "evidence": evidence(used),
        "confidence": reading.confidence(used),
    }


def _names(instances: list[Instance]) -> str:
    return enumerate_things(dict.fromkeys(f"the {display(i.label)}" for i in instances))
