"""From a fingerprint and a budget for USING the network (seconds, MB of RAM and GPU) to a Plan that keeps it.

nnU-Net plans for a training memory only. Here a ladder of plans goes from its target spacing and width downwards; the
first rung whose predicted cost fits on every case of the dataset is taken, then one real window is run with it and,
where that does not take long, the whole scan that was predicted to take longest. Where it costs more than predicted,
the prediction is scaled up to it and the walk goes on down; so it ends.

The model of cost, per case:
    seconds   windows x (operations of a window / speed) + voxels of the scan x (read + export x classes)
    device    weights + the maps that are alive in the finest decoder stage + the logits of the working grid, twice
    RAM       the process with its libraries + voxels of the scan x SCAN_BYTES + the above where the device is the CPU
The three rates are measured on one case of the dataset on this machine; operations are counted by torch. Time and
memory of measuring what was found are not in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import ceil, log, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from seg_backbone.cases import CaseFiles, read_scan
from seg_backbone.configure import (
    PRESETS,
    Preset,
    Topology,
    encoder_blocks,
    features,
    normalisation,
    plan_training,
    target_spacing,
)
from seg_backbone.errors import ConfigError
from seg_backbone.export import argmax_slabs
from seg_backbone.fingerprint import CaseShape, Fingerprint
from seg_backbone.geometry import to_canonical
from seg_backbone.governor import MB, ram_mb
from seg_backbone.nets import build_network
from seg_backbone.nnunet import SCHEMES
from seg_backbone.plan import Channel, Plan
from seg_backbone.preprocess import padding, preprocess
from seg_backbone.sliding_window import pad_to_patch, window_starts, windows

FAMILY = PRESETS["resenc_m"]
WIDTHS = (32, 24, 16, 12)  # features of the finest stage; 12 is the narrowest that ships
NARROW_BLOCKS = (1, 2)  # encoder blocks of every width but the first, the last repeats: as in what ships
RUNGS = 3  # spacings a width
COARSER = 1.1  # spacing of a rung over that of the rung above
COARSEST_MM = 6.0  # the finest axis is not coarsened beyond it; only the width goes on down
REPEATS = 3  # timed windows; the fastest counts, the others were disturbed
STEPS = (0.5, 0.6, 0.75)  # of a window between neighbours: nnU-Net's, ours, and the FLARE winners' 0.7 to 0.8
PATCHES = (1, 2, 4, 8, 16)  # the patch is planned for nnU-Net's training memory divided by these
SCAN_BYTES = 14  # a voxel of the scan: values (2 to 4), two canonical byte maps, probability (4), mask and a copy
CHANNEL_BYTES = 4  # of each further channel, a voxel
WORKSPACE_MB = 40.0  # what the convolutions' library takes for itself, measured with torch 2.13 on a CPU
CONTEXT_MB = 500.0  # what CUDA takes before the first tensor
SLAB = 16  # slices that the export holds at once (argmax_slabs)
WHOLE_SCAN_S = 120.0  # a scan is measured whole where one window lets expect no more


@dataclass(frozen=True)
class Budget:
    """What one scan may cost at most; None: anything. device: "cpu" or "cuda"."""

    seconds: float | None = None
    ram_mb: float | None = None
    gpu_mb: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device", "a CUDA device that torch can use", "none", "plan where the network will run")
        if self.device == "cpu" and self.gpu_mb is not None:
            raise ConfigError("--max-gpu-mb", "--device cuda", "cpu", "use --max-ram-mb")


@dataclass(frozen=True)
class Machine:
    """Measured rates. operations: a second; read_s: a voxel; export_s: a voxel and class.

    process_mb: RAM before a scan is read. window_scale: measured over predicted memory of a window, at least 1.
    """

    operations: float
    read_s: float
    export_s: float
    process_mb: float
    window_scale: float = 1.0


@dataclass(frozen=True)
class Cost:
    """What a plan costs on one case, which is named. gpu_mb is 0 on a CPU, where window_mb is part of ram_mb."""

    case: str
    windows: int
    window_s: float
    window_mb: float
    seconds: float
    ram_mb: float
    gpu_mb: float

    def fits(self, budget: Budget) -> bool:
        """True where no limit is broken."""
        pairs = ((self.seconds, budget.seconds), (self.ram_mb, budget.ram_mb), (self.gpu_mb, budget.gpu_mb))
        return all(limit is None or value <= limit for value, limit in pairs)


@dataclass(frozen=True)
class Configured:
    """The plan that was chosen, its cost as predicted before anything of it was run, and as measured.

    whole: the scan was segmented whole; else one window was run, and the rest follows from it.
    """

    plan: Plan
    predicted: Cost
    measured: Cost
    whole: bool

    def to_json(self) -> dict[str, Any]:
        """predicted, measured and what was measured, ready for JSON."""
        kind = "scan" if self.whole else "window"
        return {"predicted": asdict(self.predicted), "measured": asdict(self.measured), "measured_on": kind}


def configure(fingerprint: Fingerprint, files: list[CaseFiles], budget: Budget, name: str) -> Configured:
    """Choose the plan. files: the cases of the dataset, to measure on.

    Raises ConfigError for a budget that no rung keeps, naming what it would cost.
    """
    rungs = list(candidates(fingerprint, name))
    by_name = {case.case: case for case in files}
    largest = max(fingerprint.cases, key=lambda case: prod(case.shape))
    probe = next(plan for plan in rungs if plan.spacing_mm == rungs[-1].spacing_mm)
    machine = calibrate(probe, by_name[largest.case], budget.device)
    costs = []
    for plan in rungs:
        cost = predicted = worst_case(plan, fingerprint.cases, machine, budget.device)
        if predicted.fits(budget):
            seconds, used = measure_window(plan, by_name[predicted.case], budget.device)
            scaled = replace(
                machine,
                operations=operations(plan) / seconds,
                window_scale=max(1.0, used / (predicted.window_mb / machine.window_scale)),
            )
            cost = measured = worst_case(plan, fingerprint.cases, scaled, budget.device)
            if measured.fits(budget):
                measured = replace(measured, window_mb=used)
                if measured.seconds > WHOLE_SCAN_S:
                    return Configured(plan, predicted, measured, whole=False)
                cost = scan = measure_scan(plan, by_name[predicted.case], budget.device, measured)
                if scan.fits(budget):
                    return Configured(plan, predicted, scan, whole=True)
                scaled = replace(
                    scaled,
                    operations=scaled.operations * min(1.0, measured.seconds / scan.seconds),
                    process_mb=scaled.process_mb + max(0.0, scan.ram_mb - measured.ram_mb),
                )
            # never faster or smaller than before: a later rung is not taken on a lucky measurement
            machine = replace(
                machine,
                operations=min(machine.operations, scaled.operations),
                window_scale=max(machine.window_scale, scaled.window_scale),
                process_mb=max(machine.process_mb, scaled.process_mb),
            )
        costs.append(cost)
    least = {key: min(getattr(cost, key) for cost in costs) for key in ("seconds", "ram_mb", "gpu_mb")}
    needs = f"at least {least['seconds']:.3g} s, {least['ram_mb']:.0f} MB RAM, {least['gpu_mb']:.0f} MB GPU memory"
    raise ConfigError("budget", f"what some network can keep ({needs})", _words(budget), "raise the limits")


def _words(budget: Budget) -> str:
    limits = {"s": budget.seconds, "MB RAM": budget.ram_mb, "MB GPU memory": budget.gpu_mb}
    return ", ".join(f"{limit:g} {unit}" for unit, limit in limits.items() if limit is not None)


def candidates(fingerprint: Fingerprint, name: str) -> Iterator[Plan]:
    """Plans from nnU-Net's target spacing and width downwards; at each rung larger steps, then smaller patches.

    Strides and kernels are nnU-Net's for each axis. The finest axes are coarsened first, until all are alike.
    """
    start = target_spacing(fingerprint)
    coarsest = max(1.0, COARSEST_MM / start.min())
    last = max(RUNGS * len(WIDTHS) - 1, ceil(log(coarsest, COARSER)))  # both the narrowest and the coarsest
    seen = set()
    for rung in range(last + 1):
        width = WIDTHS[min(rung // RUNGS, len(WIDTHS) - 1)]
        blocks = FAMILY.encoder if width == WIDTHS[0] else NARROW_BLOCKS
        spacing = np.maximum(start, start.min() * min(COARSER**rung, coarsest))
        rounded = np.array([float(f"{step:.3g}") for step in spacing])
        for part in PATCHES:
            preset = replace(FAMILY, features=width, encoder=blocks, reference=FAMILY.reference / part)
            topology = plan_training(fingerprint, preset, rounded)
            key = (width, topology.spacing_mm, topology.patch)
            if key not in seen:
                seen.add(key)
                yield from (_plan(fingerprint, topology, preset, step, name) for step in STEPS)


def _plan(fingerprint: Fingerprint, topology: Topology, preset: Preset, step: float, name: str) -> Plan:
    """A Plan of the residual-encoder U-Net, of two stages or more.

    Channels are normalised and resampled as nnU-Net does; CT and MR in one channel are seen through HU windows.
    """
    strides, kernels = list(topology.strides), list(topology.kernels)
    if len(strides) == 1:
        strides, kernels = [strides[0], (2, 2, 2)], [(3, 3, 3), (3, 3, 3)]
    stages = len(strides)
    options = {
        "features": list(features(stages, preset)),
        "blocks": list(encoder_blocks(stages, preset)),
        "strides": [list(stride) for stride in strides],
        "kernels": [list(kernel) for kernel in kernels],
    }
    divisor = [prod(stride[axis] for stride in strides) for axis in range(3)]
    first, second, third = (ceil(n / d) * d for n, d in zip(topology.patch, divisor, strict=True))
    patch = (first, second, third)
    plan = Plan(
        name,
        fingerprint.classes,
        topology.spacing_mm,
        patch,
        step,
        network="resenc_unet",
        network_options=options,
        mirror_axes=(0, 1, 2),
    )
    mixed = len(fingerprint.channels) == 1 and len(fingerprint.modalities) > 1
    return plan if mixed else plan.with_(channels=tuple(_channels(fingerprint)), resampling="cubic")


def _channels(fingerprint: Fingerprint) -> Iterator[Channel]:
    rules = zip(fingerprint.channels, normalisation(fingerprint), fingerprint.intensities, strict=True)
    for name, (scheme, inside), values in rules:
        ours = SCHEMES[scheme] + ("_nonzero" if inside else "")
        low, high = values.percentile_00_5, max(values.percentile_99_5, values.percentile_00_5 + 1e-6)
        of_ct = {"mean": values.mean, "std": max(values.std, 1e-8), "low": low, "high": high}
        yield Channel(name, ours, **of_ct if ours == "ct" else {})


def worst_case(plan: Plan, cases: tuple[CaseShape, ...], machine: Machine, device: str) -> Cost:
    """The cost of a plan on the case that takes longest; memory is the largest of any case."""
    costs = [predict_cost(plan, case, machine, device) for case in cases]
    slowest = max(costs, key=lambda cost: cost.seconds)
    return replace(slowest, ram_mb=max(cost.ram_mb for cost in costs), gpu_mb=max(cost.gpu_mb for cost in costs))


def predict_cost(plan: Plan, case: CaseShape, machine: Machine, device: str) -> Cost:
    """The model of the module's docstring for one case."""
    outputs, channels = plan.outputs, plan.inputs
    voxels = prod(case.shape)
    extent = [n * step for n, step in zip(case.shape, case.spacing_mm, strict=True)]
    working = [max(1, round(mm / step)) for mm, step in zip(extent, plan.spacing_mm, strict=True)]
    count = prod(len(window_starts((n,), (p,), plan.step)) for n, p in zip(working, plan.patch, strict=True))
    padded = prod(max(n, p) for n, p in zip(working, plan.patch, strict=True))
    window_s = operations(plan) / machine.operations
    seconds = count * window_s + voxels * (machine.read_s + machine.export_s * outputs)

    window = (window_values(plan) * 4 / MB + WORKSPACE_MB) * machine.window_scale
    whole = (2 * outputs + channels + 1) * padded * 4 / MB
    slab = 3 * outputs * case.shape[0] * case.shape[1] * min(SLAB, case.shape[2]) * 4 / MB
    held = parameters(plan) * 4 / MB + max(window + whole, whole + slab)
    further = CHANNEL_BYTES * max(0, len(plan.channels) - 1)
    ram = machine.process_mb + voxels * (SCAN_BYTES + further) / MB
    on_cpu = device == "cpu"
    return Cost(
        case=case.case,
        windows=count,
        window_s=window_s,
        window_mb=window,
        seconds=seconds,
        ram_mb=ram + held if on_cpu else ram,
        gpu_mb=0.0 if on_cpu else CONTEXT_MB + held,
    )


