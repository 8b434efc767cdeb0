"""A whole scan through a network that sees one window at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from seg_backbone.preprocess import PAD


def window_starts(shape: tuple[int, ...], patch: tuple[int, ...], step: float) -> list[tuple[int, ...]]:
    """First voxel of each window, spread evenly so that neighbours overlap by at least 1 - step (to the voxel)."""
    axes = []
    for size, window in zip(shape, patch, strict=True):
        count = max(1, int(np.ceil((size - window) / (window * step))) + 1) if size > window else 1
        last = max(0, size - window)
        axes.append(sorted({round(last * n / max(1, count - 1)) for n in range(count)}))
    return list(product(*axes))


def gaussian_window(patch: tuple[int, ...]) -> torch.Tensor:
    """(*patch) float32 blending weights, sigma = patch / 8 (Isensee et al. 2021), largest 1, never 0."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in patch]
    weights = np.einsum("i,j,k->ijk", *axes)
    return torch.from_numpy(np.maximum(weights / weights.max(), 1e-4).astype(np.float32))


def pad_to_patch(image: torch.Tensor, patch: tuple[int, ...]) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Pad (channels, i, j, k) with air to at least `patch`, evenly; returns it and where the scan lies in it.

    A constant channel (the flag of a modality) stays constant, as it does in training windows.
    """
    widths, place = [], []
    for size, window in zip(image.shape[1:], patch, strict=True):
        before = max(0, window - size) // 2
        widths.append((before, max(0, window - size) - before))
        place.append(slice(before, before + size))
    flat = [n for pair in reversed(widths) for n in pair]
    padded = F.pad(image, flat, value=PAD)
    for channel, values in zip(padded, image, strict=True):
        if values.min() == values.max():
            channel[:] = values.min()
    return padded, tuple(place)


def windows(
    image: torch.Tensor, patch: tuple[int, ...], step: float
) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
    """(place, (1, channels, *patch)) for every window of a padded image."""
    for start in window_starts(tuple(image.shape[1:]), patch, step):
        place = tuple(slice(s, s + n) for s, n in zip(start, patch, strict=True))
        yield place, image[(slice(None), *place)][None]


@torch.inference_mode()
def predict_logits(
    network: Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor],
    image: torch.Tensor,
    patch: tuple[int, int, int],
    step: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """(channels, i, j, k) float32 -> (classes, i, j, k) logits, overlapping windows blended with Gaussian weights.

    network(window, origin) gets (1, channels, *patch) and the scan voxel of the window's first corner (negative in the
    padding). With one window the result equals the network's. progress(done, total) is called after every window.
    """
    padded, place = pad_to_patch(image, patch)
    weights = gaussian_window(patch).to(image.device)
    total: torch.Tensor | None = None
    norm = torch.zeros(padded.shape[1:], device=image.device)
    count = len(window_starts(tuple(padded.shape[1:]), patch, step))
    for number, (window, crop) in enumerate(windows(padded, patch, step)):
        origin = tuple(w.start - p.start for w, p in zip(window, place, strict=True))
        logits = network(crop, origin)[0].float()
        if total is None:
            total = torch.zeros((logits.shape[0], *padded.shape[1:]), device=image.device)
        total[(slice(None), *window)] += logits * weights
        norm[window] += weights
        if progress:
            progress(number + 1, count)
    assert total is not None
    return total.div_(norm)[(slice(None), *place)]
