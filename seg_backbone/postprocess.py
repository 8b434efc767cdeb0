"""What a mask may hold, by the plan's rules: components too small, or a second piece of what anatomy has once, go."""

from __future__ import annotations

import cc3d
import numpy as np
from scipy.ndimage import find_objects

from seg_backbone.boxes import bounds
from seg_backbone.plan import Plan


def clean(ids: np.ndarray, plan: Plan, voxel_ml: float) -> np.ndarray:
    """Drop components that the plan's rules exclude: below `minimum_ml`, or all but the largest of a `single` class.

    ids: (i, j, k) uint8, changed in place and returned.
    """
    box = bounds(ids)
    if box is None:
        return ids
    inner = ids[box]
    places = find_objects(np.ascontiguousarray(inner), max_label=len(plan.classes))  # one pass for all classes
    for (name, value), place in zip(plan.labels.items(), places, strict=True):
        least = plan.minimum_ml.get(name, 0.0) / voxel_ml
        if place is None or (name not in plan.single and least <= 1):
            continue
        # as in lesions.py: cc3d 4.1 raises for scattered voxels in a small bool array, never for uint8
        present = np.ascontiguousarray(inner[place] == value).view(np.uint8)
        pieces = cc3d.connected_components(present, connectivity=26)
        sizes = cc3d.statistics(pieces)["voxel_counts"].astype(np.int64)
        sizes[0] = 0
        drop = sizes < max(least, 1)
        if name in plan.single:
            drop |= np.arange(len(sizes)) != sizes.argmax()  # of equal ones the first
        drop[0] = False  # other classes stay
        inner[place][drop[pieces]] = 0
    return ids
