"""What runs the network: torch, or OpenVINO on a CPU, which takes about half the time.

A runtime is a function of windows: (n, channels, *patch) float32 -> (n, classes, *patch) float32 logits. Encoder
features always come from torch.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from seg_backbone.errors import ConfigError

RUNTIMES = ("torch", "openvino", "auto")
DRIFT_DICE = 0.99  # below it the two runtimes are not the same model
Forward = Callable[[torch.Tensor], torch.Tensor]


def torch_runtime(network: torch.nn.Module) -> Forward:
    """The network as it is."""
    return lambda windows: network.decoder(network.encoder(windows))


def require_runtime(name: str, device: str) -> None:
    """Raises ConfigError for an unknown runtime, and for OpenVINO where it cannot be used."""
    if name not in RUNTIMES:
        raise ConfigError("runtime", f"one of {RUNTIMES}", repr(name), "choose one of them")
    if name == "openvino" and find_spec("openvino") is None:
        raise ConfigError("runtime", "openvino to be installed", "none", "pip install 'flare-vlm[openvino]'")
    if name == "openvino" and device != "cpu":
        raise ConfigError("runtime", "the CPU for openvino", device, "pass --device cpu")


def has_openvino() -> bool:
    """True where the optional package is installed."""
    return find_spec("openvino") is not None


def openvino_runtime(
    network: torch.nn.Module, channels: int, patch: tuple[int, int, int], cache: Path | None = None
) -> Forward:
    """The network converted for OpenVINO in float32, on as many threads as torch uses.

    The converted model is kept in `cache` (default ~/.cache/flare-vlm/openvino) under a hash of weights, patch and
    OpenVINO's version, so that the next start only reads it. Where the cache cannot be written it is done without.
    """
    import openvino

    folder = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flare-vlm" / "openvino"
    path = folder / f"{_digest(network, patch, openvino.__version__)}.xml"
    core = openvino.Core()
    try:
        model = core.read_model(path)
    except RuntimeError:  # not there, or not whole
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of Python conditions; shapes are fixed here
            model = openvino.convert_model(network, example_input=torch.zeros((1, channels, *patch)))
        model.reshape([1, channels, *patch])
        _keep(openvino, model, path)
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(model, "CPU", options)

    def forward(windows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([compiled(window[None].numpy())[0] for window in windows]))

    return forward


def drift(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """Two (n, classes, ...) logits -> the lowest Dice of a class that either finds (1 where none), and the largest
    difference of a logit.
    """
    ours, theirs = first.argmax(1), second.argmax(1)
    scores = [1.0]
    for value in range(first.shape[1]):
        one, other = ours == value, theirs == value
        if size := int(one.sum() + other.sum()):
            scores.append(2 * int((one & other).sum()) / size)
    return {"dice": min(scores), "largest_difference": float((first - second).abs().max())}


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


def _digest(network: torch.nn.Module, patch: tuple[int, int, int], version: str) -> str:
    """24 hex digits that name the weights, the layers, the window and the version of OpenVINO."""
    known = hashlib.sha256(f"{network}{patch}{version}".encode())
    for name, value in network.state_dict().items():
        known.update(name.encode())
        known.update(value.detach().cpu().contiguous().numpy().tobytes())
    return known.hexdigest()[:24]
