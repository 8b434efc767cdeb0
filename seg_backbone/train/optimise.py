"""Optimiser and learning rate."""

from __future__ import annotations

from math import cos, pi, prod

import torch
from torch import nn

from seg_backbone.errors import ConfigError
from seg_backbone.train.config import SegmentationConfig


def build_optimizer(model: nn.Module, config: SegmentationConfig) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum as nnU-Net trains. It holds the weights that are not frozen."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if config.optimizer == "sgd":
        options = {"momentum": config.momentum, "nesterov": config.momentum > 0, "weight_decay": config.weight_decay}
        return torch.optim.SGD(weights, config.learning_rate, **options)
    return torch.optim.AdamW(weights, config.learning_rate, weight_decay=config.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, config: SegmentationConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate of every step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config))


def rate(step: int, config: SegmentationConfig) -> float:
    """Factor on the learning rate: linear warm-up, then to zero by half a cosine or by (1 - progress)^0.9."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    length = (config.schedule_steps or config.steps) - config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, length))
    return (1 - progress) ** 0.9 if config.schedule == "poly" else 0.5 * (1 + cos(pi * progress))


def out_of_memory(config: SegmentationConfig, device: torch.device, mixed: bool) -> ConfigError:
    """What to change, least harm first: the same batch in smaller parts, half precision, a smaller patch."""
    plan = config.plan
    found = f"too little for batch {config.batch} of {' x '.join(map(str, plan.patch))} voxels"
    if config.batch > 1:
        half = next(size for size in range(config.batch // 2, 0, -1) if config.batch % size == 0)
        todo = f"set `batch: {half}` and `accumulate: {config.accumulate * config.batch // half}` (the same step)"
    elif device.type == "cuda" and not mixed:
        todo = "set `precision: bf16`"
    else:
        strides = plan.network_options.get("strides", [2] * 6)
        step = [prod(s if isinstance(s, int) else s[axis] for s in strides) for axis in range(3)]
        smaller = list(plan.patch)
        longest = max(range(3), key=lambda axis: smaller[axis] / step[axis])
        smaller[longest] = max(step[longest], smaller[longest] // 2 // step[longest] * step[longest])
        todo = f"set `plan.patch: {smaller}`" if smaller != list(plan.patch) else "set fewer `features` in the plan"
    return ConfigError("memory", f"enough on {device.type} for a training step", found, todo)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
