"""Residual-encoder U-Net (Isensee et al. 2024, "nnU-Net Revisited"), layers named as in nnU-Net's weight files."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def residual_unet(
    channels: int,
    classes: int,
    features: Sequence[int] = (12, 24, 48, 96, 192),
    blocks: Sequence[int] = (1, 1, 2, 2, 2),
    strides: Sequence[int] = (1, 2, 2, 2, 2),
) -> nn.Module:
    """Build the network. Raises AssertionError where the three lists differ in length.

    Dimension legend, default options, window of N^3 voxels:
        input            (B, channels, N, N, N)
        encoder stage s  (B, features[s], N / 2^s, ...)      s = 0..4, fine to coarse
        output           (B, classes, N, N, N)               logits; class 0 is background
    """
    assert len(features) == len(blocks) == len(strides) > 1, "features, blocks and strides differ in length"
    return ResidualUNet(channels, classes, features, blocks, strides)


class ResidualUNet(nn.Module):
    """See `residual_unet`."""

    def __init__(
        self, channels: int, classes: int, features: Sequence[int], blocks: Sequence[int], strides: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder = Encoder(channels, features, blocks, strides)
        self.decoder = Decoder(classes, features, strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class Encoder(nn.Module):
    """Input -> list of feature maps, one a stage, fine to coarse."""

    def __init__(self, channels: int, features: Sequence[int], blocks: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.stem = _convs(channels, features[0])
        widths = [features[0], *features]
        self.stages = nn.ModuleList()
        for stage, count in enumerate(blocks):
            first = ResidualBlock(widths[stage], features[stage], strides[stage])
            rest = [ResidualBlock(features[stage], features[stage]) for _ in range(count - 1)]
            self.stages.append(_named(blocks=nn.Sequential(first, *rest)))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem.convs(x)
        maps = []
        for stage in self.stages:
            x = stage.blocks(x)  # type: ignore[operator]
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """Feature maps, fine to coarse -> logits at the finest. Coarser logits have heads of their own (unused here)."""

    def __init__(self, classes: int, features: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        widths, steps = list(features[::-1]), list(strides[::-1])
        self.transpconvs, self.stages, self.seg_layers = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for deep, fine, step in zip(widths[:-1], widths[1:], steps[:-1], strict=True):
            self.transpconvs.append(nn.ConvTranspose3d(deep, fine, step, step))
            self.stages.append(_convs(2 * fine, fine))
            self.seg_layers.append(nn.Conv3d(fine, classes, 1))

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        x = maps[-1]
        for up, stage, skip in zip(self.transpconvs, self.stages, maps[-2::-1], strict=True):
            x = stage.convs(torch.cat([up(x), skip], dim=1))  # type: ignore[operator]
        return self.seg_layers[-1](x)


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut; the shortcut pools where the block strides and projects where it widens."""

    def __init__(self, channels: int, features: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, features, 3, stride, act=True)
        self.conv2 = ConvNorm(features, features, 3)
        self.nonlin2 = nn.LeakyReLU(inplace=True)
        pool = nn.AvgPool3d(stride, stride) if stride > 1 else nn.Identity()
        widen = ConvNorm(channels, features, 1, bias=False) if channels != features else nn.Identity()
        self.skip = nn.Sequential(pool, widen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlin2(self.conv2(self.conv1(x)) + self.skip(x))


class ConvNorm(nn.Module):
    """Convolution, instance norm and, with `act`, leaky ReLU (slope 0.01)."""

    def __init__(
        self, channels: int, features: int, kernel: int, stride: int = 1, act: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, features, kernel, stride, kernel // 2, bias=bias)
        self.norm = nn.InstanceNorm3d(features, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.nonlin(self.norm(self.conv(x)))


def _convs(channels: int, features: int) -> nn.Module:
    return _named(convs=nn.Sequential(ConvNorm(channels, features, 3, act=True)))


def _named(**children: nn.Module) -> nn.Module:
    """A module with the given children and no forward of its own: it only gives weights the names of the file."""
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module
