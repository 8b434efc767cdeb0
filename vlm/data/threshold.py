"""Thresholds in free text: "lesions larger than 5 ml" -> volume_ml > 5.

Enters a question, leaves the attribute of an instance, a comparison and a value in the attribute's own unit, or None.
Only a comparison followed (or, as in "10 mm or more", preceded) by a number with a unit of length or volume counts, so
that "in mm", "3D" or "more than one" do not. Rules, not the language model: a number must not be guessed.
"""

from __future__ import annotations

import operator
import re
from dataclasses import asdict, dataclass, replace
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
_MORE = r"(?:larger|bigger|greater|higher|longer|wider|more|taller|denser|brighter)"
_LESS = r"(?:smaller|less|shorter|lower|fewer|narrower|darker)"
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
_LENGTHS = {  # attribute -> the words that say that it is compared with a length; the long axis without them
    "short_axis_mm": r"short(?:est)?(?:-| )axis|minor axis",
    "diameter_3d_mm": r"3-?d\b|in any (?:direction|dimension|plane)|three[- ]dimension",
    "craniocaudal_mm": r"cranio-?caudal|top to bottom|head to foot",
    "anteroposterior_mm": r"antero-?posterior|\bap\b|front to back",
    "transverse_mm": r"left[- ]to[- ]right",
}
_HU = re.compile(r"\b(?:hu|hounsfield|attenuation|density)\b", re.IGNORECASE)
_AFTER_UNIT = {  # attribute -> what follows the unit: "10 cm wide"
    "craniocaudal_mm": r"tall|high|in height",
    "transverse_mm": r"wide|broad|in width",
    "anteroposterior_mm": r"deep|in depth",
}
_PARTS = {"a half": "50", "half": "50", "a third": "33.333", "two thirds": "66.667", "a quarter": "25"}
_FILLER = r"(?:(?:about|approximately|roughly)\s+)?"
_NUMBER = r"(?P<number>-?\d+(?:[.,]\d+)?)"
_UNIT = rf"(?P<unit>{'|'.join(UNITS)})(?![\w³^])"
_RANGE = (
    rf"(?:between|within|from|in the range(?: of)?)?\s*(?P<low>-?\d+(?:[.,]\d+)?)\s*-?(?P<low_unit>{'|'.join(UNITS)})?"
    rf"\s*(?:and|to|-|–)\s*{_NUMBER}\s*-?{_UNIT}"
)


