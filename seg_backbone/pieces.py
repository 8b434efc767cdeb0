"""The 26-connected pieces of one class of a label map, numbered slab by slab: memory does not grow with the scan.

Enter a label map, a class and its index box, leave a number for each of its voxels and what a caller chooses pieces by.
cc3d numbers the pieces of each slab; those that touch across a cut are one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import cc3d
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SLAB_VOXELS = 2**23  # at once; cc3d takes up to 5 bytes a voxel

Place = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Pieces:
    """n pieces in the order in which memory comes upon them. voxels: (n,). centers: (n, 3) mean index.

    low, high: (n, 3) first and last index. Indices are those of the index box that was given.
    """

    voxels: np.ndarray
    centers: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __len__(self) -> int:
        return len(self.voxels)

    def box(self, number: int) -> Place:
        """The index box of a piece; the first one is 0."""
        ends = zip(self.low[number].tolist(), self.high[number].tolist(), strict=True)
        return tuple(slice(first, last + 1) for first, last in ends)


def slabs(array: np.ndarray) -> Iterator[Place]:
    """Places that together are an (i, j, k) array, cut along the axis that is slowest in memory."""
    axis = _slowest(array)
    thick = max(1, SLAB_VOXELS * array.shape[axis] // max(1, array.size))
    for start in range(0, array.shape[axis], thick):
        yield tuple(slice(start, start + thick) if a == axis else slice(0, n) for a, n in enumerate(array.shape))


def number_pieces(
    ids: np.ndarray, value: int, place: Place, numbers: np.ndarray, before: int = 0
) -> tuple[Pieces, np.ndarray]:
    """Write before + 1, before + 2, ... into `numbers` where `ids` is `value`, one number a piece.

    ids, numbers: (i, j, k) integers. place: index box of the class; what is not of the class is left alone. Returns the
    pieces and `numbers`: a copy with a wider type where its own would not do.
    """
    inside = ids[place]
    axis = _slowest(inside)
    found, pairs, edge = [], [], None
    total = 0
    for where in slabs(inside):
        own = inside[where] == value
        # cc3d 4.1 reserves too few labels for scattered voxels in a thin bool array and raises; for uint8 it does not
        labels = cc3d.connected_components(own.view(np.uint8), connectivity=26)
        known = cc3d.statistics(labels, no_slice_conversion=True)
        start = np.array([side.start for side in where])
        boxes = known["bounding_boxes"][1:].reshape(-1, 3, 2) + start[:, None]
        found.append((known["voxel_counts"][1:].astype(np.int64), known["centroids"][1:] + start, boxes))
        if before + total + len(boxes) > np.iinfo(numbers.dtype).max:
            numbers = numbers.astype(np.uint32)
        table = np.arange(before + total, before + total + len(boxes) + 1).astype(numbers.dtype)
        numbers[place][where][own] = table[labels[own]]
        first, last = (np.where(plane > 0, plane.astype(np.int64) + total, 0) for plane in _ends(labels, axis))
        if edge is not None:
            pairs.append(_touching(edge, first))
        edge, total = last, total + len(boxes)
    voxels, centers, boxes = (np.concatenate(parts) for parts in zip(*found, strict=True))
    pieces = Pieces(voxels, centers, boxes[..., 0], boxes[..., 1])
    links = np.concatenate(pairs) - 1 if pairs else np.empty((0, 2), dtype=np.int64)
    if not len(links):
        return pieces, numbers
    graph = coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(total, total))
    count, group = connected_components(graph, directed=False)
    renumber(numbers, ids, value, place, before + 1 + group, before)
    return _joined(pieces, group, count), numbers


def renumber(numbers: np.ndarray, ids: np.ndarray, value: int, place: Place, new: np.ndarray, before: int = 0) -> None:
    """Give the pieces that `number_pieces` numbered other numbers, in place. new: (n,), 0 for what is dropped."""
    table = np.concatenate([np.zeros(before + 1, dtype=numbers.dtype), new.astype(numbers.dtype)])
    inside, wanted = numbers[place], ids[place]
    for where in slabs(inside):
        own = wanted[where] == value
        inside[where][own] = table[inside[where][own]]


def _slowest(array: np.ndarray) -> int:
    return int(np.argmax(np.abs(array.strides)))


def _ends(labels: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last plane along an axis."""
    return labels.take(0, axis=axis), labels.take(-1, axis=axis)


def _touching(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(n, 2) pairs of numbers that are neighbours, straight or diagonal, in two planes that lie on each other."""
    rows, columns = before.shape
    padded = np.pad(before, 1)
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for row, column in product(range(3), range(3)):
        beside = padded[row : row + rows, column : column + columns]
        both = (beside > 0) & (after > 0)
        pairs.append(np.stack([beside[both], after[both]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _joined(pieces: Pieces, group: np.ndarray, count: int) -> Pieces:
    """The pieces of `count` groups. group: (n,) the one that each piece belongs to."""
    voxels = np.zeros(count, dtype=np.int64)
    np.add.at(voxels, group, pieces.voxels)
    sums = np.zeros((count, 3))
    np.add.at(sums, group, pieces.centers * pieces.voxels[:, None])
    low, high = np.full((count, 3), np.iinfo(np.int64).max), np.zeros((count, 3), dtype=np.int64)
    np.minimum.at(low, group, pieces.low)
    np.maximum.at(high, group, pieces.high)
    return Pieces(voxels, sums / voxels[:, None], low, high)
