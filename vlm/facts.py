"""Facts: what a question can be about. The model reads a question and names one fact and the instances it concerns;
code reads the fact off those instances. Each fact belongs to one kind of question.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """kind: the question type it answers (see vlm.schema.TYPES). unit: of its value, or None.

    attribute: the field of an Instance that holds it, where one instance does.
    """

    kind: str
    unit: str | None = None
    attribute: str | None = None


FACTS: dict[str, Fact] = {
    "presence": Fact("classification"),  # is any selected instance there: yes, no
    "side": Fact("classification"),  # side of the patient: left, right, midline
    "multiplicity": Fact("classification"),  # single, multiple
    "larger": Fact("classification"),  # which of the two selected has the larger volume: a class name
    "modality": Fact("classification"),  # CT, MR
    "region": Fact("classification"),  # the body region: answered by the language model among options
    "contents": Fact("multilabel"),  # which classes are in the scan
    "box": Fact("detection"),
    "count": Fact("counting"),
    "long_axis": Fact("measurement", "mm", "long_axis_mm"),  # RECIST, on one axial slice
    "short_axis": Fact("measurement", "mm", "short_axis_mm"),
    "diameter_3d": Fact("measurement", "mm", "diameter_3d_mm"),
    "craniocaudal": Fact("measurement", "mm", "craniocaudal_mm"),
    "volume": Fact("measurement", "ml", "volume_ml"),
    "intensity": Fact("measurement", "HU", "intensity_mean"),
    "distance": Fact("measurement", "mm"),  # between the centres of the two selected instances
    "fat_percent": Fact("regression", "%"),  # body composition: no mask class holds it
    "findings": Fact("open"),  # describe what is there
    "off_topic": Fact("open"),  # not about the scan: abstain
}
NAMES = tuple(FACTS)
# unit asked for -> (unit it is measured in, factor)
UNITS: dict[str, tuple[str, float]] = {
    "mm": ("mm", 1.0),
    "cm": ("mm", 0.1),
    "ml": ("ml", 1.0),
    "cc": ("ml", 1.0),
    "cm3": ("ml", 1.0),
    "cm^3": ("ml", 1.0),
    "mm3": ("ml", 1000.0),
    "l": ("ml", 0.001),
    "litre": ("ml", 0.001),
    "hu": ("HU", 1.0),
    "%": ("%", 1.0),
}


def facts_of(kind: str | None, unit: str | None = None) -> tuple[str, ...]:
    """The facts that may answer a question declared as `kind` (None: any), in `unit` where that unit is a known one.

    A regression question may ask for something that a mask measures; then measuring is the better answer.
    """
    if unit and unit.lower() in UNITS and kind in ("measurement", "regression"):
        base = UNITS[unit.lower()][0]
        return tuple(name for name, fact in FACTS.items() if fact.unit == base and fact.kind in (kind, "measurement"))
    if kind is None:
        return NAMES
    kinds = {"regression": ("regression", "measurement"), "open": tuple({f.kind for f in FACTS.values()})}
    return tuple(name for name, fact in FACTS.items() if fact.kind in kinds.get(kind, (kind,)))
