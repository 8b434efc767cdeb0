"""Result folders side by side: the scores of several systems on the same cases, ready to rank or to compare.

Folders that `vlm evaluate masks` or `vlm evaluate answers` wrote enter; one array a metric leaves, systems x cases.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eval.reading import MISSING, UNSCORED
from seg_backbone.errors import ConfigError, InputError
from seg_backbone.labels import is_lesion

# Columns of a mask's per_case.csv: what FLARE ranks, and what is no score. Any other column of numbers is one.
RANKED = ("dsc", "nsd")
DESCRIPTIVE = (
    "case",
    "class",
    "patient",
    "state",
    "tolerance_mm",
    "reference_ml",
    "predicted_ml",
    "reference_lesions",
    "predicted_lesions",
)
EFFICIENCY = "efficiency"  # RESULTS/efficiency/CASE/efficiency.json, one run a case
TIME, GPU_AREA, HOST_AREA = "seconds", "gpu_area_mb_s", "host_area_mb_s"
COSTS = (TIME, GPU_AREA, HOST_AREA)

Values = dict[str, dict[str, float]]  # metric -> case -> value, NaN where there is none


@dataclass(frozen=True, eq=False)
class Scores:
    """kind: "masks" or "answers". rules: the protocol, or the hash of the reference, which all systems share.

    clusters: (cases,) the patient, else the case. values: metric -> (systems, cases); a column is NaN for every system
    or for none. A run that failed has infinite time and memory. notes: what a reader of the figures must know.
    """

    kind: str
    rules: str
    folders: dict[str, str]
    cases: list[str]
    clusters: list[str]
    values: dict[str, np.ndarray]
    notes: list[str] = field(default_factory=list)

    @property
    def systems(self) -> list[str]:
        """Names in the order given: the folder's, its path where two share that, or what the answer file calls it."""
        return list(self.folders)


