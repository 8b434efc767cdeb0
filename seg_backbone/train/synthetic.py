"""Synthetic tumours in training windows: a source that draws them into what another source gives.

Validation reads whole cases, never a source, so it stays real.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from seg_backbone.labels import is_lesion
from seg_backbone.plan import Plan
from seg_backbone.preprocess import MR_FLAG, PAD
from seg_backbone.synthetic_tumours import SIGNAL, Canvas, Scale, draw_tumours
from seg_backbone.train.config import SyntheticTumours
from seg_backbone.train.samples import Sample, Source


@dataclass(frozen=True)
class WithTumours:
    """The windows of `source`, a share of them with tumours in them."""

    source: Source
    plan: Plan
    settings: SyntheticTumours

    @property
    def weight(self) -> float:
        return self.source.weight

    def draw(self, random: np.random.Generator) -> Sample:
        sample = self.source.draw(random)
        return implant(sample, self.plan, self.settings, random) if random.random() < self.settings.share else sample


def implant(sample: Sample, plan: Plan, settings: SyntheticTumours, random: np.random.Generator) -> Sample:
    """A window with tumours of the recipe; the window itself where it shows no class of the recipe, or none has room.

    What is not known of the window's other voxels stays unknown. `targets` are dropped: what was true of the scan
    without the tumours need not be true with them.
    """
    recipe = settings.recipe
    image, codes = sample.image.numpy().copy(), sample.codes.numpy().copy()
    scales = channel_scales(image, plan)
    canvas = Canvas(list(image[: len(scales)]), scales, codes, np.array(plan.spacing_mm))
    drawn = draw_tumours(
        canvas,
        recipe,
        random,
        value=plan.labels[recipe.label],
        places={name: plan.labels[name] for name in recipe.inside if name in plan.labels},
        lesions=[number for name, number in plan.labels.items() if is_lesion(name)],
    )
    if not drawn:
        return sample
    return replace(sample, image=torch.from_numpy(image), codes=torch.from_numpy(codes), targets={})


def channel_scales(image: np.ndarray, plan: Plan) -> list[Scale]:
    """What the values of each channel of a window (channels, i, j, k) mean; of MR in HU windows, the first alone."""
    if plan.channels:
        return [
            Scale(one.std, one.mean, (one.low - one.mean) / one.std, (one.high - one.mean) / one.std)
            if one.scheme == "ct"
            else SIGNAL
            for one in plan.channels
        ]
    if len(image) > 1 and bool((image[1:] == MR_FLAG).all()):
        return [Scale(0.0, 0.0, PAD, MR_FLAG)]
    return [Scale((high - low) / 2, (high + low) / 2, -1.0, 1.0) for low, high in plan.ct_windows_hu]
