"""Five folds of a dataset's patients: nnU-Net's own where all patients are alike, evenly spread where they differ.

nnU-Net v2 shuffles the sorted cases with the seed 12345 and cuts them into five (scikit-learn's KFold); patients of one
annotation set, modality and dataset are divided just so, and figures of both can be compared. Where they differ, a
class that few annotate could miss whole folds. There each patient has traits (what it annotates, its modality, its
dataset, its class in each task of cls_data.csv), and patients are dealt by them: the rarest trait first, each patient
to the fold that lacks it most (Sechidis et al. 2011, "On the stratification of multi-label data").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from seg_backbone.cases import CaseFiles
from seg_backbone.errors import ConfigError
from seg_backbone.scan_classes import CLASS_FILE, read_scan_classes, read_tasks

FOLDS = 5  # nnU-Net's number,
SEED = 12345  # and its seed


def fold_split(cases: Sequence[CaseFiles], fold: int) -> dict[str, list[str]]:
    """The split of patients without a file: `fold` of `folds` validates, whoever is not listed trains.

    Raises ConfigError for a fold that is not there; a single patient trains and nothing validates.
    """
    parts = folds(cases)
    if fold >= max(len(parts), 1):
        raise ConfigError("fold", f"a fold below {len(parts)}, as patients have labels", f"{fold}", "lower it")
    return {"validation": parts[fold] if len(parts) > 1 else []}


def folds(cases: Sequence[CaseFiles]) -> list[list[str]]:
    """The patients with labels in FOLDS parts, or as many as there are patients; [] for no patient."""
    traits = _traits([case for case in cases if case.mask is not None and case.annotated])
    count = min(FOLDS, len(traits))
    patients = sorted(traits)
    np.random.RandomState(SEED).shuffle(patients)
    if len(set(map(frozenset, traits.values()))) > 1:
        parts = _dealt(patients, traits, count)
    else:
        parts = [part.tolist() for part in np.array_split(patients, count)] if count else []
    return [sorted(part) for part in parts]


def _traits(cases: Sequence[CaseFiles]) -> dict[str, set[tuple[str, str]]]:
    """Patient -> what may be rare about it."""
    known = {folder: _scan_classes(folder) for folder in {case.image.parent.parent for case in cases}}
    traits: dict[str, set[tuple[str, str]]] = {}
    for case in cases:
        own = traits.setdefault(case.patient, set())
        own |= {("modality", case.modality), ("dataset", case.dataset), *(("class", name) for name in case.annotated)}
        own |= {(task, str(number)) for task, number in known[case.image.parent.parent].get(case.case, {}).items()}
    return traits


def _scan_classes(folder: Path) -> dict[str, dict[str, int]]:
    """The classes of whole scans of a dataset; {} where it has none. Raises LabelError."""
    tasks = read_tasks(folder / "dataset.json") if (folder / CLASS_FILE).is_file() else {}
    return read_scan_classes(folder / CLASS_FILE, tasks) if tasks else {}


def _dealt(patients: Sequence[str], traits: Mapping[str, set[tuple[str, str]]], count: int) -> list[list[str]]:
    """Iterative stratification; between folds that lack a trait alike the emptiest one, then the first."""
    totals = Counter(trait for patient in patients for trait in traits[patient])
    lack = {trait: np.full(count, number / count) for trait, number in totals.items()}
    room = np.full(count, len(patients) / count)
    parts: list[list[str]] = [[] for _ in range(count)]
    left = list(patients)
    while left:
        remaining = Counter(trait for patient in left for trait in traits[patient])
        rarest = min(remaining, key=lambda trait: (remaining[trait], trait))
        for patient in [patient for patient in left if rarest in traits[patient]]:
            fold = max(range(count), key=lambda n: (lack[rarest][n], room[n], -n))
            parts[fold].append(patient)
            room[fold] -= 1
            for trait in traits[patient]:
                lack[trait][fold] -= 1
            left.remove(patient)
    return parts
