"""What a batch costs: named terms that are summed. A term is a function of one `Step`, so others can be added."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from seg_backbone.errors import ConfigError
from seg_backbone.partial_labels import marginal_loss
from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.consistency import consistency_term
from seg_backbone.train.model import Model, Output
from seg_backbone.train.samples import Batch


@dataclass(frozen=True, eq=False)
class Step:
    """All that a term may look at. number: of the optimiser's step, from 0. output: the model's of the batch's images.

    model: call it for another forward pass. average: the running average of it, for a teacher; itself without one.
    """

    number: int
    model: nn.Module
    average: Model
    batch: Batch
    output: Output


Term = Callable[[Step], dict[str, torch.Tensor]]


def build_terms(config: SegmentationConfig) -> list[Term]:
    """The terms of a configuration. Raises ConfigError for a class weight of a class that the plan lacks."""
    terms = [mask_term(config)]
    if config.consistency:
        terms.append(consistency_term(config.consistency))
    return terms


def total(terms: Sequence[Term], step: Step) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sum of all terms, and each by its name."""
    values = {name: value for term in terms for name, value in term(step).items()}
    return torch.stack(list(values.values())).sum(), values


def mask_term(config: SegmentationConfig) -> Term:
    """Marginal cross entropy and Dice of classes and regions; coarser logits weigh half as much as the next finer."""
    plan = config.plan
    if strange := sorted(set(config.class_weight) - set(plan.classes)):
        raise ConfigError("class_weight", f"classes of the plan: {list(plan.classes)}", f"{strange}", "correct it")
    weight = torch.tensor([1.0, *(config.class_weight.get(name, 1.0) for name in plan.classes)])
    unions = torch.zeros(len(plan.regions), len(plan.classes) + 1, dtype=torch.bool)
    for row, parts in zip(unions, plan.regions.values(), strict=True):
        row[[plan.labels[part] for part in parts]] = True

    def term(step: Step) -> dict[str, torch.Tensor]:
        batch, logits = step.batch, step.output.logits
        scales = logits if isinstance(logits, list) else [logits]
        device = scales[0].device
        options = {"class_weight": weight.to(device), "focal": config.focal, "unions": unions.to(device)}
        pairs = [marginal_loss(scale, at(batch.codes, scale), batch.tables, **options) for scale in scales]
        values = torch.stack([torch.stack(pair) for pair in pairs])
        share = 0.5 ** torch.arange(len(scales), device=values.device)
        cross_entropy, dice = (share[:, None] * values).sum(0) / share.sum()
        return {"cross_entropy": cross_entropy, "dice_loss": dice}

    return term


def at(codes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Codes (B, i, j, k) at the size of coarser logits: the nearest one."""
    if codes.shape[1:] == logits.shape[2:]:
        return codes
    return torch.nn.functional.interpolate(codes[:, None].float(), logits.shape[2:], mode="nearest-exact")[:, 0].byte()
