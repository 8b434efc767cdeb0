"""Open questions: a findings paragraph made of measured facts, one sentence an instance."""

from __future__ import annotations

from typing import Any

from seg_backbone.labels import display, is_lesion
from vlm.heads.reading import Reading, evidence


def decode(reading: Reading) -> dict[str, Any]:
    """Lesions first with their axes, then the organs with their volumes. off_topic abstains."""
    scene = reading.scene
    if reading.fact == "off_topic":
        reason = "the question is not about this scan"
        return {"text": "I can only answer questions about this scan.", "abstained": True, "reason": reason}
    lesions = [i for i in scene.instances if is_lesion(i.label)]
    organs = [i for i in scene.instances if not is_lesion(i.label)]
    lines = [f"{scene.modality} scan."]
    for i in lesions:
        side = "in the midline" if i.side == "midline" else f"on the {i.side}"
        lines.append(
            f"{display(i.label).capitalize()} {side}, {i.long_axis_mm:.0f} x {i.short_axis_mm:.0f} mm, "
            f"{i.volume_ml:.1f} ml, slice {i.slice['index']}."
        )
    asked = [name for name in scene.classes if is_lesion(name) and name not in scene.untrained]
    if not lesions and asked:
        lines.append(f"No {' or '.join(map(display, asked))} found.")
    if organs:
        volumes: dict[str, float] = {}
        for i in organs:
            volumes[i.label] = volumes.get(i.label, 0.0) + i.volume_ml
        lines.append("In view: " + ", ".join(f"{display(name)} ({ml:.1f} ml)" for name, ml in volumes.items()) + ".")
    chosen = lesions + organs
    return {"text": " ".join(lines), "evidence": evidence(chosen), "confidence": reading.confidence(chosen)}
