"""Perceiver resampler: any number of visual cells -> a chosen number of tokens (Alayrac et al., NeurIPS 2022, 3.1).

Learned latents look at the cells and at each other, layer by layer. Beside it, without one, each cell of the spatial
pooling is a token of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from seg_backbone.errors import ConfigError


@dataclass(frozen=True)
class Perceiver:
    """tokens: that come out. width: of the latents, a multiple of `heads`."""

    tokens: int = 32
    layers: int = 2
    heads: int = 4
    width: int = 192

    def __post_init__(self) -> None:
        if min(self.tokens, self.layers, self.heads) < 1 or self.width % self.heads:
            found = f"tokens {self.tokens}, layers {self.layers}, heads {self.heads}, width {self.width}"
            raise ConfigError("perceiver", "at least one of each, and heads that share the width", found, "change it")


class Resampler(nn.Module):
    """(cells, inputs) -> (tokens, outputs).

    Dimension legend, L = latents, D = width:
        cells (N, inputs) -> (N, D)
        each layer: L (tokens, D) attend to cells and latents (N + tokens, D), then a feed-forward layer; both residual
        (tokens, D) -> (tokens, outputs)
    """

    def __init__(self, inputs: int, outputs: int, options: Perceiver) -> None:
        super().__init__()
        width = options.width
        self.latents = nn.Parameter(torch.randn(options.tokens, width))
        self.cells = nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width))
        self.layers = nn.ModuleList(_Layer(width, options.heads) for _ in range(options.layers))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        nn.init.normal_(self.out[1].weight, std=0.1 / width**0.5)  # start as small as word embeddings are
        nn.init.zeros_(self.out[1].bias)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        cells, latents = self.cells(cells), self.latents
        for layer in self.layers:
            latents = layer(latents, cells)
        return self.out(latents)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, latents: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        asking = self.norm(latents)[None]
        seen = torch.cat([cells[None], asking], dim=1)
        latents = latents + self.attention(asking, seen, seen, need_weights=False)[0][0]
        return latents + self.feed(latents)
