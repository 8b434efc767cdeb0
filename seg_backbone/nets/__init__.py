"""Networks by name. A builder takes (input channels, outputs, options) and returns an nn.Module.

What every segmentation network keeps to, so that training, windows and runtimes need not know which one it is:
    network(x)              (B, channels, *patch) -> (B, outputs, *patch) logits in eval mode
    network.encoder(x)      -> list of feature maps (B, features, ...), fine to coarse
    network.decoder(maps)   -> what network(x) returns
Deep supervision: the U-Nets take the option `deep_supervision: true`. Then, in TRAINING mode only, `network(x)` and
`network.decoder(maps)` return a list of logits instead, finest first, one a decoder stage; the finest has the size of
the patch, each other one the size of an encoder stage. In eval mode it is always the one finest tensor, and the weights
have the same names and shapes with the option and without it.
`network.divisor` is what the sides of every window are multiples of, by axis.
`network.encoder_modules()` lists what the feature maps depend on; `parts` tells its modules from the rest.
`network.logit_layers()` lists the convolutions that return logits, one without deep supervision.

A classifier (`build_classifier`) sees a window and returns (B, outputs) logits; it has no encoder and no decoder.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from seg_backbone.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

NETWORKS = {
    "residual_unet": "seg_backbone.nets.dynamic_unet:resenc_unet_s",  # what the shipped weights call it
    "plain_unet": "seg_backbone.nets.dynamic_unet:plain_unet",
    "resenc_unet": "seg_backbone.nets.dynamic_unet:resenc_unet",
    "resenc_unet_s": "seg_backbone.nets.dynamic_unet:resenc_unet_s",
    "resenc_unet_m": "seg_backbone.nets.dynamic_unet:resenc_unet_m",
    "resenc_unet_l": "seg_backbone.nets.dynamic_unet:resenc_unet_l",
    "swin_unetr": "seg_backbone.nets.monai_nets:swin_unetr",
    "segresnet": "seg_backbone.nets.monai_nets:segresnet",
}
CLASSIFIERS = {"resnet18": "seg_backbone.nets.monai_nets:resnet18"}


def build_network(name: str, channels: int, outputs: int, options: dict[str, Any]) -> nn.Module:
    """Build a segmentation network by name. Raises ConfigError for an unknown name or an option it does not take."""
    return _build(NETWORKS, name, channels, outputs, options)


def build_classifier(name: str, channels: int, outputs: int, options: dict[str, Any]) -> nn.Module:
    """Build a classifier of windows by name. Raises ConfigError as `build_network` does."""
    return _build(CLASSIFIERS, name, channels, outputs, options)


def parts(network: nn.Module) -> dict[str, list[nn.Module]]:
    """ "encoder" and "decoder": every module of a network under one of the two, each without those inside of it."""
    encoder = {module: None for root in network.encoder_modules() for module in root.modules()}  # type: ignore[operator]
    return {"encoder": [*encoder], "decoder": [module for module in network.modules() if module not in encoder]}


def _build(table: dict[str, str], name: str, channels: int, outputs: int, options: dict[str, Any]) -> nn.Module:
    if name not in table:
        raise ConfigError("network", f"one of {sorted(table)}", repr(name), "change `network` in the plan")
    module, function = table[name].split(":")
    try:
        return getattr(import_module(module), function)(channels, outputs, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        found = " ".join(f"{error}".split())
        raise ConfigError("network_options", f"options of {name}", found, "change them in the plan") from None
