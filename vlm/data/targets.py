"""Targets of whole scans from a table: what no mask can answer, such as age, dose level, contrast phase or histology.

A YAML file names a csv and, for every column to learn, how people ask for it:

    table: clinical.csv            # beside this file; column `case` or `patient`, one row each, empty where unknown
    targets:
      age: {unit: years, train: [How old is the patient?], heldout: [What is the age of the patient?]}
      phase: {train: [In which contrast phase was this taken?], heldout: [Which phase is it?]}

A column of numbers is a regression; any other one is a fixed set of labels, those that the table holds.
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

KEYS = ("case", "patient")


@dataclass(frozen=True)
class Target:
    """fact: "value:NAME:UNIT" or "label:NAME", see vlm.facts. labels: of a label, in order. wordings: by part."""

    fact: str
    labels: tuple[str, ...]
    wordings: Mapping[str, tuple[str, ...]]


class Told(NamedTuple):
    """What a table says of a case: a number, or one of the labels."""

    value: float | str
    labels: tuple[str, ...]


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
        """The labels of every fact of labels."""
        return {fact: target.labels for fact, target in self.targets.items() if target.labels}


def read_targets(path: str | Path | None) -> Targets:
    """Read and check a file of targets and its table; None gives none.

    Raises ConfigError for a table or column that is not there, a name that is no word, and a target without wordings
    for training and others held out.
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
                told = Told(text if target.labels else float(text), target.labels)
                values.setdefault(row[key].strip(), {})[target.fact] = told
    return Targets(targets, key, values)


def _target(path: Path, name: str, how: Any, column: list[str | None]) -> Target:
    if not re.fullmatch(r"\w+", name):
        raise ConfigError(path, "names of letters, digits and _", repr(name), "rename the column")
    parts = {part: tuple(map(str, how.get(part, ()))) if isinstance(how, dict) else () for part in ("train", "heldout")}
    if not all(parts.values()) or set(parts["train"]) & set(parts["heldout"]):
        raise ConfigError(path, f"`train` and other `heldout` wordings of {name}", f"{how}", "write some of each")
    texts = sorted({text.strip() for text in column if text and text.strip()})
    if len(texts) < 2:
        raise ConfigError(path, f"a column {name} with different values", f"{texts}", "leave the target out")
    if all(map(_is_number, texts)):
        return Target(f"value:{name}:{how.get('unit') or ''}", (), parts)
    return Target(f"label:{name}", tuple(texts), parts)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None
