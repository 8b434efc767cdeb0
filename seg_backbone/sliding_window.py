"""A whole scan through a network that sees one window at a time; logits leave in blocks, as soon as they are final."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from seg_backbone.preprocess import PAD

UNSEEN_LOGIT = 10.0  # of background where every window was skipped; the other classes have 0
Forward = Callable[[torch.Tensor], torch.Tensor]
# (windows (n, channels, *patch), the scan voxel of each one's first corner, negative in the padding) -> logits
Network = Callable[[torch.Tensor, list[tuple[int, ...]]], torch.Tensor]


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


def nnunet_window(patch: tuple[int, ...]) -> torch.Tensor:
    """(*patch) float32: nnU-Net's Gaussian, whose centre is voxel n // 2: half a voxel off where n is even."""
    axes = [np.exp(-0.5 * ((np.arange(n) - n // 2) / (n / 8)) ** 2) for n in patch]
    return torch.from_numpy(np.einsum("i,j,k->ijk", *axes).clip(6e-9).astype(np.float32))


def uniform_window(patch: tuple[int, ...]) -> torch.Tensor:
    """(*patch) float32 blending weights, all 1: the plain mean of the windows."""
    return torch.ones(patch)


BLENDINGS = {"gaussian": gaussian_window, "uniform": uniform_window, "nnunet": nnunet_window}


def mirrored(forward: Forward, axes: tuple[int, ...], order: list[int] | None = None) -> Forward:
    """The mean of the logits over every combination of flips along `axes` (2^n runs a window).

    axes: among 0, 1, 2. order: for flips along axis 0, left to right, which class each class becomes; None where the
    network was trained to mirror without swapping sides.
    """
    flips = [tuple(axis + 2 for axis in some) for n in range(len(axes) + 1) for some in combinations(axes, n)]

    def run(windows: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for flip in flips:
            logits = forward(windows.flip(flip).contiguous()).flip(flip)
            if order is not None and 2 in flip:
                logits = logits[:, order]
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(flips)

    return run


def pad_to_patch(
    image: torch.Tensor, patch: tuple[int, ...], pad: float = PAD
) -> tuple[torch.Tensor, tuple[slice, ...]]:
    """Pad (channels, i, j, k) with air to at least `patch`, evenly; returns it and where the scan lies in it.

    A constant channel (the flag of a modality) stays constant, as it does in training windows. What is large enough is
    returned as it is, not copied.
    """
    if all(size >= window for size, window in zip(image.shape[1:], patch, strict=True)):
        return image, tuple(slice(0, size) for size in image.shape[1:])
    widths, place = [], []
    for size, window in zip(image.shape[1:], patch, strict=True):
        before = max(0, window - size) // 2
        widths.append((before, max(0, window - size) - before))
        place.append(slice(before, before + size))
    flat = [n for pair in reversed(widths) for n in pair]
    padded = F.pad(image, flat, value=pad)
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
def predict_blocks(
    network: Network,
    image: torch.Tensor,
    patch: tuple[int, int, int],
    step: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 1,
    accumulator: torch.dtype = torch.float32,
    blending: str = "gaussian",
    skipped: Collection[tuple[int, ...]] = (),
    keep_on: torch.device | None = None,
    pad: float = PAD,
) -> Iterator[torch.Tensor]:
    """(channels, i, j, k) float32 -> (classes, i, j, n) logits of overlapping windows, block by block along k.

    Windows are run in the order of their start along k, and a slice leaves as soon as no later window touches it: one
    window's depth of logits is held, whatever the length of the scan. A block is overwritten once the next is asked
    for. network: see `Network`; it gets up to `batch` windows of one start along k. progress(done, total) is called
    after every batch. accumulator: dtype of the sums and of the blocks. blending: see BLENDINGS. skipped: starts, as
    `window_starts` gives them for the padded image, of windows that are not run; a voxel that no window saw is
    background. keep_on: where the sums and the blocks are, if not on the image's device. Where every window is skipped
    there are no blocks. pad: see `preprocess.padding`.
    """
    padded, place = pad_to_patch(image, patch, pad)
    rows, columns, depth = padded.shape[1:]
    home = keep_on or image.device
    weights = BLENDINGS[blending](patch).to(home)
    starts = window_starts((rows, columns, depth), patch, step)
    levels = sorted({start[2] for start in starts})
    total: torch.Tensor | None = None
    norm = torch.zeros((rows, columns, patch[2]), device=home)
    done, count, owed = 0, sum(start not in skipped for start in starts), 0
    for level, following in zip(levels, [*levels[1:], depth], strict=True):
        group = [start for start in starts if start[2] == level and start not in skipped]
        for first in range(0, len(group), batch):
            some = group[first : first + batch]
            places = [tuple(slice(s, s + n) for s, n in zip(start, patch, strict=True)) for start in some]
            crops = [padded[(slice(None), *where)][None] for where in places]
            origins = [tuple(s - p.start for s, p in zip(start, place, strict=True)) for start in some]
            found = network(crops[0] if len(crops) == 1 else torch.cat(crops), origins)
            if total is None:
                total = torch.zeros((found.shape[1], *norm.shape), device=home, dtype=accumulator)
                if owed:
                    yield _background(total, owed)[:, place[0], place[1]]
            for (across, along, _), logits in zip(places, found, strict=True):
                total[:, across, along] += logits.float().to(home) * weights
                norm[across, along] += weights
            done += len(some)
            if progress:
                progress(done, count)
        finished = following - level
        if total is None:
            owed += finished
            continue
        block, sums = total[..., :finished], norm[..., :finished]
        unseen = sums == 0
        block[0][unseen] = UNSEEN_LOGIT
        block.div_(sums.masked_fill(unseen, 1))
        yield block[:, place[0], place[1], max(0, place[2].start - level) : place[2].stop - level]
        for sums in (norm, *total):  # class by class: the copy is small
            sums[..., : patch[2] - finished] = sums[..., finished:].clone()
            sums[..., patch[2] - finished :] = 0


def predict_logits(
    network: Network, image: torch.Tensor, patch: tuple[int, int, int], step: float = 0.5, **settings: Any
) -> torch.Tensor:
    """All the blocks of `predict_blocks`, which has the settings, as one (classes, i, j, k) array."""
    return torch.cat([block.clone() for block in predict_blocks(network, image, patch, step, **settings)], dim=-1)


def _background(like: torch.Tensor, depth: int) -> torch.Tensor:
    """(classes, i, j, depth) logits of voxels that no window saw; takes no memory."""
    logits = torch.zeros((like.shape[0], 1, 1, 1), device=like.device, dtype=like.dtype)
    logits[0] = UNSEEN_LOGIT
    return logits.expand(-1, *like.shape[1:3], depth)
