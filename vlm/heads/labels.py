"""Labels: a head for every fixed set of labels that a table of scans taught (vlm/data/targets.py).

A linear one, but for counts, whose labels "0", "1", ... have an order (ordinal.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from vlm.facts import FACTS, target_name
from vlm.heads.choose import choose, match_option
from vlm.heads.ordinal import CumulativeLinks
from vlm.heads.reading import Reading


class Labels(nn.Module):
    """A question's state (..., W) -> (..., labels) logits of the fact that it asks for."""

    def __init__(self, width: int, labels: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.sets = dict(labels)
        self.heads = nn.ModuleDict(
            {
                fact: CumulativeLinks(width, len(known))
                if FACTS[fact].kind == "counting"
                else nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(known)))
                for fact, known in labels.items()
            }
        )

    def forward(self, fact: str, question: torch.Tensor) -> torch.Tensor:
        return self.heads[fact](question)


def decode(reading: Reading) -> dict[str, Any]:
    """The likeliest label, among those that the options say where there are options; its probability among those."""
    shares = reading.label_shares
    assert shares, "a fact of labels comes with their shares"
    options = reading.question.options
    fitting = {label: share for label, share in shares.items() if not options or match_option(label, options)}
    best = max(fitting or shares, key=lambda label: shares[label])
    text = f"{target_name(reading.fact)}: {best}."
    certainty = shares[best] / float(np.sum(list((fitting or shares).values())))
    confidence = reading.calibration(reading.fact, reading.fact_probability * certainty)
    return choose(reading, best, text, [], confidence)
