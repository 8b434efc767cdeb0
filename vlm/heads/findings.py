"""Open questions: a findings paragraph made of measured facts, one sentence an instance."""

from __future__ import annotations

from typing import Any

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.heads.reading import Reading, evidence
from vlm.regions import region_in, region_of


def decode(reading: Reading) -> dict[str, Any]:
    """Lesions first with their axes, then the organs with their volumes. off_topic abstains."""
    scene = reading.scene
    if reading.fact == "off_topic":
        reason = "the question is not about this scan"
        return {"text": "I can only answer questions about this scan.", "abstained": True, "reason": reason}
    about = _about(reading)
    lesions = [i for i in about if is_lesion(i.label)]
    organs = [i for i in about if not is_lesion(i.label)]
    lines = [f"{scene.modality} scan."]
    for i in lesions:
        side = f" on the {i.side}" if i.side != "midline" else "" if scene.cut else " in the midline"
        lines.append(
            f"{display(i.label).capitalize()}{side}, {i.long_axis_mm:.0f} x {i.short_axis_mm:.0f} mm, "
            f"{i.volume_ml:.1f} ml, slice {i.slice['index']}."
        )
    asked = [name for name in scene.classes if is_lesion(name) and name not in scene.untrained]
    if not lesions and asked and len(about) == len(scene.instances):
        lines.append(f"No {' or '.join(map(display, asked))} found.")
    if organs:
        volumes: dict[str, float] = {}
        for i in organs:
            volumes[i.label] = volumes.get(i.label, 0.0) + i.volume_ml
        lines.append("In view: " + ", ".join(f"{display(name)} ({ml:.1f} ml)" for name, ml in volumes.items()) + ".")
    chosen = lesions + organs
    return {"text": " ".join(lines), "evidence": evidence(chosen), "confidence": reading.confidence(chosen)}


def _about(reading: Reading) -> list[Instance]:
    """What is described: the structures named with the lesions in them, those of a region that is named, or all."""
    every, named = reading.scene.instances, set(reading.mention.classes)
    if region := region_in(reading.question.question):
        return [i for i in every if region_of(i.label) == region] or every
    organs = {name for name in named if not is_lesion(name)}
    if not organs:
        return [i for i in every if i.label in named] or every
    inside = reading.inside((i for i in every if is_lesion(i.label)), organs)
    return [*(i for i in every if i.label in organs), *inside] or every
