"""What a mask may hold, by the plan's rules: components too small, or a second piece of what anatomy has once, go."""

from __future__ import annotations

import cc3d
import numpy as np

from seg_backbone.boxes import bounds
from seg_backbone.plan import Plan


def clean(ids: np.ndarray, plan: Plan, voxel_ml: float) -> np.ndarray:
    """Drop components that the plan's rules exclude: below `minimum_ml`, or all but the largest of a `single` class.

    ids: (i, j, k) uint8, changed in place and returned.
    """
    for name, value in plan.labels.items():
        least = plan.minimum_ml.get(name, 0.0) / voxel_ml
        if name not in plan.single and least <= 1:
            continue
        present = ids == value
        place = bounds(present)
        if place is None:
            continue
        # as in lesions.py: cc3d 4.1 raises for scattered voxels in a small bool array, never for uint8
        pieces = cc3d.connected_components(np.ascontiguousarray(present[place]).view(np.uint8), connectivity=26)
        del present
        sizes = cc3d.statistics(pieces)["voxel_counts"].astype(np.int64)
        sizes[0] = 0
        drop = sizes < max(least, 1)
        if name in plan.single:
            drop |= np.arange(len(sizes)) != sizes.argmax()  # of equal ones the first
        drop[0] = False  # other classes stay
        ids[place][drop[pieces]] = 0
    return ids
