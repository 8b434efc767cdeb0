"""Answers against reference answers: figures per question type and stratum, with intervals over patients.

A question ends in one of five states. `answered`: something to compare was read, from the structured fields or, where
they are empty, from `text`. `abstained`: the system declined. `unreadable`: it spoke, but nothing of the type can be
read. `unscored`: it failed (the line says why). `missing`: there is no line. Headline figures judge the first three, so
that declining an answerable question or mumbling counts as wrong there; `unscored` and `missing` are not the system's
judgement and stay outside, but are counted beside it, and `headline.all` counts them as wrong too, so that nothing is
gained by failing. `headline.answered` judges the answered ones alone. A question whose reference is null is
unanswerable: it is outside every figure and only counted, with how often the system rightly abstained.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eval.answer_file import read_answer_file
from eval.baseline import BASELINE, majority_baseline
from eval.bootstrap import Pooled, pooled_intervals, pooled_values
from eval.calibration import BINS, abstention, calibration
from eval.detection import Box
from eval.figures import FIGURES, Figures, means
from eval.flare_mllm import REPORTS, task_figures, task_of
from eval.jsonl import digest
from eval.reading import ABSTAINED, ANSWERED, JUDGED, MISSING, STATES, UNSCORED, Item, read_item
from eval.references import NUMERIC, STRATA, TYPES, Reference, read_references
from eval.tables import Table, with_interval
from eval.texts import ReportMetric, load_report_metric, report_scores
from seg_backbone.errors import ConfigError, QuestionError

NAMED = 5  # how many questions a fault names
LISTED = 40  # rows of strata that a table shows
MOST_VALUES = 200  # of a key that questions are told apart by
WIDE = 4096  # sums; in a stratum, a figure of more (the median of very many errors) has no interval

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


@dataclass
class Faults:
    """What is wrong with an answer file without making it useless. unknown: (id, place) without a question, missing:
    ids without an answer, both the first few; broken: a sentence -> the places of the answers that it is true of."""

    n_unknown: int = 0
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    broken: dict[str, list[str]] = field(default_factory=dict)
    n_broken: Counter[str] = field(default_factory=Counter)

    def add(self, fault: str, place: str) -> None:
        """Count one more answer with this fault."""
        self.n_broken[fault] += 1
        if len(places := self.broken.setdefault(fault, [])) < NAMED:
            places.append(place)

    def to_json(self) -> dict[str, Any]:
        """Counts and first places."""
        return {
            "unknown_ids": self.unknown,
            "missing_ids": self.missing,
            "broken": {fault: {"n": self.n_broken[fault], "first": places} for fault, places in self.broken.items()},
        }


@dataclass(frozen=True)
class Kind:
    """All answerable questions of one type. place: (n,) in the items of the whole file; the arrays are (n,) too.

    confidence: NaN where none was stated with an answer. clusters: the number of each question's patient.
    """

    items: list[Item]
    place: np.ndarray
    figures: Figures
    judged: np.ndarray
    answered: np.ndarray
    confidence: np.ndarray
    clusters: np.ndarray


@dataclass(frozen=True)
class AnswerResults:
    """Scores of one answer file. compared: name -> other systems on the same questions (no comparisons of their own).

    strata: names of the values in `Reference.strata`. report_metrics: name -> metric of open answers. columns: those of
    `read_answer_file`, as given.
    """

    name: str
    items: list[Item]
    faults: Faults
    source: dict[str, str]
    strata: tuple[str, ...] = ()
    report_metrics: Mapping[str, ReportMetric] = field(default_factory=dict)
    seed: int = 0
    resamples: int = 1000
    columns: tuple[str | None, str | None] = (None, None)
    compared: dict[str, AnswerResults] = field(default_factory=dict)
    progress: Progress = silent

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: counts, and per type the figures that `eval.figures` names."""
        return self._metrics

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Type -> its answerable questions, types in the order of TYPES."""
        by_type: dict[str, list[int]] = {}
        for place, item in enumerate(self.items):
            if item.reference.answer is not None:
                by_type.setdefault(item.reference.type, []).append(place)
        codes: dict[str, int] = {}
        kinds: dict[str, Kind] = {}
        for done, kind in enumerate(one for one in TYPES if one in by_type):
            self.progress(f"scoring {self.name}", done, len(by_type))
            items = [self.items[place] for place in by_type[kind]]
            states = [item.state for item in items]
            kinds[kind] = Kind(
                items,
                np.array(by_type[kind]),
                FIGURES[kind](items),
                np.array([state in JUDGED for state in states]),
                np.array([state == ANSWERED for state in states]),
                np.array([np.nan if item.confidence is None else item.confidence for item in items]),
                np.array([codes.setdefault(item.reference.cluster, len(codes)) for item in items]),
            )
        if "open" in kinds:
            kinds["open"].figures.families.extend(self._reports(kinds["open"].items))
        return kinds

    @cached_property
    def _metrics(self) -> dict[str, Any]:
        kinds = self.kinds
        types: dict[str, Any] = {}
        with ThreadPoolExecutor(2) as pool:  # the sparse products leave the interpreter free
            for name, of_type in zip(kinds, pool.map(self._of_type, kinds.values()), strict=True):
                types[name] = of_type
                self.progress(f"drawing patients, {self.name}", len(types), len(kinds))
        answerable = [item for item in self.items if item.reference.answer is not None]
        unanswerable = [item for item in self.items if item.reference.answer is None]
        together = [
            np.concatenate([getattr(kind, part) for kind in kinds.values()]) if kinds else np.zeros(0)
            for part in ("confidence", "judged", "answered", "clusters")
        ]
        score = np.concatenate([kind.figures.own for kind in kinds.values()]) if kinds else np.zeros(0)
        return {
            "kind": "answers",
            "name": self.name,
            **self.source,
            "counts": _counts(answerable),
            "unanswerable": _counts(unanswerable),
            "ids_without_question": self.faults.n_unknown,
            "faults": self.faults.to_json(),
            "types": types,
            **self._confidence(together[0], score, *together[1:]),
            "flare_mllm": self._flare(),
            "bootstrap": {
                "seed": self.seed,
                "resamples": self.resamples,
                "level": 0.95,
                "cluster": "patient, else image",
            },
            "compared": {name: other.metrics() for name, other in self.compared.items()},
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a question and system, for per_case.csv. `score` is the question's own share of the headline, 0..1;
        NaN where the question is outside the figures."""
        for results in (self, *self.compared.values()):
            yield from map(results.row, range(len(results.items)))

    def row(self, place: int) -> dict[str, Any]:
        """The row of one item."""
        item, score = self.items[place], self.scores[place]
        reference = item.reference
        row = {
            "system": self.name,
            "id": reference.id,
            "type": reference.type,
            "group": reference.group,
            "patient": reference.cluster,
            "state": item.state,
            "reference": _printed(reference.answer),
            "prediction": _printed(item.prediction),
            "unit": reference.unit or "",
            "score": score,
            "confidence": "" if item.confidence is None else item.confidence,
            "note": item.note,
        }
        for key, value in zip(self.strata, reference.strata, strict=True):
            row.setdefault(key, value)
        return row

    @cached_property
    def scores(self) -> list[float]:
        """Every item's share of its type's headline, 0..1; NaN where the question is outside the figures."""
        scores = np.full(len(self.items), np.nan)
        for kind in self.kinds.values():
            scores[kind.place] = np.where(kind.judged, kind.figures.own, np.nan)
        return scores.tolist()

    def tables(self) -> list[Table]:
        """Figures (a row a type and figure, a column a system), counts, confidence, strata, FLARE-MLLM's figures and
        the faults of the files."""
        systems = {self.name: self.metrics(), **{name: other.metrics() for name, other in self.compared.items()}}
        tables = [_figure_table(systems, self.name), _outcome_table(systems, self.name)]
        if rows := _confidence_rows(systems):
            columns = ["system", "type", "n", "mean confidence", "mean score", "ECE", "coverage", "risk", "AURC"]
            notes = [
                f"Confidence: answered questions that state one; score: the headline of each; ECE over {BINS} bins.",
                "Coverage: answered of the judged; risk: 1 - their mean score; AURC: mean risk over all thresholds.",
            ]
            tables.append(Table("Calibration and abstention", columns, rows, notes))
        tables += [table for key in self.strata if (table := _stratum_table(systems, self.name, key)) is not None]
        flare = [
            [task, metric, str(one["n"]), *(_value(s["flare_mllm"].get(task, {}), metric) for s in systems.values())]
            for task, one in systems[self.name]["flare_mllm"].items()
            for metric in one["metrics"]
        ]
        if flare:
            note = "As FLARE-MLLM's own script computes them; texts read by our rules."
            tables.append(Table("FLARE-MLLM", ["task", "metric", "n", *systems], flare, [note]))
        faults = [row for name, system in systems.items() for row in _fault_rows(name, system)]
        if faults:
            tables.append(Table("Faults", ["system", "fault", "n", "first"], faults))
        return tables

    def _of_type(self, kind: Kind) -> dict[str, Any]:
        own = kind.figures.own
        result = {
            "counts": _counts(kind.items),
            "metrics": self._with_intervals(kind.figures.families, kind.clusters, kind.judged),
            "headline": _headline(kind, np.ones(len(own), dtype=bool)),
            **self._confidence(kind.confidence, own, kind.judged, kind.answered, kind.clusters),
        }
        if kind.items[0].reference.type in NUMERIC:
            units = self._parts(kind, [item.reference.unit or "" for item in kind.items])
            if len(units) > 1:
                result["by_unit"] = units
        result["by"] = {
            key: self._parts(kind, values)
            for key, values in zip(
                self.strata, zip(*(item.reference.strata for item in kind.items), strict=True), strict=True
            )
            if any(values)
        }
        return result

    def _parts(self, kind: Kind, values: Sequence[str]) -> dict[str, Any]:
        """Value -> n, counts, headline and figures of the questions that have it, with intervals; empty for more than
        MOST_VALUES values."""
        codes = {value: code for code, value in enumerate(sorted(set(values)))}
        if len(codes) > MOST_VALUES:
            return {}
        narrow = [family for family in kind.figures.families if family.contributions.shape[1] <= WIDE]
        code = np.array([codes[value] for value in values])
        parts = {}
        for value, number in codes.items():
            chosen = code == number
            judged = chosen & kind.judged
            draws = (kind.clusters, judged, self.seed, self.resamples)
            parts[value] = {
                "n": int(chosen.sum()),
                "counts": _counts([kind.items[place] for place in np.flatnonzero(chosen)]),
                "headline": _headline(kind, chosen),
                "figures": pooled_values(kind.figures.families, judged),
                "intervals": pooled_intervals(narrow, *draws),
            }
        return parts

    def _with_intervals(
        self, families: list[Pooled], clusters: np.ndarray, chosen: np.ndarray
    ) -> dict[str, dict[str, Any]]:
        if not chosen.any():
            return {}
        values = pooled_values(families, chosen)
        intervals = pooled_intervals(families, clusters, chosen, self.seed, self.resamples)
        return {name: {"value": value, "interval": intervals.get(name)} for name, value in values.items()}

    def _confidence(
        self, confidence: np.ndarray, score: np.ndarray, judged: np.ndarray, answered: np.ndarray, clusters: np.ndarray
    ) -> dict[str, Any]:
        draws = (self.seed, self.resamples)
        judged, answered = judged.astype(bool), answered.astype(bool)
        return {
            "calibration": calibration(confidence[answered], score[answered], clusters[answered], *draws),
            "abstention": abstention(confidence[judged], score[judged], answered[judged], clusters[judged], *draws),
        }

    def _reports(self, items: list[Item]) -> list[Pooled]:
        """The user's metrics of open answers, 0 for no answer."""
        answered = [place for place, item in enumerate(items) if item.prediction is not None]
        families = []
        for name, function in self.report_metrics.items():
            scores = np.zeros(len(items))
            texts = [[items[place].prediction for place in answered], [items[p].reference.answer for p in answered]]
            scores[answered] = report_scores(function, name, *texts) if answered else 0
            families.append(means({name: scores}))
        return families

    def _flare(self) -> dict[str, Any]:
        """Task -> n and FLARE-MLLM's metrics with intervals."""
        result: dict[str, Any] = {}
        for kind in self.kinds.values():
            tasks = [task_of(item) for item in kind.items]
            for task in sorted(set(tasks)):
                chosen = np.flatnonzero(np.array([one == task for one in tasks]) & kind.judged)
                items = [kind.items[place] for place in chosen]
                families = self._reports(items) if task == REPORTS else [task_figures(task, items)]
                everything = np.ones(len(items), dtype=bool)
                metrics = self._with_intervals(families, kind.clusters[chosen], everything)
                if metrics:
                    result[task] = {"n": len(items), "metrics": metrics}
        return result


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for reference cycles: millions of records are kept and none has one."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_uncollected()
def evaluate_answers(
    answers_path: str | Path,
    reference_path: str | Path,
    *,
    name: str = "model",
    compare: Mapping[str, str | Path] | None = None,
    baseline_train: str | Path | None = None,
    by: Sequence[str] = (),
    id_column: str | None = None,
    text_column: str | None = None,
    report_metrics: Mapping[str, str] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress = silent,
) -> AnswerResults:
    """Join a file of answers to its questions by id and score it.

    compare: name -> another answer file, scored on the same questions. baseline_train: training questions whose
    majority option or median number becomes one more system, "majority/median". by: keys of the questions to tell apart
    beside STRATA. id_column, text_column: as in `read_answer_file`. report_metrics: name -> place of a function, as in
    `load_report_metric`. Question types and fields are in `Reference`; what each figure means is said in
    `eval.figures`.
    Raises QuestionError: a missing file, a broken line, an id used twice (a later line may replace an unscored one, as
    a resumed run writes it), no question with an answer, no answer that belongs to a question. ConfigError: a name
    twice, a key that no question has, no such function.
    """
    functions = {metric: load_report_metric(place) for metric, place in (report_metrics or {}).items()}
    strata = tuple(dict.fromkeys([*STRATA, *by]))
    columns = (id_column, text_column)
    progress("reading questions", 0, 1)
    references = read_references(reference_path, strata)
    progress("reading questions", 1, 1)
    source = {"reference": str(reference_path), "reference_sha256": digest(reference_path)}

    def results(system: str, path: str | Path, items: list[Item], faults: Faults, said: str) -> AnswerResults:
        own = {"answers": said, "answers_sha256": digest(path), **source}
        return AnswerResults(system, items, faults, own, strata, functions, seed, resamples, columns, progress=progress)

    systems: dict[str, AnswerResults] = {}
    for system, path in [(name, answers_path), *(compare or {}).items()]:
        if system in systems or system == BASELINE:
            raise ConfigError("--compare", "a name of its own for each file", repr(system), "choose another name")
        lines = read_answer_file(path, *columns)
        items, faults = join(lines, references, path, progress)
        if all(item.state == MISSING for item in items):
            expected = f"answers to the questions of {reference_path}"
            raise QuestionError(path, expected, "no common id", "check the two files")
        systems[system] = results(system, path, items, faults, str(path))
    if baseline_train is not None:
        guesses = (("", line) for line in majority_baseline(references, read_references(baseline_train)))
        items, faults = join(guesses, references, baseline_train)
        systems[BASELINE] = results(BASELINE, baseline_train, items, faults, f"majority or median of {baseline_train}")
    main = systems.pop(name)
    return replace(main, compared=systems)


