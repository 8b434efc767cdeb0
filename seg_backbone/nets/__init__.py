"""Networks by name. A builder takes (input channels, output classes, options) and returns an nn.Module.

Every network has `.encoder(x) -> list of feature maps, fine to coarse` and `.decoder(features) -> logits`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seg_backbone.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

NETWORKS = {"residual_unet": "seg_backbone.nets.residual_unet:residual_unet"}


def build_network(name: str, channels: int, classes: int, options: dict[str, Any]) -> nn.Module:
    """Build a network by name. Raises ConfigError for an unknown name or an option it does not take."""
    if name not in NETWORKS:
        raise ConfigError("network", f"one of {sorted(NETWORKS)}", repr(name), "change `network` in the plan")
    module, function = NETWORKS[name].split(":")
    try:
        return getattr(import_module(module), function)(channels, classes, **options)
    except (TypeError, AssertionError) as error:
        raise ConfigError("network_options", f"options of {name}", str(error), "change them in the plan") from None
