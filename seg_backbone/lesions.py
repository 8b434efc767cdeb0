"""Mask -> instances: every connected piece of every class, found, numbered and measured.

Enters a Mask (with the Volume and the foreground probability where there are), leaves one `Instance` a piece and a map
of their ids. An instance is a 26-connected component of one class. Each class is cut to its index box before labelling
and each component before measuring, so the cost follows the size of the structures, not of the scan. What is as large
as the scan is taken slab by slab, so that beside the map hardly any memory is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from seg_backbone.boxes import Box, box_of
from seg_backbone.errors import LabelError
from seg_backbone.geometry import Grid
from seg_backbone.measure import Point, axial_axes, diameter_3d_mm
from seg_backbone.pieces import SLAB_VOXELS, number_pieces, renumber, slabs
from seg_backbone.volume import Mask, Volume, require_same_grid

MIDLINE_MM = 5.0  # centroids this near to the body's midline are on neither side
BODY_HU = -300.0  # CT: body against air and lung
BODY_FRACTION = 0.1  # MR: body above this fraction of the 99th percentile


@dataclass(frozen=True)
class Instance:
    """One connected piece of one class. Lengths are between voxel centres (see measure.py), the box holds outer faces.

    id: 1-based over the scan, the value in `Instances.map`. rank: 1 for the largest of its class by volume.
    long_axis_points_mm: the two world ends of the long axis. slice: {"axis": "axial", "index": k}, the slice it lies
    on, k along `grid.axial_axis`. diameter_3d_mm: largest distance in 3D. craniocaudal_mm: the box along world z.
    center_mm: centroid, world mm. side: the patient's "left", "right" or "midline". intensity_*: HU for CT, else
    arbitrary; None without a volume. probability: mean foreground probability in [0, 1]; None where not given.
    """

    id: int
    label: str
    rank: int
    voxels: int
    volume_ml: float
    long_axis_mm: float
    short_axis_mm: float
    long_axis_points_mm: tuple[Point, Point]
    slice: dict[str, str | int]
    diameter_3d_mm: float
    craniocaudal_mm: float
    center_mm: Point
    box: Box
    side: str
    intensity_mean: float | None = None
    intensity_std: float | None = None
    intensity_median: float | None = None
    probability: float | None = None

    @property
    def transverse_mm(self) -> float:
        """The box along world x, from left to right."""
        return self.box.size_mm[0]

    @property
    def anteroposterior_mm(self) -> float:
        """The box along world y, from front to back."""
        return self.box.size_mm[1]

    def to_json(self) -> dict[str, object]:
        """The evidence of an answer, and the rest: mm to 0.01, ml to 0.001, intensity to 0.1, probability to 0.0001."""

        def to(digits: int, value: float | None) -> float | None:
            return None if value is None else round(value, digits)

        return {
            "instance": self.id,
            "label": self.label,
            "rank": self.rank,
            "voxels": self.voxels,
            "volume_ml": to(3, self.volume_ml),
            "long_axis_mm": to(2, self.long_axis_mm),
            "short_axis_mm": to(2, self.short_axis_mm),
            "long_axis_points_mm": [[to(2, x) for x in point] for point in self.long_axis_points_mm],
            "slice": dict(self.slice),
            "diameter_3d_mm": to(2, self.diameter_3d_mm),
            "craniocaudal_mm": to(2, self.craniocaudal_mm),
            "center_mm": [to(2, x) for x in self.center_mm],
            "box": self.box.to_json(),
            "side": self.side,
            "intensity_mean": to(1, self.intensity_mean),
            "intensity_std": to(1, self.intensity_std),
            "intensity_median": to(1, self.intensity_median),
            "probability": to(4, self.probability),
        }


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances of a scan in the order of their ids, and where they lie.

    list: instance n has id n + 1. map: (i, j, k) of ids on the mask's grid, 0 where there is none; uint16, but uint32
    where a mask has more than 65535 pieces.
    """

    list: list[Instance]
    map: np.ndarray

    def __len__(self) -> int:
        return len(self.list)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.list)

    def of(self, label: str) -> Sequence[Instance]:
        """The instances of one class, largest first; empty where there are none."""
        return [instance for instance in self.list if instance.label == label]


