"""Classes of whole scans in training: what is known of each case, what a wrong class costs, and how many are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from seg_backbone.cases import TrainingCase
from seg_backbone.errors import ConfigError
from seg_backbone.plan import Plan
from seg_backbone.preprocess import padding
from seg_backbone.scan_classes import CLASS_FILE, UNKNOWN, read_scan_classes, read_tasks
from seg_backbone.scan_heads import ScanHeads, ScanPool, WithStatistics
from seg_backbone.sliding_window import pad_to_patch, predict_blocks
from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.model import LOSS_WEIGHTS
from seg_backbone.train.objective import Step, Term
from seg_backbone.train.samples import SCAN

Targets = dict[str, tuple[int, ...]]  # case -> the number of its class in each task of the plan, or UNKNOWN


def scan_targets(plan: Plan, folder: Path) -> Targets:
    """What a dataset's folder says of its cases; {} without heads, and where it asks none of the plan's tasks.

    Raises LabelError for files that do not fit, ConfigError where a task has other classes than in the plan.
    """
    description = folder / "dataset.json"
    if plan.heads is None or not description.is_file():
        return {}
    planned, tasks = plan.heads.tasks, read_tasks(description)
    asked = {name: classes for name, classes in tasks.items() if name in planned}
    for name, classes in asked.items():
        if classes != planned[name].classes:
            expected = f"the plan's classes of {name}: {', '.join(planned[name].classes)}"
            raise ConfigError(description, expected, ", ".join(classes), "make them alike, in the same order")
    if not asked:
        return {}
    known = read_scan_classes(folder / CLASS_FILE, tasks)
    return {case: tuple(classes.get(name, UNKNOWN) for name in planned) for case, classes in known.items()}


def class_terms(config: SegmentationConfig, training: Sequence[Sequence[TrainingCase]]) -> list[Term]:
    """The loss of the plan's heads; none without heads.

    Per task the cross entropy of the cases whose class is known. balanced: a case weighs n / (k times the cases of its
    class), of n known cases in k classes. learned: divided by 2 c^2, plus log(1 + c^2), where c^2 is a weight of the
    model (Liebel and Koerner 2018, "Auxiliary tasks in multi-task learning", eq. 4).
    Raises ConfigError for a task of which no training case has a class.
    """
    heads, options = config.plan.heads, config.classification
    if heads is None:
        return []
    counts: list[Counter[int]] = [Counter() for _ in heads.tasks]
    for entry, cases in zip(config.datasets, training, strict=True):
        targets = scan_targets(config.plan, config.data / entry.name)
        for case in cases:
            for count, number in zip(counts, targets.get(case.files.case, ()), strict=False):
                count[number] += number != UNKNOWN
    importance = []
    for (name, task), count in zip(heads.tasks.items(), counts, strict=True):
        if not (n := count.total()):
            todo = f"name cases of imagesTr in {CLASS_FILE}, or take the task out of the plan's heads"
            raise ConfigError(config.data, f"training cases with a class of {name}", "none", todo)
        present = sum(cases > 0 for cases in count.values())
        shares = [n / (present * count[number]) if count[number] else 0.0 for number in range(len(task.classes))]
        importance.append(torch.tensor(shares if options.balanced else [1.0] * len(shares)))
    sizes = [len(task.classes) for task in heads.tasks.values()]

    def term(step: Step) -> dict[str, torch.Tensor]:
        targets, variances = step.batch.targets.get(SCAN), step.output.heads.get(LOSS_WEIGHTS)
        values = {}
        for number, (name, logits) in enumerate(zip(heads.tasks, step.output.heads[SCAN].split(sizes, 1), strict=True)):
            loss = logits.sum() * 0  # of a batch that knows nothing: every weight still has a gradient
            known = torch.zeros(len(logits), dtype=torch.bool) if targets is None else targets[:, number] != UNKNOWN
            if targets is not None and known.any():
                truth = targets[known, number]
                each = F.cross_entropy(logits[known].float(), truth, reduction="none")
                loss = (each * importance[number].to(each.device)[truth]).mean()
            if variances is not None:
                variance = variances[number]
                loss = loss / (2 * variance) + variance.log1p() * known.any()
            values[f"class {name}"] = options.weight * loss
        return values

    return [term]


def classify_cases(
    network: torch.nn.Module, heads: ScanHeads, cases: Sequence[TrainingCase], plan: Plan
) -> list[tuple[str, int, int]]:
    """(task, number of the class, number of the class that was found) of every case and task where it is known."""
    network.eval()
    heads.eval()
    device, found = next(network.parameters()).device, []
    targets = {folder: scan_targets(plan, folder) for folder in {case.files.image.parent.parent for case in cases}}
    for case in cases:
        truth = targets[case.files.image.parent.parent].get(case.files.case, ())
        if any(number != UNKNOWN for number in truth):
            probabilities = _classify(network, heads, torch.from_numpy(case.image.astype(np.float32)), plan, device)
            guesses = [max(range(len(p)), key=[*p.values()].__getitem__) for p in probabilities.values()]
            rows = zip(probabilities, truth, guesses, strict=True)
            found += [(name, number, guess) for name, number, guess in rows if number != UNKNOWN]
    return found


def _classify(
    network: torch.nn.Module, heads: ScanHeads, image: torch.Tensor, plan: Plan, device: torch.device
) -> dict[str, dict[str, float]]:
    """A scan through windows side by side."""
    pool = ScanPool(WithStatistics(network, [heads]))

    def run(windows: torch.Tensor, _: list[tuple[int, ...]]) -> torch.Tensor:
        logits, statistics = pool.network(windows.to(device))
        pool.add(statistics)
        return logits.cpu()

    for _ in predict_blocks(run, image, plan.patch, step=1.0, pad=padding(plan)):
        pass
    with torch.inference_mode():
        return pool.probabilities(pad_to_patch(image[:1], plan.patch)[0].numel())


def accuracies(found: Sequence[tuple[str, int, int]]) -> dict[str, dict[str, float]]:
    """Task -> accuracy and balanced accuracy (mean over the classes that occur), to four digits."""
    rows = {}
    for name in dict.fromkeys(task for task, _, _ in found):
        truth, guess = np.array([(a, b) for task, a, b in found if task == name]).T
        recalls = [float((guess == truth)[truth == number].mean()) for number in np.unique(truth)]
        shares = {"accuracy": float((guess == truth).mean()), "balanced_accuracy": float(np.mean(recalls))}
        rows[name] = {key: round(value, 4) for key, value in shares.items()}
    return rows
