"""Detection: the boxes of the instances selected, in RAS millimetres."""

from __future__ import annotations

from typing import Any

from vlm.heads.counting import plural
from vlm.heads.reading import Reading, evidence
from vlm.plain_words import plain_line, says


def decode(reading: Reading) -> dict[str, Any]:
    """boxes: one a lesion, and one an organ whatever the pieces of its mask; none found gives an empty list."""
    chosen = reading.structures()
    scores = dict(zip((i.id for i in reading.scene.instances), reading.selection, strict=True))
    boxes = tuple(
        {"label": i.label, "score": round(float(scores[i.id]) * (i.probability or 1.0), 4), **i.box.to_json()}
        for i in chosen
    )
    thing = reading.thing()
    if not chosen:
        text = f"No {thing} was found in this scan."
    else:
        first = chosen[0]
        size = " x ".join(f"{s:.0f}" for s in first.box.size_mm)
        centre = ", ".join(f"{c:.0f}" for c in first.box.center_mm)
        number = f"{len(chosen)} {thing if len(chosen) == 1 else plural(thing)} found"
        lead = "it measures" if len(chosen) == 1 else "the first measures"
        where = f"centred at ({centre}) mm (right, anterior, superior)"
        if says("centroid", plain_line(reading.question.question)):
            where = f"its centroid at ({', '.join(f'{c:.0f}' for c in first.center_mm)}) mm (right, anterior, superior)"
        text = f"{number}: {lead} {size} mm, {where}, slice {first.slice['index']}."
    return {"text": text, "boxes": boxes, "evidence": evidence(chosen), "confidence": reading.confidence(chosen)}
