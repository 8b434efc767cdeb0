"""What a command costs: wall time, and host and GPU memory over time, as the FLARE challenges measure them.

A command enters, its curves leave. Host memory is the sum of the resident sets of the command and its descendants, so
pages that they share count more than once. GPU memory is what the whole device has in use (total - free), as FLARE
reads it: another program on the device counts too, which is why the reading before the start is kept. MB: 2**20 bytes.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pynvml

from eval.tables import Table
from seg_backbone.errors import ConfigError

INTERVAL_SECONDS = 0.1  # FLARE's pause between two readings
MB = 2**20


@dataclass(frozen=True, eq=False)
class Efficiency:
    """One run of a command.

    seconds: (n,) time of each reading since the start. rss_mb, gpu_mb: (n,) MB; gpu_mb None without an NVIDIA device.
    gpu_before_mb: in use on the device before the start. spans: (phase, start, end) in seconds since the start, one a
    phase and scan, as the command's own report says; they may overlap. None without such a report.
    """

    command: tuple[str, ...]
    exit_code: int
    wall_seconds: float
    seconds: np.ndarray
    rss_mb: np.ndarray
    gpu_mb: np.ndarray | None = None
    gpu_before_mb: float | None = None
    spans: tuple[tuple[str, float, float], ...] | None = None

    @property
    def phases(self) -> dict[str, float] | None:
        """Seconds by phase, summed over scans, and of no phase ("outside"); phases may overlap."""
        if self.spans is None or (shared := self.wall_by_phase) is None:
            return None
        phases = dict.fromkeys(shared, 0.0) | {"outside": shared["outside"]}
        for name, start, end in self.spans:
            phases[name] += end - start
        return phases

    @property
    def wall_by_phase(self) -> dict[str, float] | None:
        """The wall time by phase; a moment that several phases share is divided among them, so that it adds up."""
        if self.spans is None:
            return None
        edges = sorted(edge for name, start, end in self.spans for edge in ((start, 1, name), (end, -1, name)))
        running = dict.fromkeys((name for _, _, name in edges), 0)
        seconds, last = dict.fromkeys([*running, "outside"], 0.0), 0.0
        for time_, change, name in [*edges, (self.wall_seconds, 0, "outside")]:
            now = min(max(time_, 0.0), self.wall_seconds)
            active = [phase for phase, count in running.items() if count] or ["outside"]
            for phase in active:
                seconds[phase] += (now - last) / len(active)
            last = now
            if change:
                running[name] += change
        return seconds

    @property
    def network_busy(self) -> float | None:
        """Share of the wall time in which the network ran."""
        return None if (phases := self.phases) is None else phases.get("network", 0.0) / self.wall_seconds

    def metrics(self) -> dict[str, Any]:
        """The content of efficiency.json."""
        gpu = None
        if self.gpu_mb is not None:
            gpu = {"before_mb": self.gpu_before_mb, **self._of_curve(self.gpu_mb)}
        return {
            "kind": "efficiency",
            "command": list(self.command),
            "exit_code": self.exit_code,
            "wall_seconds": self.wall_seconds,
            "readings": len(self.seconds),
            "rss": self._of_curve(self.rss_mb),
            "gpu": gpu,
            "phases": self.phases,
            "wall_by_phase": self.wall_by_phase,
            "network_busy": self.network_busy,
            "spans": self.spans,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a reading, for samples.csv."""
        gpu = np.full(len(self.seconds), np.nan) if self.gpu_mb is None else self.gpu_mb
        readings = zip(self.seconds.tolist(), self.rss_mb.tolist(), gpu.tolist(), strict=True)
        return [{"seconds": second, "rss_mb": rss, "gpu_mb": used} for second, rss, used in readings]

    def tables(self) -> list[Table]:
        """Memory (a row a device) and, where the command reported them, its phases."""
        metrics = self.metrics()
        memory = [
            [name, *(f"{curve[key]:.1f}" for key in ("peak_mb", "area_mb_s", "official_area_mb_s"))]
            for name, curve in (("host", metrics["rss"]), ("GPU", metrics["gpu"]))
            if curve is not None
        ]
        notes = [f"{len(self.seconds)} readings. The official area is FLARE's: sum of the readings x 0.1 s."]
        if self.gpu_mb is None:
            notes.append("No NVIDIA device: GPU memory was not read.")
        title = f"{self.wall_seconds:.2f} s, exit code {self.exit_code}: {' '.join(self.command)}"
        tables = [Table(title, ["memory", "peak MB", "area MB s", "official area MB s"], memory, notes)]
        if (phases := self.phases) and (shared := self.wall_by_phase):
            rows = [
                [name, f"{value:.2f}", f"{shared[name]:.2f}", f"{shared[name] / self.wall_seconds:.0%}"]
                for name, value in phases.items()
            ]
            rows.append(["all", "", f"{sum(shared.values()):.2f}", "100%"])
            notes = [
                "Threads overlap: of the wall time, a moment that phases share is divided among them.",
                f"The network ran for {self.network_busy:.0%} of the wall time.",
            ]
            tables.append(Table("Phases", ["phase", "seconds", "of the wall time", "share"], rows, notes))
        return tables

    def _of_curve(self, mb: np.ndarray) -> dict[str, float]:
        return {
            "peak_mb": float(mb.max()),
            "area_mb_s": area(self.seconds, mb, self.wall_seconds),
            "official_area_mb_s": official_area(mb),
        }