@dataclass(frozen=True, eq=False)
class _System:
    name: str
    folder: Path
    kind: str
    rules: str
    table: Values
    clusters: dict[str, str]


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric of `Scores` is the better one: costs, errors, distances and volumes."""
    name = metric.rpartition(" ")[2]
    return name in COSTS or name.endswith(("_mm", "_ml")) or "error" in name or name.startswith("false_")


def read_scores(
    folders: Sequence[str | Path],
    grouped: bool,
    tolerance_seconds: float = 0.0,
    tolerance_mb: float = 0.0,
    beside: bool = True,
) -> Scores:
    """Read and join result folders.

    beside: also the systems that were scored beside the one a folder of answers is about.
    grouped: one mask metric a group ("organs dsc", "lesions nsd": the mean over the group's classes of a case), as
    FLARE ranks; else one a class ("tumour dsc"). Metrics of answers are the question types, their value each question's
    share of the headline; a failed or missing question has 0, an unanswerable one is left out.
    A mask that is rightly empty has no score of its own (protocols corrected and automsc); where another system has a
    false positive in it, it counts 1. A case that a folder lacks counts 0 there (noted).
    Where every folder holds efficiency/CASE/efficiency.json, one run a case as FLARE measures it (`vlm evaluate
    efficiency -o FOLDER/efficiency/CASE -- ...`), there are two more metrics: wall seconds and FLARE's official area of
    GPU memory (of host memory where a run had no GPU). Seconds up to `tolerance_seconds` count as equal, and so do
    areas of runs whose peak is up to `tolerance_mb`.
    Raises InputError (no such folder, not a result, nothing in common), ConfigError (fewer than two systems, results of
    different kinds, protocols or references).
    """
    paths = [Path(folder) for folder in folders]
    read = [_read_folder(path) for path in paths]
    systems = _named(read if beside else [systems[:1] for systems in read], paths)
    if len(systems) < 2 or len({system.name for system in systems}) < len(systems):
        found = ", ".join(system.name for system in systems) or "none"
        raise ConfigError("RESULTS", "at least two systems of different names", found, "name more result folders")
    first = systems[0]
    for other in systems[1:]:
        if (other.kind, other.rules) != (first.kind, first.rules):
            expected = f"{first.kind} scored by {first.rules}, as {first.folder}"
            raise ConfigError(other.folder, expected, f"{other.kind} by {other.rules}", "score both the same way")
    clusters = {case: cluster for system in reversed(systems) for case, cluster in system.clusters.items()}
    cases = sorted(clusters)
    notes = [
        f"{system.name} lacks {len(cases) - len(system.clusters)} of {len(cases)} cases, which count 0."
        for system in systems
        if len(system.clusters) < len(cases)
    ]
    metrics = list(dict.fromkeys(metric for system in systems for metric in system.table))
    shared = [metric for metric in metrics if all(metric in system.table for system in systems)]
    if len(shared) < len(metrics):
        notes.append(f"Not in every folder, left out: {', '.join(m for m in metrics if m not in shared)}.")
    values = {metric: _joined(systems, cases, metric) for metric in shared}
    if first.kind == "masks" and grouped:
        values = _grouped(values)
    costs, notes_on_costs = _costs(systems, cases, tolerance_seconds, tolerance_mb)
    values = {metric: array for metric, array in {**values, **costs}.items() if not np.isnan(array).all()}
    if not values:
        raise InputError("RESULTS", "cases with a score in every folder", "none", "check that the references agree")
    return Scores(
        first.kind,
        first.rules,
        {system.name: str(system.folder) for system in systems},
        cases,
        [clusters[case] for case in cases],
        values,
        notes + notes_on_costs,
    )


def _read_folder(folder: Path) -> list[_System]:
    """The systems of one result folder by their own names, the one it is about first: one of masks, as many of answers
    as were scored together."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if metrics["kind"] not in ("masks", "answers"):
            raise KeyError("kind")
        masks = metrics["kind"] == "masks"
        rules = f"protocol {metrics['protocol']}" if masks else f"reference {metrics['reference_sha256'][:16]}"
        systems: dict[str, _System] = {}
        with (folder / "per_case.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                name = "" if masks else row["system"]
                system = systems.setdefault(name, _System(name, folder, metrics["kind"], rules, {}, {}))
                (_add_mask if masks else _add_answer)(system, row)
        return list(systems.values())
    except (OSError, KeyError, TypeError, ValueError) as error:
        expected = "a folder with metrics.json and per_case.csv of `vlm evaluate masks` or `answers`"
        raise InputError(folder, expected, f"{type(error).__name__}: {error}", "score the system first") from None


def _add_mask(system: _System, row: dict[str, str]) -> None:
    system.clusters[row["case"]] = row.get("patient") or row["case"]
    for column, text in row.items():
        if column in DESCRIPTIVE:
            continue
        try:
            value = float(text or "nan")
        except ValueError:
            if column in RANKED:
                raise
            continue  # a word
        value = abs(value) if "error" in column else value  # too large and too small are as bad
        system.table.setdefault(f"{row['class']} {column}", {})[row["case"]] = value


def _add_answer(system: _System, row: dict[str, str]) -> None:
    system.clusters[row["id"]] = row["patient"]
    if row["reference"]:  # empty where the question is unanswerable
        score = 0.0 if row["state"] in (MISSING, UNSCORED) else float(row["score"])
        system.table.setdefault(row["type"], {})[row["id"]] = score


def _named(read: list[list[_System]], paths: list[Path]) -> list[_System]:
    """All systems under names of their own: the folder's for the one it is about, its path where two folders share
    that name. The systems beside it keep their own names; one that is the same in every way is kept once."""
    if len(read) == 1 and len(read[0]) > 1:
        return read[0]
    folders = [path.resolve().name for path in paths]
    named: list[_System] = []
    beside: list[_System] = []
    for (first, *others), path, folder in zip(read, paths, folders, strict=True):
        name = folder if folders.count(folder) == 1 else str(path)
        named.append(replace(first, name=name))
        beside += [
            replace(other, name=f"{name}: {other.name}" if _same_name(other, beside) else other.name)
            for other in others
            if not any(other.table == known.table for known in _same_name(other, beside))
        ]
    return named + beside


def _same_name(system: _System, others: list[_System]) -> list[_System]:
    return [other for other in others if other.name == system.name]


def _joined(systems: list[_System], cases: list[str], metric: str) -> np.ndarray:
    """(systems, cases) of one metric; a case that somebody has no value for is a column of NaN."""
    array = np.array([[system.table.get(metric, {}).get(case, np.nan) for case in cases] for system in systems])
    scored = ~np.isnan(array).all(axis=0)
    if not lower_is_better(metric):
        array[np.array([[case not in system.clusters for case in cases] for system in systems]) & scored] = 0.0
        if np.nanmax(array, initial=0.0) <= 1:
            array[np.isnan(array) & scored] = 1.0  # rightly empty
    array[:, np.isnan(array).any(axis=0)] = np.nan
    return array


def _grouped(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Class metrics -> the mean over the classes of each group that the case has."""
    members: dict[str, list[np.ndarray]] = {}
    for metric, array in values.items():
        name, _, column = metric.rpartition(" ")
        if column in RANKED:
            members.setdefault(f"{'lesions' if is_lesion(name) else 'organs'} {column}", []).append(array)
    grouped = {}
    for metric, arrays in members.items():
        stacked = np.array(arrays)
        known = (~np.isnan(stacked)).sum(axis=0)
        total = np.nansum(stacked, axis=0)
        grouped[metric] = np.divide(total, known, out=np.full(total.shape, np.nan), where=known > 0)
    return grouped


def _costs(
    systems: list[_System], cases: list[str], tolerance_seconds: float, tolerance_mb: float
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Time and memory of every case, where every system has them."""
    runs = [_read_runs(system.folder) for system in systems]
    if not all(runs):
        some = [system.name for system, own in zip(systems, runs, strict=True) if own]
        if not some and not tolerance_seconds and not tolerance_mb:
            return {}, []
        return {}, [f"Time and memory are left out: {EFFICIENCY}/CASE folders lie in {', '.join(some) or 'no result'}."]
    memory, area = ("gpu", GPU_AREA) if all(run["gpu"] for own in runs for run in own.values()) else ("rss", HOST_AREA)
    values = {metric: np.full((len(systems), len(cases)), np.nan) for metric in (TIME, area)}
    for row, own in enumerate(runs):
        for column, case in enumerate(cases):
            if case in own and own[case]["exit_code"] != 0:
                values[TIME][row, column] = values[area][row, column] = np.inf
            elif case in own:
                curve = own[case][memory]
                values[TIME][row, column] = max(own[case]["wall_seconds"], tolerance_seconds)
                within = curve["peak_mb"] <= tolerance_mb
                values[area][row, column] = 0.0 if within else curve["official_area_mb_s"]
    for array in values.values():
        array[:, np.isnan(array).any(axis=0)] = np.nan
    return values, [
        f"Seconds up to {tolerance_seconds:g} and runs of a peak up to {tolerance_mb:g} MB count as equal; "
        f"{(~np.isnan(values[TIME][0])).sum()} of {len(cases)} cases have a run of every system."
    ]


def _read_runs(folder: Path) -> dict[str, dict[str, Any]]:
    """Case -> content of its efficiency.json; empty where the folder holds none."""
    runs = {}
    for path in sorted((folder / EFFICIENCY).glob("*/efficiency.json")):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            runs[path.parent.name] = {key: run[key] for key in ("exit_code", "wall_seconds", "rss", "gpu")}
        except (ValueError, TypeError, KeyError):
            raise InputError(path, "what `vlm evaluate efficiency` writes", "something else", "measure again") from None
    return runs
