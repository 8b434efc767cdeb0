"""Optimiser and learning rate."""

from __future__ import annotations

from math import cos, pi

import torch
from torch import nn

from seg_backbone.train.config import SegmentationConfig


def build_optimizer(model: nn.Module, config: SegmentationConfig) -> torch.optim.Optimizer:
    """The optimiser of a configuration."""
    return torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, config: SegmentationConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate of every step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config))


def rate(step: int, config: SegmentationConfig) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    length = (config.schedule_steps or config.steps) - config.warmup
    return 0.5 * (1 + cos(pi * min(1.0, (step - config.warmup) / max(1, length))))
