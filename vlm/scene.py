"""Scene: everything the language model is shown of one scan, and everything code may measure on it.

Built once per scan from the segmentation (or from given masks) and the encoder features that the same pass produced.
Positions enter in millimetres and relative to the box of the body, so spacing, orientation and empty border of the file
do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import nibabel as nib
import numpy as np

from seg_backbone.geometry import Grid
from seg_backbone.labels import is_lesion
from seg_backbone.lesions import Instance, Instances
from seg_backbone.predict import Features
from seg_backbone.relations import Relations
from seg_backbone.volume import Volume
from vlm.body import body_place, is_cut
from vlm.encoders.pooling import CELLS, Cells, instance_features, visual_cells
from vlm.regions import REGIONS, regions_in_view

GEOMETRY = 24  # numbers that describe an instance, see `geometry_of`
FACTS = 8 + len(REGIONS)  # numbers that describe the scan, see `scan_facts`
MAX_INSTANCES = 128  # the largest ones are shown: a mask of a hundred organs, or many metastases, is shown whole


@dataclass(frozen=True, eq=False)
class Scene:
    """visual (cells, channels + 6) float32; pooled (K, channels) float32 and geometry (K, GEOMETRY) float32, one row
    an instance in the order of `instances`; facts (FACTS,) float32. body: the part of `grid` that holds the body.
    classes: names that an instance could have; untrained: those of them that the checkpoint cannot find in this scan.
    relations: what code measures between instances. cut: see vlm/body.py; "in the midline" cannot be said then.
    """

    source: str
    modality: str
    grid: Grid
    body: Grid
    instances: list[Instance]
    classes: tuple[str, ...]
    untrained: tuple[str, ...]
    visual: np.ndarray
    pooled: np.ndarray
    geometry: np.ndarray
    facts: np.ndarray
    relations: Relations = field(default_factory=Relations)
    cut: bool = False

    def showing(self, instances: list[Instance], pooled: np.ndarray) -> Scene:
        """The same scan with other instances; pooled: (K, channels)."""
        geometry = describe(instances, self.modality, self.body)
        facts = scan_facts(self.modality, self.body, instances)
        return replace(self, instances=instances, pooled=pooled, geometry=geometry, facts=facts, relations=Relations())


def build_scene(
    volume: Volume,
    instances: Instances,
    classes: tuple[str, ...],
    untrained: tuple[str, ...],
    features: Features,
    cells: Cells = CELLS,
) -> Scene:
    """Pool features into tokens and describe instances. cells: how many the body's box is divided into, along (right,
    anterior, superior).

    A scan without instances gives arrays of zero rows. Of more than MAX_INSTANCES the largest by volume stay.
    """
    shown, place = largest(instances), body_place(volume)
    visual = visual_cells(features, volume.grid.cropped(place), cells)
    pooled = instance_features(features, instances, shown, volume.grid)
    return scene_of(volume, place, shown, classes, untrained, visual, pooled, Relations(instances.map, volume.grid))


def scene_of(
    volume: Volume,
    place: tuple[slice, ...],
    shown: list[Instance],
    classes: tuple[str, ...],
    untrained: tuple[str, ...],
    visual: np.ndarray,
    pooled: np.ndarray,
    relations: Relations | None = None,
) -> Scene:
    """A scene of features that are pooled already, see Scene; without relations boxes stand for the instances.

    place: of the body, see `body_place`.
    """
    body = volume.grid.cropped(place)
    return Scene(
        source=volume.source,
        modality=volume.modality,
        grid=volume.grid,
        body=body,
        instances=shown,
        classes=classes,
        untrained=untrained,
        visual=visual,
        pooled=pooled,
        geometry=describe(shown, volume.modality, body),
        facts=scan_facts(volume.modality, body, shown),
        relations=relations or Relations(),
        cut=is_cut(volume, place),
    )


def largest(instances: Iterable[Instance]) -> list[Instance]:
    """Those that are shown: the MAX_INSTANCES largest by volume, in the order of their ids."""
    return sorted(sorted(instances, key=lambda i: -i.volume_ml)[:MAX_INSTANCES], key=lambda i: i.id)


def scene_classes(scene: Scene) -> tuple[str, ...]:
    """Every class a question about the scene may name: those it could hold and those it does hold."""
    return tuple(dict.fromkeys((*scene.classes, *(instance.label for instance in scene.instances))))


def describe(instances: list[Instance], modality: str, body: Grid) -> np.ndarray:
    """(K, GEOMETRY) float32: the `geometry_of` rows of a scan's instances; ranks are among instances of one class."""
    count: dict[str, int] = {}
    for instance in instances:
        count[instance.label] = count.get(instance.label, 0) + 1
    order: dict[str, int] = {}
    rows = np.zeros((len(instances), GEOMETRY), dtype=np.float32)
    by_size = sorted(range(len(instances)), key=lambda n: -instances[n].volume_ml)
    low, high = body.extent_mm()
    for place, n in enumerate(by_size):
        instance = instances[n]
        rank = order.setdefault(instance.label, 0) + 1
        order[instance.label] = rank
        rows[n] = geometry_of(
            instance, rank, count[instance.label], place, len(instances), modality == "CT", (low + high) / 2
        )
    return rows


def geometry_of(
    instance: Instance, rank: int, same: int, place: int, total: int, ct: bool, centre_mm: np.ndarray
) -> np.ndarray:
    """(GEOMETRY,) float32, each entry of order one.

    0-2 centroid from the centre of the body's box and 3-5 box size, 100 mm; 6-8 log volume, long and short axis; 9-10
    HU mean and spread / 200 (0 without HU); 11-13 left, right, midline; 14-17 first, second, third, last of its class
    by volume; 18 log of how many there are; 19 is a lesion; 20-21 largest, smallest of all; 22 probability; 23 is CT.
    """
    row = np.zeros(GEOMETRY, dtype=np.float32)
    row[0:3] = (np.array(instance.center_mm) - centre_mm) / 100
    row[3:6] = np.array(instance.box.size_mm) / 100
    row[6:9] = np.log1p([instance.volume_ml, instance.long_axis_mm, instance.short_axis_mm]) / 5
    if ct and instance.intensity_mean is not None:
        row[9:11] = np.clip([instance.intensity_mean / 200, (instance.intensity_std or 0.0) / 200], -5, 5)
    row[11 + ("left", "right", "midline").index(instance.side)] = 1
    row[14:18] = rank == 1, rank == 2, rank == 3, rank == same
    row[18] = np.log(same)
    row[19] = is_lesion(instance.label)
    row[20:22] = place == 0, place == total - 1
    row[22] = instance.probability if instance.probability is not None else 1.0
    row[23] = ct
    return row


def scan_facts(modality: str, body: Grid, instances: Iterable[Instance]) -> np.ndarray:
    """(FACTS,) float32: is CT, is MR, log spacing (3), extent of the body in view in 300 mm (3), along
    right, anterior, up; then for each of REGIONS whether a structure tells that it is in view, all 0 where none tells.
    """
    low, high = body.extent_mm()
    axes = nib.io_orientation(body.affine)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[axes] = body.spacing_mm
    seen = regions_in_view(instances)
    values = [modality == "CT", modality == "MR", *np.log(spacing), *(high - low) / 300, *(r in seen for r in REGIONS)]
    return np.array(values, dtype=np.float32)
