"""What is measured between instances, and of their surfaces: computed when it is asked, and only once.

Enters the instances of a scan with the map of their ids, leaves distances, areas and neighbours. Distances run between
voxel centres, so neighbouring voxels are one spacing apart. Without a map, as in scenes that were invented, the boxes
of the instances stand for them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

from seg_backbone.geometry import Grid
from seg_backbone.lesions import Instance

TOUCHING_MM = 10.0  # a lesion farther from every structure lies in none


class Relations:
    """map (i, j, k) of instance ids on `grid`, both or neither."""

    def __init__(self, ids: np.ndarray | None = None, grid: Grid | None = None) -> None:
        assert (ids is None) == (grid is None), "a map needs its grid"
        self.ids, self.grid = ids, grid
        self._borders: dict[int, KDTree] = {}

    def gap_mm(self, first: Instance, second: Instance) -> float:
        """The smallest distance in mm between voxel centres of two instances (between their boxes without a map)."""
        if self.ids is None:
            return _boxes_mm(first, second)
        one, other = sorted((self._border(first.id), self._border(second.id)), key=lambda tree: tree.n)
        return float(other.query(one.data)[0].min())

    def surface_area_cm2(self, instance: Instance) -> float | None:
        """The area of the instance's surface in cm2; None without a map.

        Cauchy-Crofton estimate of SimpleITK (Lehmann and Legland, Insight Journal 2012), which smooths the steps of the
        voxels: a ball's area is right within a few per cent from a radius of four voxels on.
        """
        if self.ids is None or self.grid is None:
            return None
        import SimpleITK as sitk

        place = self._places[instance.id - 1]
        assert place is not None, "every instance has voxels"
        piece = np.pad((self.ids[place] == instance.id).astype(np.uint8), 1)
        image = sitk.GetImageFromArray(piece.transpose(2, 1, 0))  # SimpleITK takes (k, j, i)
        image.SetSpacing([float(step) for step in self.grid.spacing_mm])
        statistics = sitk.LabelShapeStatisticsImageFilter()
        statistics.ComputePerimeterOn()
        statistics.Execute(image)
        return float(statistics.GetPerimeter(1)) / 100

    def nearest(self, instance: Instance, among: Iterable[Instance]) -> Instance | None:
        """The one of `among` with the smallest gap to `instance`; None where there is none. Of equals the one that lies
        nearest to all of its surface, as what surrounds it does; without a map the larger.
        """
        others = [other for other in among if other.id != instance.id]
        others.sort(key=lambda other: _boxes_mm(instance, other))
        best, reach = list[Instance](), np.inf
        for other in others:
            if _boxes_mm(instance, other) > reach:  # boxes hold their voxels: no gap is smaller than theirs
                break
            gap = round(self.gap_mm(instance, other), 3)
            if gap <= reach:
                best, reach = [*(best if gap == reach else []), other], gap
        return min(best, key=lambda other: self._away(instance, other)) if len(best) > 1 else next(iter(best), None)

    def _away(self, instance: Instance, other: Instance) -> float:
        """The mean distance in mm of the surface of `instance` from `other`; without a map less the larger that is."""
        if self.ids is None:
            return -other.volume_ml
        return float(self._border(other.id).query(self._border(instance.id).data)[0].mean())

    @cached_property
    def _places(self) -> list[tuple[slice, ...] | None]:
        assert self.ids is not None
        return list(find_objects(self.ids.astype(np.int32, copy=False)))

    def home(self, lesion: Instance, among: Iterable[Instance]) -> Instance | None:
        """The structure that a lesion lies in: the nearest of `among`, if it is within TOUCHING_MM."""
        organ = self.nearest(lesion, among)
        return organ if organ is not None and self.gap_mm(lesion, organ) <= TOUCHING_MM else None

    def _border(self, number: int) -> KDTree:
        """World mm of the voxels of an instance that have a face on its surface."""
        if number not in self._borders:
            assert self.ids is not None and self.grid is not None
            place = self._places[number - 1]
            assert place is not None, "every instance has voxels"
            piece = self.ids[place] == number
            inside = binary_erosion(piece)
            index = np.argwhere(piece & ~inside) + [s.start for s in place]
            self._borders[number] = KDTree(self.grid.voxel_to_world(index))
        return self._borders[number]


def _boxes_mm(first: Instance, second: Instance) -> float:
    """The distance in mm between the boxes of two instances; 0 where they overlap."""
    low, high = np.array(first.box.min_mm), np.array(first.box.max_mm)
    apart = np.maximum(0.0, np.maximum(low - second.box.max_mm, np.array(second.box.min_mm) - high))
    return float(np.linalg.norm(apart))
