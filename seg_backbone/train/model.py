"""What is trained: the network, the extra heads that learn with it, and the running average of both."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from seg_backbone.checkpoint import load_model
from seg_backbone.errors import ConfigError
from seg_backbone.nets import build_network
from seg_backbone.train.config import SegmentationConfig


class Output(NamedTuple):
    """logits: (B, classes, *patch), or a list of them from fine to coarse where the network is supervised deeply.
    heads: what each extra head made of the batch.
    """

    logits: torch.Tensor | list[torch.Tensor]
    heads: dict[str, torch.Tensor]


class Model(nn.Module):
    """One forward pass for the mask and for every extra head.

    A head takes (features, logits): the network's feature maps, fine to coarse, and its logits at the finest.
    """

    def __init__(self, network: nn.Module, heads: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        self.network = network
        self.heads = nn.ModuleDict(heads)

    def forward(self, image: torch.Tensor) -> Output:
        if not self.heads:
            return Output(self.network(image), {})
        features = self.network.encoder(image)  # type: ignore[operator]
        logits = self.network.decoder(features)  # type: ignore[operator]
        finest = logits[0] if isinstance(logits, list) else logits
        return Output(logits, {name: head(features, finest) for name, head in self.heads.items()})


def build_model(config: SegmentationConfig) -> Model:
    """The model of a configuration with its start weights. Raises ConfigError where those are of another network."""
    plan = config.plan
    network = build_network(plan.network, plan.inputs, plan.outputs, plan.network_options)
    if config.start:
        try:
            network.load_state_dict(load_model(config.start)[0].state_dict())
        except RuntimeError:  # torch lists every layer, on many lines
            raise ConfigError(
                config.start, "a model with the network of the plan", "another one", "change it"
            ) from None
    return Model(network)


def running_average(model: Model, decay: float) -> torch.optim.swa_utils.AveragedModel:
    """A copy of the model whose weights follow it: after each step decay x its own + (1 - decay) x the model's."""
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average)
