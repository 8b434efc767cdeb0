"""Mean teacher: the running average of the network sees a window as it is, the network sees it disturbed, and both
should say the same. It needs no label, so every window teaches by it.

Tarvainen & Valpola 2017, "Mean teachers are better role models"; that only voxels of which the teacher is certain count
follows Yu et al. 2019, "Uncertainty-aware self-ensembling model for semi-supervised 3D left atrium segmentation".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from seg_backbone.train.objective import Step, Term
    from seg_backbone.train.samples import Batch


@dataclass(frozen=True)
class Consistency:
    """The key `consistency` of a training file.

    weight: of the term after `ramp` steps, which it reaches as exp(-5 (1 - step / ramp)^2). certain: voxels whose
    largest probability by the teacher is lower are left out. The network's windows are disturbed, besides the
    augmentation, by: intensity: largest random gain and offset of each channel; noise: largest standard deviation of
    added Gaussian noise, both in the units of the network's input.
    """

    weight: float = 1.0
    ramp: int = 500
    certain: float = 0.0
    intensity: float = 0.2
    noise: float = 0.3

    def __post_init__(self) -> None:
        assert self.weight > 0 and self.ramp >= 0, "consistency: weight is above 0, ramp a number of steps"
        assert 0 <= self.certain < 1, "consistency: certain is a probability below 1"
        assert self.intensity >= 0 and self.noise >= 0, "consistency: intensity and noise are not negative"


def disturbed(batch: Batch, settings: Consistency, random: np.random.Generator) -> Batch:
    """The batch with disturbed images, and its own ones as `undisturbed`.

    A channel that is constant over a window (the flag of a modality) stays as it is.
    """
    image = batch.image.clone()
    for channel in image.flatten(0, 1):
        gain, offset = random.uniform(-1, 1, 2) * settings.intensity
        noise = random.standard_normal(channel.shape, dtype=np.float32) * random.uniform(0, settings.noise)
        if channel.amin() < channel.amax():
            channel.mul_(1 + gain).add_(offset).add_(torch.from_numpy(noise))
    return replace(batch, image=image, undisturbed=batch.image)


def consistency_term(settings: Consistency) -> Term:
    """Squared distance of the probabilities of network and teacher, summed over classes, mean over certain voxels."""

    def term(step: Step) -> dict[str, torch.Tensor]:
        assert step.batch.undisturbed is not None
        teacher = step.average.eval()  # whole windows, so no deep supervision and no dropout
        with torch.no_grad():
            target = _finest(teacher(step.batch.undisturbed).logits).float().softmax(dim=1)
        gap = (_finest(step.output.logits).float().softmax(dim=1) - target).square().sum(dim=1)
        counts = target.amax(dim=1) >= settings.certain
        progress = min(1.0, (step.number + 1) / max(1, settings.ramp))
        weight = settings.weight * exp(-5 * (1 - progress) ** 2)
        return {"consistency": weight * (gap * counts).sum() / counts.sum().clamp(min=1)}

    return term


def _finest(logits: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    return logits[0] if isinstance(logits, list) else logits
