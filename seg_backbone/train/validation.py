"""Dice on whole scans while training goes on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from seg_backbone.cases import TrainingCase
from seg_backbone.plan import Plan
from seg_backbone.sliding_window import predict_logits


def validate(network: torch.nn.Module, cases: Sequence[TrainingCase], plan: Plan) -> dict[str, float]:
    """Mean Dice per "MODALITY class" on the working grid, over the cases that show the class."""
    network.eval()
    scores: dict[str, list[float]] = {}
    for case in cases:
        image = torch.from_numpy(case.image.astype(np.float32))
        logits = predict_logits(lambda window, _: network(window), image, plan.patch, step=0.75)
        predicted = logits.argmax(dim=0).numpy()
        for name in case.files.annotated:
            if name in plan.labels:
                ours, theirs = predicted == plan.labels[name], case.codes == plan.labels[name]
                size = int(ours.sum() + theirs.sum())
                if theirs.any():
                    key = f"{case.files.modality} {name}"
                    scores.setdefault(key, []).append(2 * int((ours & theirs).sum()) / size)
    return {key: round(float(np.mean(values)), 4) for key, values in sorted(scores.items())}
