"""Targets of whole scans from a table: what no mask can answer, such as age, dose level, contrast phase or histology.

A YAML file names a csv and, for every column to learn, how people ask for it:

    table: clinical.csv            # beside this file; column `case` or `patient`, one row each, empty where unknown
    targets:
      age: {unit: years, train: [How old is the patient?], heldout: [What is the age of the patient?]}
      phase: {train: [In which contrast phase was this taken?], heldout: [Which phase is it?]}
      lesions: {count: [liver lesion], train: [How many liver lesions are there?], heldout: [Count the liver lesions.]}

A column of numbers is a regression; any other one is a fixed set of labels, those that the table holds. `count` says
what small whole numbers count, in the words by which questions are known to mean it: an ordinal regression for what no
mask shows (vlm/heads/ordinal.py).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from seg_backbone.cases import CaseFiles
from seg_backbone.errors import ConfigError
from vlm.grounding import says

KEYS = ("case", "patient")
MOST = 50  # a column of larger numbers is no count that a scan could show at a glance


@dataclass(frozen=True)
class Target:
    """fact: "value:NAME:UNIT", "label:NAME" or "count:NAME", see vlm.facts. labels: of a label, in order; of a count
    "0" to the greatest. wordings: by part. counted: names of what a count counts.
    """

    fact: str
    labels: tuple[str, ...]
    wordings: Mapping[str, tuple[str, ...]]
    counted: tuple[str, ...] = ()


class Told(NamedTuple):
    """What a table says of a case: a number, or one of the labels, which are choices unless they are counts."""

    value: float | str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Targets:
    """targets: by fact. key: one of KEYS. rows: case or patient -> fact -> what the table says."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    key: str = "case"
    rows: Mapping[str, Mapping[str, Told]] = field(default_factory=dict)

    def of(self, files: CaseFiles) -> Mapping[str, Told]:
        """What the table says of a case, by fact; nothing of a case that it lacks."""
        return self.rows.get(getattr(files, self.key), {})

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of every fact of labels, counts among them."""
        return {fact: target.labels for fact, target in self.targets.items() if target.labels}

    @property
    def counted(self) -> dict[str, tuple[str, ...]]:
        """What every count counts."""
        return {fact: target.counted for fact, target in self.targets.items() if target.counted}


def read_targets(path: str | Path | None) -> Targets:
    """Read and check a file of targets and its table; None gives none.

    Raises ConfigError for a table or column that is not there, a name that is no word, a target without wordings
    for training and others held out, and a count of anything but whole numbers from 0 to MOST.
    """
    if path is None:
        return Targets()
    path = Path(path)
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        table, columns = path.parent / told["table"], dict(told["targets"])
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeError, yaml.YAMLError, KeyError, TypeError, ValueError, csv.Error) as error:
        todo = "see vlm/data/targets.py"
        raise ConfigError(path, "a file with `table` (a csv) and `targets`", str(error), todo) from None
    names = list(rows[0]) if rows else []
    key = next((key for key in KEYS if key in names), None)
    if key is None:
        raise ConfigError(table, f"a column {' or '.join(KEYS)}", f"{names}", "add it")
    targets, values = {}, dict[str, dict[str, Told]]()
    for name, how in columns.items():
        if name not in names:
            raise ConfigError(table, f"a column {name}", f"{names}", "correct the name")
        target = _target(path, name, how, [row[name] for row in rows])
        targets[target.fact] = target
        for row in rows:
            if text := (row[name] or "").strip():
                values.setdefault(row[key].strip(), {})[target.fact] = _told(target, text)
    return Targets(targets, key, values)


def _told(target: Target, text: str) -> Told:
    if target.counted:
        return Told(str(int(float(text))), ())
    return Told(text, target.labels) if target.labels else Told(float(text), ())


def _target(path: Path, name: str, how: Any, column: list[str | None]) -> Target:
    if not re.fullmatch(r"\w+", name):
        raise ConfigError(path, "names of letters, digits and _", repr(name), "rename the column")
    parts = {part: tuple(map(str, how.get(part, ()))) if isinstance(how, dict) else () for part in ("train", "heldout")}
    if not all(parts.values()) or set(parts["train"]) & set(parts["heldout"]):
        raise ConfigError(path, f"`train` and other `heldout` wordings of {name}", f"{how}", "write some of each")
    texts = sorted({text.strip() for text in column if text and text.strip()})
    if len(texts) < 2:
        raise ConfigError(path, f"a column {name} with different values", f"{texts}", "leave the target out")
    if "count" in how:
        return _count(path, name, how["count"], texts, parts)
    if all(map(_is_number, texts)):
        return Target(f"value:{name}:{how.get('unit') or ''}", (), parts)
    return Target(f"label:{name}", tuple(texts), parts)


def _count(path: Path, name: str, names: Any, texts: list[str], parts: Mapping[str, tuple[str, ...]]) -> Target:
    counted = tuple(map(str, names if isinstance(names, list) else [names]))
    asked = [wording for part in parts.values() for wording in part]
    if not all(any(says(wording, one) for one in counted) for wording in asked):
        raise ConfigError(path, f"a name of {name} in `count` for each wording", f"{names}", "name what is counted")
    if strange := [text for text in texts if not (_is_number(text) and float(text) in range(MOST + 1))]:
        raise ConfigError(path, f"whole numbers from 0 to {MOST} in {name}", repr(strange[0]), "leave `count` out")
    levels = tuple(map(str, range(max(int(float(text)) for text in texts) + 1)))
    return Target(f"count:{name}", levels, parts, counted)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None
