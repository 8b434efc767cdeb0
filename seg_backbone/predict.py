"""Segmenter: a scan in, its mask, instances and measurements out, on the scan's own grid.

The encoder's features are kept on the way (they cost nothing more), so that whoever answers questions about the scan
shares one pass of the network with the mask.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch

from seg_backbone.boxes import bounds
from seg_backbone.checkpoint import load_model
from seg_backbone.errors import ConfigError, ScanError
from seg_backbone.geometry import Grid, to_canonical
from seg_backbone.governor import MB, Budget, Choice, Work, choose, peak_ram_mb, ram_mb, window_mb
from seg_backbone.io import read_volume
from seg_backbone.lesions import Instances, find_instances
from seg_backbone.plan import Plan
from seg_backbone.preprocess import preprocess
from seg_backbone.resample import argmax_slabs
from seg_backbone.runtimes import (
    DRIFT_DICE,
    Forward,
    drift,
    has_openvino,
    openvino_runtime,
    require_runtime,
    torch_runtime,
)
from seg_backbone.sliding_window import body_mask, pad_to_patch, predict_logits, window_starts
from seg_backbone.volume import MODALITIES, Mask, Volume, guess_modality

FAST_STEP = 0.8  # share of a window between neighbours in fast mode; FLARE's winners use 0.7 to 0.8
GPU_BATCH = 4  # windows at once on a GPU; on a CPU more than one gains nothing


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

    def __init__(
        self, network: torch.nn.Module, plan: Plan, version: str, device: str = "cpu", runtime: str = "torch"
    ) -> None:
        require_runtime(runtime, device)
        self.network, self.plan, self.version, self.runtime = network.to(device), plan, version, runtime
        self.device = torch.device(device)
        self._openvino: Forward | None = None
        self._drift: dict[str, float] | None = None

    @staticmethod
    def load(name: str | Path = "default", device: str = "auto", runtime: str = "torch") -> Segmenter:
        """Load a model that ships by name, or a model folder. device: "auto", "cpu" or "cuda".

        runtime: "torch", "openvino", or "auto": OpenVINO where it is installed, in fast mode on a CPU.
        Raises CheckpointError for a folder that is no model, ConfigError for a device or runtime that is not there.
        """
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError("device", "a CUDA device that torch can use", "none", "pass cpu or auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return Segmenter(*load_model(name), device=device, runtime=runtime)

    def __call__(
        self,
        scan: str | Path | Volume | tuple[np.ndarray, np.ndarray],
        modality: str | None = None,
        fast: bool = False,
        keep_stages: tuple[int, ...] = (),
        progress: Callable[[int, int], None] | None = None,
        max_gpu_mb: float | None = None,
        max_ram_mb: float | None = None,
        max_seconds: float | None = None,
        verify_skips: bool = False,
    ) -> Segmentation:
        """Segment and measure one scan.

        (array, affine): (i, j, k) numbers and a 4x4 voxel -> RAS mm affine. fast: fewer overlapping windows, and those
        of air only are skipped. keep_stages: encoder stages whose features to keep (see Features); then every window
        is run, by torch. progress: called with (windows done, all). max_*: see Budget; settings are degraded until they
        fit, and the report says which. verify_skips: also run the skipped windows and count the voxels that differ.
        A scan without any of the classes gives an all-zero mask and no instances.
        Raises ScanError for bad input, ConfigError for caps that are too small, naming the smallest that would do.
        """
        clock = _Clock()
        budget = Budget(max_ram_mb, max_gpu_mb, max_seconds)
        if verify_skips and budget.caps():
            raise ConfigError("verify_skips", "no caps", "some", "verify in a run without caps")
        volume = as_volume(scan, modality)
        clock.lap("read")
        network, why_torch = self._choose_runtime(fast, keep_stages)
        start = Choice(
            batch=GPU_BATCH if self.device.type == "cuda" and not keep_stages else 1,
            step=FAST_STEP if fast else self.plan.step,
        )
        choice, predicted = start, None
        why: list[str] = []
        if budget.caps():
            work = self._survey(volume, network, budget, clock)
            choice, need, why = choose(budget, start, work.need, volume.source)
            predicted = {**need.peaks(), **({} if max_seconds else {"seconds": None})}  # untimed without that cap
            if budget.seconds:
                progress = _with_deadline(progress, budget.seconds, clock, work.after_seconds(), volume.source)
            clock.lap("plan")
        spacing = tuple(s * choice.coarser for s in self.plan.spacing_mm)
        image, grid = preprocess(volume, self.plan.with_(spacing_mm=spacing))
        clock.lap("preprocess")
        if network is self._openvino:
            network, why_torch = self._check_drift(network, torch.from_numpy(image))
        body = body_mask(image, volume.modality, self.plan) if fast and not keep_stages else None
        collector = _Collector(self.network, network, grid, keep_stages)
        logits = self._predict(collector, image, choice, body, progress)
        clock.lap("network")
        mask, percent = self._export(logits, volume, choice.slab)
        del logits
        clock.lap("export")
        padded = tuple(max(n, p) for n, p in zip(grid.shape, self.plan.patch, strict=True))
        skipped = len(window_starts(padded, self.plan.patch, choice.step)) - collector.count
        differ = 0 if verify_skips else None
        if verify_skips and skipped:
            everything = self._predict(_Collector(self.network, network, grid, ()), image, choice, None, None)
            differ = int((self._export(everything, volume, choice.slab)[0].array != mask.array).sum())
            del everything
            clock.lap("verify")
        del image
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
            "runtime": {
                "asked": self.runtime,
                "used": "openvino" if network is self._openvino else "torch",
                "why": why_torch,
                "drift": self._drift,
            },
            "windows": collector.count,
            "skipped": {"air": skipped, "voxels_that_differ": differ},
            "budget": {
                "caps": budget.caps(),
                "chosen": asdict(choice),
                "why": why,
                "predicted": predicted,
                "measured": {"ram_mb": peak_ram_mb(), "gpu_mb": self._peak_gpu_mb(), "seconds": clock.total()},
            },
            "seconds": clock.seconds,
            "instances": [instance.to_json() for instance in instances],
        }
        return Segmentation(mask, instances, collector.features(), report)

    def untrained(self, modality: str) -> list[str]:
        """The classes that no training scan of this modality annotated: the mask never holds them."""
        trained = self.plan.trained_on.get(modality, ())
        return [name for name in self.plan.classes if name not in trained]

    def _choose_runtime(self, fast: bool, keep_stages: tuple[int, ...]) -> tuple[Forward, str | None]:
        """The runtime for one scan, and why it is torch where something else was asked for. Converts once."""
        if self.runtime == "torch":
            return torch_runtime(self.network), None
        if keep_stages:
            return torch_runtime(self.network), "features come from torch"
        if self.runtime == "auto" and not (fast and self.device.type == "cpu" and has_openvino()):
            return torch_runtime(self.network), "auto takes openvino where it is installed, in fast mode on a CPU"
        if self._openvino is None:
            self._openvino = openvino_runtime(self.network, len(self.plan.ct_windows_hu), self.plan.patch)
        return self._openvino, None

    def _check_drift(self, network: Forward, image: torch.Tensor) -> tuple[Forward, str | None]:
        """The runtime, or torch and why where the two differ on the middle window of the first scan."""
        if self._drift is None:
            padded, _ = pad_to_patch(image, self.plan.patch)
            low = [(n - p) // 2 for n, p in zip(padded.shape[1:], self.plan.patch, strict=True)]
            place = tuple(slice(first, first + p) for first, p in zip(low, self.plan.patch, strict=True))
            window = padded[(slice(None), *place)][None].contiguous()
            with torch.inference_mode():
                self._drift = drift(torch_runtime(self.network)(window), network(window))
        dice = self._drift["dice"]
        if dice >= DRIFT_DICE:
            return network, None
        return torch_runtime(self.network), f"openvino drifts: Dice {dice:.4f} with torch on one window"

    def _survey(self, volume: Volume, network: Forward, budget: Budget, clock: _Clock) -> Work:
        """What the scan will cost here: memory from shapes; for a cap on time one window and one slice are timed."""
        grid = to_canonical(volume.array, volume.grid)[1]
        channels, classes = len(self.plan.ct_windows_hu), len(self.plan.classes) + 1
        window = torch.zeros((1, channels, *self.plan.patch), device=self.device)
        each = window_mb(self.network, window)  # first: it also loads kernels, which stay in memory
        work = Work(
            grid=grid,
            spacing_mm=self.plan.spacing_mm,
            patch=self.plan.patch,
            channels=channels,
            classes=classes,
            window_mb=each,
            held_ram_mb=ram_mb(),
            held_gpu_mb=self._held_gpu_mb(),
            on_gpu=self.device.type == "cuda",
        )
        if budget.seconds is None:
            return work
        with torch.inference_mode():
            network(window)  # a runtime's first call is slower than the rest
            started = time.perf_counter()
            network(window).sum().item()  # the number waits for the device
        window_seconds = time.perf_counter() - started
        shape = grid.with_spacing(self.plan.spacing_mm).shape
        started = time.perf_counter()
        next(argmax_slabs(torch.zeros((classes, *shape), device=self.device), (*grid.shape[:2], 4), 4))
        slice_seconds = (time.perf_counter() - started) / 4
        return replace(work, elapsed=clock.total(), window_seconds=window_seconds, slice_seconds=slice_seconds)

    def _predict(
        self,
        collector: _Collector,
        image: np.ndarray,
        choice: Choice,
        body: np.ndarray | None,
        progress: Callable[[int, int], None] | None,
    ) -> torch.Tensor:
        """Logits on the working grid."""
        tensor = torch.from_numpy(image).to(self.device)
        dtype = getattr(torch, choice.accumulator)
        return predict_logits(collector, tensor, self.plan.patch, choice.step, progress, choice.batch, dtype, body)

    def _held_gpu_mb(self) -> float:
        """Memory of the whole device in use now, by anyone; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        free, total = torch.cuda.mem_get_info(self.device)
        return (total - free) / MB

    def _peak_gpu_mb(self) -> float:
        """The most that this process held on the device beside what others hold now; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        more = torch.cuda.max_memory_reserved(self.device) - torch.cuda.memory_reserved(self.device)
        return self._held_gpu_mb() + more / MB

    def _export(self, logits: torch.Tensor, volume: Volume, slab: int) -> tuple[Mask, np.ndarray]:
        """Logits on the working grid -> cleaned mask and uint8 percent probability, on the scan's own grid."""
        array = np.empty(volume.grid.shape, dtype=np.uint8)
        percent = np.empty(volume.grid.shape, dtype=np.uint8)
        ids, sure = (to_canonical(whole, volume.grid)[0] for whole in (array, percent))  # views
        excluded = tuple(self.plan.labels[name] for name in self.untrained(volume.modality))
        shape = (ids.shape[0], ids.shape[1], ids.shape[2])
        for place, part, probability in argmax_slabs(logits, shape, slab, excluded):
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
    """The network as a function of windows, which keeps encoder features and where in the patient they lie."""

    def __init__(self, network: torch.nn.Module, forward: Forward, grid: Grid, stages: tuple[int, ...]) -> None:
        self.network, self.forward, self.grid = network, forward, grid
        self.vectors: dict[int, list[np.ndarray]] = {stage: [] for stage in stages}
        self.positions: dict[int, list[np.ndarray]] = {stage: [] for stage in stages}
        self.count = 0

    def __call__(self, windows: torch.Tensor, origins: list[tuple[int, ...]]) -> torch.Tensor:
        self.count += len(windows)
        if not self.vectors:
            return self.forward(windows)
        maps = self.network.encoder(windows)
        for stage in self.vectors:
            for features, origin in zip(maps[stage], origins, strict=True):
                self.vectors[stage].append(features.flatten(1).T.float().cpu().numpy())
                cell = np.array(windows.shape[2:]) / np.array(features.shape[1:])
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
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now

    def total(self) -> float:
        """Seconds since the clock was made."""
        return round(time.perf_counter() - self._start, 3)


def _with_deadline(
    progress: Callable[[int, int], None] | None, seconds: float, clock: _Clock, ahead: float, source: str
) -> Callable[[int, int], None]:
    """progress, and a ConfigError as soon as the windows leave less than `ahead` seconds for what follows them."""

    def check(done: int, total: int) -> None:
        if progress:
            progress(done, total)
        spent = clock.total()
        if spent + ahead > seconds and done < total:
            least = math.ceil(1.2 * (spent / done * total + ahead))
            found = f"{done} of {total} windows after {spent:.1f} s of --max-seconds {seconds:g}"
            raise ConfigError(source, f"at least --max-seconds {least}", found, "raise it, or free the machine")

    return check
