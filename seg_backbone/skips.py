"""Windows that need not be run, each with what says so: there is no body in it, or nothing was found near it.

A window is named by its start, as `window_starts` gives it for the padded image. What is skipped becomes background.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes

from seg_backbone.geometry import Grid
from seg_backbone.lesions import BODY_FRACTION, BODY_HU, find_instances
from seg_backbone.plan import Channel, Plan, Roi
from seg_backbone.preprocess import PAD
from seg_backbone.sliding_window import Network, predict_blocks, window_starts
from seg_backbone.volume import Mask

CERTIFICATES = ("air", "roi", "gate")
FAT_HU = -150.0  # the lightest tissue of the body
Start = tuple[int, ...]
Place = tuple[slice, ...]


@dataclass(frozen=True)
class Tiling:
    """The windows of one image. shape: of the image; place: where it lies in the padded one (see `pad_to_patch`)."""

    shape: tuple[int, ...]
    patch: tuple[int, int, int]
    step: float

    @property
    def place(self) -> Place:
        """Where the image lies in the padded one."""
        before = [max(0, window - size) // 2 for size, window in zip(self.shape, self.patch, strict=True)]
        return tuple(slice(first, first + size) for first, size in zip(before, self.shape, strict=True))

    def starts(self) -> list[Start]:
        """Every window, by its first voxel in the padded image."""
        padded = tuple(max(size, window) for size, window in zip(self.shape, self.patch, strict=True))
        return window_starts(padded, self.patch, self.step)

    @property
    def count(self) -> int:
        """How many windows."""
        return len(self.starts())

    def inside(self, start: Start) -> Place:
        """The part of the image that a window sees."""
        first = [s - p.start for s, p in zip(start, self.place, strict=True)]
        return tuple(
            slice(max(0, low), min(low + window, size))
            for low, window, size in zip(first, self.patch, self.shape, strict=True)
        )


def windows_without(tiling: Tiling, mask: np.ndarray, among: Iterable[Start]) -> list[Start]:
    """Those of some windows that hold no voxel of a boolean (i, j, k) mask of the image."""
    return [start for start in among if not mask[tiling.inside(start)].any()]


def skip_report(skipped: dict[Start, str], tiling: Tiling, grid: Grid) -> dict[str, Any]:
    """How many windows were skipped by what, and where each of them lies in the patient (world mm, outer faces)."""
    windows = []
    for start, by in skipped.items():
        low, high = grid.cropped(tiling.inside(start)).extent_mm()
        windows.append({"by": by, "min_mm": low.round(2).tolist(), "max_mm": high.round(2).tolist()})
    counts = {name: sum(by == name for by in skipped.values()) for name in CERTIFICATES}
    return {**counts, "windows": windows, "voxels_that_differ": None, "lost": None}


def difference(mask: Mask, whole: Mask) -> dict[str, Any]:
    """What skipping changed. whole: the mask of all windows. lost: class -> how many of its pieces the mask lacks."""
    pieces = find_instances(whole)
    lost = [one.label for one in pieces if not (mask.array[pieces.map == one.id] == whole.labels[one.label]).any()]
    return {
        "voxels_that_differ": int((mask.array != whole.array).sum()),
        "lost": {label: lost.count(label) for label in dict.fromkeys(lost)},
    }


def body_mask(image: np.ndarray, modality: str, plan: Plan) -> np.ndarray | None:
    """(channels, i, j, k) preprocessed scan -> (i, j, k) bool, the body with what each axial slice of it encloses.

    CT: above -300 HU; None where no channel of the plan can tell. MR: above a tenth of the scan's 99.5th percentile.
    Channels that are normalised as nnU-Net does: the same of the first one, counted from its least value where not CT.
    """
    if plan.channels:
        return _filled(image[0] > limit) if (limit := _body_limit(image[0], plan.channels[0])) is not None else None
    channel, limit = 0, 2 * BODY_FRACTION - 1
    if modality == "CT":
        telling = [n for n, (low, high) in enumerate(plan.ct_windows_hu) if low < BODY_HU < high]
        if not telling:
            return None
        channel = telling[0]
        low, high = plan.ct_windows_hu[channel]
        limit = 2 * (BODY_HU - low) / (high - low) - 1
    return _filled(image[channel] > limit)


def _body_limit(image: np.ndarray, channel: Channel) -> float | None:
    """The normalised value above which is body; None for a CT channel that clips soft tissue away."""
    if channel.scheme != "ct":
        least = float(image.min())
        return least + BODY_FRACTION * (float(np.percentile(image, 99.5)) - least)
    if channel.low > FAT_HU:
        return None
    return (max(BODY_HU, channel.low + 1) - channel.mean) / channel.std


def _filled(body: np.ndarray) -> np.ndarray:
    for k in range(body.shape[2]):
        body[..., k] = binary_fill_holes(body[..., k])
    return body


def strided(tiling: Tiling, roi: Roi) -> Tiling:
    """The windows of the low-resolution pass: side by side over every n-th voxel."""
    shape = tuple(-(-size // stride) for size, stride in zip(tiling.shape, roi.stride, strict=True))
    return Tiling(shape, tiling.patch, 1.0)


@torch.inference_mode()
def region_of_interest(
    network: Network,
    image: torch.Tensor,
    tiling: Tiling,
    roi: Roi,
    spacing_mm: np.ndarray,
    excluded: Collection[int] = (),
    body: np.ndarray | None = None,
    keep_on: torch.device | None = None,
    pad: float = PAD,
) -> np.ndarray | None:
    """(i, j, k) bool box around everything that a low-resolution pass may have found; None where it found nothing.

    The network sees every n-th voxel of the image, without interpolation. A voxel counts where the classes that are not
    `excluded` have a probability above `roi.threshold` beside the background; their box is padded by
    `roi.margin_mm`. body: windows without any of it are left out of the pass. keep_on: see `predict_blocks`.
    """
    every = tuple(slice(None, None, stride) for stride in roi.stride)
    low = strided(tiling, roi)
    air = [] if body is None else windows_without(low, body[every], low.starts())
    first, last, done = np.full(3, np.inf), np.full(3, -np.inf), 0
    seen = image[(slice(None), *every)].contiguous()
    for block in predict_blocks(network, seen, low.patch, low.step, skipped=frozenset(air), keep_on=keep_on, pad=pad):
        wanted = [number for number in range(len(block)) if number not in excluded]
        found = 1 - block[wanted].float().softmax(0)[0] > roi.threshold
        if found.any():
            where = found.nonzero().cpu().numpy() + np.array([0, 0, done])
            first, last = np.minimum(first, where.min(0)), np.maximum(last, where.max(0))
        done += block.shape[-1]
    if not np.isfinite(first).all():
        return None
    margin = np.ceil(roi.margin_mm / spacing_mm)
    lowest = np.maximum(0, first * roi.stride - margin).astype(int)
    highest = np.minimum(np.array(tiling.shape) - 1, (last + 1) * roi.stride - 1 + margin).astype(int)
    box = np.zeros(tiling.shape, dtype=bool)
    box[tuple(slice(a, b + 1) for a, b in zip(lowest, highest, strict=True))] = True
    return box