def official_area(mb: np.ndarray) -> float:
    """FLARE's area under the memory-time curve, MB s: the sum of all readings times 0.1 s.

    FLARE pauses 0.1 s between readings but counts nothing for the reading itself, so true spacing is longer than 0.1 s
    and the sum is too small by as much. Kept because published figures are made this way. Source: FLARE's evaluation
    script (Ma et al., Unleashing the strengths of unlabelled data in pan-cancer abdominal organ quantification: the
    FLARE22 challenge, 2023).
    """
    return float(mb.sum() * INTERVAL_SECONDS)


def area(seconds: np.ndarray, mb: np.ndarray, wall_seconds: float) -> float:
    """The area by trapezoids at the true times, MB s; the first and last readings hold to the start and the end."""
    times = np.concatenate([[0.0], seconds, [wall_seconds]])
    return float(np.trapezoid(np.concatenate([mb[:1], mb, mb[-1:]]), times))


def measure(command: Sequence[str], gpu: int = 0) -> Efficiency:
    """Run `command` to its end and read its memory every 0.1 s.

    gpu: NVML index of the device to read. The command's standard output goes to standard error, so that standard output
    is free for the figures; it inherits everything else. A `--report FILE` among its arguments that it wrote as
    `vlm segment` does gives the phases: import, load (weights), read, preprocess, network, export, measure and write.
    What is in none of them (starting the interpreter, leaving it) a challenge counts too.
    Raises ConfigError where the command cannot be started or `gpu` is not there on a machine that has NVIDIA devices.
    """
    report = _report_of(command)
    written_before = _modified(report)
    with _gpu_memory(gpu) as read_gpu:
        before = read_gpu()
        start, clock = time.perf_counter(), time.time()
        try:
            process = subprocess.Popen(command, stdout=2)  # 2: standard error
        except OSError as error:
            raise ConfigError("COMMAND", "a program that runs", f"{error}", "check its name and path") from None
        tree = psutil.Process(process.pid)
        readings = [(time.perf_counter() - start, _tree_rss(tree), read_gpu())]
        ended = threading.Event()

        def read_until_end() -> None:
            while not ended.wait(INTERVAL_SECONDS):
                if rss := _tree_rss(tree):
                    readings.append((time.perf_counter() - start, rss, read_gpu()))

        reader = threading.Thread(target=read_until_end, daemon=True)
        try:
            reader.start()
            exit_code = process.wait()
            wall = time.perf_counter() - start
        except BaseException:
            process.kill()
            raise
        finally:
            ended.set()
            reader.join()
    seconds, rss, used = zip(*readings, strict=True)
    spans = _read_spans(report, clock) if report is not None and _modified(report) != written_before else None
    return Efficiency(
        tuple(command),
        exit_code,
        wall,
        np.minimum(seconds, wall),
        np.array(rss),
        None if before is None else np.array(used, dtype=float),
        before,
        spans,
    )


def _tree_rss(process: psutil.Process) -> float:
    """Resident memory of a process and its descendants, MB; those that end meanwhile count as nothing."""
    total = 0
    try:
        for one in [process, *process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total / MB


@contextmanager
def _gpu_memory(index: int) -> Iterator[Any]:
    """Yields a function: MB in use on the device, or None where there is no NVIDIA driver or no device at all."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield lambda: None
        return
    try:
        count = pynvml.nvmlDeviceGetCount()
        if count and not 0 <= index < count:
            raise ConfigError("--gpu", f"an index below {count}", str(index), "see nvidia-smi -L")
        device = pynvml.nvmlDeviceGetHandleByIndex(index) if count else None

        def used() -> float | None:
            if device is None:
                return None
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            return (memory.total - memory.free) / MB

        yield used
    finally:
        pynvml.nvmlShutdown()


def _report_of(command: Sequence[str]) -> Path | None:
    """The FILE of `--report FILE` or `--report=FILE` among a command's arguments."""
    for place, argument in enumerate(command):
        if argument.startswith("--report="):
            return Path(argument.removeprefix("--report="))
        if argument == "--report" and place + 1 < len(command):
            return Path(command[place + 1])
    return None


def _modified(path: Path | None) -> int | None:
    return path.stat().st_mtime_ns if path is not None and path.is_file() else None


def _read_spans(report: Path, clock: float) -> tuple[tuple[str, float, float], ...] | None:
    """The spans of a `vlm segment` report, in seconds since the time of day `clock`; None for any other file."""
    try:
        entries = json.loads(report.read_text(encoding="utf-8"))
        spans = [(name, span) for entry in entries for name, span in entry.get("spans", {}).items()]
        return tuple((name, float(start) - clock, float(end) - clock) for name, (start, end) in spans) or None
    except (ValueError, TypeError, AttributeError):
        return None
