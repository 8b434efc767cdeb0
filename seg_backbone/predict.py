"""Segmenter: a scan in, its mask, instances and measurements out, on the scan's own grid.

The encoder's features are kept on the way (they cost nothing more), so that whoever answers questions about the scan
shares one pass of the network with the mask.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seg_backbone.checkpoint import find_model, load_model
from seg_backbone.clock import Clock, with_deadline
from seg_backbone.errors import ConfigError
from seg_backbone.export import INTERPOLATIONS, argmax_slabs
from seg_backbone.features import Collector, Features
from seg_backbone.gate import foreground_probability, gate_input, load_gate
from seg_backbone.geometry import Grid
from seg_backbone.governor import MB, Budget, Choice, Work, choose, machine_mb, peak_ram_mb, ram_mb
from seg_backbone.intake import as_volume
from seg_backbone.io import add_channels, foresee
from seg_backbone.labels import other_side
from seg_backbone.lesions import Instances, find_instances
from seg_backbone.plan import Plan, Roi
from seg_backbone.postprocess import clean
from seg_backbone.preprocess import oriented, padding, preprocess, scan_box, separate_axis
from seg_backbone.resample import SMOOTH, nnunet_filters
from seg_backbone.runtimes import Forward, Runtime, Runtimes
from seg_backbone.scan_classes import Probabilities
from seg_backbone.scan_heads import ScanHeads, ScanPool, WithStatistics, load_heads
from seg_backbone.skips import (
    Start,
    Tiling,
    body_mask,
    difference,
    region_of_interest,
    skip_report,
    strided,
    windows_without,
)
from seg_backbone.sliding_window import BLENDINGS, Network, mirrored, predict_blocks
from seg_backbone.volume import Mask, Volume

FAST_STEP = 0.8  # share of a window between neighbours in fast mode; FLARE's winners use 0.7 to 0.8
GPU_BATCH = 4  # windows at once on a GPU; on a CPU more than one gains nothing


@dataclass(frozen=True, eq=False)
class Segmentation:
    """mask: on the scan's own grid. instances: measured, in mm. features: for the vision-language model.

    report: what was run and how long each part took, ready for JSON. classes: of the whole scan, task -> class ->
    probability; {} for a model without heads.
    """

    mask: Mask
    instances: Instances
    features: Features
    report: dict[str, Any]
    classes: Probabilities = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Drawing:
    """A mask that is yet to be measured, see `measure`. percent: (i, j, k) uint8 probability of each voxel's class.

    volume: what was segmented. report: of a Segmentation, without what measuring adds.
    """

    mask: Mask
    percent: np.ndarray
    volume: Volume
    features: Features
    report: dict[str, Any]
    classes: Probabilities


@dataclass(frozen=True)
class Settings:
    """How windows are laid, blended and exported, see `Segmenter.draw`. Raises ConfigError for what is none."""

    step: float
    blending: str = "gaussian"
    mirror: bool = False
    export: str = "linear"
    fast: bool = False
    roi: bool | None = None
    gate: bool | None = None

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise ConfigError("--step", "a share above 0 and up to 1", f"{self.step:g}", "0.5 to 0.8 is usual")
        for flag, value, known in (("--blending", self.blending, BLENDINGS), ("--export", self.export, INTERPOLATIONS)):
            if value not in known:
                raise ConfigError(flag, f"one of {', '.join(known)}", repr(value), "choose one of them")


class Segmenter:
    """A loaded model. Call it on a path, a Volume, or (array, affine)."""

    def __init__(
        self,
        network: torch.nn.Module,
        plan: Plan,
        version: str,
        device: str = "cpu",
        runtime: str = "torch",
        gate: torch.nn.Module | None = None,
        heads: Sequence[ScanHeads] = (),
    ) -> None:
        self.network, self.plan, self.version = network.to(device), plan, version
        self.gate = None if gate is None else gate.to(device)
        self.heads = [head.to(device) for head in heads]
        self.device = torch.device(device)
        self.classified = WithStatistics(self.network, self.heads) if self.heads else None
        self.runtimes = Runtimes(self.network, plan.inputs, plan.patch, runtime, self.device, self.classified)

    @staticmethod
    def load(name: str | Path = "default", device: str = "auto", runtime: str = "torch") -> Segmenter:
        """Load a model that ships by name, or a model folder. device: "auto", "cpu" or "cuda".

        runtime: see Runtimes.
        Raises CheckpointError for a folder that is no model, ConfigError for a device or runtime that is not there.
        """
        device = choose_device(device)
        network, plan, version = load_model(name)
        gate = None if plan.gate is None else load_gate(find_model(name), plan.gate)
        return Segmenter(network, plan, version, device, runtime, gate, load_heads(find_model(name), plan))

    def __call__(
        self, scan: str | Path | Volume | tuple[np.ndarray, np.ndarray], modality: str | None = None, **options: Any
    ) -> Segmentation:
        """Segment and measure one scan. options and errors: see `draw`."""
        return measure(self.draw(scan, modality, **options))

    def draw(
        self,
        scan: str | Path | Volume | tuple[np.ndarray, np.ndarray],
        modality: str | None = None,
        fast: bool = False,
        keep_stages: tuple[int, ...] = (),
        progress: Callable[[int, int], None] | None = None,
        max_gpu_mb: float | None = None,
        max_ram_mb: float | None = None,
        max_seconds: float | None = None,
        spent_seconds: float = 0.0,
        verify_skips: bool = False,
        step: float | None = None,
        blending: str = "gaussian",
        mirror: bool | None = None,
        export: str = "linear",
        roi: bool | None = None,
        gate: bool | None = None,
    ) -> Drawing:
        """Segment one scan; to measure it is left to `measure`, which may run beside the next scan.

        (array, affine): (i, j, k) numbers and a 4x4 voxel -> RAS mm affine. fast: fewer overlapping windows (a model of
        nnU-Net keeps its own: others would give another mask), and those that a certificate rules out are skipped.
        keep_stages: encoder stages whose features to keep (see Features); then every window is run once, by torch.
        progress: called with (windows done, all). max_*: see Budget; settings are degraded until they fit, and the
        report says which. spent_seconds: on reading a Volume; they count for max_seconds. verify_skips: also run the
        skipped windows and say what differs. step: share of a window between neighbours, instead of the plan's.
        blending: see BLENDINGS.
        mirror: mean over the flips that the model was trained with; None: where nnU-Net does so, not in fast mode.
        export: see `argmax_slabs`. roi: a low-resolution pass says which windows to run; None: in fast mode, where the
        plan has one and it costs less than half of them. gate: the model's classifier says it too; None: in fast mode,
        where it has one. Without fast and without caps a model of nnU-Net is run as nnU-Net runs it.
        A scan without any of the classes gives an all-zero mask and no instances.
        Raises ScanError for bad input, ConfigError for settings that do not exist and for caps that are too small,
        naming the smallest that would do.
        """
        clock = Clock(spent_seconds)
        nnunet = self.plan.resampling == "nnunet"
        mirror = nnunet and not fast if mirror is None else mirror
        if nnunet and blending == "gaussian":
            blending = "nnunet"
        settings = Settings(self._step(fast, step), blending, mirror, export, fast, roi, gate)
        budget = Budget(max_ram_mb, max_gpu_mb, max_seconds)
        if gate and self.gate is None:
            raise ConfigError("--gate", "a model with a gate", f"{self.plan.name} without", "see vlm train gate --help")
        if verify_skips and budget.caps():
            raise ConfigError("verify_skips", "no caps", "some", "verify in a run without caps")
        if max_ram_mb and isinstance(scan, str | Path):
            self.foresee(scan, max_ram_mb)
        volume = self._complete(as_volume(scan, modality))
        clock.lap("read")
        turned = self._turned(volume.grid)
        count = self._tiling(turned, settings.step).count
        runtime = self.runtimes.choose(fast, bool(keep_stages), max_ram_mb is not None, count)
        choice = Choice(batch=GPU_BATCH if self.device.type == "cuda" and not keep_stages else 1, step=settings.step)
        predicted = None
        why: list[str] = []
        patch, machine = self.plan.patch, self._machine_mb()
        work = self._work(turned, self._gated(settings))
        if budget.caps() or work.need(choice).excess(budget.with_machine(machine)):
            work = self._survey(work, runtime, settings, budget, choice, volume.source, machine, clock)
            choice, need, why = choose(budget, choice, work.need, volume.source, machine)
            predicted = {**need.peaks(), **({} if max_seconds else {"seconds": None})}  # untimed without that cap
            if budget.seconds:
                progress = with_deadline(progress, budget.seconds, clock, work.after_seconds(), volume.source)
            patch = work.window(choice)
            if patch != self.plan.patch:
                runtime = self.runtimes.plain(fast, "windows smaller than the plan's come from torch")
            clock.lap("plan")
        plan = self.plan.with_(spacing_mm=tuple(s * choice.coarser for s in self.plan.spacing_mm))
        image, grid = preprocess(volume, plan)
        clock.lap("preprocess")
        runtime = self.runtimes.verified(runtime, torch.from_numpy(image), max_ram_mb is not None)
        pool = ScanPool(self.classified) if self.classified else None
        forward = self._mirrored(runtime.forward, settings)
        flipped = forward is not runtime.forward
        collector = Collector(self.network, forward, grid, keep_stages, pool, runtime.classify, flipped)
        tiling = Tiling(grid.shape, patch, choice.step)
        tensor = torch.from_numpy(image).to(self.device)
        skipped = {} if keep_stages else self._skip(runtime.forward, tensor, volume, grid, tiling, settings, choice)
        del image
        clock.lap("skips")
        mask, percent = self._segment(collector, tensor, volume, choice, tiling, settings, skipped, progress, clock)
        said = skip_report(skipped, tiling, grid)
        if verify_skips:
            every = Collector(self.network, collector.forward, grid, ())
            whole = mask
            if skipped:
                whole, _ = self._segment(every, tensor, volume, choice, tiling, settings, {}, None, Clock())
                clock.lap("verify")
            said |= difference(mask, whole)
            del whole
        del tensor
        voxels = math.prod(max(size, window) for size, window in zip(grid.shape, patch, strict=True))
        with torch.inference_mode():
            classes = pool.probabilities(voxels) if pool else {}
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
            "settings": {
                "blending": blending,
                "mirrored": list(self.plan.mirror_axes) if mirror and not keep_stages else [],
                "export": export,
            },
            "runtime": self.runtimes.report(runtime),
            "windows": collector.count,
            "skipped": said,
            "budget": {
                "caps": budget.caps(),
                "machine": {name: round(mb, 1) for name, mb in machine.items()},
                "chosen": asdict(choice),
                "why": why,
                "predicted": predicted,
                "measured": {"gpu_mb": self._peak_gpu_mb(), "seconds": clock.total()},
            },
            "seconds": clock.seconds,
            "scan_classes": classes,
        }
        return Drawing(mask, percent, volume, collector.features(), report, classes)

    def _complete(self, volume: Volume) -> Volume:
        """The scan with the further channels of a model that sees several, and with the model's modality where that of
        the scan was only guessed: what nnU-Net trained on knows no other.
        """
        if not self.plan.channels:
            return volume
        known = list(self.plan.trained_on)
        if volume.modality_from == "guessed" and len(known) == 1:
            volume = replace(volume, modality=known[0], modality_from="model")
        return add_channels(volume, len(self.plan.channels))

    def untrained(self, modality: str) -> list[str]:
        """The classes that no training scan of this modality annotated: the mask never holds them."""
        trained = self.plan.trained_on.get(modality, ())
        return [name for name in self.plan.classes if name not in trained]

    def foresee(self, path: str | Path, max_ram_mb: float) -> None:
        """Raises ConfigError, before anything is read, where the header tells that no settings keep the cap.

        Raises ScanError for a NIfTI file that is none; formats whose header does not tell are let through.
        """
        known = foresee(path)
        if known is None:
            return
        grid, scan, reading = known
        scan *= max(1, len(self.plan.channels))
        work = self._work(self._turned(grid), self.gate is not None, scan / MB, reading / MB)
        choose(Budget(ram_mb=max_ram_mb), Choice(), work.need, str(path))

    def windows(self, path: str | Path, fast: bool, step: float | None = None) -> int | None:
        """How many windows a scan has, from its header; None for a format that does not tell. Raises ScanError."""
        known = foresee(path)
        return None if known is None else self._tiling(self._turned(known[0]), self._step(fast, step)).count

    def _step(self, fast: bool, step: float | None) -> float:
        """Share of a window between neighbours: as told, else the plan's or that of fast mode."""
        if step is not None:
            return step
        return FAST_STEP if fast and self.plan.resampling != "nnunet" else self.plan.step

    def _turned(self, grid: Grid) -> Grid:
        """A scan's grid in the axes that the network sees."""
        return oriented((np.broadcast_to(np.int8(0), grid.shape),), grid, self.plan)[1]

    def _tiling(self, grid: Grid, step: float) -> Tiling:
        """The windows of a scan, before it is cropped."""
        return Tiling(grid.with_spacing(self.plan.spacing_mm).shape, self.plan.patch, step)

    def _work(self, grid: Grid, gated: bool, scan_mb: float = 0.0, read_mb: float = 0.0) -> Work:
        """What a scan costs, from shapes alone. gated: whether the classifier sees it too. scan_mb: of a scan that is
        yet to be read, all its channels; read_mb: beside it, while it is.
        """
        channels = self.plan.inputs
        if self.plan.gate and gated:
            channels += len(self.plan.gate.ct_windows_hu)  # the scan is held a second time
        classes = len(self.plan.painted or self.plan.classes) + 1
        masked = any(channel.scheme == "zscore_nonzero" for channel in self.plan.channels)
        return Work(
            grid=grid,
            spacing_mm=self.plan.spacing_mm,
            patch=self.plan.patch,
            channels=channels,
            classes=classes,
            normalise_bytes=1.0 * self.plan.crop_nonzero + 5.0 * masked,  # where it is zero; its holes filled
            window_mb=self.runtimes.cost.mb + 8 * classes * math.prod(self.plan.patch) / MB,  # its logits, twice
            divisor=self.network.divisor,
            held_ram_mb=ram_mb() + scan_mb,
            held_gpu_mb=self._held_gpu_mb(),
            read_mb=read_mb,
            on_gpu=self.device.type == "cuda",
        )

    def _survey(
        self,
        work: Work,
        runtime: Runtime,
        settings: Settings,
        budget: Budget,
        choice: Choice,
        source: str,
        machine: dict[str, float],
        clock: Clock,
    ) -> Work:
        """The work with what only a run of a window shows: what a GPU keeps loaded, for a cap on time the seconds of a
        window and of a slice. A window that memory has no room for is not run. Raises ConfigError as `choose` does.
        """
        if self.device.type != "cuda" and budget.seconds is None:
            return work
        patch = work.window(choose(replace(budget, seconds=None), choice, work.need, source, machine)[0])
        if patch != work.patch:
            runtime = self.runtimes.plain(settings.fast)
        network = self._mirrored(runtime.forward, settings)
        window = torch.zeros((1, self.plan.inputs, *patch), device=self.device)
        with torch.inference_mode():
            network(window)  # the first call is slower than the rest, and loads kernels
            if self.device.type == "cuda":
                work = replace(work, held_ram_mb=ram_mb(), held_gpu_mb=self._held_gpu_mb())
            if budget.seconds is None:
                return work
            started = time.perf_counter()
            network(window).sum().item()  # the number waits for the device
        window_seconds = (time.perf_counter() - started) * math.prod(work.patch) / math.prod(patch)
        shape = work.grid.with_spacing(work.spacing_mm).shape
        started = time.perf_counter()
        even = torch.zeros((), device=self.device).expand(work.classes, *shape)
        next(argmax_slabs([even], shape, (*work.grid.shape[:2], 4), 4))
        slice_seconds = (time.perf_counter() - started) / 4
        return replace(work, elapsed=clock.total(), window_seconds=window_seconds, slice_seconds=slice_seconds)

    def _machine_mb(self) -> dict[str, float]:
        """What the machine has free as caps, see `machine_mb`; of the device too, where that is a GPU."""
        if self.device.type != "cuda":
            return machine_mb()
        return {**machine_mb(), "gpu_mb": torch.cuda.mem_get_info(self.device)[1] / MB}

    def _mirrored(self, forward: Forward, settings: Settings) -> Forward:
        """The runtime, or its mean over the flips that the model was trained with."""
        if not settings.mirror or not self.plan.mirror_axes:
            return forward
        labels = self.plan.labels
        order = [0, *(labels.get(other_side(name) or name, value) for name, value in labels.items())]
        return mirrored(forward, self.plan.mirror_axes, order if self.plan.mirror_swaps_sides else None)

    def _skip(
        self,
        forward: Forward,
        image: torch.Tensor,
        volume: Volume,
        grid: Grid,
        tiling: Tiling,
        settings: Settings,
        choice: Choice,
    ) -> dict[Start, str]:
        """The windows that need not be run, each with what says so. The gate only speaks of windows of the plan's size
        and spacing, which its threshold was chosen on.
        """
        skipped: dict[Start, str] = {}
        starts = tiling.starts()
        body = body_mask(image.cpu().numpy(), volume.modality, self.plan) if settings.fast else None
        if body is not None:
            skipped |= dict.fromkeys(windows_without(tiling, body, starts), "air")
        roi = self.plan.roi or (Roi() if settings.roi else None)
        left = [start for start in starts if start not in skipped]
        pays = roi and settings.fast and len(left) > 2 * len(strided(tiling, roi).starts())
        if roi and (pays if settings.roi is None else settings.roi):
            box = region_of_interest(
                lambda windows, _: forward(windows),
                image,
                tiling,
                roi,
                grid.spacing_mm,
                self._excluded(volume),
                body,
                _home(choice),
                padding(self.plan),
            )
            skipped |= dict.fromkeys(left if box is None else windows_without(tiling, box, left), "roi")
            left = [start for start in left if start not in skipped]
        known = choice.coarser == 1 and tiling.patch == self.plan.patch
        if self.plan.gate and self.gate and known and self._gated(settings):
            seen = torch.from_numpy(preprocess(volume, gate_input(self.plan, self.plan.gate))[0]).to(image.device)
            held = foreground_probability(self.gate, seen, tiling, left, choice.batch)
            skipped |= {start: "gate" for start, one in zip(left, held, strict=True) if one < self.plan.gate.threshold}
        return skipped

    def _gated(self, settings: Settings) -> bool:
        """True where the classifier has a say."""
        return self.gate is not None and (settings.fast if settings.gate is None else settings.gate)

    def _segment(
        self,
        network: Network,
        image: torch.Tensor,
        volume: Volume,
        choice: Choice,
        tiling: Tiling,
        settings: Settings,
        skipped: Collection[Start],
        progress: Callable[[int, int], None] | None,
        clock: Clock,
    ) -> tuple[Mask, np.ndarray]:
        """Cleaned mask and uint8 percent probability of its classes, on the scan's own grid. Windows and export take
        turns: each block of logits is exported while it is the only one.
        """
        blocks = predict_blocks(
            network,
            image,
            tiling.patch,
            tiling.step,
            progress,
            choice.batch,
            getattr(torch, choice.accumulator),
            settings.blending,
            skipped,
            _home(choice),
            padding(self.plan),
        )
        array = np.zeros(volume.grid.shape, dtype=np.uint8)
        percent = np.zeros(volume.grid.shape, dtype=np.uint8)
        (whole, chance), grid = oriented((array, percent), volume.grid, self.plan)  # views
        box = scan_box(volume, self.plan)
        ids, sure = whole[box], chance[box]
        source = (int(image.shape[1]), int(image.shape[2]), int(image.shape[3]))
        target = (ids.shape[0], ids.shape[1], ids.shape[2])
        excluded = self._excluded(volume)
        filters = SMOOTH
        if self.plan.resampling == "nnunet":
            filters = nnunet_filters(separate_axis(np.array(self.plan.spacing_mm), tuple(grid.spacing_mm)))
        for place, part, probability in argmax_slabs(
            clock.alternate(blocks, "network", "export"),
            source,
            target,
            choice.slab,
            excluded,
            settings.export,
            filters,
            self.plan.painted,
        ):
            ids[place] = part.cpu().numpy()
            sure[place] = (probability * 100).round_().to(torch.uint8).cpu().numpy()
        clean(ids, self.plan, volume.grid.voxel_volume_ml)
        clock.lap("export")
        return Mask(array, volume.grid, self.plan.labels, volume.source), percent

    def _excluded(self, volume: Volume) -> tuple[int, ...]:
        """Ids of the classes that the mask of this scan may not hold."""
        return tuple(self.plan.labels[name] for name in self.untrained(volume.modality))

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


def choose_device(device: str) -> str:
    """ "auto", "cpu" or "cuda" -> what torch has. Raises ConfigError for a device that is not there."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device", "a CUDA device that torch can use", "none", "pass cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def _home(choice: Choice) -> torch.device | None:
    """Where the logits are summed, if not where the network runs."""
    return torch.device("cpu") if choice.place == "cpu" else None


def measure(drawing: Drawing) -> Segmentation:
    """Find and measure the instances of a mask."""
    clock = Clock()
    found = find_instances(drawing.mask, drawing.volume, drawing.percent)  # percent: a quarter of the memory
    scaled = [replace(one, probability=None if one.probability is None else one.probability / 100) for one in found]
    clock.lap("measure")
    budget = drawing.report["budget"]
    spent = {"ram_mb": peak_ram_mb(), "seconds": round(budget["measured"]["seconds"] + clock.total(), 3)}
    report = {
        **drawing.report,
        "budget": {**budget, "measured": budget["measured"] | spent},
        "seconds": drawing.report["seconds"] | clock.seconds,
        "instances": [instance.to_json() for instance in scaled],
    }
    return Segmentation(drawing.mask, Instances(scaled, found.map), drawing.features, report, drawing.classes)
