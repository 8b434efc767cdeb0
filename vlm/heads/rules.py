"""Rules: the verdict of vlm.rules on what was selected, as a choice that names its rule."""

from __future__ import annotations

from typing import Any

import numpy as np

from seg_backbone.labels import is_lesion
from seg_backbone.lesions import Instance
from vlm import rules
from vlm.heads.choose import choose
from vlm.heads.reading import Reading, none_found


def decode(reading: Reading) -> dict[str, Any]:
    """The verdict on what was selected, as a choice; an abstention where nothing was selected or no rule can tell."""
    scene, fact, one = reading.scene, reading.fact, reading.one()
    used = [] if one is None else [one]
    if fact == "fatty":
        used = [i for i in scene.instances if i.label in ("liver", "spleen")]
        verdict = rules.fatty(used, scene.modality)
    elif fact == "asymmetric":
        pair = reading.pair()
        if pair is None:
            return none_found(reading)
        verdict, used = rules.asymmetric(*pair), list(pair)
    elif fact in ("outlier", "clustered"):
        used = [i for i in reading.selected() if is_lesion(i.label)]
        if not used:
            return none_found(reading)
        verdict = rules.outlier(used) if fact == "outlier" else rules.clustered(used, _space_ml(reading, used))
    elif one is None:
        return none_found(reading)
    else:
        verdict = rules.composition(one, scene.modality) if fact == "composition" else _OF_ONE[fact](one)
    if verdict.answer is None:
        return {"text": f"I cannot tell: {verdict.text}.", "abstained": True, "reason": verdict.text}
    text = f"{verdict.text} (rule: {verdict.rule})."
    return choose(reading, verdict.answer, text, used, reading.confidence(used))


_OF_ONE = {"enlarged": rules.enlarged, "size_category": rules.size_category, "measurable": rules.measurable}


def _space_ml(reading: Reading, lesions: list[Instance]) -> float:
    """The volume of the organ that holds all lesions; of the body's box where none does."""
    homes = [reading.home(lesion) for lesion in lesions]
    if homes[0] is not None and all(home is homes[0] for home in homes):
        return homes[0].volume_ml
    low, high = reading.scene.body.extent_mm()
    return float(np.prod(high - low)) / 1000
