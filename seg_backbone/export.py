"""Logits on the working grid -> class ids on the scan's own grid, slab by slab, whatever the number of classes.

Enter blocks of logits in the order of the last axis, as the windows finish them; leaves, for each slab of the scan, the
box in which a class may win, with its ids and how sure they are. A block is let go as soon as no slab needs it, so
neither the logits of the scan nor those of the whole working grid are ever held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from seg_backbone.resample import SMOOTH, Filters, linear_weights

INTERPOLATIONS = ("linear", "nearest")
ROUNDING = 1e-5  # of the largest logit: more than three float32 sums lose
Place = tuple[slice, slice, slice]
Held = list[tuple[int, torch.Tensor]]  # (slice that a block starts at, block)


@torch.inference_mode()
def argmax_slabs(
    blocks: Iterable[torch.Tensor],
    source: tuple[int, int, int],
    shape: tuple[int, int, int],
    slab: int = 16,
    excluded: tuple[int, ...] = (),
    interpolation: str = "linear",
    filters: Filters = SMOOTH,
    painted: tuple[int, ...] = (),
) -> Iterator[tuple[Place, torch.Tensor, torch.Tensor]]:
    """Resample logits from `source` to `shape` and take the argmax, `slab` slices of the last axis at a time.

    blocks: (C, i, j, n) float32 or float16, one after the other along the last axis, together (C, *source); each may be
    overwritten once the next is asked for. Yields (box in the scan, its uint8 class ids, float32 probability of those
    classes). Outside of the boxes everything is background; no blocks give no boxes. excluded: classes that cannot be
    found. Of equal logits the first class wins.

    linear: logits are interpolated. The classes pass one by one, each read from the input slices that the slab needs
    (its halo), and leave a running maximum and softmax denominator: memory grows with I x J x slab, not with C. Every
    sum has a fixed order, so neither `slab` nor the cut into blocks changes a bit. nearest: the ids are taken from the
    nearest voxel of the working grid. filters: of each axis, where logits are interpolated.

    painted: of regions that overlap, the id that output n + 1 paints where it is above 0, over what was painted before;
    output 0 is 0 everywhere. The probability is then that of the region painted last.

    A box is certain: an interpolated logit lies between the least and the largest of the voxels that it comes from, so
    background wins where the least of background exceeds the largest of every other class.
    """
    assert interpolation in INTERPOLATIONS, interpolation
    kinds = filters if interpolation == "linear" else ("nearest",) * 3
    axes = [_axis(*each) for each in zip(source, shape, kinds, strict=True)]
    if painted:
        excluded = tuple(number + 1 for number, value in enumerate(painted) if value in excluded)
    held: Held = []
    ready, start = 0, 0
    for block in blocks:
        assert block.shape[0] <= 256, "ids are uint8"
        held.append((ready, block))
        ready += block.shape[-1]
        while start < shape[2]:
            stop = min(start + slab, shape[2])
            if axes[2].reads(slice(start, stop)).stop > ready:
                break
            place = _foreground(held, axes, slice(start, stop), excluded)
            if place is not None:
                run = _interpolated if interpolation == "linear" else _copied
                yield place, *run(held, axes, place, excluded, painted)
            start = stop
        if start < shape[2]:  # the halo of what is left is kept
            low = axes[2].reads(slice(start, start + 1)).start
            held = [(max(at, low), part[..., max(0, low - at) :].clone()) for at, part in held]
            held = [(at, part) for at, part in held if part.shape[-1]]


@dataclass(frozen=True, eq=False)
class _Axis:
    """A filter along one axis: output n is the sum over taps t of weights[t, n] * input[first[n] + t].

    first: (target,) nondecreasing. weights: (taps, target) float32, columns sum to one.
    """

    first: np.ndarray
    weights: torch.Tensor

    def reads(self, outputs: slice) -> slice:
        """The inputs that some outputs come from."""
        return slice(int(self.first[outputs.start]), int(self.first[outputs.stop - 1]) + len(self.weights))

    def writes(self, firsts: slice) -> slice:
        """The outputs whose first input lies in `firsts`."""
        start, stop = np.searchsorted(self.first, (firsts.start, firsts.stop))
        return slice(int(start), int(stop))

    def __call__(self, part: torch.Tensor, axis: int, outputs: slice) -> torch.Tensor:
        """The inputs that `outputs` read -> the outputs, along `axis`, tap by tap."""
        shape = [1, 1, 1]
        shape[axis] = -1
        weights = self.weights[:, outputs].to(part.device)
        out = self.take(part, axis, outputs).mul_(weights[0].view(shape))
        for tap in range(1, len(weights)):
            out += self.take(part, axis, outputs, tap).mul_(weights[tap].view(shape))
        return out

    def take(self, part: torch.Tensor, axis: int, outputs: slice, tap: int = 0) -> torch.Tensor:
        """The input of one tap for each of `outputs`."""
        index = torch.from_numpy(self.first[outputs] - self.first[outputs.start] + tap).to(part.device)
        return part.index_select(axis, index)


def _axis(source: int, target: int, kind: str) -> _Axis:
    """The nonzero entries of `linear_weights`; the nearest voxel is the one that holds the centre of the output."""
    if kind == "nearest":
        return _Axis(((np.arange(target) + 0.5) * source / target).astype(np.int64), torch.ones((1, target)))
    weights = linear_weights(source, target, kind)
    taps = int((weights > 0).sum(1).max())
    first = (weights > 0).int().argmax(1).clamp(max=source - taps)
    return _Axis(first.numpy(), weights.gather(1, first[:, None] + torch.arange(taps)).T.contiguous())


def _read(held: Held, number: int, place: Place) -> torch.Tensor:
    """One class of the held blocks inside a box of the working grid, float32."""
    rows, columns, depth = place
    parts = [
        block[number, rows, columns, max(0, depth.start - at) : depth.stop - at]
        for at, block in held
        if at < depth.stop and at + block.shape[-1] > depth.start
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).float()


def _foreground(held: Held, axes: list[_Axis], outputs: slice, excluded: tuple[int, ...]) -> Place | None:
    """The box of a slab outside of which background wins for certain; None where it wins everywhere."""
    whole = (slice(None), slice(None), axes[2].reads(outputs))
    classes = [number for number in range(1, held[0][1].shape[0]) if number not in excluded]
    if not classes:
        return None
    top = _read(held, classes[0], whole)
    for number in classes[1:]:
        top = torch.maximum(top, _read(held, number, whole))
    background = _read(held, 0, whole)
    slack = ROUNDING * torch.maximum(top.abs().max(), background.abs().max())
    taps = [len(axis.weights) for axis in axes]
    largest = F.max_pool3d(top.contiguous()[None], taps, 1)[0]
    least = -F.max_pool3d(-background.contiguous()[None], taps, 1)[0]
    may = largest >= least - slack
    box = []
    for axis in (0, 1):
        firsts = may.any(dim=2).any(dim=1 - axis).nonzero()
        if not len(firsts):
            return None
        box.append(axes[axis].writes(slice(int(firsts[0]), int(firsts[-1]) + 1)))
    return (box[0], box[1], outputs) if all(side.stop > side.start for side in box) else None


def _interpolated(
    held: Held, axes: list[_Axis], place: Place, excluded: tuple[int, ...], painted: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and probabilities of a box of the scan from interpolated logits."""

    def parts() -> Iterator[tuple[int, torch.Tensor]]:
        for number, part in _classes(held, axes, place, excluded):
            for axis in (2, 1, 0):  # the largest array is made last
                part = axes[axis](part, axis, place[axis])
            yield number, part

    return _paint(parts(), painted) if painted else _argmax(parts())


