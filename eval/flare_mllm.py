"""The figures by which FLARE-MLLM (FLARE25 task 5, FLARE26 task 3) judges each task, under its names.

Definitions are those of the challenge's public evaluation script (github.com/medfm-flare/FLARE25-QWen2.5VL,
evaluate_model.py), kept where they differ from ours: boxes are matched in the order in which they were written, each to
the free reference box of highest IoU, which must be above 0.5 (0.3); labels tell boxes apart in instance detection
alone; multi-label questions without a reference label are left out; errors are about the answers that could be read,
whatever their units. The texts themselves are read by our rules. GREEN needs a model: the option `--report-metric
green_score=FILE.py:FUNCTION` brings it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from eval.bootstrap import Pooled
from eval.detection import hits_by_score, overlaps
from eval.figures import classification, means, multilabel
from eval.reading import Item

REPORTS = "report_generation"
INSTANCE = "instance detection"  # how the `property` of such a question begins, as `vlm data import` writes it


def task_of(item: Item) -> str:
    """The challenge's name of the item's task."""
    kind = item.reference.type
    if kind == "detection" and item.reference.group.startswith(INSTANCE):
        return "instance_detection"
    return {"multilabel": "multi-label", "open": REPORTS}.get(kind, kind)


def task_figures(task: str, items: Sequence[Item]) -> Pooled:
    """The challenge's figures of the items of one task, which is not REPORTS."""
    return TASKS[task](items)


def _balanced_accuracy(items: Sequence[Item]) -> Pooled:
    family = classification(items).families[1]
    return Pooled(family.contributions, lambda sums: {"balanced_accuracy": family.figures(sums)["balanced_accuracy"]})


def _multilabel_f1(items: Sequence[Item]) -> Pooled:
    labelled = np.array([bool(item.reference.answer) for item in items])
    return means({"f1_score": np.where(labelled, multilabel(items).own, np.nan)})


def _absolute_error(items: Sequence[Item]) -> Pooled:
    errors = [np.nan if i.prediction is None else abs(i.prediction - i.reference.answer) for i in items]
    return means({"mean_absolute_error": np.array(errors)})


def _box_f1(items: Sequence[Item], labelled: bool, thresholds: dict[str, float]) -> Pooled:
    predicted = [item.prediction or [] for item in items]
    pairs = overlaps(predicted, [item.reference.answer for item in items], labelled)
    as_written = [-np.arange(len(some)) for some in predicted]
    columns = [pairs.n_predicted + pairs.n_reference]
    for threshold in thresholds.values():
        question, _ = hits_by_score(pairs, as_written, np.nextafter(threshold, 1))
        columns.append(np.bincount(question, minlength=len(items)))

    def figures(sums: np.ndarray) -> dict[str, np.ndarray]:
        boxes = np.maximum(sums[0], 1)
        return {name: 2 * sums[place] / boxes for place, name in enumerate(thresholds, 1)}

    return Pooled(sparse.csr_array(np.stack(columns, axis=1).astype(float)), figures)


TASKS: dict[str, Callable[[Sequence[Item]], Pooled]] = {
    "classification": _balanced_accuracy,
    "multi-label": _multilabel_f1,
    "detection": lambda items: _box_f1(items, False, {"f1_score": 0.5}),
    "instance_detection": lambda items: _box_f1(items, True, {"f1_score": 0.5, "f1_score_at_03": 0.3}),
    "counting": _absolute_error,
    "regression": _absolute_error,
    "measurement": _absolute_error,
}
