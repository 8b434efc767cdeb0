"""A residual-encoder U-Net of ours in the words of nnU-Net's plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def architecture(
    features: Sequence[int], blocks: Sequence[int], strides: Sequence[Sequence[int]], kernels: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """One entry a stage, fine to coarse; strides and kernels in nnU-Net's order of axes."""
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": len(features),
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": kernels,
            "strides": strides,
            "n_blocks_per_stage": list(blocks),
            "n_conv_per_stage_decoder": [1] * (len(features) - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
