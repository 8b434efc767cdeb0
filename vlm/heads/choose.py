"""Choosing: a value into the words of a question's options."""

from __future__ import annotations

import re
from typing import Any

from seg_backbone.labels import canonical, display, is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import claimed, negated
from vlm.data.threshold import OPERATORS, parse_threshold
from vlm.facts import UNITS
from vlm.grounding import find_mentions
from vlm.heads.reading import Reading, evidence

_A_NUMBER = re.compile(
    r"((?<![\d\w])-?\d+(?:[.,]\d+)?|(?<=-)\d+(?:[.,]\d+)?)\s*(mm3|cm3|mm2|cm2|mm|cm|ml|cc|hu|litre|l|%)?(?![a-z])"
)
_LETTER = re.compile(r"^\W*[a-hA-H][.):]\s+")
_YES_OR_NO = re.compile(r"\W*(?:[a-d1-9]\W+)?(?:yes|no|true|false)\W*")  # also "(A) yes"
_SAME = {
    "yes": ("yes", "present", "true", "visible", "positive"),
    "no": ("no", "absent", "false", "not visible", "negative"),
    "single": ("single", "one", "solitary", "1", "only one", "unifocal", "isolated"),
    "multiple": ("multiple", "several", "more than one", "many", "multifocal", "numerous"),
    "ct": ("ct", "computed tomography", "cat scan"),
    "mr": ("mr", "mri", "magnetic resonance", "magnetic resonance imaging"),
    "cystic": ("cystic", "cyst", "fluid"),
    "solid": ("solid", "soft tissue", "not cystic"),
    "clustered": ("clustered", "close together", "grouped"),
    "scattered": ("scattered", "dispersed", "spread out", "not clustered"),
    "head and neck": ("head and neck", "head  neck", "head neck", "headneck", "head", "neck"),
    "chest": ("chest", "thorax"),
    "abdomen": ("abdomen", "belly"),
    "limb or trunk soft tissue": ("soft tissue", "limb", "extremity", "extremities", "arm", "leg"),
    "midline": ("midline", "middle", "central", "centre", "center"),
}


def match_option(value: str, options: tuple[str, ...]) -> str | None:
    """The option that says `value`, by synonyms, class names and whole words, whatever letter stands before it; None
    where none does.
    """
    plain = {_LETTER.sub("", option): option for option in reversed(options)}
    found = _match(value, tuple(plain)[::-1])
    return None if found is None else plain[found]


def _match(value: str, options: tuple[str, ...]) -> str | None:
    wanted = value.lower()
    same = {wanted, *_SAME.get(wanted, ()), display(canonical(value)).lower(), canonical(value)}
    for option in options:
        plain = re.sub(r"[^a-z0-9_% ]+", "", option.lower()).strip()
        if plain in same or canonical(option) in same:
            return option
    for option in options:
        words = set(re.findall(r"[a-z]+", option.lower()))
        if is_lesion(option) and not is_lesion(wanted):  # "liver tumour" does not say "liver"
            continue
        if wanted in words and not (wanted in ("left", "right") and {"left", "right"} <= words):
            return option
    if wanted in ("ct", "mr"):  # "T1 MRI"
        said = [option for option in options if set(re.findall(r"[a-z]+", option.lower())) & set(_SAME[wanted])]
        return said[0] if len(said) == 1 else None
    if wanted in _SAME or wanted in ("left", "right"):
        return None
    for option in options:  # other words for a class: "renal cyst"
        mention, level = find_mentions(option, (value,)), _level(option)
        other = mention.others or mention.elsewhere or (level and level != _level(wanted))
        if mention.classes and not other:
            return option
    return None


def _level(name: str) -> list[str]:
    """What tells the vertebrae apart: of "vertebrae_L1" ["l1"]."""
    return re.findall(r"[a-z]\d+", name.lower())


