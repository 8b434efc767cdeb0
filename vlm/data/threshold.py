"""Thresholds in free text: "lesions larger than 5 ml" -> volume_ml > 5.

Enters a question, leaves the attribute of an instance, a comparison and a value in the attribute's own unit, or None.
Only a comparison followed (or, as in "10 mm or more", preceded) by a number with a unit of length or volume counts, so
that "in mm", "3D" or "more than one" do not. Rules, not the language model: a number must not be guessed.
"""

from __future__ import annotations

import operator
import re
from dataclasses import asdict, dataclass
from typing import Any

from seg_backbone.lesions import Instance

OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
ATTRIBUTES = {"ml": "volume_ml", "mm": "long_axis_mm", "HU": "intensity_mean"}
UNITS: dict[str, tuple[float, str]] = {  # spelling (a pattern) -> factor, base unit
    r"mls?|millilit(?:re|er)s?|ccm?|cm\^?3|cm³|cubic\s+(?:cm|centimet(?:re|er)s?)": (1.0, "ml"),
    r"mm\^?3|mm³|cubic\s+(?:mm|millimet(?:re|er)s?)": (0.001, "ml"),
    r"l|lit(?:re|er)s?": (1000.0, "ml"),
    r"mm|millimet(?:re|er)s?": (1.0, "mm"),
    r"cm|centimet(?:re|er)s?": (10.0, "mm"),
    r"hu|hounsfield\s+units?": (1.0, "HU"),
}
_MORE = r"(?:larger|bigger|greater|longer|wider|more|taller)"
_LESS = r"(?:smaller|less|shorter|lower|fewer|narrower)"
BEFORE = {  # comparison before the number, tried in this order: negations first
    "<=": rf"\b(?:(?:no|not)\s+{_MORE}\s+than|not\s+(?:exceeding|over|above)|at\s+most|up\s+to|a\s+maximum\s+of)|<=|≤",
    ">=": rf"\b(?:(?:no|not)\s+{_LESS}\s+than|not\s+(?:under|below)|at\s+least|a\s+minimum\s+of)|>=|≥",
    ">": rf"\b(?:{_MORE}\s+than|over|above|exceed(?:s|ing)?|beyond|in\s+excess\s+of)|>",
    "<": rf"\b(?:{_LESS}\s+than|under|below|short\s+of)|<",
}
AFTER = {  # comparison after the unit
    ">=": rf"(?:or|and)\s+(?:{_MORE}|above|over|up)",
    "<=": rf"(?:or|and)\s+(?:{_LESS}|below|under|down)",
}
_FILLER = r"(?:(?:about|approximately|roughly)\s+)?"
_NUMBER = r"(?P<number>-?\d+(?:[.,]\d+)?)"
_UNIT = rf"(?P<unit>{'|'.join(UNITS)})(?![\w³^])"


@dataclass(frozen=True)
class Threshold:
    """attribute: a field of Instance. op: one of OPERATORS. value: in `unit`, one of ATTRIBUTES."""

    attribute: str
    op: str
    value: float
    unit: str

    def keeps(self, instance: Instance) -> bool:
        """Whether the instance meets the comparison; one without the attribute does not."""
        value = getattr(instance, self.attribute)
        return value is not None and self.holds(value)

    def holds(self, value: float) -> bool:
        """Whether a number in `unit` meets the comparison."""
        return bool(OPERATORS[self.op](value, self.value))

    def to_json(self) -> dict[str, Any]:
        """{"attribute", "op", "value", "unit"}."""
        return asdict(self)


def parse_threshold(text: str) -> Threshold | None:
    """The comparison with a length or volume in `text`; None without one. Of several, only one counts.

    Volumes (ml, cc, cm3, mm3, litres) compare volume_ml, lengths (mm, cm) long_axis_mm, HU intensity_mean. A decimal
    comma is a point.
    """
    for op, words in BEFORE.items():
        if match := re.search(rf"(?:{words})\s*{_FILLER}{_NUMBER}\s*-?{_UNIT}", text, re.IGNORECASE):
            return _threshold(op, match)
    for op, words in AFTER.items():
        if match := re.search(rf"(?<![\w.,]){_NUMBER}\s*-?{_UNIT}\s+(?:{words})\b", text, re.IGNORECASE):
            return _threshold(op, match)
    return None


def _threshold(op: str, match: re.Match[str]) -> Threshold:
    spelling = match["unit"].lower()
    factor, unit = next(value for pattern, value in UNITS.items() if re.fullmatch(pattern, spelling))
    value = float(match["number"].replace(",", ".")) * factor
    return Threshold(ATTRIBUTES[unit], op, value, unit)
