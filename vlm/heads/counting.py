"""Counting: the number of instances selected; where no class of the mask serves, what a table taught (ordinal.py)."""

from __future__ import annotations

from typing import Any

from vlm.heads import ordinal
from vlm.heads.reading import Reading, evidence


def decode(reading: Reading) -> dict[str, Any]:
    """value: an integer, 0 where none is selected (an answer, not an abstention)."""
    if reading.fact != "count":
        return ordinal.decode(reading)
    chosen = reading.selected()
    limit = ""
    if reading.threshold:
        name = "volume" if reading.threshold.unit == "ml" else "long axis"
        limit = f" with a {name} {reading.threshold.op} {reading.threshold.value:g} {reading.threshold.unit}"
    thing, count = reading.thing(), len(chosen)
    text = f"There {'is' if count == 1 else 'are'} {count} {thing if count == 1 else plural(thing)}{limit}."
    return {
        "text": text,
        "value": count,
        "evidence": evidence(chosen),
        "confidence": reading.confidence(chosen),
    }


def plural(thing: str) -> str:
    """tumour -> tumours, mass -> masses, larynx -> larynxes."""
    return thing + ("es" if thing.endswith(("s", "x", "ch")) else "s")
