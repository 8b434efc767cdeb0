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
    logits: torch.Tensor,
    codes: torch.Tensor,
    tables: torch.Tensor,
    class_weight: torch.Tensor | None = None,
    focal: float = 0.0,
    unions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Marginal cross entropy and soft Dice loss, two scalars.

    logits (B, C, i, j, k); codes (B, i, j, k); tables (B, codes, C) bool, every row with at least one True.
    Cross entropy: -log of the probability p summed over the voxel's set, times (1 - p)^focal (Lin et al. 2017); a voxel
    of a drawn foreground class weighs class_weight (C,) of that class, every other voxel 1. Dice: per foreground class,
    and per row of `unions` (n, C) bool, a set of classes whose probabilities are summed; over the batch, over voxels of
    which it is known whether they belong; what no voxel of the batch shows is left out; 0 where nothing is shown.
    """
    allowed = allowed_classes(codes, tables)
    log_p = torch.log_softmax(logits.float(), dim=1)
    entropy = -torch.logsumexp(log_p.masked_fill(~allowed, -1e4), dim=1)
    if focal > 0:
        entropy = entropy * (-torch.expm1(-entropy)).clamp(min=1e-6) ** focal
    certain = allowed.sum(dim=1, keepdim=True) == 1
    drawn = allowed & certain
    weight = torch.ones_like(entropy)
    if class_weight is not None:
        weight = weight + torch.einsum("bcijk,c->bijk", drawn[:, 1:].to(entropy.dtype), class_weight[1:] - 1)
    cross_entropy = (entropy * weight).sum() / weight.sum()

    p = log_p.exp()
    shown, scores = _dice(p[:, 1:], drawn[:, 1:], (~allowed | certain)[:, 1:])
    if unions is not None and len(unions):
        member = unions.to(p.dtype)
        inside = torch.einsum("bcijk,nc->bnijk", allowed.to(p.dtype), member) > 0
        outside = torch.einsum("bcijk,nc->bnijk", allowed.to(p.dtype), 1 - member) > 0
        joined = torch.einsum("bcijk,nc->bnijk", p, member)
        more, others = _dice(joined, inside & ~outside, inside != outside)
        shown, scores = torch.cat([shown, more]), torch.cat([scores, others])
    dice_loss = (1 - scores[shown]).mean() if bool(shown.any()) else logits.sum() * 0
    return cross_entropy, dice_loss


def _dice(p: torch.Tensor, drawn: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, n, i, j, k) probabilities, truth, and where that is known -> which of the n are shown, soft Dice of each."""
    axes = (0, 2, 3, 4)
    size = drawn.sum(dim=axes)
    overlap = (p * drawn).sum(dim=axes)
    return size > 0, (2 * overlap + 1e-5) / ((p * known).sum(dim=axes) + size + 1e-5)
