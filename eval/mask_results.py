"""Scores of a folder of masks as metrics, rows and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from eval.bootstrap import clustered_intervals
from eval.lesionwise import lesion_figures
from eval.mask_scores import BOTH_EMPTY, INVALID, MISSING, NOT_ANNOTATED, SCORED, UNDEFINED, MaskScore, Rules
from eval.tables import Table, with_interval
from seg_backbone.labels import is_lesion

# Columns of the table: key -> head, decimals. The second part under a detailed protocol.
SCORES = {"dsc": ("DSC", 3), "nsd": ("NSD", 3)}
DETAILS = {
    "border_nsd": ("NSD of borders", 3),
    "hd95_mm": ("HD95 mm", 1),
    "absolute_volume_error_ml": ("volume error ml", 1),
}
COUNTS = ("scored", "both_empty", "not_annotated", "missing", "false_positive")
# Of per_case.csv, for lesion classes under a detailed protocol.
LESION_COLUMNS = (
    "reference_lesions",
    "predicted_lesions",
    "lesion_f1",
    "panoptic_quality",
    "lesion_dsc",
    "lesion_hd95_mm",
    "false_positive_ml",
    "false_negative_ml",
)


@dataclass(frozen=True)
class MaskResults:
    """Scores of a folder. cases: how many were looked at. missing: reference cases without a prediction. notes: what a
    reader of the figures must know, one sentence each. patients: case -> patient, of the cases whose patient has others
    too; whole patients are drawn again for the intervals."""

    rules: Rules
    scores: list[MaskScore]
    cases: int
    missing: list[str]
    notes: list[str]
    pred_dir: str
    ref_dir: str
    patients: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    resamples: int = 1000

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json. Means are over cases with a score; intervals bootstrap the patients."""
        return self._metrics

    @cached_property
    def _metrics(self) -> dict[str, Any]:
        labels, protocol = self.rules.ref_labels, self.rules.protocol
        classes = {name: self._of_class(name) for name in labels}
        groups = {
            "organs": [name for name in labels if not is_lesion(name)],
            "lesions": [name for name in labels if is_lesion(name)],
            "all": list(labels),
        }
        return {
            "kind": "masks",
            "protocol": protocol.name,
            "protocol_description": protocol.description,
            "predictions": self.pred_dir,
            "reference": self.ref_dir,
            "cases": self.cases,
            "missing_predictions": self.missing,
            "classes": classes,
            "mean": {
                group: {metric: self._overall(metric, names, classes) for metric in SCORES}
                for group, names in groups.items()
                if names
            },
            "lesionwise": self._lesionwise(),
            "bootstrap": {
                "seed": self.seed,
                "resamples": self.resamples,
                "level": 0.95,
                "cluster": "patient, else case",
            },
            "notes": self.notes,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a case and class, for per_case.csv; with HD95 and lesions under a detailed protocol."""
        return [
            {
                "case": score.case,
                "patient": self._patient(score.case),
                "class": score.label,
                "state": score.state,
                "dsc": score.dsc,
                "nsd": score.nsd,
                "tolerance_mm": score.tolerance_mm,
                "reference_ml": score.reference_ml,
                "predicted_ml": score.predicted_ml,
                "volume_error_ml": score.volume_error_ml,
                **(_details(score) if self.rules.protocol.detailed else {}),
            }
            for score in self.scores
        ]

    def tables(self) -> list[Table]:
        """One row a class and one a mean over classes; under a detailed protocol also the figures of the lesions."""
        metrics, protocol = self.metrics(), self.rules.protocol
        shown = {**SCORES, **(DETAILS if protocol.detailed else {})}
        rows = []
        for name, values in metrics["classes"].items():
            printed = [
                with_interval(values[key]["mean"], values[key]["interval"], digits)
                for key, (_, digits) in shown.items()
            ]
            rows.append([name, *printed, f"{values['tolerance_mm']:g}", *(str(values[key]) for key in COUNTS)])
        for name, values in metrics["mean"].items():
            printed = [with_interval(values.get(key), None, digits) for key, (_, digits) in shown.items()]
            rows.append([f"mean {name}", *printed, *[""] * (1 + len(COUNTS))])
        columns = [
            "class",
            *(head for head, _ in shown.values()),
            "tolerance mm",
            "n",
            "both empty",
            "not annotated",
            "missing",
            "false positives",
        ]
        title = f"Masks, protocol {protocol.name}: {self.cases} cases"
        tables = [Table(title, columns, rows, [protocol.description + ".", *self.notes])]
        for name, own in metrics["lesionwise"].items():
            counted = f"{own['reference']} in the reference, {own['predicted']} predicted, {own['cases']} cases"
            figures = [[key, with_interval(one["value"], one["interval"], 3)] for key, one in own["figures"].items()]
            tables.append(Table(f"Lesions, {name}: {counted}", ["figure", "value"], figures))
        return tables

    def _patient(self, case: str) -> str:
        return self.patients.get(case, case)

    def _of_class(self, name: str) -> dict[str, Any]:
        scores = [score for score in self.scores if score.label == name]
        counted = [score for score in scores if not np.isnan(score.dsc)]
        values = {key: np.array([getattr(score, key) for score in counted]) for key in SCORES}
        if self.rules.protocol.detailed:
            values |= {key: np.array([getattr(score, key) for score in counted]) for key in ("border_nsd", "hd95_mm")}
        error = np.array([score.volume_error_ml for score in counted])
        reference = np.array([score.reference_ml for score in counted])
        values["volume_error_ml"] = error
        values["absolute_volume_error_ml"] = np.abs(error)
        values["relative_volume_error"] = np.divide(
            np.abs(error), reference, out=np.full(len(counted), np.nan), where=reference > 0
        )
        intervals = clustered_intervals(
            lambda index: {key: _known_mean(array[index]) for key, array in values.items()},
            [self._patient(score.case) for score in counted],
            self.seed,
            self.resamples,
        )
        states = [score.state for score in scores]
        return {
            **{key: {"mean": self._rounded(array), "interval": intervals.get(key)} for key, array in values.items()},
            "tolerance_mm": self.rules.tolerance_of(name),
            "scored": len(counted),
            "both_empty": states.count(BOTH_EMPTY),
            "not_annotated": states.count(NOT_ANNOTATED),
            "missing": states.count(MISSING),
            "invalid": states.count(INVALID),
            "undefined": states.count(UNDEFINED),
            "false_positive": sum(s.state == SCORED and s.reference_ml == 0 and s.predicted_ml > 0 for s in scores),
        }

    def _overall(self, metric: str, names: list[str], classes: dict[str, Any]) -> float:
        """The mean over classes, or over all their cases at once, as the protocol has it."""
        if self.rules.protocol.pooled_mean:
            return self._rounded(np.array([getattr(score, metric) for score in self.scores if score.label in names]))
        return self._rounded(np.array([classes[name][metric]["mean"] for name in names]))

    def _lesionwise(self) -> dict[str, Any]:
        """Lesion class -> counts and the figures of `lesion_figures`; empty unless the protocol is detailed."""
        classes = {}
        for name in self.rules.ref_labels:
            own = {s.case: s.lesions for s in self.scores if s.label == name and s.lesions is not None}
            if own:
                lesions = list(own.values())
                statistic = lesion_figures(lesions)
                intervals = clustered_intervals(
                    statistic, [self._patient(case) for case in own], self.seed, self.resamples
                )
                classes[name] = {
                    "cases": len(own),
                    "reference": sum(len(one.reference) for one in lesions),
                    "predicted": sum(len(one.predicted) for one in lesions),
                    "figures": {
                        key: {"value": value, "interval": intervals.get(key)}
                        for key, value in statistic(np.arange(len(lesions))).items()
                        if not np.isnan(value)
                    },
                }
        return classes

    def _rounded(self, values: np.ndarray) -> float:
        """The mean of the numbers among the values, rounded as the protocol has it."""
        mean, digits = _known_mean(values), self.rules.protocol.digits
        return mean if digits is None else round(mean, digits)


def _details(score: MaskScore) -> dict[str, float]:
    """Further columns of per_case.csv."""
    values = [float("nan")] * len(LESION_COLUMNS)
    if (lesions := score.lesions) is not None:
        counts = [len(lesions.reference), len(lesions.predicted)]
        shares = [lesions.f1, lesions.panoptic_quality, lesions.lesion_dsc, lesions.lesion_hd95_mm]
        values = [*counts, *shares, lesions.false_positive_ml, lesions.false_negative_ml]
    own = {"border_nsd": score.border_nsd, "hd95_mm": score.hd95_mm}
    return {**own, **dict(zip(LESION_COLUMNS, values, strict=True))}


def _known_mean(values: np.ndarray) -> float:
    """Mean of the numbers among the values; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
