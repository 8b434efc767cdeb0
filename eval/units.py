"""Units of answers: those of one dimension convert, everything else must be the same word."""

from __future__ import annotations

import re
from functools import lru_cache

LENGTH, AREA, VOLUME, TIME, ATTENUATION, SHARE = "length", "area", "volume", "time", "attenuation", "share"

# unit -> (dimension, size in mm, mm2, ml, days, HU, per cent); spellings as `plain_unit` leaves them
UNITS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("mm", "millimeter"), (LENGTH, 1.0)),
    **dict.fromkeys(("cm", "centimeter"), (LENGTH, 10.0)),
    **dict.fromkeys(("dm", "decimeter"), (LENGTH, 100.0)),
    **dict.fromkeys(("m", "meter"), (LENGTH, 1000.0)),
    **dict.fromkeys(("um", "μm", "micrometer", "micron"), (LENGTH, 0.001)),
    **dict.fromkeys(("inch", "inches"), (LENGTH, 25.4)),
    **dict.fromkeys(("mm2", "squaremillimeter", "sqmm"), (AREA, 1.0)),
    **dict.fromkeys(("cm2", "squarecentimeter", "sqcm"), (AREA, 100.0)),
    **dict.fromkeys(("ml", "milliliter", "cc", "ccm", "cm3", "cubiccentimeter", "cucm"), (VOLUME, 1.0)),
    **dict.fromkeys(("μl", "ul", "microliter", "mm3", "cubicmillimeter", "cumm"), (VOLUME, 0.001)),
    **dict.fromkeys(("cl", "centiliter"), (VOLUME, 10.0)),
    **dict.fromkeys(("dl", "deciliter"), (VOLUME, 100.0)),
    **dict.fromkeys(("l", "liter", "dm3", "cubicdecimeter"), (VOLUME, 1000.0)),
    **dict.fromkeys(("d", "day"), (TIME, 1.0)),
    **dict.fromkeys(("wk", "week"), (TIME, 7.0)),
    **dict.fromkeys(("mo", "month"), (TIME, 365.25 / 12)),
    **dict.fromkeys(("y", "yr", "year"), (TIME, 365.25)),
    **dict.fromkeys(("hu", "hounsfieldunit", "hounsfield"), (ATTENUATION, 1.0)),
    **dict.fromkeys(("%", "percent", "percentage", "pct"), (SHARE, 1.0)),
}


@lru_cache(maxsize=4096)
def plain_unit(unit: str) -> str:
    """One spelling of a unit: "cm³", "cm^3", "cubic centimetres", "CM3" -> "cm3" or "cubiccentimeter"; no plural."""
    plain = unit.strip().lower().replace("³", "3").replace("²", "2").replace("µ", "μ")
    plain = re.sub(r"[\s^.\-]|\*\*", "", plain).replace("metre", "meter").replace("litre", "liter")
    plain = re.sub(r"^(\w+?)cubed$", r"\g<1>3", re.sub(r"^(\w+?)squared$", r"\g<1>2", plain))
    plain = "percent" if plain == "percents" else plain
    return plain[:-1] if plain.endswith("s") and plain[:-1] in UNITS else plain


def dimension(unit: str | None) -> str | None:
    """ "length", "volume", ... or None where the unit is in no table."""
    known = UNITS.get(plain_unit(unit)) if unit is not None else None
    return known[0] if known else None


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
