"""Segmenter: a scan in, its mask, instances and measurements out, on the scan's own grid.

The encoder's features are kept on the way (they cost nothing more), so that whoever answers questions about the scan
shares one pass of the network with the mask.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch

from seg_backbone.boxes import bounds
from seg_backbone.checkpoint import load_model
from seg_backbone.errors import ConfigError, ScanError
from seg_backbone.geometry import Grid, to_canonical
from seg_backbone.io import read_volume
from seg_backbone.lesions import Instances, find_instances
from seg_backbone.plan import Plan
from seg_backbone.preprocess import preprocess
from seg_backbone.resample import argmax_slabs
from seg_backbone.sliding_window import predict_logits
from seg_backbone.volume import MODALITIES, Mask, Volume, guess_modality

FAST_STEP = 0.8  # share of a window between neighbours in fast mode; FLARE's winners use 0.7 to 0.8


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder saw, as points in the patient.

    vectors: stage -> (n, channels) float32; positions_mm: stage -> (n, 3) float32 world mm, the centre of the
    region behind each vector. Stages are counted from fine (0) to coarse (-1); only the kept ones are here.
    """

    vectors: dict[int, np.ndarray]
    positions_mm: dict[int, np.ndarray]


@dataclass(frozen=True, eq=False)
class Segmentation:
    """mask: on the scan's own grid. instances: measured, in mm. features: for the vision-language model.

    report: what was run and how long each part took, ready for JSON.
    """

    mask: Mask
    instances: Instances
    features: Features
    report: dict[str, Any]


class Segmenter:
    """A loaded model. Call it on a path, a Volume, or (array, affine)."""

    def __init__(self, network: torch.nn.Module, plan: Plan, version: str, device: str = "cpu") -> None:
        self.network, self.plan, self.version = network.to(device), plan, version
        self.device = torch.device(device)

    @staticmethod
    def load(name: str | Path = "default", device: str = "auto") -> Segmenter:
        """Load a model that ships by name, or a model folder. device: "auto", "cpu" or "cuda".

        Raises CheckpointError for a folder that is no model, ConfigError for "cuda" on a machine without it.
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("device", "a CUDA device that torch can use", "none", "pass cpu or auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return Segmenter(*load_model(name), device=device)

    def __call__(
        self,
        scan: str | Path | Volume | tuple[np.ndarray, np.ndarray],
        modality: str | None = None,
        fast: bool = False,
        keep_stages: tuple[int, ...] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> Segmentation:
        """Segment and measure one scan.

        (array, affine): (i, j, k) numbers and a 4x4 voxel -> RAS mm affine. fast: fewer overlapping windows.
        keep_stages: encoder stages whose features to keep (see Features). progress: called with (windows done, all).
        A scan without any of the classes gives an all-zero mask and no instances. Raises ScanError for bad input.
        """
        clock = _Clock()
        volume = as_volume(scan, modality)
        clock.lap("read")
        image, grid = preprocess(volume, self.plan)
        clock.lap("preprocess")
        collector = _Collector(self.network, grid, keep_stages)
        step = FAST_STEP if fast else self.plan.step
        tensor = torch.from_numpy(image).to(self.device)
        logits = predict_logits(collector, tensor, self.plan.patch, step, progress)
        clock.lap("network")
        mask, percent = self._export(logits, volume)
        clock.lap("export")
        instances = _measure(mask, volume, percent)
        clock.lap("measure")
        report = {
            "source": volume.source,
            "modality": volume.modality,
            "modality_from": volume.modality_from,
            "model": f"{self.plan.name}@{self.version}",
            "classes": list(self.plan.classes),
            "not_trained_for": self.untrained(volume.modality),
            "shape": list(volume.grid.shape),
            "spacing_mm": [round(float(s), 4) for s in volume.grid.spacing_mm],
            "orientation": volume.grid.orientation,
            "mode": "fast" if fast else "accurate",
            "windows": collector.count,
            "seconds": clock.seconds,
            "instances": [instance.to_json() for instance in instances],
        }
        return Segmentation(mask, instances, collector.features(), report)

    def untrained(self, modality: str) -> list[str]:
        """The classes that no training scan of this modality annotated: the mask never holds them."""
        trained = self.plan.trained_on.get(modality, ())
        return [name for name in self.plan.classes if name not in trained]

    def _export(self, logits: torch.Tensor, volume: Volume) -> tuple[Mask, np.ndarray]:
        """Logits on the working grid -> cleaned mask and uint8 percent probability, on the scan's own grid."""
        array = np.empty(volume.grid.shape, dtype=np.uint8)
        percent = np.empty(volume.grid.shape, dtype=np.uint8)
        ids, sure = (to_canonical(whole, volume.grid)[0] for whole in (array, percent))  # views
        excluded = tuple(self.plan.labels[name] for name in self.untrained(volume.modality))
        shape = (ids.shape[0], ids.shape[1], ids.shape[2])
        for place, part, probability in argmax_slabs(logits, shape, excluded=excluded):
            ids[..., place] = part.cpu().numpy()
            sure[..., place] = probability.mul_(100).round_().to(torch.uint8).cpu().numpy()
        clean(ids, self.plan, volume.grid.voxel_volume_ml)
        return Mask(array, volume.grid, self.plan.labels, volume.source), percent


