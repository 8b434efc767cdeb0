"""nnU-Net's own networks, built by its `dynamic-network-architectures`, so that its weights fit by name and shape.
New weights start as torch draws them; training draws them as nnU-Net does where `initialisation: he` says so, but
without its zeroed norms of residual blocks, which learn slowly in short runs.

Plain U-Net: Isensee et al. 2021. Residual-encoder U-Net: Isensee et al. 2024, "nnU-Net Revisited"; its presets M, L and
XL are one rule (32 features doubled up to 320; 1, 3, 4, 6, 6, ... blocks), what differs is the patch and so the number
of stages, which seg_backbone.configure chooses. S is ours, for laptops: a third of the width and a third of the blocks.

Dimension legend; S stages, stage s strided by strides[0] x ... x strides[s] =: d(s) along each axis:
    input            (B, channels, I, J, K)                        each axis divisible by d(S - 1)
    encoder stage s  (B, features[s], (I, J, K) / d(s))            s = 0 .. S - 1, fine to coarse
    decoder stage s  (B, features[s], (I, J, K) / d(s))            s = S - 2 .. 0, from the map below and its own skip
    output           (B, outputs, I, J, K)                         logits
    in training with deep_supervision: [(B, outputs, (I, J, K) / d(s)) for s = 0 .. S - 2]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

Axes = int | Sequence[int]  # one number for all three axes, or one each
MOST_FEATURES = 320
LAYERS: dict[str, Any] = {
    "conv_op": nn.Conv3d,
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}


def plain_unet(
    channels: int,
    outputs: int,
    features: Sequence[int] = (32, 64, 128, 256, 320, 320),
    convolutions: Sequence[int] | None = None,
    strides: Sequence[Axes] | None = None,
    kernels: Sequence[Axes] | None = None,
    decoder: Sequence[int] | None = None,
    deep_supervision: bool = False,
) -> nn.Module:
    """One entry a stage, fine to coarse: by default 2 convolutions, stride 2 after the first stage, kernel 3.

    decoder: convolutions of each decoder stage, from coarse to fine as in nnU-Net's plans; 2 by default.
    """
    stages = len(features)
    return PlainUNet(
        deep_supervision,
        input_channels=channels,
        num_classes=outputs,
        n_conv_per_stage=list(convolutions or [2] * stages),
        n_conv_per_stage_decoder=list(decoder or [2] * (stages - 1)),
        **_shape(features, strides, kernels),
    )


def resenc_unet(
    channels: int,
    outputs: int,
    features: Sequence[int] = (32, 64, 128, 256, 320, 320),
    blocks: Sequence[int] | None = None,
    strides: Sequence[Axes] | None = None,
    kernels: Sequence[Axes] | None = None,
    decoder: Sequence[int] | None = None,
    deep_supervision: bool = False,
) -> nn.Module:
    """One entry a stage, fine to coarse: by default 1, 3, 4, 6, 6, ... residual blocks, stride 2 after the first
    stage, kernel 3.

    decoder: convolutions of each decoder stage, from coarse to fine as in nnU-Net's plans; 1 by default.
    """
    stages = len(features)
    return ResencUNet(
        deep_supervision,
        input_channels=channels,
        num_classes=outputs,
        n_blocks_per_stage=list(blocks or (1, 3, 4, *[6] * stages)[:stages]),
        n_conv_per_stage_decoder=list(decoder or [1] * (stages - 1)),
        **_shape(features, strides, kernels),
    )


def resenc_unet_s(channels: int, outputs: int, **options: Any) -> nn.Module:
    """Small: 12 to 192 features, 5 stages, 1, 1, 2, 2, 2 blocks; 5.5 million weights."""
    return resenc_unet(channels, outputs, **{"features": (12, 24, 48, 96, 192), "blocks": (1, 1, 2, 2, 2)} | options)


def resenc_unet_m(channels: int, outputs: int, **options: Any) -> nn.Module:
    """nnU-Net's M at six stages, for patches near 128 x 128 x 128; 102 million weights."""
    return resenc_unet(channels, outputs, **options)


def resenc_unet_l(channels: int, outputs: int, **options: Any) -> nn.Module:
    """nnU-Net's L at seven stages, for patches near 192 x 192 x 192; 141 million weights."""
    return resenc_unet(channels, outputs, **{"features": (32, 64, 128, 256, 320, 320, 320)} | options)


class _OneTensorInEval:
    """Deep supervision follows the mode of the module, see seg_backbone.nets."""

    encoder: Any
    decoder: Any

    def __init__(self, supervised: bool, **options: Any) -> None:
        super().__init__(**options)
        self.supervised = self.decoder.deep_supervision = supervised

    def train(self, mode: bool = True) -> Any:
        self.decoder.deep_supervision = mode and self.supervised
        return super().train(mode)  # type: ignore[misc]

    def encoder_modules(self) -> list[nn.Module]:
        return [self.encoder]

    def logit_layers(self) -> list[nn.Conv3d]:
        return list(self.decoder.seg_layers)

    @property
    def divisor(self) -> tuple[int, int, int]:
        """d(S - 1) by axis."""
        i, j, k = (math.prod(stride[axis] for stride in self.encoder.strides) for axis in range(3))
        return i, j, k


class PlainUNet(_OneTensorInEval, PlainConvUNet):
    """See `plain_unet`."""


class ResencUNet(_OneTensorInEval, ResidualEncoderUNet):
    """See `resenc_unet`."""


def _shape(features: Sequence[int], strides: Sequence[Axes] | None, kernels: Sequence[Axes] | None) -> dict[str, Any]:
    """What both networks take; every stride and kernel as three numbers. Raises AssertionError."""
    stages = len(features)
    steps, sizes = _triples(strides or (1, *[2] * (stages - 1))), _triples(kernels or [3] * stages)
    assert stages > 1, "two stages or more are needed"
    assert len(steps) == len(sizes) == stages, "features, strides and kernels differ in length"
    return {"n_stages": stages, "features_per_stage": list(features), "strides": steps, "kernel_sizes": sizes} | LAYERS


def _triples(values: Sequence[Axes]) -> list[list[int]]:
    triples = [[value] * 3 if isinstance(value, int) else list(value) for value in values]
    assert all(len(triple) == 3 for triple in triples), "a stride or kernel is one number or three"
    return triples
