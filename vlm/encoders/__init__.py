"""What the language model sees of a volume: feature vectors with positions in world millimetres, pooled into tokens.

Encoders by name. A builder takes (segmenter, options) and returns an `Encoder`; the segmenter gives the device, and the
default encoder is its network. Whatever the encoder, `pooling.py` makes tokens of its features in the same way.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

from seg_backbone.errors import ConfigError
from seg_backbone.predict import Features, Segmenter
from seg_backbone.volume import Volume

ENCODERS = {
    "segmentation": "vlm.encoders.backbone:SegmentationEncoder",
    "vit": "vlm.encoders.vit:vit",
    "resnet152": "vlm.encoders.resnet152:resnet152",
}


class Encoder(Protocol):
    """A volume to feature vectors with world positions.

    version: names weights and settings, so that features may be cached. shared_stages: stages of the segmentation
    network that are all it needs, so that whoever segments the scan anyhow has its features too; () with a network of
    its own.
    """

    @property
    def version(self) -> str: ...

    @property
    def shared_stages(self) -> tuple[int, ...]: ...

    @property
    def channels(self) -> tuple[int, int]:
        """Length of the vectors at the coarsest stage (visual tokens) and at the finest (instance tokens)."""

    def __call__(self, volume: Volume) -> Features:
        """Features of one stage or more; their order by number is from fine to coarse."""


def build_encoder(name: str, segmenter: Segmenter, options: dict[str, Any]) -> Encoder:
    """An encoder by name, on the segmenter's device.

    Raises ConfigError for an unknown name or an option that it does not take, CheckpointError for missing weights.
    """
    if name not in ENCODERS:
        raise ConfigError("encoder", f"one of {sorted(ENCODERS)}", repr(name), "change `encoder`")
    module, function = ENCODERS[name].split(":")
    try:
        return getattr(import_module(module), function)(segmenter, **options)
    except (TypeError, AssertionError) as error:
        raise ConfigError("encoder_options", f"options of {name}", str(error), "change them") from None