def as_volume(scan: str | Path | Volume | tuple[np.ndarray, np.ndarray], modality: str | None = None) -> Volume:
    """A Volume from whatever a user holds: a path, a Volume, or (array, affine). Raises ScanError."""
    if isinstance(scan, Volume):
        return scan
    if isinstance(scan, tuple):
        return volume_from_array(*scan, modality=modality)
    return read_volume(scan, modality)


def volume_from_array(array: np.ndarray, affine: np.ndarray, modality: str | None = None) -> Volume:
    """(i, j, k) numbers and a 4x4 affine (RAS mm) as a Volume, checked as a file would be. Raises ScanError."""
    array, affine = np.asarray(array), np.asarray(affine)
    if modality is not None and modality not in MODALITIES:
        raise ScanError("array", f"a modality among {MODALITIES}", repr(modality), "pass one of them")
    if array.dtype.kind not in "iufb":
        raise ScanError("array", "a grey-value image", f"voxels of type {array.dtype}", "give real numbers")
    if array.ndim != 3 or min(array.shape) < 2:
        raise ScanError("array", "a 3D volume", f"shape {array.shape}", "give one channel as a stack of slices")
    if not np.isfinite(array).all() or array.min() == array.max():
        raise ScanError("array", "finite values that differ", "NaN, infinity or one value", "check the input")
    real = affine.shape == (4, 4) and affine.dtype.kind in "iuf" and bool(np.isfinite(affine).all())
    if not real or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        found = "a singular one or NaN" if affine.shape == (4, 4) else f"shape {affine.shape}"
        raise ScanError("array", "an invertible 4x4 affine", found, "give voxel -> RAS mm")
    if array.dtype not in (np.int16, np.float32):
        array = array.astype(np.float32)
    shape = (array.shape[0], array.shape[1], array.shape[2])
    return Volume(
        array, Grid(shape, affine), modality or guess_modality(array), "array", "given" if modality else "guessed"
    )


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


def _measure(mask: Mask, volume: Volume, percent: np.ndarray) -> Instances:
    """The instances of a mask; percent: (i, j, k) uint8 probability of each voxel's class, left so to save memory."""
    found = find_instances(mask, volume, percent)
    scaled = [replace(one, probability=None if one.probability is None else one.probability / 100) for one in found]
    return Instances(scaled, found.map)


class _Collector:
    """The network as a function of one window, which keeps encoder features and where in the patient they lie."""

    def __init__(self, network: torch.nn.Module, grid: Grid, stages: tuple[int, ...]) -> None:
        self.network, self.grid = network, grid
        self.vectors: dict[int, list[np.ndarray]] = {stage: [] for stage in stages}
        self.positions: dict[int, list[np.ndarray]] = {stage: [] for stage in stages}
        self.count = 0

    def __call__(self, window: torch.Tensor, origin: tuple[int, ...]) -> torch.Tensor:
        self.count += 1
        maps = self.network.encoder(window)
        for stage in self.vectors:
            features = maps[stage][0]
            self.vectors[stage].append(features.flatten(1).T.float().cpu().numpy())
            cell = np.array(window.shape[2:]) / np.array(features.shape[1:])
            index = np.indices(features.shape[1:]).reshape(3, -1).T
            voxel = np.array(origin) + (index + 0.5) * cell - 0.5
            self.positions[stage].append(self.grid.voxel_to_world(voxel).astype(np.float32))
        return self.network.decoder(maps)

    def features(self) -> Features:
        """Every kept vector and its place. Windows overlap, so a place may come up more than once."""
        return Features(
            {stage: np.concatenate(parts) for stage, parts in self.vectors.items()},
            {stage: np.concatenate(parts) for stage, parts in self.positions.items()},
        )


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now