def window_values(plan: Plan) -> float:
    """Numbers alive at once while one window runs: at the finest decoder stage, or the logits where classes are many.

    There are the skips of all stages, the concatenated input of the finest (2 x features) and its copy in the layout
    of the convolution, the output of that and of its norm, see nets/dynamic_unet.py. Measured: 0.9 to 1.2 times that.
    """
    widths, voxels = plan.network_options["features"], prod(plan.patch)
    strides = plan.network_options["strides"]
    shrunk = np.cumprod([prod(stride) if isinstance(stride, list) else stride**3 for stride in strides])
    skips = sum(width / share for width, share in zip(widths, shrunk, strict=True))
    outputs = plan.outputs
    return voxels * (plan.inputs + max(skips + 6 * widths[0], skips + widths[0] + outputs, 2 * outputs))


def operations(plan: Plan) -> int:
    """Multiplications and additions of one window, as torch counts them."""
    return _count(plan.network, plan.inputs, plan.outputs, _freeze(plan), plan.patch)[0]


def parameters(plan: Plan) -> int:
    """Weights of the network."""
    return _count(plan.network, plan.inputs, plan.outputs, _freeze(plan), plan.patch)[1]


def _freeze(plan: Plan) -> str:
    return json.dumps(plan.network_options)


@lru_cache(maxsize=256)
def _count(network: str, channels: int, outputs: int, options: str, patch: tuple[int, ...]) -> tuple[int, int]:
    with torch.device("meta"):  # shapes only: nothing is computed
        built = build_network(network, channels, outputs, json.loads(options)).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            built(torch.empty((1, channels, *patch)))
    return counter.get_total_flops(), sum(weights.numel() for weights in built.parameters())


