"""What is trained: the network, the extra heads that learn with it, and the running average of both."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import NamedTuple, Self

import torch
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from torch import nn

from seg_backbone.checkpoint import find_model, load_model, save_model
from seg_backbone.errors import ConfigError
from seg_backbone.nets import build_network, parts
from seg_backbone.plan import Plan
from seg_backbone.scan_heads import ScanHeads, load_heads, pooled_features, save_heads
from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.samples import SCAN

BACKGROUND = 0.99  # probability of background that new weights begin with, about its share of a window
LEAK = 1e-2  # slope of the leaky ReLU below zero
LOSS_WEIGHTS = "loss_weights"  # head: how much each task counts


class Output(NamedTuple):
    """logits: (B, classes, *patch), or a list of them from fine to coarse where the network is supervised deeply.
    heads: what each extra head made of the batch.
    """

    logits: torch.Tensor | list[torch.Tensor]
    heads: dict[str, torch.Tensor]


class Model(nn.Module):
    """One forward pass for the mask and for every extra head.

    A head takes (features, logits): the network's feature maps, fine to coarse, and its logits at the finest. frozen:
    parts of the network (see nets.parts) that take no gradient and stay in eval mode, so that nothing of them changes.
    """

    def __init__(
        self, network: nn.Module, heads: dict[str, nn.Module] | None = None, frozen: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict(heads)
        self.frozen = tuple(frozen)
        for module in self._frozen_modules():
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)

    def _frozen_modules(self) -> list[nn.Module]:
        return [module for name in self.frozen for module in parts(self.network)[name]]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen_modules():
            module.training = False
        return self

    def forward(self, image: torch.Tensor) -> Output:
        if not self.heads:
            return Output(self.network(image), {})
        features = self.network.encoder(image)  # type: ignore[operator]
        logits = self.network.decoder(features)  # type: ignore[operator]
        finest = logits[0] if isinstance(logits, list) else logits
        return Output(logits, {name: head(features, finest) for name, head in self.heads.items()})


def build_model(config: SegmentationConfig) -> Model:
    """The model of a configuration with its start weights.

    Raises ConfigError where those are of another network, and for a window that the network cannot halve.
    """
    plan = config.plan
    network = build_network(plan.network, plan.inputs, plan.outputs, plan.network_options)
    if config.initialisation == "he":
        network.apply(InitWeights_He(LEAK))
    else:
        begin_at_background(network, plan.outputs)
    if any(side % by for side, by in zip(plan.patch, network.divisor, strict=True)):  # type: ignore[arg-type]
        expected = f"a window whose sides are multiples of {', '.join(map(str, network.divisor))}"  # type: ignore[arg-type]
        raise ConfigError("plan.patch", expected, f"{', '.join(map(str, plan.patch))}", "change it")
    heads = build_heads(config, network)
    if config.start:
        started, start_plan, _ = load_model(config.start)
        try:
            network.load_state_dict(started.state_dict())
            if SCAN in heads and start_plan.heads == plan.heads:
                heads[SCAN].load_state_dict(load_heads(find_model(config.start), start_plan)[0].state_dict())
        except RuntimeError:  # torch lists every layer, on many lines
            raise ConfigError(
                config.start, "a model with the network of the plan", "another one", "change it"
            ) from None
    return Model(network, heads, config.frozen)


def begin_at_background(network: nn.Module, outputs: int) -> None:
    """Let every voxel be background with probability BACKGROUND before training, so that no steps are spent on it.

    Lin et al. 2017, "Focal loss for dense object detection", section 4.1; here of a softmax.
    """
    for layer in network.logit_layers():  # type: ignore[operator]
        with torch.no_grad():
            layer.bias[0] += log(BACKGROUND / (1 - BACKGROUND) * (outputs - 1))


class LossWeights(nn.Module):
    """(tasks,) variances c^2 of `class_terms`, 1 at first. A head, so that every process of several learns the same."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(tasks))

    def forward(self, maps: Sequence[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        return self.log_variances.exp()


def build_heads(config: SegmentationConfig, network: nn.Module) -> dict[str, nn.Module]:
    """The heads that the plan asks for, untrained."""
    plan = config.plan
    if plan.heads is None:
        return {}
    heads: dict[str, nn.Module] = {SCAN: ScanHeads(plan, pooled_features(network, plan))}
    return heads | ({LOSS_WEIGHTS: LossWeights(len(plan.heads.tasks))} if config.classification.learned else {})


def save_trained(model: Model, plan: Plan, folder: Path) -> Path:
    """Write the model folder of a network and its heads, if it has any."""
    if SCAN in model.heads:
        save_heads([model.heads[SCAN]], folder)  # type: ignore[list-item]
    return save_model(model.network, plan, folder, half=True)


def running_average(model: Model, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """A copy of the model whose weights follow it: after each step decay x its own + (1 - decay) x the model's.

    At first the decay is less, (1 + n) / (10 + n) after n steps, so that a short run is not the mean of its beginning.
    """

    def follow(own: list[torch.Tensor], models: list[torch.Tensor], steps: torch.Tensor) -> None:
        share = 1 - ((1 + steps) / (10 + steps)).clamp(max=decay)  # stays on the device: nothing waits for it
        change = torch._foreach_sub(own, models)  # 0 where a weight is frozen, which then keeps every bit
        torch._foreach_mul_(change, share)
        torch._foreach_sub_(own, change)

    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=follow)
