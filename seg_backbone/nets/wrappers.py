"""Networks around networks: several as one, and one of regions that overlap. Both keep to seg_backbone.nets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class Ensemble(nn.Module):
    """The mean of the logits of members that are alike in all but their weights, as nnU-Net averages folds.

    Dimension legend, M members:
        input            (B, channels, I, J, K)
        encoder stage s  (B, M * features[s], ...)    the members' maps side by side
        output           (B, outputs, I, J, K)        mean logits
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.divisor = members[0].divisor

    def encoder(self, x: torch.Tensor) -> list[torch.Tensor]:
        stages = zip(*(member.encoder(x) for member in self.members), strict=True)
        return [torch.cat(maps, dim=1) for maps in stages]

    def decoder(self, maps: list[torch.Tensor]) -> torch.Tensor:
        parts = zip(*(stage.chunk(len(self.members), dim=1) for stage in maps), strict=True)
        return self._mean([member.decoder(list(own)) for member, own in zip(self.members, parts, strict=True)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One member after the other: less memory than decoder(encoder(x))."""
        return self._mean([member(x) for member in self.members])

    def _mean(self, logits: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(logits).mean(dim=0)


class Regions(nn.Module):
    """A network of overlapping regions, with an output before its own that is 0: what no region paints is background.

    Dimension legend: as the network inside, but (B, 1 + outputs, I, J, K) logits.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.divisor = network.divisor

    def encoder(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.network.encoder(x)

    def decoder(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self._with_background(self.network.decoder(maps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._with_background(self.network(x))

    def _with_background(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1)
