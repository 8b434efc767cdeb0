"""nnU-Net v2's rules: from a fingerprint to spacing, patch, strides, kernels, features, batch and normalisation.

Derived anew from the published rules (Isensee et al. 2021, supplement; Isensee et al. 2024 for the residual presets)
and held to nnU-Net's own planner by a test. One difference: nnU-Net takes the axes as the files store them, here they
are canonical (right, anterior, superior), so that scans stored in other orientations plan alike.
What fits a time and a memory when the network is USED is seg_backbone.budget's question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import Any

import numpy as np

from seg_backbone.fingerprint import Fingerprint
from seg_backbone.plan import Plan

ANISOTROPIC = 3  # the coarsest axis: spacing so many times the others', and so many times fewer voxels
EDGE = 4  # least edge of the deepest feature map, voxels
MOST_FEATURES = 320
LEAST_BATCH = 2
MASKED_BELOW = 0.75  # share that the crop keeps, below which z-scores are taken inside what is not zero
MOST_BATCH = 8  # of what is planned for a budget, whose patches may be small; FLARE24's large batch
VOXELS_OF_CPU = 2**18  # of a batch on a CPU, which learns more from many steps than from large ones
# Optimiser and schedule under the names of a training file. On a GPU nnU-Net's (Isensee et al. 2021); on a CPU, whose
# hours are a few thousand steps, AdamW, which finds small organs in hundreds of them where SGD stays at background
# (docs/experiments.md).
OPTIMISER: dict[str, dict[str, Any]] = {
    "cuda": {
        "optimizer": "sgd",
        "schedule": "poly",
        "learning_rate": 0.01,
        "momentum": 0.99,
        "weight_decay": 3e-5,
        "warmup": 0,
        "clip": 12.0,
        "initialisation": "he",
    },
    "cpu": {
        "optimizer": "adamw",
        "schedule": "cosine",
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "warmup": 100,
        "clip": 5.0,
        "initialisation": "torch",
    },
}
AUGMENTATION = {
    "rotate_deg": 30.0,
    "scale": [0.7, 1.4],
    "spatial": 0.2,
    "crop": 0.0,
    "centred": 0.5,  # its third of a batch of two is rounded up
    "blur": 0.2,
    "low_resolution": 0.25,
    "contrast": 0.15,
    "gamma": 0.3,
}
STEPS = {"cuda": 250_000, "cpu": 5000}  # its 1000 epochs of 250; what a CPU can do in hours

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Preset:
    """A family of networks and the training memory it is planned for.

    encoder: blocks a stage, the last repeats. decoder: convolutions a stage. residual: blocks of two convolutions and a
    shortcut, after a stem of one; else single convolutions. reference: feature-map values (see `feature_map_values`)
    that fit the memory at batch 2. share: most of the dataset's voxels that one batch may show.
    """

    encoder: tuple[int, ...]
    decoder: int
    residual: bool
    reference: float
    share: float
    features: int = 32


PRESETS = {
    "plain": Preset((2,), 2, False, 560e6, 0.05),
    "resenc_m": Preset((1, 3, 4, 6), 1, True, 680e6, 1.0),
    "resenc_l": Preset((1, 3, 4, 6), 1, True, 2100e6, 1.0),
    "resenc_xl": Preset((1, 3, 4, 6), 1, True, 3600e6, 1.0),
}


@dataclass(frozen=True)
class Topology:
    """A planned network; axes (right, anterior, superior), stages from fine to coarse.

    median_shape: of the dataset at this spacing, voxels. values: see `feature_map_values`.
    """

    spacing_mm: tuple[float, float, float]
    median_shape: tuple[float, float, float]
    patch: Triple
    strides: tuple[Triple, ...]
    kernels: tuple[Triple, ...]
    features: tuple[int, ...]
    encoder_blocks: tuple[int, ...]
    decoder_convolutions: tuple[int, ...]
    batch: int
    values: int


def target_spacing(fingerprint: Fingerprint) -> np.ndarray:
    """(3,) mm: the median an axis; finer along an axis that is much coarser, where half the cases would lose slices."""
    spacings = np.array([case.spacing_mm for case in fingerprint.cases])
    target = np.percentile(spacings, 50, axis=0)
    size = np.percentile([case.cropped for case in fingerprint.cases], 50, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > ANISOTROPIC * target[others].max() and size[worst] * ANISOTROPIC < size[others].min():
        finer = np.percentile(spacings[:, worst], 10)
        target[worst] = finer if finer >= target[others].max() else target[others].max() + 1e-5
    return target


def median_shape(fingerprint: Fingerprint, spacing_mm: np.ndarray) -> np.ndarray:
    """(3,) voxels: the median of the cropped shapes at another spacing, each rounded first."""
    shapes = [
        [round(step / new * size) for step, new, size in zip(case.spacing_mm, spacing_mm, case.cropped, strict=True)]
        for case in fingerprint.cases
    ]
    return np.median(shapes, axis=0)


def normalisation(fingerprint: Fingerprint) -> list[tuple[str, bool]]:
    """A (scheme, inside what is not zero only) per channel, by the channel's name; z-score for names not known."""
    schemes = {
        "ct": "CTNormalization",
        "nonorm": "NoNormalization",
        "zscore": "ZScoreNormalization",
        "rescale_to_0_1": "RescaleTo01Normalization",
        "rgb_to_0_1": "RGBTo01Normalization",
    }
    found = [schemes.get(name.casefold(), "ZScoreNormalization") for name in fingerprint.channels]
    cropped = fingerprint.relative_size < MASKED_BELOW
    return [(scheme, cropped and scheme == "ZScoreNormalization") for scheme in found]


