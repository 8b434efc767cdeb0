"""A 3D vision transformer (Dosovitskiy et al. 2021; MONAI's ViT), trained from scratch by `vlm train encoder`.

Windows lie on a grid of one spacing, so that its learned embedding of a patch's place is one of millimetres. A model
folder holds `vit.json` and `weights.safetensors`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from monai.networks.nets import ViT

from seg_backbone.errors import CheckpointError, ConfigError
from seg_backbone.io.atomic import replacing
from seg_backbone.plan import Plan
from seg_backbone.predict import Segmenter
from vlm.encoders.windows import Lattice, WindowEncoder

CONFIG, WEIGHTS = "vit.json", "weights.safetensors"


@dataclass(frozen=True)
class VitConfig:
    """Network and input. window: voxels along (right, anterior, superior), a multiple of `patch`. width: of the tokens,
    a multiple of `heads`. step: share of a window between neighbours when a scan is encoded.
    """

    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0)
    window: tuple[int, int, int] = (72, 72, 72)
    step: float = 0.75
    ct_windows_hu: tuple[tuple[float, float], ...] = ((-160.0, 240.0), (-1000.0, 1000.0))
    patch: int = 8
    width: int = 192
    layers: int = 6
    heads: int = 6

    def __post_init__(self) -> None:
        for key in ("spacing_mm", "window"):  # lists, where they come from a file
            object.__setattr__(self, key, tuple(getattr(self, key)))
        object.__setattr__(self, "ct_windows_hu", tuple((low, high) for low, high in self.ct_windows_hu))
        if any(size % self.patch for size in self.window) or self.width % self.heads:
            found = f"window {self.window}, patch {self.patch}, width {self.width}, heads {self.heads}"
            raise ConfigError("network", "patches that fill the window, heads that share the width", found, "change it")

    def plan(self) -> Plan:
        """How a scan becomes the network's input."""
        return Plan(
            name="vit",
            classes=("body",),
            spacing_mm=self.spacing_mm,
            patch=self.window,
            step=self.step,
            ct_windows_hu=self.ct_windows_hu,
        )


def build_vit(config: VitConfig) -> ViT:
    """The network with random weights: (B, channels, *window) -> (B, patches, width) tokens, and a list by layer."""
    return ViT(
        in_channels=len(config.ct_windows_hu),
        img_size=config.window,
        patch_size=config.patch,
        hidden_size=config.width,
        mlp_dim=4 * config.width,
        num_layers=config.layers,
        num_heads=config.heads,
    )


def save_vit(network: ViT, config: VitConfig, folder: Path) -> Path:
    """Write a model folder and return it."""
    from safetensors.torch import save_file

    with replacing(folder / WEIGHTS) as file:
        save_file({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}, file)
    with replacing(folder / CONFIG) as file:
        file.write_text(json.dumps(asdict(config), indent=2) + "\n")
    return folder


def vit(segmenter: Segmenter, weights: str = "") -> WindowEncoder:
    """The encoder. weights: a folder that `vlm train encoder` wrote. Raises CheckpointError where it is not one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(weights)
    todo = "name it as encoder_options: {weights: FOLDER}, or train one: vlm train encoder"
    try:
        description, data = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
        config = VitConfig(**json.loads(description))
        network = build_vit(config)
        network.load_state_dict(load(data))
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        found = str(error).splitlines()[0]
        raise CheckpointError(weights or "vit", f"a folder with {CONFIG} and {WEIGHTS}", found, todo) from None
    network.eval().to(segmenter.device)
    patch, width = config.patch, config.width
    shape = [size // patch for size in config.window]
    middle = (patch - 1) / 2
    return WindowEncoder(
        network=lambda window: {0: network(window)[0].transpose(1, 2).unflatten(2, shape)},
        lattices={0: Lattice((middle, middle, middle), (patch, patch, patch))},
        channels=(width, width),
        version=hashlib.sha256(description + data).hexdigest()[:12],
        plan=config.plan(),
        device=segmenter.device,
    )