def join(
    answers: Iterable[tuple[str, dict[str, Any]]],
    references: Sequence[Reference],
    path: str | Path,
    progress: Progress = silent,
) -> tuple[list[Item], Faults]:
    """One item a reference question, in its order, and what is wrong with the answers (place, record).

    Raises QuestionError naming the ids of answers that come again after one that was not unscored.
    """
    at = {reference.id: place for place, reference in enumerate(references)}
    items = [Item(reference, MISSING) for reference in references]
    places: dict[str, str] = {}  # of answers
    faults = Faults()
    again: list[str] = []
    for number, (place, answer) in enumerate(answers):
        if number % 10_000 == 0:
            progress(f"reading {path}", number, len(references))
        key = str(answer["id"])
        where = at.get(key)
        if key in places and (where is None or items[where].state != UNSCORED):
            again.append(f"{key!r} in {place} (first in {places[key]})")
            continue
        places[key] = place
        if where is None:
            faults.n_unknown += 1
            if len(faults.unknown) < NAMED:
                faults.unknown.append(f"{key} ({place})")
            continue
        wrong: list[str] = []
        items[where] = read_item(references[where], answer, wrong)
        for fault in wrong:
            faults.add(fault, f"{key} ({place})")
    if again:
        found = ", ".join(again[:NAMED]) + (f" and {len(again) - NAMED} more" if len(again) > NAMED else "")
        raise QuestionError(path, "ids used once", found, "keep one answer a question")
    missing = (item.reference.id for item in items if item.state == MISSING)
    faults.missing = [key for _, key in zip(range(NAMED), missing, strict=False)]
    return items, faults


