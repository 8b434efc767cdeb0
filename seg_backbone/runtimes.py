"""What runs the network: torch, torch compiled, or OpenVINO on a CPU, which takes about half the time but must load.

A runtime is a function of windows: (n, channels, *patch) float32 -> (n, classes, *patch) float32 logits; of a model
that classifies scans also one that gives beside them what its heads pool. Encoder features always come from torch.
Whatever is not plain torch is held against it on windows of the first scan, and dropped where the two disagree.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from seg_backbone.errors import ConfigError
from seg_backbone.governor import WindowCost, window_cost
from seg_backbone.io.atomic import replacing
from seg_backbone.scan_heads import WithPooled, WithStatistics
from seg_backbone.sliding_window import Forward, pad_to_patch, window_starts

OPENVINO = {"openvino": ("openvino",), "openvino-int8": ("openvino", "nncf")}  # runtime -> packages that it needs
EXTRAS = {"openvino": "openvino", "nncf": "int8", "onnx": "onnx", "onnxscript": "onnx", "onnxruntime": "onnx"}
RUNTIMES = ("torch", "compile", *OPENVINO, "auto")
DRIFT_DICE = 0.99  # below it the two runtimes are not the same model
CALIBRATION = 8  # windows at most that set the ranges of int8
CHECKED = 4  # windows at most that a runtime is held against torch on
# operations a second and thread, and seconds before the first window: rough, what `auto` weighs up
TORCH_SPEED, OPENVINO_SPEED = 20e9, 50e9
LOAD_SECONDS, CONVERT_SECONDS = 1.0, 5.0


@dataclass(frozen=True)
class Runtime:
    """One way to run the network. why: for what reason it is not the one that was asked for; None where it is.

    drift: see the function; None for torch, and until it was checked. classify: see WithPooled; None without heads.
    """

    name: str
    forward: Forward
    why: str | None = None
    drift: dict[str, float] | None = None
    classify: WithPooled | None = None


class Runtimes:
    """The runtimes of one network: which one a scan gets, made once, checked once.

    asked: one of RUNTIMES. "auto" is OpenVINO where it is installed and pays, in fast mode on a CPU. classified: the
    network with what its heads pool, None for a model without heads.
    Raises ConfigError for an unknown runtime, and for one that cannot be used here.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        channels: int,
        patch: tuple[int, int, int],
        asked: str,
        device: torch.device,
        classified: WithStatistics | None = None,
    ) -> None:
        require_runtime(asked, device.type)
        self.classified, self.converted = classified, classified or network
        self.network, self.channels, self.patch, self.asked, self.device = network, channels, patch, asked, device
        self._made: dict[str, Runtime] = {}

    @cached_property
    def cost(self) -> WindowCost:
        """What one window takes."""
        return window_cost(self.network, self.channels, self.patch, self.device.type == "cuda")

    def choose(self, fast: bool, features: bool, capped: bool = False, windows: int | None = None) -> Runtime:
        """The runtime for a scan. features: whether encoder features are kept. int8 comes only with `verified`.

        capped: whether memory is, so that nothing may be converted now (that takes over 1 GB for a small network).
        windows: how many there will be; None for as many as it takes to be worth loading anything.
        """
        if self.asked == "torch":
            return self.plain(fast)
        if features:
            return self.plain(fast, "features come from torch")
        has = has_package("openvino")
        if self.asked == "auto" and not (fast and self.device.type == "cpu" and has):
            return self.plain(fast, f"auto takes openvino in fast mode on a CPU{'' if has else ', and it is missing'}")
        name = "compile" if self.asked == "compile" else "openvino"
        if self.classified and name == "compile":
            return self.plain(fast, "classes of scans come from torch or openvino")
        if name not in self._made:
            if self.asked == "auto" and windows is not None and (why := self._does_not_pay(windows)):
                return self.plain(fast, why)
            if capped and (name == "compile" or not kept_model(self.converted, self.patch).is_file()):
                return self.plain(fast, f"{name} is not made yet, which takes memory: run once without a cap on it")
            self._made[name] = self._make(name)
        return self._made[name]

    def _does_not_pay(self, windows: int) -> str | None:
        """Why so few windows are not worth loading OpenVINO for, converted first unless it was before; else None."""
        work = windows * self.cost.operations / torch.get_num_threads()
        by_torch, by_openvino = work / TORCH_SPEED, work / OPENVINO_SPEED + LOAD_SECONDS
        why = f"{windows} windows: about {by_torch:.1f} s by torch, {by_openvino:.1f} s by openvino"
        if by_torch < by_openvino:
            return why
        if by_torch < by_openvino + CONVERT_SECONDS and not kept_model(self.converted, self.patch).is_file():
            return f"{why} and {CONVERT_SECONDS:.1f} s to convert it, which --runtime openvino does once"
        return None

    def plain(self, fast: bool, why: str | None = None) -> Runtime:
        """Torch, in mixed precision in fast mode on a GPU."""
        half = fast and self.device.type == "cuda"
        return Runtime("torch", torch_runtime(self.network, half), why, classify=self.classified)

    def _make(self, name: str) -> Runtime:
        make: Callable[..., Any] = compiled_runtime if name == "compile" else openvino_runtime
        run = make(self.converted, self.channels, self.patch)
        return Runtime(name, lambda windows: run(windows)[0], classify=run) if self.classified else Runtime(name, run)

    def verified(self, chosen: Runtime, image: torch.Tensor, capped: bool = False) -> Runtime:
        """The runtime, or one that agrees with torch where it does not; image: (channels, i, j, k), preprocessed."""
        if chosen.name == "torch":
            return chosen
        if self._made[chosen.name].drift is None:
            self._made[chosen.name] = replace(chosen, drift=self._drift(chosen.forward, _spread(image, self.patch, 1)))
        chosen = self._settled(chosen.name, self.plain(False))
        if self.asked != "openvino-int8" or chosen.name == "torch":
            return chosen
        if self.classified:
            return replace(chosen, why="the heads that classify scans learned from features in float32")
        if "openvino-int8" not in self._made:
            if capped and not kept_model(self.network, self.patch, "int8").is_file():
                return replace(chosen, why="int8 is not made yet, which takes memory: run once without a cap on it")
            windows = _spread(image, self.patch, CALIBRATION + CHECKED)
            forward = openvino_runtime(self.network, self.channels, self.patch, windows[::2][:CALIBRATION])
            drift = self._drift(forward, (windows[1::2] or windows)[:CHECKED])
            self._made["openvino-int8"] = Runtime("openvino-int8", forward, drift=drift)
        return self._settled("openvino-int8", chosen)

    def report(self, used: Runtime) -> dict[str, Any]:
        """What was asked for, used and why, ready for JSON; drift of every runtime that was checked."""
        checked = {name: made.drift for name, made in self._made.items() if made.drift is not None}
        return {"asked": self.asked, "used": used.name, "why": used.why, "drift": checked}

    def _settled(self, name: str, other: Runtime) -> Runtime:
        """A checked runtime, or the other one with the reason."""
        drift = self._made[name].drift
        assert drift is not None
        if drift["dice"] >= DRIFT_DICE:
            return self._made[name]
        return replace(other, why=f"{name} drifts: Dice {drift['dice']:.4f} with torch on {drift['windows']} windows")

    def _drift(self, forward: Forward, windows: list[torch.Tensor]) -> dict[str, float]:
        plain = torch_runtime(self.network)
        with torch.inference_mode():
            pairs = [(plain(window), forward(window)) for window in (one.to(self.device) for one in windows)]
        return drift(torch.cat([ours for ours, _ in pairs]), torch.cat([theirs for _, theirs in pairs]))


