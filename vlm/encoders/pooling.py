"""Features of any encoder -> one vector a visual cell and one an instance, by where the features lie in the patient.

The coarsest stage serves the visual cells, the finest the instances; with one stage it serves both.
"""

from __future__ import annotations

import numpy as np

from seg_backbone.geometry import Grid
from seg_backbone.lesions import Instance, Instances
from seg_backbone.predict import Features

Cells = tuple[int, int, int]
CELLS: Cells = (2, 2, 3)  # visual cells along (right, anterior, superior), unless a model says otherwise


def visual_cells(features: Features, body: Grid, shape: Cells = CELLS) -> np.ndarray:
    """(prod(shape), channels + 6): mean feature of each cell of the body's box, its centre and size in 100 mm.

    The centre is relative to that of the box. A cell without features holds the one nearest to its centre.
    """
    coarsest = max(features.vectors)
    vectors, positions = features.vectors[coarsest], features.positions_mm[coarsest]
    low, high = body.extent_mm()
    cells = np.array(shape)
    size = (high - low) / cells
    inside = np.all((positions >= low) & (positions <= high), axis=1)
    index = np.clip(((positions - low) / size).astype(int), 0, cells - 1)
    flat = np.ravel_multi_index(tuple(index.T), shape)[inside]
    total = np.zeros((int(cells.prod()), vectors.shape[1]))
    np.add.at(total, flat, vectors[inside])
    count = np.bincount(flat, minlength=len(total))[:, None]
    mean = total / np.maximum(count, 1)
    away = (np.indices(shape).reshape(3, -1).T + 0.5 - cells / 2) * size
    for cell in np.flatnonzero(count == 0):
        mean[cell] = vectors[np.square(positions - (low + high) / 2 - away[cell]).sum(1).argmin()]
    place = np.concatenate([away / 100, np.broadcast_to(size / 100, away.shape)], axis=1)
    return np.concatenate([mean, place], axis=1).astype(np.float32)


def instance_features(features: Features, instances: Instances, shown: list[Instance], grid: Grid) -> np.ndarray:
    """(len(shown), channels): mean of the features that lie inside each instance; the nearest one where none does."""
    finest = min(features.vectors)
    vectors, positions = features.vectors[finest], features.positions_mm[finest]
    pooled = np.zeros((len(shown), vectors.shape[1]), dtype=np.float32)
    if not shown:
        return pooled
    index = np.rint(grid.world_to_voxel(positions)).astype(int)
    valid = np.all((index >= 0) & (index < np.array(grid.shape)), axis=1)
    owner = np.zeros(len(positions), dtype=np.int64)
    owner[valid] = instances.map[tuple(index[valid].T)]
    for row, instance in enumerate(shown):
        inside = owner == instance.id
        if not inside.any():
            inside = np.zeros(len(positions), dtype=bool)
            inside[np.argmin(np.square(positions - np.array(instance.center_mm)).sum(1))] = True
        pooled[row] = vectors[inside].mean(axis=0)
    return pooled
