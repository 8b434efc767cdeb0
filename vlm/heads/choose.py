"""Choosing: a value into the words of a question's options."""

from __future__ import annotations

import re
from typing import Any

from seg_backbone.labels import canonical, display
from seg_backbone.lesions import Instance
from vlm.claims import claimed, negated
from vlm.heads.reading import Reading, evidence

_YES_OR_NO = re.compile(r"\W*(?:[a-d1-9]\W+)?(?:yes|no|true|false)\W*")  # also "(A) yes"
_SAME = {
    "yes": ("yes", "present", "true", "visible", "positive"),
    "no": ("no", "absent", "false", "not visible", "negative"),
    "single": ("single", "one", "solitary", "1", "only one"),
    "multiple": ("multiple", "several", "more than one", "many"),
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
    """The option that says `value`, by synonyms, class names and whole words; None where none does."""
    wanted = value.lower()
    same = {wanted, *_SAME.get(wanted, ()), display(canonical(value)).lower(), canonical(value)}
    for option in options:
        plain = re.sub(r"[^a-z0-9_% ]+", "", option.lower()).strip()
        if plain in same or canonical(option) in same:
            return option
    for option in options:
        words = set(re.findall(r"[a-z]+", option.lower()))
        if wanted in words and not (wanted in ("left", "right") and {"left", "right"} <= words):
            return option
    return None


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