def match_number(value: float, unit: str | None, options: tuple[str, ...]) -> str | None:
    """The option that a number falls into or comes nearest to: "5-10 cm", "> 3", "B. 42 ml"; None without numbers.

    unit: of the value; an option without one is taken to be in it.
    """
    inside, away = list[str](), dict[str, float]()
    for option in options:
        plain = re.sub(r"^\W*[a-h][.):]\s+|(?<=\d),(?=\d{3}\b)", "", option.lower().replace("−", "-"))
        limit = parse_threshold(plain) or parse_threshold(f"{plain} mm")
        numbers = [(float(n.replace(",", ".")), u) for n, u in _A_NUMBER.findall(plain)]
        if not numbers:
            continue
        last = next((u for _, u in reversed(numbers) if u), "")  # "5-10 cm"
        scaled = [n * _factor(u or last, unit) for n, u in numbers]
        if len(scaled) == 2 and re.search(r"\d\s*\D{0,6}(?:-|–|to|and)\s*\d", plain):
            holds = min(scaled) <= value <= max(scaled)
        elif limit and limit.op != "=" and len(scaled) == 1:
            holds = OPERATORS[limit.op](value, scaled[0])
        else:
            away[option] = abs(scaled[0] - value)
            continue
        inside += [option] if holds else []
    if inside:
        return inside[0]
    return min(away, key=lambda option: away[option]) if away else None


def unit_of(options: tuple[str, ...]) -> str | None:
    """The unit, as measures have it, of options that are all numbers: "under 5 cm", "5 to 10 cm" -> "mm"; else None."""
    found = [_A_NUMBER.findall(option.lower()) for option in options]
    units = {UNITS[unit][0] for numbers in found for _, unit in numbers if unit in UNITS}
    return units.pop() if len(units) == 1 and all(found) else None


def _factor(unit: str, wanted: str | None) -> float:
    """By how much a number in one unit is multiplied to be in another; 1 where they do not fit."""
    (base, per), (other, wanted_per) = (UNITS.get(u or "", ("", 1.0)) for u in (unit, (wanted or "").lower()))
    return wanted_per / per if base and base == other else 1.0


def is_yes_or_no(options: tuple[str, ...]) -> bool:
    """Whether an answer may be yes or no: the options say so, or there are none."""
    return not options or any(_YES_OR_NO.fullmatch(option.lower()) for option in options)


def number(reading: Reading, so: bool, instances: list[Instance]) -> dict[str, Any]:
    """Whether there are as many as a yes/no question says, and how many there are."""
    answer, count, thing = ("yes" if so else "no"), len(instances), reading.thing()
    text = f"{answer.capitalize()}: {count if count else f'no {thing}'} {'were' if count > 1 else 'was'} found."
    choice = match_option(answer, reading.question.options) or answer
    confidence = reading.confidence(instances)
    return {"text": text, "choice": choice, "evidence": evidence(instances), "confidence": confidence}


def choose(reading: Reading, value: str, text: str, instances: list[Instance], confidence: float) -> dict[str, Any]:
    """The option that says `value`, or `value` itself without options; an abstention where none says it.

    Of a yes/no question (vlm/claims.py) it is yes or no as its words have it. text: what is so; for a fact that is yes
    or no it begins with "Yes" or "No".
    """
    question, options = reading.question.question, reading.question.options
    if is_yes_or_no(options):
        if negated(reading.fact, question):
            value = "no" if value == "yes" else "yes"
            text = f"{value.capitalize()}: {re.sub('^(?:Yes|No)[,:] ', '', text)}"
        elif wanted := claimed(reading.fact, question, reading.mention):
            value = "yes" if set(wanted) & set(value.split(", ")) else "no"
            text = f"{value.capitalize()}. {text}"
    choice = match_option(value, options) if options else value
    if choice is None:
        reason = f"the answer ({value}) is none of the options"
        return {"text": text, "abstained": True, "reason": reason, "evidence": evidence(instances)}
    return {"text": text, "choice": choice, "evidence": evidence(instances), "confidence": confidence}