def torch_runtime(network: torch.nn.Module, half: bool = False) -> Forward:
    """The network as it is. half: in mixed precision (float16 where it is safe), on a GPU."""

    def forward(windows: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.float16, enabled=half):
            return network(windows).float()

    return forward


def compiled_runtime(network: torch.nn.Module, channels: int, patch: tuple[int, int, int]) -> Forward:
    """The network through torch.compile, for windows of one shape. The first window takes from half a minute up."""
    return torch.compile(torch_runtime(network), dynamic=False)


def require_runtime(name: str, device: str) -> None:
    """Raises ConfigError for an unknown runtime, and for OpenVINO where it cannot be used."""
    if name not in RUNTIMES:
        raise ConfigError("runtime", f"one of {RUNTIMES}", repr(name), "choose one of them")
    if name not in OPENVINO:
        return
    _require("runtime", *OPENVINO[name])
    if device != "cpu":
        raise ConfigError("runtime", f"the CPU for {name}", device, "pass --device cpu")


def _require(source: str, *packages: str) -> None:
    """Raises ConfigError where an optional package is missing."""
    for name in packages:
        if not has_package(name):
            raise ConfigError(source, f"{name} to be installed", "none", f"pip install 'flare-vlm[{EXTRAS[name]}]'")


def has_package(name: str) -> bool:
    """True where an optional package is installed."""
    return find_spec(name) is not None


def openvino_runtime(
    network: torch.nn.Module,
    channels: int,
    patch: tuple[int, int, int],
    calibration: list[torch.Tensor] | None = None,
    cache: Path | None = None,
) -> Callable[[torch.Tensor], Any]:
    """The network, whose result is one tensor or a tuple of them, converted for OpenVINO, on as many threads as torch
    uses: float32, or int8 with calibration windows.

    The converted model is kept in `cache` (default ~/.cache/flare-vlm/openvino) under a hash of weights, patch, kind
    and OpenVINO's version, so that the next start only reads it. Where the cache cannot be written it is done without.
    calibration: (1, channels, *patch) each; NNCF takes the ranges of the activations from them.
    """
    import openvino

    path = kept_model(network, patch, "float32" if calibration is None else "int8", cache)
    core = openvino.Core()
    try:
        model = core.read_model(path)
    except RuntimeError:  # not there, or not whole
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of Python conditions; shapes are fixed here
            model = openvino.convert_model(network, example_input=torch.zeros((1, channels, *patch)))
        model.reshape([1, channels, *patch])
        if calibration is not None:
            model = _quantised(model, calibration)
        _keep(openvino, model, path)
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # of what is not int8
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(model, "CPU", options)
    _keep_signal_stack()

    def forward(windows: torch.Tensor) -> Any:
        each = [[*compiled(window[None].numpy()).values()] for window in windows]
        outputs = tuple(torch.from_numpy(np.concatenate(parts)) for parts in zip(*each, strict=True))
        return outputs if len(outputs) > 1 else outputs[0]

    return forward


