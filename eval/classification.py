"""Classes of whole scans against a reference: results.csv and cls_data.csv of FLARE26's joint task.

seg_backbone/scan_classes.py says what is in them. The figures are those of its script (eval_metrics.py of
github.com/medfm-flare/AutoMSC-Baseline), with balanced accuracy and macro F1 for every task. That script scores the
cases that both files have; here a case without a result is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from eval.bootstrap import clustered_intervals
from eval.tables import Table, with_interval
from seg_backbone.errors import LabelError
from seg_backbone.scan_classes import read_results, read_scan_classes, read_tasks

HEADS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "f1": "F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "precision": "precision",
    "weighted_f1": "weighted F1",
}
SHOWN = 5  # names in an error


@dataclass(frozen=True, eq=False)
class TaskScores:
    """One task. cases: (n,) names. truth: (n,) class numbers. probabilities: (n, classes)."""

    classes: tuple[str, ...]
    cases: list[str]
    truth: np.ndarray
    probabilities: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(n,) class numbers: of two classes the second from 0.5 on, else the most likely one."""
        if len(self.classes) == 2:
            return (self.probabilities[:, 1] >= 0.5).astype(int)
        return self.probabilities.argmax(axis=1)

    def confusion(self) -> np.ndarray:
        """(classes, classes) counts, the truth by row."""
        table = np.zeros((len(self.classes),) * 2, dtype=int)
        np.add.at(table, (self.truth, self.found), 1)
        return table


@dataclass(frozen=True)
class ClassResults:
    """Scores of every task of which both files know a case. notes: what a reader of the figures must know."""

    tasks: dict[str, TaskScores]
    notes: list[str]
    results: str
    reference: str
    seed: int = 0
    resamples: int = 1000

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: per task the figures, 95 % intervals over cases, and the confusion matrix."""
        tasks = {}
        for name, task in self.tasks.items():
            values, intervals = self._figures[name]
            tasks[name] = {
                "cases": len(task.cases),
                "classes": list(task.classes),
                **{key: {"value": value, "interval": intervals.get(key)} for key, value in values.items()},
                "confusion": task.confusion().tolist(),
            }
        return {
            "kind": "classification",
            "results": self.results,
            "reference": self.reference,
            "tasks": tasks,
            "bootstrap": {"seed": self.seed, "resamples": self.resamples, "level": 0.95, "cluster": "case"},
            "notes": self.notes,
        }

    @cached_property
    def _figures(self) -> dict[str, tuple[dict[str, float], dict[str, tuple[float, float]]]]:
        rows = {}
        for name, task in self.tasks.items():
            drawn = lambda some, task=task: figures(task.truth[some], task.probabilities[some], task.found[some])  # noqa: E731
            intervals = clustered_intervals(drawn, task.cases, self.seed, self.resamples)
            rows[name] = figures(task.truth, task.probabilities, task.found), intervals
        return rows

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines of per_case.csv."""
        for name, task in self.tasks.items():
            for case, truth, found, p in zip(task.cases, task.truth, task.found, task.probabilities, strict=True):
                yield {
                    "case": case,
                    "task": name,
                    "class": task.classes[truth],
                    "found": task.classes[found],
                    "right": int(truth == found),
                    "probability_of_class": round(float(p[truth]), 6),
                }

    def tables(self) -> list[Table]:
        """A table a task: the figures, and what was taken for what."""
        tables = []
        for name, task in self.tasks.items():
            values, intervals = self._figures[name]
            rows = [[HEADS[key], with_interval(value, intervals.get(key), 3)] for key, value in values.items()]
            counts = [
                f"{cls}: {' '.join(map(str, row))}" for cls, row in zip(task.classes, task.confusion(), strict=True)
            ]
            notes = [f"confusion, found as {', '.join(task.classes)}: {'; '.join(counts)}", *self.notes]
            tables.append(Table(f"{name}, {len(task.cases)} cases", ["figure", "value [95 % interval]"], rows, notes))
        return tables


