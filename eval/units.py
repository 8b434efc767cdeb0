"""Units of answers: lengths and volumes convert, everything else must be the same word."""

from __future__ import annotations

LENGTH, VOLUME = "length", "volume"
# unit -> (dimension, size in millimetres or millilitres)
UNITS: dict[str, tuple[str, float]] = {
    "mm": (LENGTH, 1.0),
    "millimeter": (LENGTH, 1.0),
    "millimetre": (LENGTH, 1.0),
    "cm": (LENGTH, 10.0),
    "centimeter": (LENGTH, 10.0),
    "centimetre": (LENGTH, 10.0),
    "ml": (VOLUME, 1.0),
    "milliliter": (VOLUME, 1.0),
    "millilitre": (VOLUME, 1.0),
    "cc": (VOLUME, 1.0),
    "cm3": (VOLUME, 1.0),
    "l": (VOLUME, 1000.0),
    "liter": (VOLUME, 1000.0),
    "litre": (VOLUME, 1000.0),
    "mm3": (VOLUME, 0.001),
}


def plain_unit(unit: str) -> str:
    """One spelling of a unit: "cm³", "cm^3", "CM3" -> "cm3"; a plural word loses its s."""
    plain = unit.strip().lower().replace("³", "3").replace("^", "").replace(" ", "").rstrip(".")
    return plain[:-1] if plain.endswith("s") and plain[:-1] in UNITS else plain


def dimension(unit: str | None) -> str | None:
    """ "length", "volume" or None where the unit is neither."""
    return UNITS[plain_unit(unit)][0] if unit is not None and plain_unit(unit) in UNITS else None


def convert(value: float, unit: str | None, target: str | None) -> float | None:
    """`value` in `unit` expressed in `target`. An unnamed unit is taken to be the other one.

    Returns None where the two do not measure the same thing (mm against ml, HU against %).
    """
    if unit is None or target is None or plain_unit(unit) == plain_unit(target):
        return value
    source, wanted = UNITS.get(plain_unit(unit)), UNITS.get(plain_unit(target))
    if source is None or wanted is None or source[0] != wanted[0]:
        return None
    return value * source[1] / wanted[1]