class _SignalStack(ctypes.Structure):
    """C's stack_t."""

    _fields_ = (("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_ROOM = threading.local()


def _keep_signal_stack() -> None:
    """Give this thread a signal stack that lives as long as the thread.

    OpenVINO's plugin sets one of its own with every model, and when a model goes it puts back the one before, though
    that may have gone already: the next signal that Python handles (Ctrl-C, the end of a worker process) would then
    end the process with a segmentation fault.
    """
    if sys.platform == "linux":
        _ROOM.stack = ctypes.create_string_buffer(1 << 18)
        ours = _SignalStack(ctypes.addressof(_ROOM.stack), 0, len(_ROOM.stack))
        ctypes.CDLL(None).sigaltstack(ctypes.byref(ours), None)


def kept_model(
    network: torch.nn.Module, patch: tuple[int, int, int], kind: str = "float32", cache: Path | None = None
) -> Path:
    """Where the converted model is kept, whether it is there or not; see `openvino_runtime`."""
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flare-vlm" / "openvino"
    return folder / f"{_digest(network, patch, version('openvino'), kind)}.xml"


def export_onnx(network: torch.nn.Module, channels: int, patch: tuple[int, int, int], plan: str, path: Path) -> float:
    """Write the network as ONNX: `windows` (n, channels, *patch) -> `logits` (n, classes, *patch), both float32.

    plan: JSON that goes into the file's metadata under "plan"; without it nobody can prepare the windows. Returns the
    largest difference of a logit between ONNX Runtime and torch on two random windows.
    Raises ConfigError where the optional packages are missing.
    """
    _require("export", "onnx", "onnxscript", "onnxruntime")
    import onnx
    import onnxruntime

    windows = torch.randn((2, channels, *patch), generator=torch.Generator().manual_seed(0))
    names = {"input_names": ["windows"], "output_names": ["logits"]}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter warns of its own libraries
        program = torch.onnx.export(
            network, (windows,), dynamo=True, dynamic_shapes=({0: "n"},), verbose=False, **names
        )
        expected = network(windows)
    model = program.model_proto
    onnx.helper.set_model_props(model, {"plan": plan})
    with replacing(path) as temporary:
        onnx.save(model, temporary)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"windows": windows.numpy()})
    return float(np.abs(logits - expected.numpy()).max())


def drift(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """Two (n, classes, ...) logits -> the lowest Dice of a class that either finds (1 where none), the largest
    difference of a logit, and n.
    """
    ours, theirs = first.argmax(1), second.argmax(1)
    scores = [1.0]
    for value in range(first.shape[1]):
        one, other = ours == value, theirs == value
        if size := int(one.sum() + other.sum()):
            scores.append(2 * int((one & other).sum()) / size)
    return {
        "dice": min(scores),
        "largest_difference": float((first - second).abs().max()),
        "windows": len(first),
    }


def _spread(image: torch.Tensor, patch: tuple[int, int, int], count: int) -> list[torch.Tensor]:
    """Up to `count` windows (1, channels, *patch), spread evenly over those side by side in a scan."""
    padded, _ = pad_to_patch(image, patch)
    starts = window_starts(tuple(padded.shape[1:]), patch, 1.0)
    chosen = {int((n + 0.5) * len(starts) / count) for n in range(count)}
    places = [tuple(slice(s, s + n) for s, n in zip(starts[n], patch, strict=True)) for n in sorted(chosen)]
    return [padded[(slice(None), *place)][None].contiguous() for place in places]


def _quantised(model: Any, calibration: list[torch.Tensor]) -> Any:
    """The model with int8 convolutions (NNCF's post-training quantisation)."""
    import nncf

    nncf.set_log_level(40)  # errors
    data = nncf.Dataset([window.numpy() for window in calibration])
    return nncf.quantize(model, data, preset=nncf.QuantizationPreset.MIXED, subset_size=len(calibration))


def _keep(openvino: Any, model: Any, path: Path) -> None:
    """Write a model's two files, the one that is looked for last; silently not where the folder cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            openvino.save_model(model, temporary, compress_to_fp16=False)
            os.replace(temporary.with_suffix(".bin"), path.with_suffix(".bin"))
            os.replace(temporary, path)
    except OSError:
        return


def _digest(network: torch.nn.Module, patch: tuple[int, int, int], version: str, kind: str) -> str:
    """24 hex digits that name the weights, the layers, the window, the kind and the version of OpenVINO."""
    known = hashlib.sha256(f"{network}{patch}{version}{kind}".encode())
    for name, value in chain(network.named_parameters(), network.named_buffers()):
        known.update(name.encode())
        known.update(value.detach().cpu().contiguous().numpy().tobytes())
    return known.hexdigest()[:24]