def plan_training(fingerprint: Fingerprint, preset: Preset, spacing_mm: np.ndarray | None = None) -> Topology:
    """The network that nnU-Net's planner would train at full resolution, or at another spacing (mm)."""
    spacing = target_spacing(fingerprint) if spacing_mm is None else spacing_mm
    shape = median_shape(fingerprint, spacing)
    # nnU-Net's order: the coarsest axis first, then superior, anterior, right; it decides between equal axes
    order = sorted((2, 1, 0), key=lambda axis: axis != max((2, 1, 0), key=lambda each: spacing[each]))
    outputs = fingerprint.outputs
    step, size = [float(spacing[axis]) for axis in order], [float(shape[axis]) for axis in order]

    scale = (256**3 * prod(step)) ** (1 / 3)
    first = [min(round(scale / s), n) for s, n in zip(step, size, strict=True)]
    strides, kernels, patch = pooling(step, first)
    values = feature_map_values(patch, strides, outputs, preset)
    while values > preset.reference:
        ratios = [p / n for p, n in zip(patch, size, strict=True)]
        axis = max(range(3), key=lambda each: (ratios[each], each))
        divisor = [prod(stride[each] for stride in strides) for each in range(3)]
        smaller = list(patch)
        smaller[axis] -= divisor[axis]
        # what a smaller patch must be divisible by may be less, and a size in between may do
        patch[axis] -= prod(stride[axis] for stride in pooling(step, smaller)[0])
        strides, kernels, patch = pooling(step, patch)
        values = feature_map_values(patch, strides, outputs, preset)

    voxels = prod(size) * fingerprint.training_cases
    batch = min(round(preset.reference / values * 2), round(voxels * preset.share / prod(patch)))
    back = [order.index(axis) for axis in range(3)]
    return Topology(
        spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        median_shape=(float(shape[0]), float(shape[1]), float(shape[2])),
        patch=_turn(patch, back),
        strides=tuple(_turn(stride, back) for stride in strides),
        kernels=tuple(_turn(kernel, back) for kernel in kernels),
        features=features(len(strides), preset),
        encoder_blocks=encoder_blocks(len(strides), preset),
        decoder_convolutions=(preset.decoder,) * (len(strides) - 1),
        batch=max(batch, LEAST_BATCH),
        values=values,
    )


