"""MONAI's networks in this project's terms: SwinUNETR, SegResNet, and a 3D ResNet-18 that classifies windows.

The weights have MONAI's names, so published ones fit. None of these has deep supervision.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import ResNet, SegResNet, SwinUNETR
from torch import nn


def swin_unetr(
    channels: int,
    outputs: int,
    features: int = 24,
    depths: Sequence[int] = (2, 2, 2, 2),
    heads: Sequence[int] = (3, 6, 12, 24),
) -> nn.Module:
    """Swin transformer encoder, convolutional decoder (Hatamizadeh et al. 2022). Raises ValueError for bad options.

    Dimension legend, window of (I, J, K) voxels, each divisible by 32 and above 32; F features:
        input           (B, channels, I, J, K)
        encoder maps    (B, F, I, J, K), (B, F, I / 2, ..), (B, 2 F, I / 4, ..), (B, 4 F, I / 8, ..),
                        (B, 8 F, I / 16, ..), (B, 16 F, I / 32, ..)
        output          (B, outputs, I, J, K)    logits
    """
    return SwinUnetr(channels, outputs, depths=tuple(depths), num_heads=tuple(heads), feature_size=features)


def segresnet(
    channels: int,
    outputs: int,
    features: int = 16,
    down: Sequence[int] = (1, 2, 2, 4),
    up: Sequence[int] = (1, 1, 1),
) -> nn.Module:
    """Residual encoder, slim decoder that adds its skips (Myronenko 2018, without the autoencoder).

    down, up: residual blocks of each encoder and decoder stage. Dimension legend, F features, S = len(down) stages:
        input            (B, channels, I, J, K)           each axis divisible by 2^(S - 1)
        encoder stage s  (B, F 2^s, (I, J, K) / 2^s)      s = 0 .. S - 1, fine to coarse
        output           (B, outputs, I, J, K)            logits
    """
    assert len(up) == len(down) - 1, "up has one entry less than down"
    return SegResnet(3, features, channels, outputs, blocks_down=tuple(down), blocks_up=tuple(up))


def resnet18(channels: int, outputs: int, features: Sequence[int] = (64, 128, 256, 512)) -> nn.Module:
    """3D ResNet-18 over a whole window: does it hold foreground? (The gate of FLARE25's two-stage method.)

    Dimension legend, window of (I, J, K) voxels, 32 or more each:
        input       (B, channels, I, J, K)
        stem        (B, features[0], I / 4, ..)        convolution of 7 and pooling, both of stride 2
        stage s     (B, features[s], I / 2^(2 + s), ..)      s = 0 .. 3, two residual blocks each
        output      (B, outputs)    logits, after the mean over all places
    """
    assert len(features) == 4, "features has four entries"
    return ResNet("basic", [2, 2, 2, 2], list(features), 3, channels, conv1_t_stride=2, num_classes=outputs)


class SwinUnetr(SwinUNETR):
    """See `swin_unetr`: MONAI's forward pass in its two halves."""

    divisor = (32, 32, 32)

    def encoder(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._check_input_size(x.shape[2:])
        hidden = self.swinViT(x, self.normalize)
        fine = [self.encoder1(x), self.encoder2(hidden[0]), self.encoder3(hidden[1]), self.encoder4(hidden[2])]
        return [*fine, hidden[3], self.encoder10(hidden[4])]

    def decoder(self, maps: list[torch.Tensor]) -> torch.Tensor:
        x = maps[5]
        for stage, skip in zip(
            (self.decoder5, self.decoder4, self.decoder3, self.decoder2, self.decoder1), maps[4::-1], strict=True
        ):
            x = stage(x, skip)
        return self.out(x)

    def encoder_modules(self) -> list[nn.Module]:
        return [self.swinViT, self.encoder1, self.encoder2, self.encoder3, self.encoder4, self.encoder10]

    def logit_layers(self) -> list[nn.Conv3d]:
        return [self.out.conv.conv]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class SegResnet(SegResNet):
    """See `segresnet`: MONAI's forward pass in its two halves."""

    def encoder(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.encode(x)[1]

    def decoder(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.decode(maps[-1], maps[::-1])

    def encoder_modules(self) -> list[nn.Module]:
        return [self.convInit, self.down_layers]

    def logit_layers(self) -> list[nn.Conv3d]:
        return [self.conv_final[-1].conv]

    @property
    def divisor(self) -> tuple[int, int, int]:
        """2^(S - 1), S stages."""
        side = 2 ** (len(self.down_layers) - 1)
        return side, side, side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))
