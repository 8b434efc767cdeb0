"""The figures of each question type, as sums over questions.

Each function takes all items of one type and gives `Figures`: every question's own share of the headline, and families
of figures over any part of the questions (the judged, one region, the patients drawn). The first figure of the first
family is the headline. No answer (abstained, unreadable and, where they are taken in, unscored and missing) counts as
wrong, except in figures of errors, of probabilities and of agreement, which are about the answered alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import sparse

from eval.bootstrap import Pooled
from eval.detection import Overlaps, hits_by_score, overlaps, true_positives
from eval.parse import normalise
from eval.reading import Item
from eval.texts import COLUMNS, bleu, compare_texts
from eval.units import LENGTH, convert, dimension

IOU_THRESHOLDS = (0.5, 0.3, 0.75)
FROC_IOU = 0.3
FROC_RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)  # false positives a question
LEVELS = 2000  # sums; where a median or a ranking needs more, its interval is found with fewer
DIGITS = 4  # decimals of confidences and scores, as answers state them


@dataclass(frozen=True)
class Figures:
    """own: (n,) share of the headline of each question, 0..1. families: of figures over any part of the n questions."""

    own: np.ndarray
    families: list[Pooled]


def means(columns: dict[str, np.ndarray]) -> Pooled:
    """The mean of each column over the questions that have a value in it. columns: name -> (n,), NaN where none."""
    table = np.stack(list(columns.values()), axis=1)
    known = ~np.isnan(table)
    names = list(columns)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        mean = _ratio(sums[: len(names)], sums[len(names) :])
        return dict(zip(names, mean, strict=True))

    return Pooled(sparse.csr_array(np.hstack([np.where(known, table, 0.0), known])), figures)


def classification(items: Sequence[Item]) -> Figures:
    """accuracy; balanced_accuracy: mean recall of the reference's classes (Brodersen et al., ICPR 2010); macro_f1: mean
    over the reference's classes of 2 TP / (2 TP + FP + FN) (Opitz and Burst 2019, "averaged F1"); auroc, auprc: see
    `_ranked`.

    Options are compared without case and punctuation. A question without an answer is a miss of its class. Class means
    run over the classes that occur as references in the sample.
    """
    truth = [normalise(str(item.reference.answer)) for item in items]
    guess = [None if item.prediction is None else normalise(item.prediction) for item in items]
    code = {name: place for place, name in enumerate(sorted(set(truth)))}
    t = np.array([code[name] for name in truth], dtype=int)
    g = np.array([code.get(name, -1) if name is not None else -1 for name in guess], dtype=int)
    k, n, rows = len(code), len(items), np.arange(len(items))
    hit, claims = t == g, g >= 0
    sums = sparse.hstack([_ones(rows, t, n, k), _ones(rows[hit], t[hit], n, k), _ones(rows[claims], g[claims], n, k)])

    def by_class(sums: np.ndarray) -> dict[str, np.ndarray]:
        support, hits, claimed = sums[:k], sums[k : 2 * k], sums[2 * k :]
        present = (support > 0).sum(axis=0)
        return {
            "balanced_accuracy": _ratio(_ratio(hits, support, 0.0).sum(axis=0), present),
            "macro_f1": _ratio(
                np.where(support > 0, _ratio(2 * hits, support + claimed, 0.0), 0.0).sum(axis=0), present
            ),
        }

    own = hit.astype(float)
    return Figures(own, [means({"accuracy": own}), Pooled(sums.tocsr(), by_class), *_ranked(items, truth)])


def _ranked(items: Sequence[Item], truth: list[str]) -> list[Pooled]:
    """auroc, auprc: area under the ROC curve, and average precision, of a class against the other options, the mean
    over the classes that are right in some questions and wrong in others.

    A class is ranked by its probability among the answered questions that offer it. Of yes and no only yes is a class.
    Where probabilities are very many, intervals are found with two decimals of them.
    Source: Fawcett, Pattern Recognit. Lett. 27 (2006), sections 7 and 8 (ties count half); average precision as in
    scikit-learn, the sum of precision times the step in recall.
    """
    rows, names, level, right = [], [], [], []
    for row, (item, true) in enumerate(zip(items, truth, strict=True)):
        for name, probability in (item.probabilities or {}).items():
            rows.append(row)
            names.append(name)
            level.append(probability)
            right.append(name == true)
    kept = {name for name in names if not (name == "no" and "yes" in names)} if names else set()
    code = {name: place for place, name in enumerate(sorted(kept))}
    if not code:
        return []
    chosen = np.array([name in kept for name in names])
    shown = (
        np.array(rows)[chosen],
        np.array([code.get(name, 0) for name in names])[chosen],
        np.array(level)[chosen],
        np.array(right)[chosen],
    )
    exact = _ranked_at(DIGITS, len(items), len(code), *shown)
    if exact.contributions.shape[1] <= LEVELS:
        return [exact]
    return [replace(exact, coarse=_ranked_at(2, len(items), len(code), *shown))]


def _ranked_at(
    digits: int, n: int, k: int, rows: np.ndarray, classes: np.ndarray, level: np.ndarray, positive: np.ndarray
) -> Pooled:
    """`_ranked` with probabilities told apart to that many decimals. rows, classes, level, positive: one entry for each
    of the n questions and each of the k classes that it offers."""
    column, start = _columns(classes, level, k, digits)
    width = start[-1]
    table = _ones(rows, column + width * ~positive, n, 2 * width)

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        areas, precisions = [], []
        for a, b in pairwise(start.tolist()):  # levels from the surest down
            pos, neg = sums[a:b], sums[width + a : width + b]
            true, false = np.cumsum(pos, axis=0), np.cumsum(neg, axis=0)
            both = (true[-1] > 0) & (false[-1] > 0)
            area = _ratio((neg * (true - pos / 2)).sum(axis=0), true[-1] * false[-1])
            precision = _ratio((pos * _ratio(true, true + false, 0.0)).sum(axis=0), true[-1])
            areas.append(np.where(both, area, np.nan))
            precisions.append(np.where(both, precision, np.nan))
        return {"auroc": _known_mean(np.array(areas)), "auprc": _known_mean(np.array(precisions))}

    return Pooled(table, figures)


def multilabel(items: Sequence[Item]) -> Figures:
    """f1: mean over questions of 2 |P and R| / (|P| + |R|), 1 where both are empty (Godbole and Sarawagi, PAKDD 2004);
    exact_match: share of questions with P = R; micro_f1: 2 TP / (2 TP + FP + FN) over all labels of all questions;
    macro_f1: its mean over the labels that occur in references. A question without an answer has 0 in the first two,
    and misses all its labels."""
    given = [None if item.prediction is None else {normalise(one) for one in item.prediction} for item in items]
    truth = [{normalise(one) for one in item.reference.answer} for item in items]
    own = np.array([0.0 if p is None else _set_f1(p, r) for p, r in zip(given, truth, strict=True)])
    exact = np.array([float(p == r) for p, r in zip(given, truth, strict=True)])
    code = {name: place for place, name in enumerate(sorted(set().union(*truth, *(p for p in given if p))))}
    n, k = len(items), len(code)
    cells: list[tuple[int, int]] = []
    for row, (p, r) in enumerate(zip(given, truth, strict=True)):
        cells += [(row, code[one]) for one in r]
        cells += [(row, k + code[one]) for one in p or ()]
        cells += [(row, 2 * k + code[one]) for one in (p or set()) & r]
    place = np.array(cells, dtype=int).reshape(-1, 2)

    def by_label(sums: np.ndarray) -> dict[str, np.ndarray]:
        support, claimed, hits = sums[:k], sums[k : 2 * k], sums[2 * k :]
        each = np.where(support > 0, _ratio(2 * hits, support + claimed, 0.0), 0.0)
        return {
            "micro_f1": _ratio(2 * hits.sum(axis=0), (support + claimed).sum(axis=0)),
            "macro_f1": _ratio(each.sum(axis=0), (support > 0).sum(axis=0)),
        }

    labels = Pooled(_ones(place[:, 0], place[:, 1], n, 3 * k), by_label)
    return Figures(own, [means({"f1": own, "exact_match": exact}), labels])


def counting(items: Sequence[Item]) -> Figures:
    """exact: share of questions with the right number; off_by_one: with an error of at most 1 (no answer is outside
    both); mae: mean absolute error of the answered."""
    error = np.abs(_predicted(items) - _true(items))
    own = (error == 0).astype(float)
    return Figures(own, [means({"exact": own, "off_by_one": (error <= 1).astype(float), "mae": error})])


def measurement(items: Sequence[Item]) -> Figures:
    """within_10pct, within_20pct: share of questions with |error| <= that part of |reference|; within_1mm: share of the
    questions about a length with |error| <= 1 mm; no answer is outside. Over the answered ones, relative errors being
    |error| / |reference| with references of 0 left out: mean_relative_error, median_relative_error; and, in the
    reference's unit and only where all questions share one: mae, median_ae, bias (mean of prediction - reference),
    loa_low and loa_high (Bland-Altman limits of agreement, bias ± 1.96 standard deviations: Lancet 327 (1986)), ccc
    (concordance correlation: Lin, Biometrics 45 (1989))."""
    predicted, true = _predicted(items), _true(items)
    signed = predicted - true
    error = np.abs(signed)
    relative = np.divide(error, np.abs(true), out=np.full(len(items), np.nan), where=true != 0)
    to_mm = {unit: convert(1.0, unit, "mm") for unit in {item.reference.unit for item in items}}
    lengths = np.array([dimension(item.reference.unit) == LENGTH for item in items], dtype=bool)
    error_mm = error * np.array([to_mm[item.reference.unit] or 1.0 for item in items])
    own = (error <= 0.1 * np.abs(true) + 1e-9).astype(float)
    shares = {
        "within_10pct": own,
        "within_20pct": (error <= 0.2 * np.abs(true) + 1e-9).astype(float),
        "within_1mm": np.where(lengths, error_mm <= 1 + 1e-9, np.nan),
        "mean_relative_error": relative,
    }
    units = sorted({item.reference.unit or "" for item in items})
    unit = np.array([units.index(item.reference.unit or "") for item in items])
    answered = ~np.isnan(predicted)
    middle = np.mean(true) if len(true) else 0.0  # sums of squares about it lose no digits
    x, y = np.where(answered, predicted - middle, 0.0), np.where(answered, true - middle, 0.0)
    moments = np.stack([answered, x, y, x * x, y * y, x * y, np.where(answered, error, 0.0)], axis=1)
    of_unit = _ones(np.arange(len(items)), unit, len(items), len(units))

    def agreement(sums: np.ndarray) -> dict[str, np.ndarray]:
        n, sx, sy, sxx, syy, sxy, absolute = np.where((sums[7:] > 0).sum(axis=0) == 1, sums[:7], np.nan)
        mean_x, mean_y = _ratio(sx, n), _ratio(sy, n)
        var_x, var_y = _ratio(sxx, n) - mean_x**2, _ratio(syy, n) - mean_y**2
        shared = _ratio(sxy, n) - mean_x * mean_y
        bias = mean_x - mean_y
        deviation = np.sqrt(np.clip(_ratio((var_x + var_y - 2 * shared) * n, n - 1), 0, None))
        return {
            "mae": _ratio(absolute, n),
            "bias": bias,
            "loa_low": bias - 1.96 * deviation,
            "loa_high": bias + 1.96 * deviation,
            "ccc": _ratio(2 * shared, var_x + var_y + bias**2),
        }

    return Figures(
        own,
        [
            means(shares),
            _median("median_relative_error", relative),
            Pooled(sparse.hstack([sparse.csr_array(moments), of_unit]).tocsr(), agreement),
            _median("median_ae", error, of_unit),
        ],
    )


def detection(items: Sequence[Item]) -> Figures:
    """f1_iou50, f1_iou30, f1_iou75: 2 TP / (2 TP + FP + FN) over all boxes of all questions, boxes matched one to one
    within a question (CVPR 2025 text-guided segmentation challenge: F1 at IoU 0.5 by Hungarian matching);
    f1_iou50_per_question: mean over questions, 1 where nothing was to be found and nothing was; map_iou50, ...: mean
    average precision over the reference's classes; froc: see `_scored`. No answer finds nothing: all its boxes are
    missed."""
    pairs = overlaps([item.prediction or [] for item in items], [item.reference.answer for item in items])
    wrong, missed = pairs.n_predicted, pairs.n_reference
    found = {threshold: true_positives(pairs, threshold) for threshold in IOU_THRESHOLDS}
    first = found[IOU_THRESHOLDS[0]]
    answered = np.array([item.prediction is not None for item in items], dtype=bool)
    own = np.where(wrong + missed > 0, 2 * first / np.maximum(wrong + missed, 1), 1.0) * answered

    def pooled(sums: np.ndarray) -> dict[str, np.ndarray]:
        return {
            f"f1_iou{round(100 * threshold)}": _ratio(2 * sums[place], sums[-1])
            for place, threshold in enumerate(IOU_THRESHOLDS)
        }

    counts = np.stack([*found.values(), wrong + missed], axis=1).astype(float)
    families = [Pooled(sparse.csr_array(counts), pooled), means({"f1_iou50_per_question": own})]
    return Figures(own, families + _scored(items, pairs))


def _scored(items: Sequence[Item], pairs: Overlaps) -> list[Pooled]:
    """map_iou50, map_iou30, map_iou75: mean over classes of the area under precision against recall as the score falls,
    precision made to fall with recall (Everingham et al., IJCV 111 (2015), section 4.2.1); froc: at IoU 0.3, the mean
    share of reference boxes found at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false boxes a question (Setio et al., Med. Image
    Anal. 42 (2017)).

    The surest box chooses its partner first. Where the references know one class, all boxes are of it.
    """
    boxes = [item.prediction or [] for item in items]
    labels = sorted({box.label or "" for item in items for box in item.reference.answer})
    if not labels or not any(boxes):
        return []
    code = {label: place for place, label in enumerate(labels)}
    k, n = len(labels), len(items)
    alone = 0 if k == 1 else k  # the class of a label that no reference has, or of none
    own_class = [np.array([code.get(box.label or "", alone) for box in some], dtype=int) for some in boxes]
    scores = [np.array([box.score for box in some]) for some in boxes]
    row = np.repeat(np.arange(n), [len(some) for some in boxes])
    offset = np.cumsum(pairs.n_predicted) - pairs.n_predicted
    level = np.concatenate(scores)
    wanted = np.zeros((n, k))
    for place, item in enumerate(items):
        for box in item.reference.answer:
            wanted[place, code[box.label or ""]] += 1

    def hits(threshold: float) -> np.ndarray:
        question, predicted = hits_by_score(pairs, scores, threshold)
        hit = np.zeros(len(row), dtype=bool)
        hit[offset[question] + predicted] = True
        return hit

    families = []
    for threshold in IOU_THRESHOLDS:
        kind = np.concatenate(own_class)
        inside = kind < k
        column, start = _columns(kind[inside], level[inside], k)
        hit = hits(threshold)[inside]
        curve = _ones(row[inside], column + start[-1] * ~hit, n, 2 * start[-1])
        table = sparse.hstack([curve, sparse.csr_array(wanted)]).tocsr()
        families.append(Pooled(table, _mean_precision(f"map_iou{round(100 * threshold)}", start, k)))
    column, start = _columns(np.zeros(len(row), dtype=int), level, 1)
    hit = hits(FROC_IOU)
    curve = _ones(row, column + start[-1] * ~hit, n, 2 * start[-1])
    totals = sparse.csr_array(np.stack([wanted.sum(axis=1), np.ones(n)], axis=1))
    return [*families, Pooled(sparse.hstack([curve, totals]).tocsr(), _froc(start[-1]))]


def _mean_precision(name: str, start: np.ndarray, k: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        width, wanted = start[-1], sums[2 * start[-1] :]
        values = []
        for label in range(k):
            a, b = start[label], start[label + 1]
            true = np.cumsum(sums[a:b], axis=0)
            false = np.cumsum(sums[width + a : width + b], axis=0)
            precision = _ratio(true, true + false, 0.0)
            envelope = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
            values.append(_ratio((sums[a:b] * envelope).sum(axis=0), wanted[label]))
        return {name: _known_mean(np.array(values))}

    return figures


def _froc(width: int) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        true, false = np.cumsum(sums[:width], axis=0), np.cumsum(sums[width : 2 * width], axis=0)
        wanted, questions = sums[2 * width :]
        share, rate = _ratio(true, wanted), _ratio(false, questions)
        found = [np.where(rate <= limit, share, 0.0).max(axis=0) for limit in FROC_RATES]
        return {"froc": np.where(wanted > 0, np.mean(found, axis=0), np.nan)}

    return figures


def open_text(items: Sequence[Item]) -> Figures:
    """token_f1, exact_match, normalised_match, rouge1, rouge2, rougeL: means over questions of `text_scores`, 0 for no
    answer; bleu: of all texts together, 0..100, no answer being an empty text."""
    pairs = [("" if item.prediction is None else item.prediction, item.reference.answer) for item in items]
    scores, counts = compare_texts(pairs)
    scores *= np.array([item.prediction is not None for item in items], dtype=float)[:, None]
    families = [
        means(dict(zip(COLUMNS, scores.T, strict=True))),
        Pooled(sparse.csr_array(counts), lambda sums: {"bleu": bleu(sums)}),
    ]
    return Figures(scores[:, 0], families)


FIGURES: dict[str, Callable[[Sequence[Item]], Figures]] = {
    "classification": classification,
    "multilabel": multilabel,
    "counting": counting,
    "measurement": measurement,
    "regression": measurement,
    "detection": detection,
    "open": open_text,
}


def _median(name: str, values: np.ndarray, alone: sparse.csr_array | None = None) -> Pooled:
    """The median of the values that are not NaN. alone: (n, m) kinds; NaN unless all chosen items are of one.

    Its interval is found among LEVELS groups of neighbouring values where there are more.
    """
    known = np.flatnonzero(~np.isnan(values))
    levels, column = np.unique(values[known], return_inverse=True)
    exact = _median_of(name, known, levels, column, len(values), alone)
    if len(levels) <= LEVELS:
        return exact
    group = np.arange(len(levels)) * LEVELS // len(levels)
    middles = np.bincount(group, levels) / np.bincount(group)
    return replace(exact, coarse=_median_of(name, known, middles, group[column], len(values), alone))


def _median_of(
    name: str, rows: np.ndarray, levels: np.ndarray, column: np.ndarray, n: int, alone: sparse.csr_array | None
) -> Pooled:
    table = _ones(rows, column, n, len(levels))
    kinds = 0 if alone is None else alone.shape[1]

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        below = np.cumsum(sums[kinds:], axis=0)
        count = below[-1] if len(levels) else np.zeros(sums.shape[1])
        places = [(below <= middle).sum(axis=0) for middle in ((count - 1) // 2, count // 2)]
        some = count > 0 if alone is None else (count > 0) & ((sums[:kinds] > 0).sum(axis=0) == 1)
        low, high = (np.append(levels, np.nan)[place] for place in places)
        return {name: np.where(some, (low + high) / 2, np.nan)}

    return Pooled(table if alone is None else sparse.hstack([alone, table]).tocsr(), figures)


def _columns(kinds: np.ndarray, level: np.ndarray, count: int, digits: int = DIGITS) -> tuple[np.ndarray, np.ndarray]:
    """Columns for every (kind, level) that occurs, kind by kind, each from its highest level down.

    Levels are told apart to that many decimals. Returns the column of each entry and (count + 1,) where kinds start.
    """
    levels, rank = np.unique(-np.round(level, digits), return_inverse=True)
    found, column = np.unique(kinds * len(levels) + rank, return_inverse=True)
    return column, np.searchsorted(found, np.arange(count + 1) * len(levels))


def _ones(rows: np.ndarray, columns: np.ndarray, n: int, k: int) -> sparse.csr_array:
    return sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(n, k))


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = np.nan) -> np.ndarray:
    below = np.broadcast_to(below, above.shape)
    return np.divide(above, below, out=np.full(above.shape, otherwise), where=below != 0)


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of the values that are not NaN."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))


def _set_f1(given: set[str], truth: set[str]) -> float:
    total = len(given) + len(truth)
    return 2 * len(given & truth) / total if total else 1.0


def _true(items: Sequence[Item]) -> np.ndarray:
    return np.array([item.reference.answer for item in items], dtype=float)


def _predicted(items: Sequence[Item]) -> np.ndarray:
    return np.array([np.nan if item.prediction is None else item.prediction for item in items], dtype=float)