def find_instances(
    mask: Mask,
    volume: Volume | None = None,
    probability: np.ndarray | None = None,
    minimum_ml: dict[str, float] | None = None,
) -> Instances:
    """Find, number and measure the instances of a mask, by class in the order of `mask.labels`, then largest first.

    volume: the scan, for intensities and the midline. probability: (i, j, k) mean foreground probability in [0, 1].
    minimum_ml: class -> volume below which a piece is dropped, from the map too. An empty mask gives no instances.
    Equal volumes are ordered by centroid, superior first.
    Raises GridError where volume and mask differ in grid, LabelError where the mask holds an id that has no name.
    """
    if volume is not None:
        require_same_grid(volume, mask)
    assert probability is None or probability.shape == mask.grid.shape, "probability and mask differ in shape"
    unnamed = [value for value in mask.boxes if value not in mask.labels.values()]
    if unnamed:
        raise LabelError(
            mask.source, "a name for every label", f"{unnamed} without one", "name them in the labels file"
        )
    present = {label: mask.boxes[value] for label, value in mask.labels.items() if value in mask.boxes}
    midline_mm = _midline_mm(mask.grid, volume) if any(_named_side(label) is None for label in present) else 0.0
    axial = mask.grid.axial_axis
    found: list[Instance] = []
    where = np.zeros(mask.grid.shape, dtype=np.uint16, order="F" if mask.array.flags.fnc else "C")
    for label, place in present.items():
        value = mask.labels[label]
        pieces, where = number_pieces(mask.array, value, place, where, len(found))
        centers = mask.grid.voxel_to_world(pieces.centers + [s.start for s in place])
        least = (minimum_ml or {}).get(label, 0.0)
        kept = [n for n in range(len(pieces)) if pieces.voxels[n] * mask.grid.voxel_volume_ml >= least]
        kept.sort(key=lambda n: (-int(pieces.voxels[n]), *np.round(-centers[n, ::-1], 3)))
        ids = np.zeros(len(pieces), dtype=np.int64)
        ids[kept] = np.arange(len(found) + 1, len(found) + 1 + len(kept))
        renumber(where, mask.array, value, place, ids, len(found))
        for rank, n in enumerate(kept, start=1):
            crop = tuple(slice(p.start + b.start, p.start + b.stop) for p, b in zip(place, pieces.box(n), strict=True))
            piece = where[crop] == ids[n]
            grid = mask.grid.cropped(crop)
            axes, box, diameter_mm = axial_axes(piece, grid), box_of(piece, grid), diameter_3d_mm(piece, grid)
            assert axes is not None and box is not None and diameter_mm is not None, "a component is never empty"
            x, y, z = centers[n].tolist()
            values = None if volume is None else volume.array[crop][piece]
            mean = None if values is None else float(values.mean(dtype=np.float64))
            found.append(
                Instance(
                    id=len(found) + 1,
                    label=label,
                    rank=rank,
                    voxels=int(pieces.voxels[n]),
                    volume_ml=int(pieces.voxels[n]) * mask.grid.voxel_volume_ml,
                    long_axis_mm=axes.long_mm,
                    short_axis_mm=axes.short_mm,
                    long_axis_points_mm=axes.points_mm,
                    slice={"axis": "axial", "index": axes.slice_index + crop[axial].start},
                    diameter_3d_mm=diameter_mm,
                    craniocaudal_mm=box.size_mm[2],
                    center_mm=(x, y, z),
                    box=box,
                    side=_named_side(label) or _side(x, midline_mm),
                    intensity_mean=mean,
                    intensity_std=None if values is None or mean is None else _deviation(values, mean),
                    intensity_median=None if values is None else float(np.median(values)),
                    probability=None if probability is None else float(probability[crop][piece].mean(dtype=np.float64)),
                )
            )
    return Instances(found, where)


def _named_side(label: str) -> str | None:
    """The side a class name carries: `parotid_left` -> "left"; None for a class without one."""
    side = label.rpartition("_")[2]
    return side if side in ("left", "right") else None


def _side(x_mm: float, midline_mm: float) -> str:
    """The patient's side of a world x: RAS+, so a larger x lies to the right."""
    if abs(x_mm - midline_mm) <= MIDLINE_MM:
        return "midline"
    return "right" if x_mm > midline_mm else "left"


def _deviation(values: np.ndarray, mean: float) -> float:
    """The standard deviation of some values, part by part, so that no float64 copy of them is made."""
    parts = (values[start : start + SLAB_VOXELS] for start in range(0, len(values), SLAB_VOXELS))
    return (sum(float((np.subtract(part, mean, dtype=np.float64) ** 2).sum()) for part in parts) / len(values)) ** 0.5


def _midline_mm(grid: Grid, volume: Volume | None) -> float:
    """World x of the body's centroid over the whole scan; of the grid's middle without a volume or a body."""
    middle = (np.array(grid.shape) - 1) / 2
    if volume is not None:
        limit = BODY_HU
        if volume.modality != "CT":
            every = 1 if volume.array.size <= SLAB_VOXELS else 2  # what is sorted is a copy
            limit = BODY_FRACTION * float(np.percentile(volume.array[::every, ::every, ::every], 99))
        profiles = [np.zeros(size, dtype=np.int64) for size in grid.shape]
        for place in slabs(volume.array):
            body = volume.array[place] > limit
            for profile, side, others in zip(profiles, place, ((1, 2), (0, 2), (0, 1)), strict=True):
                profile[side] += body.sum(axis=others, dtype=np.int64)
        if total := int(profiles[0].sum()):
            middle = np.array([profile @ np.arange(len(profile)) for profile in profiles]) / total
    return float(grid.voxel_to_world(middle)[0])
