"""A whole scan through a network that sees one window at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import binary_fill_holes

from seg_backbone.lesions import BODY_FRACTION, BODY_HU
from seg_backbone.plan import Plan
from seg_backbone.preprocess import PAD

UNSEEN_LOGIT = 10.0  # of background where every window was skipped; the other classes have 0


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


def body_mask(image: np.ndarray, modality: str, plan: Plan) -> np.ndarray | None:
    """(channels, i, j, k) preprocessed scan -> (i, j, k) bool, the body with what each axial slice of it encloses.

    CT: above -300 HU; None where no channel of the plan can tell. MR: above a tenth of the scan's 99.5th percentile.
    """
    channel, limit = 0, 2 * BODY_FRACTION - 1
    if modality == "CT":
        telling = [n for n, (low, high) in enumerate(plan.ct_windows_hu) if low < BODY_HU < high]
        if not telling:
            return None
        channel = telling[0]
        low, high = plan.ct_windows_hu[channel]
        limit = 2 * (BODY_HU - low) / (high - low) - 1
    body = image[channel] > limit
    for k in range(body.shape[2]):
        body[..., k] = binary_fill_holes(body[..., k])
    return body


def windows(
    image: torch.Tensor, patch: tuple[int, ...], step: float
) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
    """(place, (1, channels, *patch)) for every window of a padded image."""
    for start in window_starts(tuple(image.shape[1:]), patch, step):
        place = tuple(slice(s, s + n) for s, n in zip(start, patch, strict=True))
        yield place, image[(slice(None), *place)][None]


@torch.inference_mode()
def predict_logits(
    network: Callable[[torch.Tensor, list[tuple[int, ...]]], torch.Tensor],
    image: torch.Tensor,
    patch: tuple[int, int, int],
    step: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 1,
    accumulator: torch.dtype = torch.float32,
    body: np.ndarray | None = None,
) -> torch.Tensor:
    """(channels, i, j, k) float32 -> (classes, i, j, k) logits, overlapping windows blended with Gaussian weights.

    network(windows, origins) gets up to `batch` windows (n, channels, *patch) and the scan voxel of each one's first
    corner (negative in the padding). With one window the result equals the network's. progress(done, total) is called
    after every batch. accumulator: dtype of the sums and of the result. body: (i, j, k) bool; windows without any of it
    are skipped (one is always run), and a voxel that no window saw is background.
    """
    padded, place = pad_to_patch(image, patch)
    shape = tuple(padded.shape[1:])
    weights = gaussian_window(patch).to(image.device)
    places = [where for where, _ in windows(padded, patch, step)]
    if body is not None:
        inside = np.zeros(shape, dtype=bool)
        inside[place] = body
        places = [where for where in places if inside[where].any()] or places[:1]
    total: torch.Tensor | None = None
    norm = torch.zeros(shape, device=image.device)
    for first in range(0, len(places), batch):
        group = places[first : first + batch]
        crops = [padded[(slice(None), *where)][None] for where in group]
        origins = [tuple(w.start - p.start for w, p in zip(where, place, strict=True)) for where in group]
        for where, logits in zip(
            group, network(crops[0] if len(crops) == 1 else torch.cat(crops), origins), strict=True
        ):
            if total is None:
                total = torch.zeros((logits.shape[0], *shape), device=image.device, dtype=accumulator)
            total[(slice(None), *where)] += logits.float() * weights
            norm[where] += weights
        if progress:
            progress(first + len(group), len(places))
    assert total is not None
    if body is not None:
        unseen = norm == 0
        norm[unseen] = 1
        total[0][unseen] = UNSEEN_LOGIT
    return total.div_(norm)[(slice(None), *place)]
