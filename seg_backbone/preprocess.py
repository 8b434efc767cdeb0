"""Scan -> network input. One path for training and inference.

The plan's axes (right, anterior, superior, or the file's) and spacing, and one of two kinds of channels:
- HU windows (`plan.ct_windows_hu`), values in [-1, 1.5]. CT: one channel per window. MR: channel 0 is the signal over
  its 99.5th percentile, the other channels hold the constant MR_FLAG, which tells the network that there are no
  Hounsfield units.
- nnU-Net's (`plan.channels`), one file a channel, each normalised before it is resampled (Isensee et al. 2021).
  Resampling is a sum with fixed weights and commutes with what is linear, so only clipping is done before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid, to_canonical
from seg_backbone.plan import Channel, Plan
from seg_backbone.resample import SMOOTH, Filters, nnunet_filters, resample_array
from seg_backbone.volume import Volume

PAD = -1.0  # the value of air in every channel of an HU window; what windows see beyond the scan
MR_FLAG = 1.5
Box = tuple[slice, slice, slice]


def padding(plan: Plan) -> float:
    """What windows see beyond the scan."""
    return 0.0 if plan.channels else PAD


def preprocess(volume: Volume, plan: Plan) -> tuple[np.ndarray, Grid]:
    """Returns (channels, i, j, k) float32 on the working grid of `scan_box`, and that grid.

    Raises ScanError where the scan has not as many channels as the plan.
    """
    arrays, whole = oriented(volume.channels, volume.grid, plan)
    box = scan_box(volume, plan)
    grid = whole.cropped(box)
    working = grid.with_spacing(plan.spacing_mm)
    arrays = [array[box] for array in arrays]
    if not plan.channels:
        return normalise(resample_array(arrays[0], working.shape), volume.modality, plan), working
    if len(arrays) != len(plan.channels):
        names = ", ".join(f"{number:04d} {channel.name}" for number, channel in enumerate(plan.channels))
        found = f"{len(arrays)}"
        raise ScanError(
            volume.source, f"{len(plan.channels)} channels ({names})", found, "name files CASE_0000, CASE_0001"
        )
    masked = any(channel.scheme == "zscore_nonzero" for channel in plan.channels)
    inside = ndimage.binary_fill_holes(_nonzero(arrays)) if masked else None
    splines = plan.resampling != "smooth"
    axis = separate_axis(grid.spacing_mm, plan.spacing_mm) if splines else None
    filters = nnunet_filters(axis, "cubic") if splines else SMOOTH
    image = np.empty((len(arrays), *working.shape), dtype=np.float32)
    for made, array, channel in zip(image, arrays, plan.channels, strict=True):
        only = inside if channel.scheme == "zscore_nonzero" else None
        scale = _scale(array, channel, only)
        made[:] = _resampled(array, channel, only, scale, working.shape, filters)
        if splines:  # they overshoot: kept within the values they came from
            np.clip(made, *_range(array, channel, only, scale, axis, made.shape), out=made)
    return image, working


def oriented(arrays: tuple[np.ndarray, ...], grid: Grid, plan: Plan) -> tuple[list[np.ndarray], Grid]:
    """Arrays on one grid in the plan's axes, as views where numpy allows, and their grid."""
    if plan.orientation == "file":
        return list(arrays), grid
    return [to_canonical(array, grid)[0] for array in arrays], to_canonical(arrays[0], grid)[1]


def scan_box(volume: Volume, plan: Plan) -> Box:
    """The part of the scan that the network sees, in the plan's axes: all of it, or the box of what is not zero."""
    arrays, grid = oriented(volume.channels, volume.grid, plan)
    sides = [slice(0, size) for size in grid.shape]
    if plan.crop_nonzero:
        nonzero = _nonzero(arrays)
        for axis in range(3):
            places = np.flatnonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
            if len(places):
                sides[axis] = slice(int(places[0]), int(places[-1]) + 1)
    return (sides[0], sides[1], sides[2])


