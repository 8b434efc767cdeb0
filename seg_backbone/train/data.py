"""From a configuration to its cases and the sources that draw from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from seg_backbone.cases import (
    CaseFiles,
    DatasetEntry,
    TrainingCase,
    list_cases,
    read_split,
    split_cases,
)
from seg_backbone.errors import ConfigError, Gathered
from seg_backbone.folds import fold_split
from seg_backbone.plan import Plan
from seg_backbone.synthetic_tumours import BODY
from seg_backbone.train.cache import cached_case
from seg_backbone.train.classes import scan_targets
from seg_backbone.train.config import SegmentationConfig, SyntheticTumours
from seg_backbone.train.cutmix import carried_lesions
from seg_backbone.train.samples import LabelledCases, Source
from seg_backbone.train.synthetic import WithTumours

Progress = Callable[[str, int, int], None]


def read_cases(
    config: SegmentationConfig, cache: Path, progress: Progress | None
) -> tuple[list[list[TrainingCase]], list[TrainingCase]]:
    """The training cases of each dataset, and the validation cases of all.

    Raises ConfigError where a dataset has no training case, else the errors of the readers, all cases together.
    """
    training: list[list[TrainingCase]] = []
    validation: list[TrainingCase] = []
    wrong = Gathered()
    for entry, (kept, held) in zip(config.datasets, divide(config), strict=True):
        held = held[: config.validation_cases]
        loaded = []
        read = partial(cached_case, entry=entry, plan=config.plan, folder=cache)
        with ThreadPoolExecutor(config.threads) as pool:
            for case in pool.map(wrong.attempt(read), kept + held):
                loaded.append(case)
                if progress:
                    progress(f"reading {entry.name}", len(loaded), len(kept) + len(held))
        training.append([case for case in loaded[: len(kept)] if case])
        validation += [case for case in loaded[len(kept) :] if case]
    wrong.tell()
    if not all(training):
        raise ConfigError(config.data, "training cases in every dataset", "none in one of them", "check the split")
    return training, validation


def divide(config: SegmentationConfig) -> list[tuple[list[CaseFiles], list[CaseFiles]]]:
    """The cases of each dataset that train, and those that validate.

    A patient that one dataset's split holds back trains in none. What is not real, labels or scan, never validates.
    Raises ConfigError for `labelled` patients that do not train.
    """
    listed = [list_cases(config.data, entry.name) for entry in config.datasets]
    drawn = [[files for files in cases if files.real] for cases in listed]
    splits = dataset_splits(config, drawn)
    names = {name for split in splits for part, names in split.items() if part != "training" for name in names}
    held = names | {files.patient for cases in drawn for files in cases if files.case in names}
    parts = []
    for entry, cases, own, split in zip(config.datasets, listed, drawn, splits, strict=True):
        kept = [files for files in split_cases(own, split, "training") if files.patient not in held]
        if strange := sorted(set(entry.labelled or ()) - {files.patient for files in kept}):
            found = f"{', '.join(strange)}, of which none trains"
            raise ConfigError(entry.name, "training patients under `labelled`", found, "correct them")
        kept = [_if_labelled(files, entry) for files in kept]
        kept += [files for files in cases if not files.real and not {files.patient, files.case} & held]
        parts.append((kept, split_cases(own, split, "validation")))
    return parts


def _if_labelled(files: CaseFiles, entry: DatasetEntry) -> CaseFiles:
    """The case, without its labels unless the entry uses them."""
    if entry.labelled is None or files.patient in entry.labelled:
        return files
    return replace(files, mask=None, annotated=())


def dataset_splits(config: SegmentationConfig, drawn: Sequence[list[CaseFiles]]) -> list[dict[str, list[str]]]:
    """The split of each dataset: the configuration's file, the dataset's splits_final.json, or one of the folds of all
    patients of the datasets that have neither.
    """
    files = [config.split or config.data / entry.name / "splits_final.json" for entry in config.datasets]
    without = [cases for file, cases in zip(files, drawn, strict=True) if not (config.split or file.is_file())]
    folded = fold_split([case for cases in without for case in cases], config.fold) if any(without) else {}
    return [read_split(file, config.fold) if config.split or file.is_file() else folded for file in files]


def build_sources(config: SegmentationConfig, training: Sequence[Sequence[TrainingCase]]) -> list[Source]:
    """Where the windows come from: one source a dataset, or one for each set of classes that its cases annotate; and
    one of carried lesions. Cases that teach neither mask nor class are drawn for a mean teacher, or where there are no
    others.
    """
    drawn = list(training)
    known_classes = [scan_targets(config.plan, Path(config.data, entry.name)) for entry in config.datasets]
    if not config.consistency and any(case.teaches for cases in training for case in cases):
        drawn = [
            [case for case in cases if case.teaches or case.files.case in classes]
            for cases, classes in zip(training, known_classes, strict=True)
        ]
    sources: list[Source] = []
    for entry, cases, classes in zip(config.datasets, drawn, known_classes, strict=True):
        groups: dict[bytes, list[TrainingCase]] = {}
        for case in cases:
            known = case.table[0].tobytes() if config.sampling == "annotations" else b""
            groups.setdefault(known, []).append(case)
        sources += [
            LabelledCases(entry.weight / len(groups), group, config.plan, config.augmentation, classes)
            for group in groups.values()
        ]
    if config.cutmix:
        cases = [case for group in training for case in group]
        sources.append(carried_lesions(config.cutmix, cases, config.plan, config.augmentation))
    if config.synthetic_tumours:
        return [WithTumours(source, config.plan, config.synthetic_tumours) for source in sources]
    return sources


def annotated(
    groups: Sequence[Sequence[TrainingCase]], plan: Plan, synthetic: SyntheticTumours | None = None
) -> dict[str, tuple[str, ...]]:
    """Modality -> classes with at least one voxel drawn in training scans of that modality, by people or by chance."""
    seen: dict[str, set[int]] = {}
    for case in (case for group in groups for case in group):
        seen.setdefault(case.files.modality, set()).update(case.drawn)
    if synthetic and synthetic.share > 0:
        recipe = synthetic.recipe
        for ids in seen.values():
            if BODY in recipe.inside or any(plan.labels[name] in ids for name in recipe.inside):
                ids.add(plan.labels[recipe.label])
    return {m: tuple(n for n in plan.classes if plan.labels[n] in ids) for m, ids in sorted(seen.items())}
