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
    """(prod(shape), channels + 6): what lies about each cell of the body's box, its centre and size in 100 mm.

    The mean of all features with Gaussian weights, whose standard deviation is half a cell along each axis, so that a
    cell depends little on where windows happen to lie. The centre is relative to that of the box.
    """
    coarsest = max(features.vectors)
    vectors, positions = features.vectors[coarsest], features.positions_mm[coarsest]
    low, high = body.extent_mm()
    size = (high - low) / np.array(shape)
    away = (np.indices(shape).reshape(3, -1).T + 0.5 - np.array(shape) / 2) * size
    rows = []
    for centre in away:
        nearness = -2 * np.square((positions - (low + high) / 2 - centre) / size).sum(axis=1)
        weights = np.exp(nearness - nearness.max())
        place = np.concatenate([centre, size]) / 100
        rows.append(np.concatenate([weights @ vectors / weights.sum(), place]))
    return np.array(rows, dtype=np.float32)


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
