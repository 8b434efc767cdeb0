"""What a mask may hold, by the plan's rules: components too small, or a second piece of what anatomy has once, go."""

from __future__ import annotations

import numpy as np

from seg_backbone.boxes import value_boxes
from seg_backbone.pieces import number_pieces, slabs
from seg_backbone.plan import Plan


def clean(ids: np.ndarray, plan: Plan, voxel_ml: float) -> np.ndarray:
    """Drop components that the plan's rules exclude: below `minimum_ml`, or all but the largest of a `single` class.

    ids: (i, j, k) uint8, changed in place and returned.
    """
    boxes = value_boxes(ids)
    for name, value in plan.labels.items():
        least = plan.minimum_ml.get(name, 0.0) / voxel_ml
        if value not in boxes or (name not in plan.single and least <= 1):
            continue
        inside = ids[boxes[value]]
        whole = tuple(slice(0, size) for size in inside.shape)
        pieces, numbers = number_pieces(inside, value, whole, np.zeros_like(inside, dtype=np.uint16))
        kept = pieces.voxels >= least
        if name in plan.single:
            kept &= np.arange(len(pieces)) == pieces.voxels.argmax()  # of equal ones the first
        dropped = np.concatenate([[False], ~kept])  # what is of another class stays
        for where in slabs(inside):
            inside[where][dropped[numbers[where]]] = 0
    return ids
