"""Losses that leave alone what was not annotated, per sample and per voxel.

A training label map holds CODES. Each code stands for the set of classes that the voxel may be: a drawn organ is one
class; "background" in a case whose larynx was not drawn means background OR larynx. The sets of a sample are the rows
of a boolean table (codes, classes), so one batch can mix annotation sets.

Marginal loss: Shi et al. 2021, "Marginal loss and exclusion loss for partially supervised multi-organ segmentation";
here the marginal is taken over each voxel's own set.
"""

from __future__ import annotations

import torch


def allowed_classes(codes: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """codes (B, i, j, k) integer, tables (B, codes, classes) bool -> (B, classes, i, j, k) bool."""
    sample = torch.arange(len(codes), device=codes.device).view(-1, 1, 1, 1)
    return tables[sample, codes.long()].movedim(-1, 1)


def marginal_loss(
    logits: torch.Tensor, codes: torch.Tensor, tables: torch.Tensor, class_weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Marginal cross entropy and soft Dice loss, two scalars.

    logits (B, C, i, j, k); codes (B, i, j, k); tables (B, codes, C) bool, every row with at least one True.
    Cross entropy: -log of the probability summed over the voxel's set; a voxel of a drawn foreground class weighs
    class_weight (C,) of that class, every other voxel 1. Dice: per class over the batch, over the voxels where it is
    known whether they are that class; classes that no voxel of the batch shows are left out; 0 where none is shown.
    """
    allowed = allowed_classes(codes, tables)
    log_p = torch.log_softmax(logits.float(), dim=1)
    entropy = -torch.logsumexp(log_p.masked_fill(~allowed, -1e4), dim=1)
    certain = allowed.sum(dim=1, keepdim=True) == 1
    drawn = allowed & certain
    weight = torch.ones_like(entropy)
    if class_weight is not None:
        weight = weight + torch.einsum("bcijk,c->bijk", drawn[:, 1:].to(entropy.dtype), class_weight[1:] - 1)
    cross_entropy = (entropy * weight).sum() / weight.sum()

    known = ~allowed | certain
    p = log_p.exp() * known
    axes = (0, 2, 3, 4)
    size = drawn.sum(dim=axes)
    overlap = (p * drawn).sum(dim=axes)
    dice = (2 * overlap + 1e-5) / (p.sum(dim=axes) + size + 1e-5)
    shown = size[1:] > 0
    dice_loss = (1 - dice[1:][shown]).mean() if bool(shown.any()) else logits.sum() * 0
    return cross_entropy, dice_loss
