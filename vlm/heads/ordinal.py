"""Counts without a mask: how many there are of a thing that no class of the mask is, as a table of counts taught.

An ordinal head over the question's state, which has seen the scan's tokens: cumulative links with proportional odds
(McCullagh, J. R. Stat. Soc. B 42:109-142, 1980), so that to be one off is nearer to right than to be three off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vlm.facts import FACTS, target_name
from vlm.grounding import find_mentions, says
from vlm.heads.reading import Reading
from vlm.scene import Scene, scene_classes


class CumulativeLinks(nn.Module):
    """A state (..., W) -> (..., levels) log-probabilities of the counts 0, 1, ..., levels - 1.

    logit P(count <= k) = threshold_k - score, with one score a state and thresholds that rise. levels: two or more.
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        # the first, and before a softplus the step to each next; wide, so that each count may be the likeliest at once
        self.thresholds = nn.Parameter(torch.tensor([2.0 - levels] + [2.0] * (levels - 2)))

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        first, steps = self.thresholds[:1], F.softplus(self.thresholds[1:])
        most = torch.cat([first, steps]).cumsum(0) - self.score(state)
        # P(k) = s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) with the sigmoid s, a = most_k and b = most_(k-1)
        between = F.pad(torch.log(-torch.expm1(-steps)), (1, 1))
        return F.pad(F.logsigmoid(most), (0, 1)) + F.pad(F.logsigmoid(-most), (1, 0)) + between


def which_count(fact: str, text: str, scene: Scene, counted: Mapping[str, tuple[str, ...]]) -> str:
    """The fact that a counting question asks for; any other fact as it is.

    counted: fact of a table -> names of the thing. "count", on the mask, wherever a class of the mask serves: one that
    such a name means and that this checkpoint can find in this scan. Else the fact whose thing the text names, of
    several the one of the longest name; "count" where it names none.
    """
    if FACTS[fact].kind != "counting":
        return fact
    named = [(len(name), one, name) for one, names in counted.items() for name in names if says(text, name)]
    if not named:
        return "count"
    _, best, name = max(named)
    meant = find_mentions(name, scene_classes(scene))
    serves = meant.classes and not meant.others and not set(meant.classes) <= set(scene.untrained)
    return "count" if serves else best


def decode(reading: Reading) -> dict[str, Any]:
    """value: the median of the head's distribution, without instances; its probability, calibrated, as confidence.

    Abstains where the question limits what is counted, by size or by place: the head knows the whole scan only.
    """
    shares = reading.label_shares
    assert shares, "a count of a table comes with the shares of its levels"
    name = target_name(reading.fact)
    if limit := _limit(reading):
        reason = f"{name.lower()} were not counted on a mask, so not by {limit} either"
        return {"text": f"I cannot tell: {reason}.", "abstained": True, "reason": reason}
    value = int(np.searchsorted(np.cumsum(list(shares.values())), 0.5))
    number = f"{value} or more" if value == len(shares) - 1 else str(value)
    return {
        "text": f"{name}: {number}, estimated from the scan as a whole and not counted on a mask.",
        "value": value,
        "confidence": reading.calibration(reading.fact, reading.fact_probability * shares[str(value)]),
    }


def _limit(reading: Reading) -> str | None:
    """What the question limits the count by, beside naming the thing."""
    own = find_mentions("; ".join(reading.counted), scene_classes(reading.scene))
    known = {*own.classes, *own.others}
    if reading.threshold:
        return "size"
    return "place" if {*reading.mention.classes, *reading.mention.others} - known else None