def evaluate_classes(
    results: str | Path,
    reference: str | Path,
    labels: str | Path | None = None,
    allow_missing: bool = False,
    seed: int = 0,
    resamples: int = 1000,
) -> ClassResults:
    """Score a results.csv. reference: a cls_data.csv. labels: the dataset.json that names tasks and classes; by default
    the one beside the reference. allow_missing: leave out cases without a result instead of refusing them.

    Raises LabelError: files that do not fit, a result of a case that the reference lacks, a missing result.
    """
    description = Path(labels) if labels else Path(reference).with_name("dataset.json")
    tasks = read_tasks(description)
    if not tasks:
        raise LabelError(
            description, "`classification_labels`", "none", "name the dataset.json that has them: --labels"
        )
    truth, found = read_scan_classes(reference, tasks), read_results(results, tasks)
    if strange := [case for case in found if case not in truth]:
        raise LabelError(results, f"cases of {reference}", _some(strange), "leave them out, or add their lines there")
    scores, notes, missing = {}, [], []
    for name, classes in tasks.items():
        known = [case for case in truth if name in truth[case]]
        both = [case for case in known if name in found.get(case, {})]
        missing += [case for case in known if case not in both]
        if left := len(found) - len(both):
            notes.append(f"{name}: {left} results of cases whose class is not known are left out.")
        if both:
            numbers = np.array([truth[case][name] for case in both])
            scores[name] = TaskScores(classes, both, numbers, np.array([found[case][name] for case in both]))
    missing = list(dict.fromkeys(missing))
    if missing and not allow_missing:
        expected = f"a line for every case that {reference} gives a class"
        raise LabelError(results, expected, f"none for {_some(missing)}", "add them, or pass --allow-missing")
    if not scores:
        raise LabelError(results, f"cases of {reference}", "none in common", "check that the files belong together")
    if missing:
        notes.append(f"{len(missing)} cases of the reference have no result and are left out.")
    return ClassResults(scores, notes, str(results), str(reference), seed, resamples)


def figures(truth: np.ndarray, probabilities: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """The figures of one task; NaN where one is undefined. truth, found: (n,) numbers; probabilities: (n, classes).

    balanced_accuracy: mean recall, macro_f1: mean F1, of the classes that occur. Of two classes: auroc, auprc,
    sensitivity, specificity, precision and F1 of the second. Of more: auroc, auprc and F1 of each class against the
    others, weighted by its cases; a class that all or no cases have is left out of the first two.
    """
    occurring, cases = np.unique(truth, return_counts=True)
    recalls = [float((found == truth)[truth == number].mean()) for number in occurring]
    f1 = [_f1(truth == number, found == number) for number in occurring]
    values = {
        "accuracy": float((found == truth).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float(np.mean(f1)),
    }
    if probabilities.shape[1] == 2:
        positive, claimed = truth == 1, found == 1
        return values | {
            "auroc": area_under_roc(positive, probabilities[:, 1]),
            "auprc": average_precision(positive, probabilities[:, 1]),
            "f1": _f1(positive, claimed),
            "sensitivity": _share(claimed, positive),
            "specificity": _share(~claimed, ~positive),
            "precision": _share(positive, claimed) if claimed.any() else 0.0,
        }
    ranked = [number for number in occurring if (truth != number).any()]
    weight = [(truth == number).sum() for number in ranked]
    areas = [area_under_roc(truth == number, probabilities[:, number]) for number in ranked]
    precisions = [average_precision(truth == number, probabilities[:, number]) for number in ranked]
    return values | {
        "auroc": float(np.average(areas, weights=weight)) if ranked else float("nan"),
        "auprc": float(np.average(precisions, weights=weight)) if ranked else float("nan"),
        "weighted_f1": float(np.average(f1, weights=cases)),
    }


def area_under_roc(positive: np.ndarray, score: np.ndarray) -> float:
    """(n,) bool and scores -> chance that a positive has the higher score, ties half (Fawcett 2006); NaN for one."""
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return float("nan")
    return float((rankdata(score)[positive].sum() - count * (count + 1) / 2) / (count * others))


def average_precision(positive: np.ndarray, score: np.ndarray) -> float:
    """(n,) bool and scores -> sum of precision times the step in recall, as in scikit-learn; NaN without a positive."""
    if not positive.any():
        return float("nan")
    levels, place = np.unique(-score, return_inverse=True)
    hits = np.cumsum(np.bincount(place, weights=positive, minlength=len(levels)))
    claims = np.cumsum(np.bincount(place, minlength=len(levels)))
    return float((np.diff(hits, prepend=0) * hits / claims).sum() / hits[-1])


def _f1(truth: np.ndarray, found: np.ndarray) -> float:
    return float(2 * (truth & found).sum() / max(truth.sum() + found.sum(), 1))


def _share(inside: np.ndarray, of: np.ndarray) -> float:
    """Share of `of` that is `inside`; NaN where there is none."""
    return float(inside[of].mean()) if of.any() else float("nan")


def _some(cases: list[str]) -> str:
    return ", ".join(cases[:SHOWN]) + (f" and {len(cases) - SHOWN} more" if len(cases) > SHOWN else "")