def _headline(kind: Kind, chosen: np.ndarray) -> dict[str, Any]:
    """The first figure over the judged questions, the answered ones, and all (failures wrong); NaN where there is
    none."""
    family = kind.figures.families[0]
    subsets = {"judged": chosen & kind.judged, "answered": chosen & kind.answered, "all": chosen}
    figure = next(iter(family.figures(np.zeros((family.contributions.shape[1], 1)))))
    values = {name: pooled_values([family], some).get(figure, float("nan")) for name, some in subsets.items()}
    return {"figure": figure, **values}


def _counts(items: Sequence[Item]) -> dict[str, int]:
    states = Counter(item.state for item in items)
    return {"n": len(items), **{state: states[state] for state in STATES}}


def _figure_table(systems: dict[str, dict[str, Any]], main: str) -> Table:
    rows = []
    for kind, own in systems[main]["types"].items():
        names = [metric for system in systems.values() for metric in system["types"][kind]["metrics"]]
        for metric in dict.fromkeys(names or [own["headline"]["figure"]]):
            printed = [_value(system["types"][kind], metric) for system in systems.values()]
            rows.append([kind, metric, str(own["counts"]["n"]), *printed])
    notes = [
        "Figures judge answered, abstained and unreadable questions; errors, agreement and auroc the answered alone.",
        "Intervals: 95 %, bootstrap over patients. Unscored and missing questions are counted below, not judged.",
    ]
    of_synthetic = [own["by"].get("synthetic", {}).get("yes", {}) for own in systems[main]["types"].values()]
    if synthetic := sum(part.get("n", 0) for part in of_synthetic):
        notes.append(
            f"{synthetic} questions are about synthetic tumours; `By synthetic` has the others apart from them."
        )
    unanswerable = systems[main]["unanswerable"]
    if unanswerable["n"]:
        notes.append(f"Unanswerable: {unanswerable['n']}, of which {unanswerable[ABSTAINED]} rightly abstained.")
    return Table("Answers", ["type", "figure", "n", *systems], rows, notes)


