"""Regression: a number with an interval, read from the visual tokens where no mask can answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vlm.facts import FACTS, target_name
from vlm.heads.reading import Reading

QUANTILES = (0.1, 0.5, 0.9)
TARGETS = tuple(name for name, fact in FACTS.items() if fact.kind == "regression")


class Quantiles(nn.Module):
    """Mean visual cell (channels,) and scan facts -> (targets, 3) quantiles in standard units, in increasing order."""

    def __init__(self, channels: int, facts: int, targets: int = len(TARGETS), hidden: int = 64) -> None:
        super().__init__()
        self.targets = targets
        self.norm = nn.LayerNorm(channels)
        self.layers = nn.Sequential(
            nn.Linear(channels + facts, hidden), nn.GELU(), nn.Dropout(0.2), nn.Linear(hidden, 3 * targets)
        )

    def forward(self, visual: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        raw = self.layers(torch.cat([self.norm(visual), facts], dim=-1)).unflatten(-1, (self.targets, 3))
        middle = raw[..., 1:2]
        below, above = (nn.functional.softplus(raw[..., n : n + 1]) for n in (0, 2))
        return torch.cat([middle - below, middle, middle + above], dim=-1)


def quantile_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Pinball loss (Koenker and Bassett 1978), mean over the three quantiles. predicted (..., 3), target (...)."""
    levels = torch.tensor(QUANTILES, device=predicted.device)
    error = target[..., None] - predicted
    return torch.maximum(levels * error, (levels - 1) * error).mean()


def decode(reading: Reading) -> dict[str, Any]:
    """value: the median, with the 10-90 % interval; the evidence is the whole scan, so there are no instances."""
    if reading.quantiles is None:
        reason = "this checkpoint was not trained to estimate that"
        return {"text": "That cannot be estimated from this scan.", "abstained": True, "reason": reason}
    low, middle, high = (round(value, 2) for value in reading.quantiles)
    unit = FACTS[reading.fact].unit or ""
    if reading.fact in TARGETS:
        low, middle, high = max(0.0, low), max(0.0, middle), max(0.0, high)
        text = f"About {middle:.0f} {unit} of the body in view is fat (80 % interval {low:.0f} to {high:.0f} {unit})."
    else:
        value, interval = f"{middle:.4g} {unit}".strip(), f"{low:.4g} to {high:.4g} {unit}".strip()
        text = f"{target_name(reading.fact)}: about {value} (80 % interval {interval})."
    return {
        "text": text,
        "value": middle,
        "unit": unit or None,
        "interval": (low, high),
        "confidence": reading.fact_probability * 0.8,
    }