def calibrate(plan: Plan, files: CaseFiles, device: str) -> Machine:
    """The rates of this machine, from reading one case, one window of a plan on it, and one slab of its export."""
    process_mb = ram_mb()
    started = time.perf_counter()
    volume = read_scan(files, plan)
    image, _ = preprocess(volume, plan)
    read_s = (time.perf_counter() - started) / volume.array.size
    outputs = plan.outputs
    shape = to_canonical(volume.array, volume.grid)[0].shape
    logits = torch.zeros((outputs, *image.shape[1:]), device=device)
    started = time.perf_counter()
    _, ids, _ = next(argmax_slabs([logits], image.shape[1:], shape, SLAB))
    ids.cpu()
    export_s = (time.perf_counter() - started) / (outputs * ids.numel())
    seconds, _ = measure_window(plan, files, device)
    return Machine(operations(plan) / seconds, read_s, export_s, process_mb)


def measure_window(plan: Plan, files: CaseFiles, device: str) -> tuple[float, float]:
    """Run one window of a case, in its middle, through an untrained network: (seconds, MB it took beside the weights).

    The first run measures memory and warms up, the fastest of REPEATS more gives the time.
    """
    image, _ = preprocess(read_scan(files, plan), plan)
    padded, _ = pad_to_patch(torch.from_numpy(image), plan.patch, padding(plan))
    crops = [crop for _, crop in windows(padded, plan.patch, plan.step)]
    window = crops[len(crops) // 2].to(device)
    network = build_network(plan.network, plan.inputs, plan.outputs, plan.network_options)
    network = network.eval().to(device=device, memory_format=torch.channels_last_3d)
    del image, padded, crops
    with torch.inference_mode():
        before = _start_peak(device)
        network(window)
        used = _peak(device) - before
        seconds = []
        for _ in range(REPEATS):
            started = time.perf_counter()
            network(window).sum().item()  # the sum waits for a GPU
            seconds.append(time.perf_counter() - started)
    return min(seconds), used


def measure_scan(plan: Plan, files: CaseFiles, device: str, expected: Cost) -> Cost:
    """Segment a case with an untrained network as `vlm segment` does, but for measuring what it finds, which is noise.

    Returns `expected` with the seconds and the peaks of memory that it took.
    """
    from seg_backbone.predict import Segmenter

    network = build_network(plan.network, plan.inputs, plan.outputs, plan.network_options).eval()
    silent = plan.with_(trained_on={files.modality: plan.classes}, minimum_ml=dict.fromkeys(plan.classes, float("inf")))
    segmenter = Segmenter(network.to(memory_format=torch.channels_last_3d), silent, "untrained", device)
    anew = _start_peak("cpu") < 1.05 * ram_mb()  # else the system keeps the peak of what was done before
    started = time.perf_counter()
    report = segmenter(files.image, files.modality).report
    seconds = time.perf_counter() - started
    return replace(
        expected,
        windows=report["windows"],
        seconds=seconds,
        ram_mb=(anew and _peak("cpu")) or expected.ram_mb,
        gpu_mb=report["budget"]["measured"]["gpu_mb"],
    )


def _start_peak(device: str) -> float:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / MB
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is in use, see proc(5)
    return _status("VmHWM")


def _peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() / MB if device == "cuda" else _status("VmHWM")


def _status(field: str) -> float:
    path = Path("/proc/self/status")
    if not path.exists():
        return 0.0
    line = next(line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / MB
