"""Router: which fact does the question ask for? (vlm.facts); the fact decides the kind of answer."""

from __future__ import annotations

import torch
from torch import nn


class Router(nn.Module):
    """question (Q, W) states -> (Q, facts) logits, in the order of the facts that the checkpoint knows."""

    def __init__(self, width: int, facts: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 192), nn.GELU(), nn.Linear(192, facts))

    def forward(self, question: torch.Tensor) -> torch.Tensor:
        return self.layers(question)
