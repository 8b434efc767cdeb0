"""Facts: what a question can be about. The model reads a question and names one fact and the instances it concerns;
code reads the fact off those instances. Each fact belongs to one kind of question.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """about: what is asked for, in one sentence. kind: the question type it answers (see vlm.schema.TYPES).

    takes: what the question selects: "scan" (nothing: the scan itself), "one" instance, a "pair" or "any" number.
    unit: of its value, or None. attribute: the field of an Instance that holds it, where one instance does.
    """

    about: str
    kind: str
    takes: str
    unit: str | None = None
    attribute: str | None = None


class Facts(dict[str, Fact]):
    """Facts by name. Not among the names listed are those of SAID, and those of whole scans that a table of the user's
    gives (see vlm/data/targets.py) and that say what they are: "value:NAME:UNIT", "label:NAME", "count:NAME".
    """

    def __missing__(self, name: str) -> Fact:
        if name in SAID:
            return SAID[name]
        sort, _, rest = name.partition(":")
        if sort == "value":
            target, _, unit = rest.partition(":")
            return Fact(f"The {target} of the scan, a number.", "regression", "scan", unit or None)
        if sort == "label":
            return Fact(f"The {rest} of the scan, one of a fixed set of labels.", "classification", "scan")
        if sort == "count":
            return Fact(f"How many {rest} there are, estimated without a mask.", "counting", "scan")
        raise KeyError(name)


_CLASS, _MEASURE = "classification", "measurement"
FACTS = Facts()
FACTS |= {
    # classification
    "presence": Fact("Is something there: yes or no; also whether it is larger than a size.", _CLASS, "any"),
    "side": Fact("The side of the patient it is on: left, right, midline.", _CLASS, "one"),
    "multiplicity": Fact("Is there a single one or several.", _CLASS, "any"),
    "larger": Fact("Which of two structures has the larger volume.", _CLASS, "pair"),
    "modality": Fact("The imaging modality: CT or MR.", _CLASS, "scan"),
    "region": Fact("The region of the body that the scan shows.", _CLASS, "scan"),
    "contents": Fact("Which of several structures the scan shows.", "multilabel", "any"),
    "box": Fact("Where it is: its bounding box.", "detection", "any"),
    "count": Fact("How many there are.", "counting", "any"),
    # lengths, volumes and intensities of one instance
    "long_axis": Fact("Longest diameter on an axial slice, as in RECIST.", _MEASURE, "one", "mm", "long_axis_mm"),
    "short_axis": Fact(
        "Diameter perpendicular to the long axis on that slice.", _MEASURE, "one", "mm", "short_axis_mm"
    ),
    "diameter_3d": Fact(
        "Largest distance between two of its points in any direction.", _MEASURE, "one", "mm", "diameter_3d_mm"
    ),
    "craniocaudal": Fact("Extent from head to foot.", _MEASURE, "one", "mm", "craniocaudal_mm"),
    "volume": Fact("Volume of one structure.", _MEASURE, "one", "ml", "volume_ml"),
    "intensity": Fact("Mean intensity; Hounsfield units on CT.", _MEASURE, "one", "HU", "intensity_mean"),
    "distance": Fact("Distance between the centres of two structures.", _MEASURE, "pair", "mm"),
    "fat_percent": Fact("Per cent of the scanned body that is fat.", "regression", "scan", "%"),
    "findings": Fact("A description of the scan or of its findings.", "open", "scan"),
    "off_topic": Fact("Not a question about the scan: the model abstains.", "open", "scan"),
    # further properties of one instance
    "anteroposterior": Fact("Extent from front to back.", _MEASURE, "one", "mm", "anteroposterior_mm"),
    "transverse": Fact("Extent from left to right.", _MEASURE, "one", "mm", "transverse_mm"),
    "surface_area": Fact("Area of its surface.", _MEASURE, "one", "cm2"),
    "intensity_spread": Fact(
        "Standard deviation of the intensity inside: how heterogeneous it is.", _MEASURE, "one", "HU", "intensity_std"
    ),
    "slice": Fact("Number of the axial slice on which it is largest.", _MEASURE, "one", "slice"),
    # of several
    "total_volume": Fact("Volume of several structures together.", _MEASURE, "any", "ml"),
    "gap": Fact("Shortest distance between two structures, surface to surface.", _MEASURE, "pair", "mm"),
    "share": Fact("Per cent of one structure that another makes up; tumour burden of an organ.", _MEASURE, "any", "%"),
    "volume_difference": Fact("How much larger one structure is than another.", _MEASURE, "pair", "ml"),
    "intensity_difference": Fact("How much denser one structure is than another.", _MEASURE, "pair", "HU"),
    "intensity_ratio": Fact("Mean intensity of one structure divided by another's.", _MEASURE, "pair"),
    "denser": Fact("Which of two structures has the higher mean intensity.", _CLASS, "pair"),
    "nearest": Fact("The organ in which, or next to which, a lesion lies.", _CLASS, "one"),
    "most_affected": Fact("Which of several organs holds most of the tumour.", _CLASS, "any"),
    "outlier": Fact("Does one lesion stand out in size from the others: yes or no.", _CLASS, "any"),
    "clustered": Fact("Do the lesions lie close together: clustered or scattered.", _CLASS, "any"),
    # rules over measured facts, see vlm/rules.yaml
    "enlarged": Fact("Is an organ enlarged (splenomegaly and the like): yes or no.", _CLASS, "one"),
    "asymmetric": Fact("Do the two organs of a pair differ clearly in size: yes or no.", _CLASS, "pair"),
    "composition": Fact("Is a lesion cystic or solid.", _CLASS, "one"),
    "fatty": Fact("Does the liver hold too much fat (steatosis): yes or no.", _CLASS, "any"),
    "size_category": Fact("The T category of a tumour by its size.", _CLASS, "one"),
    "measurable": Fact("Is a lesion large enough to be a RECIST target lesion: yes or no.", _CLASS, "one"),
}
NAMES = tuple(FACTS)
SAID = {  # facts that only words tell, see vlm/infer/rereading.py: no network learns them
    "position": Fact("How two structures lie to each other: above, behind, left of.", _CLASS, "pair"),
    "bearing": Fact("Where one structure lies as seen from another, along all three axes.", _CLASS, "pair"),
    "offset": Fact("How far one structure lies above, behind or beside another.", _MEASURE, "pair", "mm"),
    "nearer": Fact("Which of two structures is nearer to a third.", _CLASS, "any"),
    "same_side": Fact("Do structures lie on the same side: yes or no.", _CLASS, "pair"),
    "confined": Fact("Do lesions lie in one organ alone, or outside of it: yes or no.", _CLASS, "any"),
    "level": Fact("The vertebra at whose height a structure lies.", _CLASS, "one"),
    "neighbours": Fact("The structures that touch one.", "multilabel", "one"),
    "volume_ratio": Fact("Volume of one structure divided by another's.", _MEASURE, "pair"),
    "axis_ratio": Fact("Long axis divided by short axis.", _MEASURE, "one"),
    "sphere_diameter": Fact("Diameter of the sphere of the same volume.", _MEASURE, "one", "mm"),
    "longest_extent": Fact("The direction in which it extends farthest.", _CLASS, "one"),
    "slice_range": Fact("The axial slices on which it lies: how many, from which to which.", "counting", "one"),
    "slices": Fact("How many axial slices the scan has.", "counting", "scan"),
    "voxel_size": Fact("Size of a voxel and distance of the slices.", _MEASURE, "scan"),
    "field_of_view": Fact("Size of the scan in mm and voxels.", "open", "scan"),
}
FIRST_FACTS = NAMES[: NAMES.index("off_topic") + 1]  # those that a checkpoint knows which does not say
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
    "cm2": ("cm2", 1.0),
    "cm^2": ("cm2", 1.0),
    "mm2": ("cm2", 100.0),
    "mm^2": ("cm2", 100.0),
    "%": ("%", 1.0),
    "inch": ("mm", 1 / 25.4),
}
SAID_UNITS = {  # of UNITS -> how they are said
    "mm3": r"mm\^?3|mm³|cubic millimet(?:re|er)s?",
    "cm3": r"cm\^?3|cm³|cubic (?:cm|cent(?:imet(?:re|er)s?))",
    "mm": r"mm|millimet(?:re|er)s?",
    "cm": r"cm|centimet(?:re|er)s?",
    "ml": r"ml|millilit(?:re|er)s?",
    "cc": r"cc|ccm",
    "l": r"lit(?:re|er)s?",
    "inch": r"inch(?:es)?",
    "cm2": r"cm\^?2|cm²|square cent(?:imet(?:re|er)s?)",
    "mm2": r"mm\^?2|mm²|square millimet(?:re|er)s?",
    "%": r"per ?cent",
}


def target_name(fact: str) -> str:
    """What a fact of a user's table is about, for the start of a sentence: "value:dose_level:Gy" -> "Dose level"."""
    name = fact.split(":")[1].replace("_", " ")
    return name[:1].upper() + name[1:]


