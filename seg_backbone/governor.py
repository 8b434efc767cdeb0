"""How to run one scan inside caps of memory and time: predicted before, measured after, degraded in a stated order.

Enters what the work is made of (`Work`: voxels, classes, the cost of one window), leaves a `Choice` of settings that
fits the `Budget`, the need that is predicted for it, and why. The order is the order of harm to the mask: window batch
(none), dtype and place of the accumulators and slab of the export (next to none), size of the window and step between
windows (a little), working spacing (most). A step of it is taken only where it lowers a need that is over its cap. What
the machine has free is a cap too. MB are 2^20 bytes everywhere.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid
from seg_backbone.sliding_window import window_starts

MB = 2**20
LADDER: tuple[tuple[str, Any], ...] = (
    ("batch", 2),
    ("batch", 1),
    ("accumulator", "float16"),
    ("place", "cpu"),
    ("slab", 8),
    ("slab", 4),
    ("slab", 1),
    ("window", 0.75),
    ("window", 0.5),
    ("step", 0.8),
    ("step", 1.0),
    ("coarser", 1.25),
    ("coarser", 1.5),
    ("coarser", 2.0),
)
# of the largest map live at once: a convolution's input and output, its norm, a reordered copy, the skips
CPU_MAPS, GPU_MAPS = 4, 6
LIBRARY_MB = 40.0  # what the first window leaves loaded on a CPU
# a voxel of the scan while pieces are measured: ids, percent and the map of instances; and of the largest piece, which
# may fill a tenth of the scan, its box twice and its values
MEASURE_BYTES = 5.5
PREPROCESS_NS, MEASURE_NS = 10.0, 60.0  # a voxel of the scan, on one core of 2020; they matter little beside windows
MARGIN = 1.05  # on what is predicted beyond what the process holds already
MARGIN_MB = 32.0
SLOWER = 1.2  # seconds: how much slower than its probe a window may be


@dataclass(frozen=True)
class Budget:
    """Caps on one scan; None is no cap. ram_mb: resident memory of the process. gpu_mb: of the whole device.

    seconds: wall clock from the start of reading to the mask. Raises ConfigError for a cap that is not positive.
    """

    ram_mb: float | None = None
    gpu_mb: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name, cap in self.caps().items():
            if not cap > 0:
                raise ConfigError(FLAGS[name], "a number above 0", f"{cap:g}", "raise it or leave it out")

    def with_machine(self, machine: dict[str, float]) -> Budget:
        """This budget with what the machine has free as caps where they are lower, see `machine_mb`."""
        lower = {name: mb for name, mb in machine.items() if mb < self.caps().get(name, math.inf)}
        return replace(self, **lower)

    def caps(self) -> dict[str, float]:
        """The caps that are set, by name."""
        given = {"ram_mb": self.ram_mb, "gpu_mb": self.gpu_mb, "seconds": self.seconds}
        return {name: cap for name, cap in given.items() if cap is not None}


FLAGS = {"ram_mb": "--max-ram-mb", "gpu_mb": "--max-gpu-mb", "seconds": "--max-seconds"}


@dataclass(frozen=True)
class Choice:
    """Settings of one run. batch: windows at once. accumulator: dtype name of the blended logits. place: where they are
    kept, "device" (where the network runs) or "cpu". slab: slices of the scan exported at once. window: share of the
    plan's window, by axis. step: share of a window between neighbours. coarser: factor on the plan's spacing.
    """

    batch: int = 1
    accumulator: str = "float32"
    place: str = "device"
    slab: int = 16
    window: float = 1.0
    step: float = 0.5
    coarser: float = 1.0


@dataclass(frozen=True)
class Need:
    """What a choice takes: peak MB of each stage (what the process holds already included) and seconds in all."""

    ram_mb: dict[str, float]
    gpu_mb: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def peaks(self) -> dict[str, float]:
        """The three numbers that are held against the caps."""
        gpu, ram = max(self.gpu_mb.values(), default=0.0), max(self.ram_mb.values())
        return {"ram_mb": round(ram, 1), "gpu_mb": round(gpu, 1), "seconds": round(self.seconds, 3)}

    def excess(self, budget: Budget) -> float:
        """How far over the caps, as a sum of shares of the caps over stages: 0 where everything fits."""
        caps = budget.caps()
        stages = [(need, caps.get("ram_mb")) for need in self.ram_mb.values()]
        stages += [(need, caps.get("gpu_mb")) for need in self.gpu_mb.values()]
        stages += [(self.seconds, caps.get("seconds"))]
        return sum(max(0.0, need / cap - 1) for need, cap in stages if cap is not None)


@dataclass(frozen=True)
class Work:
    """What one scan costs, as far as it is known before it is run.

    grid: the scan in canonical axes. spacing_mm, patch: of the plan. channels, classes: of the network, background
    included. window_mb: see the function. held_ram_mb, held_gpu_mb: what process and device hold already, the scan
    included. read_mb: what reading holds beside the scan. normalise_bytes: a voxel, while the nonzero is sought.
    divisor: a window is a multiple of it, by axis. on_gpu: where the network runs. elapsed, window_seconds,
    slice_seconds: spent so far; of one window; of the export of one slice of the scan.
    """

    grid: Grid
    spacing_mm: tuple[float, float, float]
    patch: tuple[int, int, int]
    channels: int
    classes: int
    window_mb: float
    held_ram_mb: float
    held_gpu_mb: float = 0.0
    read_mb: float = 0.0
    normalise_bytes: float = 0.0
    divisor: tuple[int, int, int] = (1, 1, 1)
    on_gpu: bool = False
    elapsed: float = 0.0
    window_seconds: float = 0.0
    slice_seconds: float = 0.0

    def window(self, choice: Choice) -> tuple[int, int, int]:
        """The window of a choice, in voxels: at least two of the deepest maps' voxels, as norms need several."""
        if choice.window == 1:
            return self.patch
        sides = [
            min(size, max(2, int(size * choice.window) // step) * step)
            for size, step in zip(self.patch, self.divisor, strict=True)
        ]
        return sides[0], sides[1], sides[2]

    def need(self, choice: Choice) -> Need:
        """Peak memory by stage and seconds under a choice."""
        window = self.window(choice)
        share = math.prod(window) / math.prod(self.patch)
        spacing = np.array(self.spacing_mm) * choice.coarser
        shape = np.array(self.grid.with_spacing((spacing[0], spacing[1], spacing[2])).shape)
        padded = np.maximum(shape, window)
        voxels, working, wide = (float(np.prod(n)) / MB for n in (self.grid.shape, shape, padded))
        # float32 after one and after two of the three axes, the one that shrinks most first (see resample_array)
        ratios = np.sort(shape / self.grid.shape)
        one, two = 4 * voxels * ratios[0], 4 * voxels * ratios[0] * ratios[1]
        inputs = 4 * self.channels * (working + (wide if (padded > shape).any() else 0))
        # logits are held one window deep, and where more follow, as much again as the next slab of the export reads
        depth = window[2]
        if padded[2] > depth:
            depth += math.ceil(choice.slab * shape[2] / self.grid.shape[2]) + 2
        area = float(np.prod(padded[:2])) / MB
        logits = area * depth * self.classes * (4 if choice.accumulator == "float32" else 2) + 4 * area * window[2]
        # part, top, total and ratio in float32 with a temporary of each kind, ids and a comparison in uint8
        slab = 30 * self.grid.shape[0] * self.grid.shape[1] * min(choice.slab, self.grid.shape[2]) / MB
        masks = 2 * voxels  # ids and percent, filled while the windows run
        maps = choice.batch * share * self.window_mb
        kept_in_ram = not self.on_gpu or choice.place == "cpu"
        stages = {
            "read": self.read_mb,
            "preprocess": max(1.2 * one + voxels / 2, 2 * (one + two), 2 * two + 8 * working, 4 * working)
            + inputs
            + self.normalise_bytes * voxels,
            "network": masks + working + inputs + (logits if kept_in_ram else 0) + (0 if self.on_gpu else maps),
            "export": masks + inputs + (logits + slab if kept_in_ram else 0),
            "measure": MEASURE_BYTES * voxels,
        }
        device = {}
        if self.on_gpu:
            kept = 0 if kept_in_ram else logits
            device = {"network": inputs + kept + maps, "export": inputs + kept + (slab if kept else 0)}
        count = len(window_starts(tuple(padded.tolist()), window, choice.step))
        windows = count * share * self.window_seconds + voxels * MB * PREPROCESS_NS * 1e-9
        return Need(
            {name: self.held_ram_mb + MARGIN_MB + MARGIN * more for name, more in stages.items()},
            {name: self.held_gpu_mb + MARGIN_MB + MARGIN * more for name, more in device.items()},
            self.elapsed + SLOWER * windows + self.after_seconds(),
        )

    def after_seconds(self) -> float:
        """What export and measurement will take, once the network is through."""
        voxels = float(np.prod(self.grid.shape))
        return SLOWER * (self.grid.shape[2] * self.slice_seconds + voxels * MEASURE_NS * 1e-9)


def choose(
    budget: Budget, start: Choice, need: Callable[[Choice], Need], source: str, machine: dict[str, float] | None = None
) -> tuple[Choice, Need, list[str]]:
    """The first settings down the ladder that fit the budget, the need predicted for them, and why each step was taken.

    machine: caps that nobody gave, see `machine_mb`. Raises ConfigError where nothing fits: it names the smallest caps
    that do.
    """
    given, budget = budget.caps(), budget.with_machine(machine or {})
    choice = start
    why: list[str] = []
    for name, value in LADDER:
        over = need(choice).excess(budget)
        if over == 0:
            break
        lower = replace(choice, **{name: value})
        if need(lower).excess(budget) < over:
            peaks = need(choice).peaks()
            found = [f"{key} {peaks[key]:g} over {cap:g}" for key, cap in budget.caps().items() if peaks[key] > cap]
            why.append(f"{name} {getattr(choice, name)} -> {value}: {', '.join(found)}")
            choice = lower
    peaks = need(choice).peaks()
    small = {name: cap for name, cap in budget.caps().items() if peaks[name] > cap}
    if small:
        # a little more than now predicted: what the process holds differs from run to run
        least = ", ".join(f"{FLAGS[name]} {math.ceil(peaks[name] * 1.05)}" for name in small)
        found = [
            f"{FLAGS[name]} {cap:g}" if cap == given.get(name) else f"{cap:.0f} MB free" for name, cap in small.items()
        ]
        todo = "raise the cap, or crop the scan" if small.keys() <= given.keys() else "free memory, or crop the scan"
        raise ConfigError(source, f"at least {least}", ", ".join(found), todo)
    return choice, need(choice), why


@dataclass(frozen=True)
class WindowCost:
    """What one window takes, beside its logits. mb: an upper estimate. operations: to multiply and add."""

    mb: float
    operations: float


def window_cost(network: nn.Module, channels: int, patch: tuple[int, int, int], on_gpu: bool = False) -> WindowCost:
    """The cost of a (1, channels, *patch) window, from the weights alone: running one would take what is asked for.

    Of a network that doubles its features where it halves its map, as U-Nets do, the features that a convolution makes
    tell how small its map is; the first one runs at full resolution. Those of one voxel, as in front of the logits of
    deep supervision, cost next to nothing.
    """
    convolutions = [one for one in network.modules() if isinstance(one, nn.Conv3d | nn.ConvTranspose3d)]
    convolutions = [one for one in convolutions if math.prod(one.kernel_size) > 1]
    voxels, operations, widest = math.prod(patch), 0.0, float(channels)
    for one in convolutions:
        share = min(1.0, convolutions[0].out_channels / one.out_channels) ** 3
        operations += 2 * one.weight.numel() * share * voxels
        widest = max(widest, max(one.in_channels, one.out_channels) * share)
    maps = 4 * (GPU_MAPS if on_gpu else CPU_MAPS) * widest * voxels
    return WindowCost(maps / MB + (0.0 if on_gpu else LIBRARY_MB), operations)


def machine_mb() -> dict[str, float]:
    """{"ram_mb": the most that this process can hold}: what the machine has free, a container or the shell allows."""
    import psutil

    process = psutil.Process()
    memory = process.memory_info()
    limits = [memory.rss + psutil.virtual_memory().available]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    if sys.platform != "win32":
        import resource

        allowed = resource.getrlimit(resource.RLIMIT_AS)[0]
        if allowed != resource.RLIM_INFINITY:  # addresses, of which some are never filled: what is left of them
            limits.append(memory.rss + max(0, allowed - memory.vms))
    return {"ram_mb": min(limits) / MB}


def ram_mb() -> float:
    """Resident memory of this process now."""
    import psutil

    return psutil.Process().memory_info().rss / MB


def peak_ram_mb() -> float:
    """The most resident memory that this process has held since it started, earlier scans included."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / MB
    elif sys.platform == "linux":  # getrusage's figure also holds that of the program which started this one
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / MB
    else:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB  # bytes on macOS
