"""Images and label maps onto a working grid, as separable linear filters.

An array over a physical extent goes to another number of voxels over the SAME extent (outer faces fixed). Along one
axis that is a small matrix: a tent whose half-width is one output voxel when shrinking (so nothing aliases) and one
input voxel when growing (plain linear interpolation). Three matrix products resample a volume, on any device. Networks
of nnU-Net know no smoothing: for them an axis of a scan is filtered by cubic splines and one of logits linearly,
shrinking or not, or either by its nearest voxel.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage

Filters = tuple[str, str, str]  # of each axis: "smooth" (the tent above), "linear", "cubic" or "nearest"
SMOOTH: Filters = ("smooth", "smooth", "smooth")


def nnunet_filters(axis: int | None, kind: str = "linear") -> Filters:
    """nnU-Net's: "linear" for logits, "cubic" for scans; along `axis` (see `preprocess.separate_axis`) the nearest."""
    first, second, third = ("nearest" if axis == each else kind for each in range(3))
    return first, second, third


@lru_cache(maxsize=64)
def linear_weights(source: int, target: int, kind: str = "smooth") -> torch.Tensor:
    """(target, source) float32 rows that sum to one; edges repeat the border voxel. kind: see `Filters`.

    cubic: an interpolating spline is linear in its samples, so what it makes of the unit vectors is its matrix; as
    scikit-image's `resize(order=3, mode="edge", anti_aliasing=False)`, but for the final clip to the samples' range.
    """
    scale = source / target
    if kind == "cubic":
        spline = ndimage.zoom(np.eye(source), (target / source, 1), order=3, mode="nearest", grid_mode=True)
        return torch.from_numpy(spline.astype(np.float32))
    if kind == "nearest":  # the voxel that holds the centre
        return torch.eye(source)[((np.arange(target) + 0.5) * scale).astype(np.int64)]
    centre = (np.arange(target) + 0.5) * scale - 0.5
    reach = max(1.0, scale) if kind == "smooth" else 1.0
    first = np.floor(centre - reach).astype(int)
    weights = np.zeros((target, source))
    for offset in range(int(np.ceil(2 * reach)) + 2):
        tap = first + offset
        value = np.maximum(0.0, 1.0 - np.abs(tap - centre) / reach)
        np.add.at(weights, (np.arange(target), np.clip(tap, 0, source - 1)), value)
    return torch.from_numpy((weights / weights.sum(1, keepdims=True)).astype(np.float32))


def resample_array(
    array: np.ndarray,
    shape: tuple[int, int, int],
    filters: Filters = SMOOTH,
    limits: tuple[float, float] | None = None,
) -> np.ndarray:
    """(i, j, k) array of any real dtype -> float32 at `shape`. Shrinks first along the axis that shrinks most.

    filters: of each axis. limits: values are clipped to them first.
    The first product runs slab by slab, so a large int16 scan is never copied whole to float32. The axes are taken in
    the order of memory, the slowest first: a NIfTI scan has i fastest, and copying it turned costs most of the time.
    """
    layout = sorted(range(3), key=lambda axis: -abs(array.strides[axis]))
    if layout != [0, 1, 2]:
        first, second, third = layout
        turned = resample_array(
            array.transpose(layout),
            (shape[first], shape[second], shape[third]),
            (filters[first], filters[second], filters[third]),
            limits,
        )
        return np.ascontiguousarray(turned.transpose(np.argsort(layout)))
    order = sorted(range(3), key=lambda axis: shape[axis] / array.shape[axis])
    data: np.ndarray | torch.Tensor = array
    for position, axis in enumerate(order):
        if shape[axis] == data.shape[axis]:
            continue
        weights = linear_weights(array.shape[axis], shape[axis], filters[axis])
        other = 0 if axis != 0 else 1
        size = list(data.shape)
        size[axis] = shape[axis]
        out = torch.empty(size)
        step = max(1, data.shape[other] // 16) if position == 0 else data.shape[other]
        for start in range(0, data.shape[other], step):
            window = [slice(None)] * 3
            window[other] = slice(start, start + step)
            part = data[tuple(window)]
            if isinstance(part, np.ndarray):
                part = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
                part = part.clamp(*limits) if limits else part
            out[tuple(window)] = torch.tensordot(weights, part, dims=([1], [axis])).movedim(0, axis)
        data = out
    if isinstance(data, torch.Tensor):
        return np.ascontiguousarray(data.numpy())
    whole = np.array(data, dtype=np.float32, order="C")
    return whole.clip(*limits) if limits else whole


def resample_labels(array: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Label map -> label map at `shape` (uint8): each label's indicator is resampled, the largest wins."""
    best = np.full(shape, -1.0, dtype=np.float32)
    out = np.zeros(shape, dtype=np.uint8)
    for value in np.unique(array):
        share = resample_array((array == value).astype(np.float32), shape)
        out[share > best] = value
        np.maximum(best, share, out=best)
    return out