def _copied(
    held: Held, axes: list[_Axis], place: Place, excluded: tuple[int, ...], painted: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and probabilities of a box of the scan, each from the nearest voxel of the working grid."""
    parts = _classes(held, axes, place, excluded)
    ids, probability = _paint(parts, painted) if painted else _argmax(parts)
    for axis in (2, 1, 0):
        ids = axes[axis].take(ids, axis, place[axis])
        probability = axes[axis].take(probability, axis, place[axis])
    return ids, probability


def _classes(
    held: Held, axes: list[_Axis], place: Place, excluded: tuple[int, ...]
) -> Iterator[tuple[int, torch.Tensor]]:
    """(class, its logits on the working grid where a box of the scan reads them), class by class."""
    rows, columns, depth = (axis.reads(outputs) for axis, outputs in zip(axes, place, strict=True))
    for number in range(held[0][1].shape[0]):
        if number not in excluded:
            yield number, _read(held, number, (rows, columns, depth))


def _argmax(parts: Iterator[tuple[int, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits class by class -> (uint8 id of the largest, float32 softmax probability of it)."""
    number, first = next(parts)
    top = first.clone()  # it may be a view of the logits
    ids = torch.full_like(top, number, dtype=torch.uint8)
    total = torch.ones_like(top)
    for number, part in parts:
        rises = part > top
        ids.masked_fill_(rises, number)
        # the sum of exp(x - top) under the new top: either the old sum shrinks or the new term is below 1
        ratio = (part - top).abs_().neg_().exp_()
        total = torch.where(rises, total * ratio + 1, total + ratio)
        torch.maximum(top, part, out=top)
    return ids, total.reciprocal_()


def _paint(parts: Iterator[tuple[int, torch.Tensor]], painted: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of regions one by one, after an output 0 that is 0 -> (uint8 id painted last, float32 probability)."""
    _, first = next(parts)
    ids = torch.zeros_like(first, dtype=torch.uint8)
    sure = torch.ones_like(first)
    for number, part in parts:
        above = part > 0
        ids.masked_fill_(above, painted[number - 1])
        sure = torch.where(above, part.sigmoid(), sure)
    return ids, sure
