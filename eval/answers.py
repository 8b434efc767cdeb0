"""Answers against reference answers: figures per question type, with intervals over patients.

A question ends in one of five states. `answered`: something to compare was read, from the structured fields or, where
they are empty, from `text`. `abstained`: the system declined. `unreadable`: it spoke, but nothing of the type can be
read. `unscored`: it failed (the line says why). `missing`: there is no line. Headline figures judge the first three, so
that declining an answerable question or mumbling counts as wrong there; `unscored` and `missing` are not the system's
judgement and stay outside, but are counted beside it, and `headline.all` counts them as wrong too, so that nothing is
gained by failing. `headline.answered` judges the answered ones alone. A question whose reference is null is
unanswerable: it is outside every figure and only counted, with how often the system rightly abstained.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eval.baseline import BASELINE, majority_baseline
from eval.bootstrap import Statistic, clustered_intervals
from eval.detection import Box, detection_counts, f1
from eval.jsonl import digest, read_jsonl
from eval.parse import normalise, parse_choice, parse_choices, parse_count, parse_number
from eval.references import NUMERIC, TYPES, Reference, read_references
from eval.tables import Table, with_interval
from eval.units import LENGTH, convert, dimension
from seg_backbone.errors import ConfigError, QuestionError

ANSWERED, ABSTAINED, UNREADABLE, UNSCORED, MISSING = "answered", "abstained", "unreadable", "unscored", "missing"
STATES = (ANSWERED, ABSTAINED, UNREADABLE, UNSCORED, MISSING)
JUDGED = (ANSWERED, ABSTAINED, UNREADABLE)
IOU_THRESHOLDS = (0.5, 0.3)
BINS = 10  # of confidence, equally wide


@dataclass(frozen=True)
class Item:
    """One question with its outcome. prediction: as `Reference.answer`, in the reference's unit; None unless answered.

    note: the error of an unscored line, the reason of an abstention. confidence: as stated with an answer, in [0, 1];
    None where none was.
    """

    reference: Reference
    state: str
    prediction: Any = None
    note: str = ""
    confidence: float | None = None


@dataclass(frozen=True)
class AnswerResults:
    """Scores of one answer file. compared: name -> other systems on the same questions (no comparisons of their
    own)."""

    name: str
    items: list[Item]
    unknown_ids: int
    source: dict[str, str]
    seed: int = 0
    resamples: int = 1000
    compared: dict[str, AnswerResults] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: counts, and per type the figures that `STATISTICS` names."""
        return self._metrics

    @cached_property
    def _metrics(self) -> dict[str, Any]:
        answerable = [item for item in self.items if item.reference.answer is not None]
        unanswerable = [item for item in self.items if item.reference.answer is None]
        kinds = [kind for kind in TYPES if any(item.reference.type == kind for item in answerable)]
        return {
            "kind": "answers",
            "name": self.name,
            **self.source,
            "counts": _counts(answerable),
            "unanswerable": _counts(unanswerable),
            "ids_without_question": self.unknown_ids,
            "types": {kind: self._of_type([i for i in answerable if i.reference.type == kind]) for kind in kinds},
            "calibration": calibration(answerable),
            "bootstrap": {
                "seed": self.seed,
                "resamples": self.resamples,
                "level": 0.95,
                "cluster": "patient, else image",
            },
            "compared": {name: other.metrics() for name, other in self.compared.items()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a question and system, for per_case.csv. `score` is the question's own share of the headline,
        0..1."""
        rows = []
        for name, results in {self.name: self, **self.compared}.items():
            for item in results.items:
                reference = item.reference
                rows.append(
                    {
                        "system": name,
                        "id": reference.id,
                        "type": reference.type,
                        "group": reference.group,
                        "patient": reference.cluster,
                        "state": item.state,
                        "reference": _printed(reference.answer),
                        "prediction": _printed(item.prediction),
                        "unit": reference.unit or "",
                        "score": _own_score(item),
                        "confidence": "" if item.confidence is None else item.confidence,
                        "note": item.note,
                    }
                )
        return rows

    def tables(self) -> list[Table]:
        """Figures (a row a type and figure, a column a system) and counts (a row a system and type)."""
        systems = {self.name: self.metrics(), **{name: other.metrics() for name, other in self.compared.items()}}
        figures, counts = [], []
        for kind, own in systems[self.name]["types"].items():
            for metric in own["metrics"] or list(STATISTICS[kind]([])(np.array([], dtype=int))):
                values = [system["types"][kind]["metrics"].get(metric) for system in systems.values()]
                printed = [with_interval(v["value"], v["interval"], 3) if v else "–" for v in values]
                figures.append([kind, metric, str(own["counts"]["n"]), *printed])
            for name, system in systems.items():
                count = system["types"][kind]["counts"]
                counts.append([name, kind, str(count["n"]), *(str(count[state]) for state in STATES)])
        notes = [
            "Figures judge answered, abstained and unreadable questions; errors (mae, median) the answered alone.",
            "Intervals: 95 %, bootstrap over patients. Unscored and missing questions are counted below, not judged.",
        ]
        unanswerable = systems[self.name]["unanswerable"]
        if unanswerable["n"]:
            notes.append(f"Unanswerable: {unanswerable['n']}, of which {unanswerable[ABSTAINED]} rightly abstained.")
        if self.unknown_ids:
            notes.append(f"{self.unknown_ids} answers have an id that no question with a reference has.")
        tables = [
            Table("Answers", ["type", "figure", "n", *systems], figures, notes),
            Table("Outcomes", ["system", "type", "n", *STATES], counts),
        ]
        calibrated = [
            [name, kind, str(one["n"]), *(f"{one[key]:.3f}" for key in ("confidence", "score", "ece"))]
            for name, system in systems.items()
            for kind, one in [("all", system["calibration"])]
            + [(kind, of_type["calibration"]) for kind, of_type in system["types"].items()]
            if one
        ]
        if calibrated:
            columns = ["system", "type", "n", "mean confidence", "mean score", "ECE"]
            note = f"Answered questions with a confidence; score: the headline of each; ECE over {BINS} bins."
            tables.append(Table("Calibration", columns, calibrated, [note]))
        return tables

    def _of_type(self, items: list[Item]) -> dict[str, Any]:
        judged = [item for item in items if item.state in JUDGED]
        groups = sorted({item.reference.group for item in items})
        result = {
            "counts": _counts(items),
            "metrics": {},
            "headline": _headline(items),
            "calibration": calibration(items),
        }
        if judged:
            statistic = STATISTICS[items[0].reference.type](judged)
            clusters = [item.reference.cluster for item in judged]
            intervals = clustered_intervals(statistic, clusters, self.seed, self.resamples)
            result["metrics"] = {
                name: {"value": value, "interval": intervals.get(name)}
                for name, value in statistic(np.arange(len(judged))).items()
                if not math.isnan(value)
            }
        if len(groups) > 1:
            by_group = {group: [item for item in items if item.reference.group == group] for group in groups}
            result["by_group"] = {
                group: {"n": len(members), "headline": _headline(members), "figures": _figures(members)}
                for group, members in by_group.items()
            }
        units = sorted({item.reference.unit or "" for item in items})
        if len(units) > 1 and items[0].reference.type in NUMERIC:
            by_unit = {unit: [item for item in items if (item.reference.unit or "") == unit] for unit in units}
            result["by_unit"] = {unit: {"n": len(some), "figures": _figures(some)} for unit, some in by_unit.items()}
        return result


def evaluate_answers(
    answers_path: str | Path,
    reference_path: str | Path,
    *,
    name: str = "model",
    compare: dict[str, str | Path] | None = None,
    baseline_train: str | Path | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> AnswerResults:
    """Join a file of answers to its questions by id and score it.

    compare: name -> another answer file, scored on the same questions. baseline_train: training questions whose
    majority option or median number becomes one more system, "majority/median". Question types and fields are in
    `Reference`; what each figure means is said at the functions of `STATISTICS`.
    Raises QuestionError: a missing file, a broken line, an id used twice (a later line may replace an unscored one, as
    a resumed run writes it), no question with an answer, no answer that belongs to a question. ConfigError: a name
    twice.
    """
    references = read_references(reference_path)
    source = {"reference": str(reference_path), "reference_sha256": digest(reference_path)}
    systems: dict[str, AnswerResults] = {}
    named = [(name, answers_path), *(compare or {}).items()]
    for system, path in named:
        if system in systems or system == BASELINE:
            raise ConfigError("--compare", "a name of its own for each file", repr(system), "choose another name")
        answers = read_answers(path)
        known = {reference.id for reference in references}
        if not known & set(answers):
            raise QuestionError(
                path, f"answers to the questions of {reference_path}", "no common id", "check the two files"
            )
        own_source = {"answers": str(path), "answers_sha256": digest(path), **source}
        systems[system] = AnswerResults(
            system, score(answers, references), len(set(answers) - known), own_source, seed, resamples
        )
    if baseline_train is not None:
        lines = majority_baseline(references, read_references(baseline_train))
        own_source = {"answers": f"majority or median of {baseline_train}", **source}
        own_source["answers_sha256"] = digest(baseline_train)
        items = score({line["id"]: line for line in lines}, references)
        systems[BASELINE] = AnswerResults(BASELINE, items, 0, own_source, seed, resamples)
    main = systems.pop(name)
    return AnswerResults(name, main.items, main.unknown_ids, main.source, seed, resamples, compared=systems)


def read_answers(path: str | Path) -> dict[str, dict[str, Any]]:
    """id -> answer line. Raises QuestionError naming the line: no id, or an id again after a line that was scored."""
    answers: dict[str, dict[str, Any]] = {}
    for number, answer in read_jsonl(path):
        where = f"{path}, line {number}"
        if not isinstance(answer.get("id"), str | int) or answer["id"] == "":
            raise QuestionError(where, "an answer with an id", "none", "write the question's id")
        key = str(answer["id"])
        if key in answers and not answers[key].get("unscored"):
            raise QuestionError(where, "an id used once", f"{key!r} again", "keep one answer a question")
        answers[key] = answer
    return answers


def score(answers: dict[str, dict[str, Any]], references: Sequence[Reference]) -> list[Item]:
    """One item a reference question, in its order."""
    return [read_item(reference, answers.get(reference.id)) for reference in references]


def read_item(reference: Reference, answer: dict[str, Any] | None) -> Item:
    """The state of one question and, where answered, its prediction in the reference's unit."""
    if answer is None:
        return Item(reference, MISSING)
    if answer.get("unscored"):
        return Item(reference, UNSCORED, note=str(answer["unscored"]))
    if answer.get("abstained"):
        return Item(reference, ABSTAINED, note=str(answer.get("reason") or ""))
    prediction = READERS[reference.type](reference, answer)
    if prediction is None:
        return Item(reference, UNREADABLE)
    return Item(reference, ANSWERED, prediction, confidence=_confidence(answer))


def _confidence(answer: dict[str, Any]) -> float | None:
    stated = answer.get("confidence")
    if not isinstance(stated, int | float) or isinstance(stated, bool):
        return None
    return float(stated) if 0 <= stated <= 1 else None


def _read_choice(reference: Reference, answer: dict[str, Any]) -> str | None:
    choice = answer.get("choice")
    if choice is None:
        named = parse_choice(_text(answer), reference.options)
        return named if named is not None or reference.options else normalise(_text(answer)) or None
    choice = ("yes" if choice else "no") if isinstance(choice, bool) else str(choice)
    named = parse_choice(choice, reference.options) if reference.options else None
    return named if named is not None else choice


def _read_choices(reference: Reference, answer: dict[str, Any]) -> list[str] | None:
    choices = answer.get("choices")
    if not isinstance(choices, list):
        return parse_choices(_text(answer), reference.options)
    if not reference.options:
        return [str(choice) for choice in choices]
    return [parse_choice(str(choice), reference.options) or str(choice) for choice in choices]


def _read_number(reference: Reference, answer: dict[str, Any]) -> float | None:
    value, unit = answer.get("value"), answer.get("unit")
    if not isinstance(value, int | float) or isinstance(value, bool):
        if reference.type == "counting":
            value, unit = parse_count(_text(answer)), None
        else:
            value, unit = parse_number(_text(answer), reference.unit) or (None, None)
    if value is None or not math.isfinite(value):
        return None
    return convert(float(value), unit, reference.unit)


def _read_boxes(reference: Reference, answer: dict[str, Any]) -> list[Box] | None:
    if not isinstance(answer.get("boxes"), list):
        return None
    try:
        return [Box.from_json(record) for record in answer["boxes"]]
    except ValueError:
        return None


def _read_open(reference: Reference, answer: dict[str, Any]) -> str | None:
    return _text(answer).strip() or None


def _text(answer: dict[str, Any]) -> str:
    return str(answer.get("text") or "")


READERS: dict[str, Callable[[Reference, dict[str, Any]], Any]] = {
    "classification": _read_choice,
    "multilabel": _read_choices,
    "counting": _read_number,
    "measurement": _read_number,
    "regression": _read_number,
    "detection": _read_boxes,
    "open": _read_open,
}


def classification(items: list[Item]) -> Statistic:
    """accuracy; balanced_accuracy: mean recall of the reference's classes (Brodersen et al., ICPR 2010); macro_f1: mean
    over the reference's classes of 2 TP / (2 TP + FP + FN) (Opitz and Burst 2019, "averaged F1").

    Options are compared without case and punctuation. A question without an answer is a miss of its class. Both class
    means run over the classes that occur as references in the sample.
    """
    names = [normalise(str(item.reference.answer)) for item in items]
    code = {name: index for index, name in enumerate(sorted(set(names)))}
    truth = np.array([code[name] for name in names], dtype=int)
    given = [None if item.prediction is None else normalise(item.prediction) for item in items]
    guess = np.array([code.get(name, -1) if name is not None else -1 for name in given], dtype=int)

    def statistic(index: np.ndarray) -> dict[str, float]:
        t, g = truth[index], guess[index]
        support = np.bincount(t, minlength=len(code))
        hits = np.bincount(t[t == g], minlength=len(code))
        claimed = np.bincount(g[g >= 0], minlength=len(code))
        present = support > 0
        return {
            "accuracy": _mean((t == g).astype(float)),
            "balanced_accuracy": _mean(hits[present] / support[present]),
            "macro_f1": _mean(2 * hits[present] / (support + claimed)[present]),
        }

    return statistic


def multilabel(items: list[Item]) -> Statistic:
    """f1: mean over questions of 2 |P and R| / (|P| + |R|), 1 where both are empty (Godbole and Sarawagi, PAKDD 2004);
    exact_match: share of questions with P = R. A question without an answer has 0 in both."""
    scores = np.array([_set_scores(item) for item in items], dtype=float).reshape(-1, 2)
    return lambda index: {"f1": _mean(scores[index, 0]), "exact_match": _mean(scores[index, 1])}


def counting(items: list[Item]) -> Statistic:
    """exact: share of questions with the right number (no answer is wrong); mae: mean absolute error of the
    answered."""
    error = np.abs(_numbers(items, "prediction") - _numbers(items, "reference"))
    return lambda index: {"exact": _mean((error[index] == 0).astype(float)), "mae": _known(np.mean, error[index])}


def measurement(items: list[Item]) -> Statistic:
    """within_10pct, within_20pct: share of questions with |error| <= that part of |reference|; within_1mm: share of the
    questions about a length with |error| <= 1 mm; no answer is outside. Over the answered ones: mae and median_ae in
    the reference's unit (only where all questions share one), median_relative_error = |error| / |reference|,
    references of 0 left out."""
    reference, error = (
        _numbers(items, "reference"),
        np.abs(_numbers(items, "prediction") - _numbers(items, "reference")),
    )
    relative = np.divide(error, np.abs(reference), out=np.full(len(items), np.nan), where=reference != 0)
    lengths = np.array([dimension(item.reference.unit) == LENGTH for item in items], dtype=bool)
    to_mm = [
        convert(1.0, item.reference.unit, "mm") if long else 1.0 for item, long in zip(items, lengths, strict=True)
    ]
    error_mm = error * np.array(to_mm, dtype=float)
    shared = len({item.reference.unit for item in items}) == 1

    def statistic(index: np.ndarray) -> dict[str, float]:
        one, size, length = error[index], np.abs(reference[index]), lengths[index]
        return {
            "within_10pct": _mean((one <= 0.1 * size + 1e-9).astype(float)),
            "within_20pct": _mean((one <= 0.2 * size + 1e-9).astype(float)),
            "within_1mm": _mean((error_mm[index][length] <= 1 + 1e-9).astype(float)),
            "mae": _known(np.mean, one) if shared else float("nan"),
            "median_ae": _known(np.median, one) if shared else float("nan"),
            "median_relative_error": _known(np.median, relative[index]),
        }

    return statistic


def detection(items: list[Item]) -> Statistic:
    """f1_iou50, f1_iou30: 2 TP / (2 TP + FP + FN) over all boxes of all questions, boxes matched one to one within a
    question (CVPR 2025 text-guided segmentation challenge: F1 at IoU 0.5 by Hungarian matching); f1_iou50_per_question:
    mean over questions, 1 where nothing was to be found and nothing was. No answer finds nothing: all its boxes
    missed."""
    counts = {t: np.array([_box_counts(item, t) for item in items]).reshape(-1, 3) for t in IOU_THRESHOLDS}
    own = np.array([_own_f1(item) for item in items])

    def statistic(index: np.ndarray) -> dict[str, float]:
        pooled = {f"f1_iou{round(100 * t)}": f1(*table[index].sum(0).tolist()) for t, table in counts.items()}
        return {**pooled, "f1_iou50_per_question": _mean(own[index])}

    return statistic


def open_text(items: list[Item]) -> Statistic:
    """token_f1: mean over questions of the F1 of shared words; exact_match: equal after normalising. Both as in SQuAD
    (Rajpurkar et al., EMNLP 2016, section 6.1). No answer has 0 in both."""
    scores = np.array([_text_scores(item) for item in items], dtype=float).reshape(-1, 2)
    return lambda index: {"token_f1": _mean(scores[index, 0]), "exact_match": _mean(scores[index, 1])}


def calibration(items: list[Item]) -> dict[str, Any]:
    """Whether confidence says how often answers are right: n, mean confidence, mean score, ece, and bins.

    ece: expected calibration error, the sum over BINS equally wide bins of n_bin / n |mean score - mean confidence|
    (Guo et al., ICML 2017, equation 3), where a question's score is its share of the headline, 0..1. bins: those with
    answers, each {"low", "high", "n", "confidence", "score"}; a confidence on a border belongs to the bin below. Only
    answered questions with a confidence count; without one the result is empty.
    """
    stated = [item for item in items if item.confidence is not None]
    if not stated:
        return {}
    confidence = np.array([item.confidence for item in stated], dtype=float)
    right = np.array([_own_score(item) for item in stated], dtype=float)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = [
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "n": int((place == number).sum()),
            "confidence": _mean(confidence[place == number]),
            "score": _mean(right[place == number]),
        }
        for number in sorted(set(place.tolist()))
    ]
    gaps = [one["n"] * abs(one["score"] - one["confidence"]) for one in bins]
    return {
        "n": len(stated),
        "confidence": _mean(confidence),
        "score": _mean(right),
        "ece": sum(gaps) / len(stated),
        "bins": bins,
    }


# The first figure of each is the headline.
STATISTICS: dict[str, Callable[[list[Item]], Statistic]] = {
    "classification": classification,
    "multilabel": multilabel,
    "counting": counting,
    "measurement": measurement,
    "regression": measurement,
    "detection": detection,
    "open": open_text,
}


def _figures(items: list[Item]) -> dict[str, float]:
    judged = [item for item in items if item.state in JUDGED]
    if not judged:
        return {}
    values = STATISTICS[items[0].reference.type](judged)(np.arange(len(judged)))
    return {name: value for name, value in values.items() if not math.isnan(value)}


def _headline(items: list[Item]) -> dict[str, Any]:
    """The first figure over the judged questions, the answered ones, and all (failures wrong); NaN where there is
    none."""
    statistic = STATISTICS[items[0].reference.type](items)
    states = np.array([item.state for item in items])
    subsets = {
        "judged": np.isin(states, JUDGED),
        "answered": states == ANSWERED,
        "all": np.ones(len(items), dtype=bool),
    }
    values = {name: statistic(np.flatnonzero(chosen)) for name, chosen in subsets.items()}
    first = next(iter(values["all"]))
    return {"figure": first, **{name: value[first] for name, value in values.items()}}


def _counts(items: list[Item]) -> dict[str, int]:
    states = Counter(item.state for item in items)
    return {"n": len(items), **{state: states[state] for state in STATES}}


def _own_score(item: Item) -> float:
    """The headline of one question alone; NaN where it is outside the figures."""
    if item.reference.answer is None or item.state not in JUDGED:
        return float("nan")
    if item.reference.type == "detection":
        return _own_f1(item)
    return next(iter(STATISTICS[item.reference.type]([item])(np.array([0])).values()))


def _set_scores(item: Item) -> tuple[float, float]:
    if item.prediction is None:
        return 0.0, 0.0
    given, truth = ({normalise(one) for one in side} for side in (item.prediction, item.reference.answer))
    total = len(given) + len(truth)
    return (2 * len(given & truth) / total if total else 1.0), float(given == truth)


def _text_scores(item: Item) -> tuple[float, float]:
    if item.prediction is None:
        return 0.0, 0.0
    given, truth = normalise(item.prediction).split(), normalise(item.reference.answer).split()
    shared = sum((Counter(given) & Counter(truth)).values())
    total = len(given) + len(truth)
    return (2 * shared / total if total else 1.0), float(given == truth)


def _box_counts(item: Item, iou_threshold: float) -> tuple[int, int, int]:
    return detection_counts(item.prediction or [], item.reference.answer, iou_threshold)


def _own_f1(item: Item) -> float:
    if item.prediction is None:
        return 0.0
    value = f1(*_box_counts(item, IOU_THRESHOLDS[0]))
    return 1.0 if math.isnan(value) else value


def _numbers(items: list[Item], side: str) -> np.ndarray:
    if side == "reference":
        return np.array([item.reference.answer for item in items], dtype=float)
    return np.array([np.nan if item.prediction is None else item.prediction for item in items], dtype=float)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _known(reduce: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(reduce(known)) if len(known) else float("nan")


def _printed(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        boxes = [f"{[*one.min_mm]}..{[*one.max_mm]}" if isinstance(one, Box) else str(one) for one in value]
        return "; ".join(boxes) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