def asked_unit(text: str, base: str | None = None) -> str | None:
    """The unit in which a text wants its answer, a key of UNITS: "how long in cm?", "how many ml", "length, cm"; None
    without one. base: the unit that is measured; one of another kind is passed over ("the volume in ml and the HU").
    """
    line = text.lower()
    for unit, words in SAID_UNITS.items():
        if base and UNITS[unit][0] != base:
            continue
        if re.search(rf"(?:\b(?:in|how many) |\()(?:{words})(?!\w)", line):
            return unit
        if unit != "l" and re.search(rf"[a-z)?][,;:]?\s+(?:{words})\s*(?:please|pls)?\W*$", line):
            return unit
    return None


def facts_of(kind: str | None, unit: str | None = None, known: tuple[str, ...] = NAMES) -> tuple[str, ...]:
    """The facts among `known` that may answer a question declared as `kind` (None: any), in `unit` where that unit is
    a known one.

    A regression question may ask for something that a mask measures; then measuring is the better answer.
    """
    if unit and unit.lower() in UNITS and kind in ("measurement", "regression"):
        base = UNITS[unit.lower()][0]
        return tuple(name for name in known if FACTS[name].unit == base and FACTS[name].kind in (kind, "measurement"))
    if kind is None:
        return known
    kinds = {"regression": ("regression", "measurement"), "open": tuple({f.kind for f in FACTS.values()})}
    return tuple(name for name in known if FACTS[name].kind in kinds.get(kind, (kind,)))