@dataclass(frozen=True)
class Threshold:
    """attribute: a field of Instance. op: one of OPERATORS. value: in `unit`, one of ATTRIBUTES. most: of a range the
    upper end, itself within it.
    """

    attribute: str
    op: str
    value: float
    unit: str
    most: float | None = None

    def keeps(self, instance: Instance) -> bool:
        """Whether the instance meets the comparison; one without the attribute does not."""
        value = getattr(instance, self.attribute)
        return value is not None and self.holds(value)

    def holds(self, value: float) -> bool:
        """Whether a number in `unit` meets the comparison."""
        return bool(OPERATORS[self.op](value, self.value)) and (self.most is None or value <= self.most)

    def said(self) -> str:
        """In signs: "> 5 ml", "between 10 and 30 mm"."""
        if self.most is not None:
            return f"between {self.value:g} and {self.most:g} {self.unit}"
        return f"{self.op} {self.value:g} {self.unit}"

    def to_json(self) -> dict[str, Any]:
        """{"attribute", "op", "value", "unit"}, of a range also "most"."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def parse_threshold(text: str) -> Threshold | None:
    """The comparison with a length or volume in `text`; None without one. Of several, only one counts.

    Volumes (ml, cc, cm3, mm3, litres) compare volume_ml, lengths (mm, cm) the diameter or extent that is named, else
    long_axis_mm, HU intensity_mean. "Between 1 and 3 cm" is a range. A decimal comma is a point.
    """
    if match := re.search(
        rf"\b(?=between|within|from|in the range|measur\w*|of \d)(?:measur\w*|of)?\s*{_RANGE}", text, re.IGNORECASE
    ):
        high = _threshold("<=", match, text)
        low = replace(high, value=_in_base(match["low"], match["low_unit"] or match["unit"]))
        return replace(low, op=">=", most=high.value) if low.value <= high.value else None
    for op, words in BEFORE.items():
        if match := re.search(rf"(?:{words})\s*{_FILLER}{_NUMBER}\s*-?{_UNIT}", text, re.IGNORECASE):
            return _threshold(op, match, text)
    if _HU.search(text):  # "a mean HU above 40"
        for op, words in BEFORE.items():
            if match := re.search(rf"(?:{words})\s*{_FILLER}{_NUMBER}(?=\W*$)", text, re.IGNORECASE):
                return Threshold(ATTRIBUTES["HU"], op, _in_base(match["number"], "hu"), "HU")
    for op, words in AFTER.items():
        if match := re.search(rf"(?<![\w.,]){_NUMBER}\s*-?{_UNIT}\s+(?:{words})\b", text, re.IGNORECASE):
            return _threshold(op, match, text)
    if match := re.search(
        rf"\bmeasur(?:e|es|ing)\s+(?:exactly\s+)?{_FILLER}{_NUMBER}\s*-?{_UNIT}", text, re.IGNORECASE
    ):
        stated = _threshold(">=", match, text)  # "measures 2 cm": what rounds to it
        digits = re.search(r"[.,](\d+)", match["number"])
        half = _in_base("0.5", match["unit"]) / 10 ** (len(digits[1]) if digits else 0)
        return replace(stated, value=stated.value - half, most=stated.value + half)
    return None


def parse_per_cent(text: str) -> Threshold | None:
    """The comparison with a per cent or a part in `text`: "over 10 %", "over half of the liver"; None without one."""
    text = re.sub(
        rf"\b({'|'.join(_PARTS)})\b(?= of)", lambda part: f"{_PARTS[part[1].lower()]} %", text, flags=re.IGNORECASE
    )
    for op, words in BEFORE.items():
        if match := re.search(rf"(?:{words})\s*{_FILLER}{_NUMBER}\s*(?:%|per\s?cent)", text, re.IGNORECASE):
            return Threshold("share", op, float(match["number"].replace(",", ".")), "%")
    return None


def parse_within(text: str) -> Threshold | None:
    """The distance in `text` within which something lies: "within 2 cm of the cord"; None without one."""
    match = re.search(rf"\bwithin\s+{_FILLER}{_NUMBER}\s*-?{_UNIT}(?=\s+(?:of|from)\b)", text, re.IGNORECASE)
    if match is None or _unit(match["unit"])[1] != "mm":
        return None
    return Threshold("gap", "<=", _in_base(match["number"], match["unit"]), "mm")


def _threshold(op: str, match: re.Match[str], text: str) -> Threshold:
    _, unit = _unit(match["unit"])
    attribute = _length(text, text[match.end() :]) if unit == "mm" else None
    return Threshold(attribute or ATTRIBUTES[unit], op, _in_base(match["number"], match["unit"]), unit)


def _length(text: str, after: str) -> str | None:
    """The field that a text compares with a length, by the words after the unit or anywhere; None where none say."""
    behind = (name for name, words in _AFTER_UNIT.items() if re.match(rf"\s*(?:{words})\b", after, re.IGNORECASE))
    said = (name for name, words in _LENGTHS.items() if re.search(words, text, re.IGNORECASE))
    return next(behind, None) or next(said, None)


def _in_base(number: str, spelling: str) -> float:
    return float(number.replace(",", ".")) * _unit(spelling)[0]


def _unit(spelling: str) -> tuple[float, str]:
    return next(value for pattern, value in UNITS.items() if re.fullmatch(pattern, spelling.lower()))
