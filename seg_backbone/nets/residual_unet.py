"""Residual-encoder U-Net, built by the library that nnU-Net itself uses, so that its weights fit."""

from __future__ import annotations

from collections.abc import Sequence

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn


def residual_unet(
    channels: int,
    classes: int,
    features: Sequence[int] = (12, 24, 48, 96, 192),
    blocks: Sequence[int] = (1, 1, 2, 2, 2),
    strides: Sequence[int] = (1, 2, 2, 2, 2),
) -> nn.Module:
    """Isensee et al. 2024 (nnU-Net Revisited), small. Instance norm, leaky ReLU, one decoder convolution a stage.

    Dimension legend, default options, window of N^3 voxels:
        input            (B, channels, N, N, N)
        encoder stage s  (B, features[s], N / 2^s, ...)      s = 0..4, the last one feeds the visual tokens
        output           (B, classes, N, N, N)               logits; class 0 is background
    """
    return ResidualEncoderUNet(
        input_channels=channels,
        n_stages=len(features),
        features_per_stage=list(features),
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=list(strides),
        n_blocks_per_stage=list(blocks),
        num_classes=classes,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )
