"""What the author of an ROI or a segment called it -> a class, a target of a plan, or nothing; see roi_names.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from seg_backbone.errors import ConfigError
from seg_backbone.io.structures import Structure
from seg_backbone.labels import SIDES, WORDS, canonical

TARGETS = ("PTV", "CTV", "ITV")
LEAVE_OUT = "leave out"
SIDE_WORDS = {"left": "left", "lt": "left", "l": "left", "right": "right", "rt": "right", "r": "right"}
TARGET_KINDS = {"PTV": "PTV", "CTV": "CTV", "TREATED_VOLUME": "PTV"}  # RT ROI Interpreted Type (PS3.3 C.8.8.8)
NO_ANATOMY = (
    "EXTERNAL", "SUPPORT", "FIXATION", "MARKER", "REGISTRATION", "ISOCENTER", "BOLUS", "IRRAD_VOLUME", "DOSE_REGION",
    "DOSE_MEASUREMENT", "CONTROL", "CONTRAST_AGENT", "BRACHY_CHANNEL", "BRACHY_ACCESSORY", "BRACHY_SRC_APP",
)  # fmt: skip
GENERIC = ("", "#", "segment", "segment #", "label #", "class #", "roi", "roi #", "region #", "structure #", "object #")


@dataclass(frozen=True)
class RoiNames:
    """Rules in their order: a class and the patterns that mean it."""

    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def class_of(self, structure: Structure) -> str | None:
        """The canonical class, one of TARGETS, or None for what is left out.

        The name counts before the code, a rule before either as it stands, and all before the kind.
        """
        for name in (structure.name, structure.coded):
            words, side = plain(name)
            for class_, patterns in self.rules:
                as_written = any(name.lower() == one or fnmatchcase(name.lower(), one) for one in patterns)
                if as_written or any(fnmatchcase(words, one) for one in patterns):
                    return None if class_ == LEAVE_OUT else _sided(class_, structure.side or side * (not as_written))
            if (known := _sided(canonical(words), side or structure.side)) in WORDS:
                return known
        if structure.kind in TARGET_KINDS:
            return TARGET_KINDS[structure.kind]
        if structure.kind in NO_ANATOMY:
            return None
        if structure.kind == "GTV":
            return "tumour"
        name = structure.coded if plain(structure.name)[0] in GENERIC and structure.coded else structure.name
        parts, side = _apart(name)
        return _sided("_".join(parts), side or structure.side) if parts else None


def read_roi_names(path: Path | None = None) -> RoiNames:
    """The rules of a user's file, if any, and then those of roi_names.yaml. Raises ConfigError."""
    own = _rules(path) if path else ()
    return RoiNames((*own, *_rules(Path(__file__).with_suffix(".yaml"))))


def plain(name: str) -> tuple[str, str]:
    """The words of a name, "#" for each number, and its side: "Parotid_L" -> ("parotid", "left"), "GTV-1" -> ("gtv #",
    "")."""
    words, side = _apart(name)
    return " ".join(re.sub(r"\d+", " # ", " ".join(words)).split()), side


def _apart(name: str) -> tuple[list[str], str]:
    """Lower-case words without the side, and the side. L and R count at either end only, none where there are both."""
    name = re.sub(r"^([LR])(?=[A-Z][a-z])", r"\1 ", name)  # LParotid
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())  # SpinalCord
    ends = (0, len(words) - 1)
    sides = [n for n, word in enumerate(words) if word in SIDE_WORDS and (len(word) > 1 or n in ends)]
    rest = [word for n, word in enumerate(words) if n not in sides]
    meant = {SIDE_WORDS[words[n]] for n in sides}
    return (rest, meant.pop()) if len(meant) == 1 and not all(map(str.isdigit, rest)) else (words, "")


def _sided(class_: str, side: str) -> str:
    """The class with its side; targets, lesions and what has a side already stay as they are."""
    if not side or class_ in (*TARGETS, "tumour") or class_.rpartition("_")[2] in SIDES:
        return class_
    return f"{class_}_{side}"


def _rules(path: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    try:
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        rules = []
        for class_, names in table.items():
            if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
                raise ValueError(f"{names!r} under {class_!r}")
            kept = class_ in (*TARGETS, LEAVE_OUT)
            rules.append((class_ if kept else canonical(class_), tuple(str(name).lower() for name in names)))
        return tuple(rules)
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        expected = "YAML of CLASS: [names], see vlm/data/roi_names.yaml"
        raise ConfigError(path, expected, str(error).splitlines()[0], "correct it") from None
