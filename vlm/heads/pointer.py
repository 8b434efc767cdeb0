"""Pointer: which instances does the question mean? A score for each, given the question's state."""

from __future__ import annotations

import torch
from torch import nn

from vlm.scene import GEOMETRY

MENTION = 3  # named by the question's words, another class is named, no class is named


class Pointer(nn.Module):
    """Additive attention without normalisation: every instance is in or out by itself.

    question (Q, W) states, items (K, W) the language model's states at the instance tokens, geometry (K, GEOMETRY),
    mention (Q, K, MENTION) -> (Q, K) logits.
    """

    def __init__(self, width: int, hidden: int = 192) -> None:
        super().__init__()
        self.question = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden))
        self.item = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden))
        self.geometry = nn.Linear(GEOMETRY, hidden)
        self.mention = nn.Linear(MENTION, hidden, bias=False)
        self.score = nn.Sequential(nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))

    def forward(
        self, question: torch.Tensor, items: torch.Tensor, geometry: torch.Tensor, mention: torch.Tensor
    ) -> torch.Tensor:
        item = self.item(items) + self.geometry(geometry)
        return self.score(self.question(question)[:, None] + item[None] + self.mention(mention))[..., 0]
