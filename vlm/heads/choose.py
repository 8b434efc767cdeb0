"""Choosing: a value into the words of a question's options."""

from __future__ import annotations

import re
from typing import Any

from seg_backbone.labels import canonical, display
from seg_backbone.lesions import Instance
from vlm.heads.reading import Reading, evidence

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


def choose(reading: Reading, value: str, text: str, instances: list[Instance], confidence: float) -> dict[str, Any]:
    """The option that says `value`, or `value` itself without options; an abstention where none says it."""
    options = reading.question.options
    choice = match_option(value, options) if options else value
    if choice is None:
        reason = f"the answer ({value}) is none of the options"
        return {"text": text, "abstained": True, "reason": reason, "evidence": evidence(instances)}
    return {"text": text, "choice": choice, "evidence": evidence(instances), "confidence": confidence}
