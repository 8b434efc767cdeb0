"""Scan -> network input. One path for training and inference.

Canonical axes (right, anterior, superior), the plan's spacing, and two or more channels in [-1, 1.5]:
CT: one channel per HU window. MR: channel 0 is the signal over its 99.5th percentile, the other channels hold the
constant MR_FLAG, which tells the network that there are no Hounsfield units.
"""

from __future__ import annotations

import numpy as np

from seg_backbone.geometry import Grid, to_canonical
from seg_backbone.plan import Plan
from seg_backbone.resample import resample_array
from seg_backbone.volume import Volume

PAD = -1.0  # the value of air in every scaled channel; what windows see beyond the scan
MR_FLAG = 1.5


def preprocess(volume: Volume, plan: Plan) -> tuple[np.ndarray, Grid]:
    """Returns (channels, i, j, k) float32 on the canonical working grid, and that grid."""
    array, grid = to_canonical(volume.array, volume.grid)
    working = grid.with_spacing(plan.spacing_mm)
    return normalise(resample_array(array, working.shape), volume.modality, plan), working


def normalise(image: np.ndarray, modality: str, plan: Plan) -> np.ndarray:
    """(i, j, k) intensities -> (channels, i, j, k) float32, see the module docstring."""
    channels = np.empty((len(plan.ct_windows_hu), *image.shape), dtype=np.float32)
    if modality == "CT":
        for number, (low, high) in enumerate(plan.ct_windows_hu):
            channels[number] = np.clip((image - low) * (2.0 / (high - low)) - 1.0, -1.0, 1.0)
        return channels
    positive = image[image > 0]
    top = float(np.percentile(positive, 99.5)) if positive.size else 1.0
    channels[0] = np.clip(image * (2.0 / max(top, 1e-6)) - 1.0, -1.0, 1.5)
    channels[1:] = MR_FLAG
    return channels
