"""Numbers of a scene -> tokens in the language model's embedding space."""

from __future__ import annotations

import torch
from torch import nn

from vlm.resampler import Perceiver, Resampler
from vlm.scene import FACTS, GEOMETRY


class Projector(nn.Module):
    """One facts token, one token per visual cell (or as many as a perceiver makes of all cells), one per instance.

    Dimension legend, W the language model's width:
        facts (FACTS,)                      -> (1, W)
        visual (cells, channels + 6)        -> (cells, W), or (tokens, W) through a perceiver
        pooled (K, channels'), geometry (K, GEOMETRY), names (K, W) -> (K, W)
    names: the mean embedding of the words of each instance's class, so that any class a user brings has a token the
    language model understands.
    """

    def __init__(
        self,
        width: int,
        visual_channels: int,
        instance_channels: int,
        perceiver: Perceiver | None = None,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.facts = _mlp(FACTS, hidden, width)
        self.visual_norm = nn.LayerNorm(visual_channels)
        inputs = visual_channels + 6
        self.visual = Resampler(inputs, width, perceiver) if perceiver else _mlp(inputs, hidden, width)
        self.pooled_norm = nn.LayerNorm(instance_channels)
        self.instance = _mlp(instance_channels + GEOMETRY, hidden, width)
        self.name_scale = nn.Parameter(torch.ones(1))  # a list of one number: FSDP cannot divide a scalar
        self.register_load_state_dict_pre_hook(_widen)
        self.kind = nn.Parameter(torch.randn(3, width) * 0.02)  # what sort of token: facts, visual, instance

    def forward(
        self,
        facts: torch.Tensor,
        visual: torch.Tensor,
        pooled: torch.Tensor,
        geometry: torch.Tensor,
        names: torch.Tensor,
    ) -> torch.Tensor:
        """(1 + visual tokens + K, W) in the order facts, visual, instances. K may be 0, and the cells none."""
        channels = self.visual_norm.normalized_shape[0]
        seen = torch.cat([self.visual_norm(visual[:, :channels]), visual[:, channels:]], dim=1)
        seen = self.visual(seen) if len(seen) else seen.new_zeros(0, self.kind.shape[1])
        item = torch.cat([self.pooled_norm(pooled), geometry], dim=1)
        return torch.cat(
            [
                self.facts(facts)[None] + self.kind[0],
                seen + self.kind[1],
                self.instance(item) + self.name_scale * names + self.kind[2],
            ]
        )


def _widen(_: nn.Module, state: dict[str, torch.Tensor], prefix: str, *__: object) -> None:
    """Weights that were saved when `name_scale` was a scalar."""
    if (scale := state.get(f"{prefix}name_scale")) is not None:
        state[f"{prefix}name_scale"] = scale.reshape(1)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Module:
    last = nn.Linear(hidden, outputs)
    nn.init.normal_(last.weight, std=0.1 / hidden**0.5)  # start as small as word embeddings are
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), last)