def pooling(spacing_mm: Sequence[float], size: Sequence[float]) -> tuple[list[list[int]], list[list[int]], list[int]]:
    """Strides and kernels of every stage, fine to coarse, and `size` rounded up to what the strides divide.

    At every stage the axes are halved that have 2 x EDGE voxels left and lie within twice the finest of those; a
    single such axis only with 3 x EDGE. A kernel axis is 1 until its spacing is below twice the finest, then 3.
    """
    spacing, left = list(spacing_mm), list(size)
    strides, kernels, kernel = [[1, 1, 1]], [], [1, 1, 1]
    while True:
        long = [axis for axis in range(3) if left[axis] >= 2 * EDGE]
        axes = [axis for axis in long if spacing[axis] / min(spacing[other] for other in long) < 2]
        if not axes or (len(axes) == 1 and left[axes[0]] < 3 * EDGE):
            break
        kernel = [3 if done == 3 or step / min(spacing) < 2 else 1 for done, step in zip(kernel, spacing, strict=True)]
        kernels.append(kernel)
        strides.append([2 if axis in axes else 1 for axis in range(3)])
        for axis in axes:
            spacing[axis], left[axis] = spacing[axis] * 2, ceil(left[axis] / 2)
    divisor = [prod(stride[axis] for stride in strides) for axis in range(3)]
    return strides, [*kernels, [3, 3, 3]], [ceil(n / d) * d for n, d in zip(size, divisor, strict=True)]


def feature_map_values(patch: Sequence[int], strides: Sequence[Sequence[int]], outputs: int, preset: Preset) -> int:
    """Values in all feature maps that convolutions write for one patch: nnU-Net's stand-in for training memory.

    Each convolution counts features x voxels of its output, so does each up-convolution and a shortcut that strides;
    the logits count once.
    """
    widths, depths = features(len(strides), preset), encoder_blocks(len(strides), preset)
    size, total, maps = list(patch), 0, []
    for stride, width, blocks in zip(strides, widths, depths, strict=True):
        size = [n // s for n, s in zip(size, stride, strict=True)]
        # one more where residual: the stem before the first stage, the shortcut that strides in the others
        count = 2 * blocks + 1 if preset.residual else blocks
        maps.append(width * prod(size))
        total += count * maps[-1]
    return total + sum((preset.decoder + 1) * values for values in maps[:-1]) + outputs * prod(patch)


def recipe(fingerprint: Fingerprint, plan: Plan, preset: Preset, device: str) -> dict[str, Any]:
    """Training of a plan of `preset`'s family, as keys of a training file; augmentation and batch are nnU-Net's.

    device: "cuda" or "cpu", which decides on the optimiser, for how many steps, and on a CPU on a smaller batch.
    """
    options = plan.network_options
    strides = [[stride] * 3 if isinstance(stride, int) else stride for stride in options["strides"]]
    own = replace(preset, features=options["features"][0], encoder=tuple(options["blocks"]))
    values = feature_map_values(plan.patch, strides, plan.outputs, own)
    voxels = prod(median_shape(fingerprint, np.array(plan.spacing_mm))) * fingerprint.training_cases
    batch = min(round(preset.reference / values * 2), round(voxels * preset.share / prod(plan.patch)), MOST_BATCH)
    if device == "cpu":
        batch = min(batch, VOXELS_OF_CPU // prod(plan.patch))
    return {"steps": STEPS[device], "batch": max(batch, LEAST_BATCH), **OPTIMISER[device], "augmentation": AUGMENTATION}


def features(stages: int, preset: Preset) -> tuple[int, ...]:
    """Features a stage: doubled from stage to stage up to MOST_FEATURES."""
    return tuple(min(MOST_FEATURES, preset.features * 2**stage) for stage in range(stages))


def encoder_blocks(stages: int, preset: Preset) -> tuple[int, ...]:
    """Blocks a stage of the encoder: the preset's, the last of them repeated."""
    return tuple(preset.encoder[min(stage, len(preset.encoder) - 1)] for stage in range(stages))


def _turn(values: Sequence[int], back: Sequence[int]) -> Triple:
    return (int(values[back[0]]), int(values[back[1]]), int(values[back[2]]))
