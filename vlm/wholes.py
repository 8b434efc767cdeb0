"""A structure whole: all pieces of an organ that its mask holds in several, measured together.

Enters the instances of one class, leaves one `Instance`. An organ is one thing in however many pieces its mask has it
(a pancreas broken on thick slices); of lesions every piece is one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from seg_backbone.boxes import Box
from seg_backbone.lesions import Instance
from seg_backbone.measure import Point

OF_THE_LARGEST = (
    "long_axis",
    "short_axis",
    "diameter_3d",
    "slice",
)  # facts that the largest piece alone is measured for


@dataclass(frozen=True)
class Whole(Instance):
    """pieces: two or more, largest first. What does not add up (axes, 3D diameter, slice) is that of the largest."""

    pieces: tuple[Instance, ...] = ()


def whole(pieces: Sequence[Instance]) -> Instance:
    """The pieces of one class as one; a single piece as it is.

    Volume and voxels are summed, the box holds all, the centroid and the mean intensity are weighted by volume, the
    spread is that of all voxels together. The median, which cannot be had from parts, is None.
    """
    first, *others = sorted(pieces, key=lambda piece: piece.rank)
    if not others:
        return first
    parts = (first, *others)
    share = np.array([piece.volume_ml for piece in parts])
    share = share / share.sum()
    low, high = (np.array([getattr(piece.box, end) for piece in parts]) for end in ("min_mm", "max_mm"))
    box = Box(_point(low.min(axis=0)), _point(high.max(axis=0)))
    values = {f.name: getattr(first, f.name) for f in fields(Instance)}
    values |= {
        "voxels": sum(piece.voxels for piece in parts),
        "volume_ml": sum(piece.volume_ml for piece in parts),
        "craniocaudal_mm": box.size_mm[2],
        "center_mm": _point(share @ np.array([piece.center_mm for piece in parts])),
        "box": box,
        "intensity_median": None,
    }
    means, spreads = [piece.intensity_mean for piece in parts], [piece.intensity_std for piece in parts]
    if None not in means and None not in spreads:
        mean = float(share @ np.array(means))
        squares = float(share @ (np.array(spreads) ** 2 + np.array(means) ** 2))
        values |= {"intensity_mean": mean, "intensity_std": math.sqrt(max(0.0, squares - mean**2))}
    return Whole(**values, pieces=parts)


def pieces_of(instances: Iterable[Instance]) -> list[Instance]:
    """The instances, each whole as its pieces."""
    return [piece for instance in instances for piece in getattr(instance, "pieces", (instance,))]


def _point(values: np.ndarray) -> Point:
    x, y, z = values.tolist()
    return x, y, z