def _outcome_table(systems: dict[str, dict[str, Any]], main: str) -> Table:
    rows = []
    for kind in systems[main]["types"]:
        for name, system in systems.items():
            count = system["types"][kind]["counts"]
            rows.append([name, kind, str(count["n"]), *(str(count[state]) for state in STATES)])
    return Table("Outcomes", ["system", "type", "n", *STATES], rows)


def _confidence_rows(systems: dict[str, dict[str, Any]]) -> list[list[str]]:
    rows = []
    for name, system in systems.items():
        for kind, one in [("all", system), *system["types"].items()]:
            said, left = one["calibration"], one["abstention"]
            if said or left.get("coverage", 1.0) < 1:
                means_of = [with_interval(said.get(key), None, 3) for key in ("confidence", "score")]
                rows.append([
                    name, kind, str(said.get("n", 0)), *means_of,
                    with_interval(said.get("ece"), said.get("ece_interval"), 3),
                    *(with_interval(left.get(key), None, 3) for key in ("coverage", "risk")),
                    with_interval(left.get("aurc"), left.get("aurc_interval"), 3),
                ])  # fmt: skip
    return rows


def _stratum_table(systems: dict[str, dict[str, Any]], main: str, key: str) -> Table | None:
    """The headline of each type for each value of a key; None where the questions have one value or none."""
    rows = []
    for kind, own in systems[main]["types"].items():
        for value, part in own["by"].get(key, {}).items():
            figure = part["headline"]["figure"]
            printed = []
            for system in systems.values():
                other = system["types"][kind]["by"][key][value]
                printed.append(with_interval(other["figures"].get(figure), other["intervals"].get(figure), 3))
            rows.append([value or "–", kind, figure, str(part["n"]), *printed])
    if len({row[0] for row in rows}) < 2:
        return None
    rows.sort(key=lambda row: row[0])
    notes = [f"{len(rows) - LISTED} more rows are in metrics.json."] if len(rows) > LISTED else []
    return Table(f"By {key}", [key, "type", "figure", "n", *systems], rows[:LISTED], notes)


def _fault_rows(name: str, system: dict[str, Any]) -> list[list[str]]:
    faults, rows = system["faults"], []
    if faults["unknown_ids"]:
        rows.append(
            [name, "id without a question", str(system["ids_without_question"]), ", ".join(faults["unknown_ids"])]
        )
    if faults["missing_ids"]:
        missing = system["counts"][MISSING] + system["unanswerable"][MISSING]
        rows.append([name, "question without an answer", str(missing), ", ".join(faults["missing_ids"])])
    return rows + [[name, fault, str(one["n"]), ", ".join(one["first"])] for fault, one in faults["broken"].items()]


def _value(part: dict[str, Any], metric: str) -> str:
    one = part.get("metrics", {}).get(metric)
    return with_interval(one["value"], one["interval"], 3) if one else "–"


def _printed(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        boxes = [f"{[*one.min_mm]}..{[*one.max_mm]}" if isinstance(one, Box) else str(one) for one in value]
        return "; ".join(boxes) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
