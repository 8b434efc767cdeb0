"""Measurement: a measured property of the instance selected, or the distance between two."""

from __future__ import annotations

from typing import Any

import numpy as np

from seg_backbone.labels import display
from seg_backbone.lesions import Instance
from vlm.facts import FACTS, UNITS
from vlm.heads.reading import Reading, evidence, none_found

_SAYS = {
    "long_axis": "The {thing} is {value} long (longest axial diameter).",
    "short_axis": "The {thing} has a short axis of {value}.",
    "diameter_3d": "The {thing} has a largest 3D diameter of {value}.",
    "craniocaudal": "The {thing} extends {value} from top to bottom.",
    "volume": "The {thing} has a volume of {value}.",
    "intensity": "The {thing} has a mean {what} of {value}.",
    "distance": "The centres of the {a} and the {b} are {value} apart.",
}


def decode(reading: Reading) -> dict[str, Any]:
    """value in `unit`: the unit asked for where it fits the fact, else mm, ml or HU; unit None for MR intensities.

    Abstains where the instance meant is not in the mask.
    """
    if reading.fact == "distance":
        return _distance(reading)
    instance = reading.one()
    attribute = FACTS[reading.fact].attribute
    value = getattr(instance, attribute) if instance is not None and attribute else None
    if instance is None or value is None:
        return none_found(reading)
    return _say(reading, float(value), [instance], thing=_name(reading, instance))


def _distance(reading: Reading) -> dict[str, Any]:
    """Between the centroids of the two likeliest instances."""
    order = np.argsort(-reading.selection, kind="stable")[:2]
    if len(order) < 2 or reading.selection[order].min() < 0.25:
        return none_found(reading)
    first, second = (reading.scene.instances[n] for n in order)
    value = float(np.linalg.norm(np.subtract(first.center_mm, second.center_mm)))
    return _say(reading, value, [first, second], a=display(first.label), b=display(second.label))


def _say(reading: Reading, value: float, instances: list[Instance], **words: str) -> dict[str, Any]:
    unit = FACTS[reading.fact].unit
    what = "attenuation"
    if reading.fact == "intensity" and reading.scene.modality != "CT":
        unit, what = None, "signal (arbitrary units)"
    base, factor = UNITS.get((reading.question.unit or unit or "").lower(), (unit, 1.0))
    if base == unit and reading.question.unit and unit is not None:
        value, unit = value * factor, reading.question.unit
    value = round(value, 3)
    shown = f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
    text = _SAYS[reading.fact].format(value=f"{shown} {unit}" if unit else shown, what=what, **words)
    return {
        "text": text,
        "value": value,
        "unit": unit,
        "evidence": evidence(instances),
        "confidence": reading.confidence(instances),
    }


def _name(reading: Reading, instance: Instance) -> str:
    same = [i for i in reading.scene.instances if i.label == instance.label]
    ranks = {1: "largest ", 2: "second largest ", 3: "third largest "}
    lead = "" if len(same) == 1 else ranks.get(instance.rank, "smallest " if instance.rank == len(same) else "")
    return lead + display(instance.label)
