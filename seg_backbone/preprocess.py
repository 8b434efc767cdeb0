"""Scan -> network input. One path for training and inference.

The plan's axes (right, anterior, superior, or the file's) and spacing, and one of two kinds of channels:
- HU windows (`plan.ct_windows_hu`), values in [-1, 1.5]. CT: one channel per window. MR: channel 0 is the signal over
  its 99.5th percentile, the other channels hold the constant MR_FLAG, which tells the network that there are no
  Hounsfield units.
- nnU-Net's (`plan.channels`), one file a channel, each normalised before it is resampled (Isensee et al. 2021). Linear
  resampling commutes with what is linear, so only clipping is done before it; the cubic one of `exact` does not.
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


def preprocess(volume: Volume, plan: Plan, exact: bool = False) -> tuple[np.ndarray, Grid]:
    """Returns (channels, i, j, k) float32 on the working grid of `scan_box`, and that grid.

    exact: nnU-Net's cubic interpolation where the plan has its resampling; slow, and takes 16 bytes a voxel.
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
    axis = separate_axis(grid.spacing_mm, plan.spacing_mm) if plan.resampling == "nnunet" else None
    filters = nnunet_filters(axis) if plan.resampling == "nnunet" else SMOOTH
    image = np.empty((len(arrays), *working.shape), dtype=np.float32)
    for number, (array, channel) in enumerate(zip(arrays, plan.channels, strict=True)):
        if exact and plan.resampling == "nnunet":
            image[number] = _cubic(_normalised(array, channel, inside), working.shape, axis)
        else:
            image[number] = _linear(array, channel, inside, working.shape, filters)
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
    """(shift, divisor) of a channel: its values become (value - shift) / divisor."""
    if channel.scheme == "ct":
        return channel.mean, max(channel.std, 1e-8)
    if channel.scheme in ("zscore", "zscore_nonzero"):
        mean, deviation = _moments(array, inside if channel.scheme == "zscore_nonzero" else None)
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


def _normalised(array: np.ndarray, channel: Channel, inside: np.ndarray | None) -> np.ndarray:
    """A channel on the scan's own grid, float32."""
    shift, divisor = _scale(array, channel, inside)
    image = array.astype(np.float32)
    if channel.scheme == "ct":
        np.clip(image, channel.low, channel.high, out=image)
    if channel.scheme == "zscore_nonzero":
        assert inside is not None
        return np.where(inside, (image - shift) / divisor, image).astype(np.float32)
    image -= shift
    image /= divisor
    return image


def _linear(
    array: np.ndarray,
    channel: Channel,
    inside: np.ndarray | None,
    shape: tuple[int, int, int],
    filters: Filters,
) -> np.ndarray:
    """`_normalised` on the working grid, by linear filters; the scan is never copied whole."""
    shift, divisor = _scale(array, channel, inside)
    limits = (channel.low, channel.high) if channel.scheme == "ct" else None
    image = resample_array(array, shape, filters, limits)
    if channel.scheme == "zscore_nonzero":
        assert inside is not None
        image -= shift * resample_array(inside, shape, filters)  # what lies outside is 0 already
    else:
        image -= shift
    image /= divisor
    return image


def _cubic(image: np.ndarray, shape: tuple[int, int, int], axis: int | None) -> np.ndarray:
    """nnU-Net's resampling: cubic splines, kept within the values they came from; along `axis` the nearest slice."""
    if image.shape == shape:
        return image
    if axis is None:
        return _spline(image, shape)
    between = [size for other, size in enumerate(shape) if other != axis]
    slices = [_spline(part, tuple(between)) for part in np.moveaxis(image, axis, 0)]
    steps = (np.arange(shape[axis]) + 0.5) * (image.shape[axis] / shape[axis])
    return np.stack([slices[int(step)] for step in steps], axis=axis)


def _spline(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """As scikit-image's `resize(order=3, mode="edge", anti_aliasing=False)`."""
    factors = [new / old for new, old in zip(shape, image.shape, strict=True)]
    zoomed = ndimage.zoom(image.astype(np.float64), factors, order=3, mode="nearest", grid_mode=True)
    return np.clip(zoomed, image.min(), image.max())
