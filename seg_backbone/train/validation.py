"""Dice on whole scans while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from seg_backbone.cases import TrainingCase
from seg_backbone.plan import Plan
from seg_backbone.preprocess import padding
from seg_backbone.sliding_window import predict_logits


def score(network: torch.nn.Module, cases: Sequence[TrainingCase], plan: Plan) -> list[tuple[str, float]]:
    """("MODALITY class", Dice on the working grid) of each class and region that a case annotates and shows.

    Voxels that may or may not belong to it count for nothing. Windows run where the network is; the CPU puts the
    logits of the scan together.
    """
    network.eval()
    device = next(network.parameters()).device
    members = {name: (name,) for name in plan.classes} | plan.regions
    scores = []
    for case in cases:
        image = torch.from_numpy(case.image.astype(np.float32))
        run = lambda window, _: network(window.to(device)).cpu()  # noqa: E731
        logits = predict_logits(run, image, plan.patch, step=0.75, pad=padding(plan))
        predicted = logits.argmax(dim=0).numpy()
        for name, parts in members.items():
            ids = [plan.labels[part] for part in parts]
            may_be = np.asarray(case.table[:, ids].any(axis=1))  # of each code
            may_not = np.asarray(np.delete(case.table, ids, axis=1).any(axis=1))
            theirs = (may_be & ~may_not)[case.codes]
            if theirs.any() and not may_be[0]:
                ours = np.isin(predicted, ids) & (may_be != may_not)[case.codes]
                dice = 2 * int((ours & theirs).sum()) / int(ours.sum() + theirs.sum())
                scores.append((f"{case.files.modality} {name}", dice))
    return scores


def means(scores: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Mean by name, sorted, to four digits."""
    names = sorted({name for name, _ in scores})
    return {name: round(float(np.mean([value for other, value in scores if other == name])), 4) for name in names}