def separate_axis(spacing_mm: np.ndarray, target_mm: tuple[float, ...]) -> int | None:
    """nnU-Net's rule: the axis along which the nearest slice is taken, where one is much coarser than the others.

    That is, more than three times the finest, before resampling or else after it; None where no axis is.
    """
    for spacing in (np.asarray(spacing_mm), np.asarray(target_mm)):
        if spacing.max() / spacing.min() > 3:
            coarsest = np.flatnonzero(spacing == spacing.max())
            return int(coarsest[0]) if len(coarsest) == 1 else None
    return None


def _nonzero(arrays: list[np.ndarray]) -> np.ndarray:
    """True where any channel is not zero."""
    nonzero = arrays[0] != 0
    for array in arrays[1:]:
        nonzero |= array != 0
    return nonzero


def normalise(image: np.ndarray, modality: str, plan: Plan) -> np.ndarray:
    """(i, j, k) intensities -> (channels, i, j, k) float32 by HU windows, see the module docstring."""
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


def _scale(array: np.ndarray, channel: Channel, inside: np.ndarray | None) -> tuple[float, float]:
    """(shift, divisor) of a channel: its values become (value - shift) / divisor. inside: where they count."""
    if channel.scheme == "ct":
        return channel.mean, max(channel.std, 1e-8)
    if channel.scheme in ("zscore", "zscore_nonzero"):
        mean, deviation = _moments(array, inside)
        return mean, max(deviation, 1e-8)
    if channel.scheme == "rescale_to_0_1":
        return float(array.min()), max(float(array.max()) - float(array.min()), 1e-8)
    return 0.0, 255.0 if channel.scheme == "rgb_to_0_1" else 1.0


def _moments(array: np.ndarray, inside: np.ndarray | None) -> tuple[float, float]:
    """Mean and standard deviation, slice by slice, so that no copy of the scan is made; (0, 0) for nothing inside."""

    def slices() -> Iterator[np.ndarray]:
        for number, part in enumerate(array):
            yield (part if inside is None else part[inside[number]]).astype(np.float64)

    count = array.size if inside is None else int(inside.sum())
    mean = sum(float(part.sum()) for part in slices()) / max(count, 1)
    return mean, (sum(float(((part - mean) ** 2).sum()) for part in slices()) / max(count, 1)) ** 0.5


def _clip(channel: Channel) -> tuple[float, float]:
    """The limits of a channel's values."""
    return (channel.low, channel.high) if channel.scheme == "ct" else (-np.inf, np.inf)


def _resampled(
    array: np.ndarray,
    channel: Channel,
    inside: np.ndarray | None,
    scale: tuple[float, float],
    shape: tuple[int, int, int],
    filters: Filters,
) -> np.ndarray:
    """A channel on the working grid, float32, normalised; 0 outside of `inside`, where the scan is 0 already."""
    shift, divisor = scale
    image = resample_array(array, shape, filters, _clip(channel))
    image -= shift if inside is None else shift * resample_array(inside, shape, filters)
    image /= divisor
    return image


def _range(
    array: np.ndarray,
    channel: Channel,
    inside: np.ndarray | None,
    scale: tuple[float, float],
    axis: int | None,
    shape: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """The least and largest normalised value of the scan, or along `axis` of the slice nearest to each of the new ones.

    Both broadcast against the working grid's `shape`.
    """
    along = 2 if axis is None else axis
    ends = np.zeros((array.shape[along], 2))
    for number, part in enumerate(np.moveaxis(array, along, 0)):
        kept = part if inside is None else part[np.moveaxis(inside, along, 0)[number]]
        if kept.size:
            low, high = np.clip((kept.min(), kept.max()), *_clip(channel))
            ends[number] = (low - scale[0]) / scale[1], (high - scale[0]) / scale[1]
        if kept.size < part.size:
            ends[number] = min(ends[number, 0], 0), max(ends[number, 1], 0)
    if axis is None:
        return ends[:, 0].min(), ends[:, 1].max()
    nearest = ((np.arange(shape[axis]) + 0.5) * len(ends) / shape[axis]).astype(np.int64)
    sides = [1, 1, 1]
    sides[axis] = -1
    return ends[nearest, 0].reshape(sides), ends[nearest, 1].reshape(sides)
