"""Model folders: `weights.safetensors`, `plan.json`, `README.md` (the model card). No pickled code is ever read."""

from __future__ import annotations

import hashlib
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from seg_backbone.errors import CheckpointError
from seg_backbone.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import nn

SHIPPED = Path(__file__).parent / "weights"
WEIGHTS, PLAN = "weights.safetensors", "plan.json"


def find_model(name: str | Path) -> Path:
    """The folder of a model: a folder as given, or the name of one that ships. Raises CheckpointError."""
    folder = Path(name)
    if not (folder / PLAN).is_file() and (SHIPPED / str(name) / PLAN).is_file():
        folder = SHIPPED / str(name)
    if not (folder / PLAN).is_file() or not (folder / WEIGHTS).is_file():
        names = sorted(p.parent.name for p in SHIPPED.glob(f"*/{PLAN}"))
        raise CheckpointError(name, f"a model folder with {PLAN} and {WEIGHTS}", "none", f"models that ship: {names}")
    return folder


def save_model(network: nn.Module, plan: Plan, folder: str | Path, half: bool = False) -> Path:
    """Write weights and plan, each under a temporary name first. half: store float16 (loads as float32)."""
    from safetensors.torch import save_file

    from seg_backbone.io import replacing

    folder = Path(folder)
    state = {key: value.detach().cpu().contiguous() for key, value in own_weights(network).items()}
    with replacing(folder / WEIGHTS) as temporary:
        save_file({k: v.half() if half and v.is_floating_point() else v for k, v in state.items()}, temporary)
    with replacing(folder / PLAN) as temporary:
        temporary.write_text(plan.to_json())
    return folder


def load_model(name: str | Path) -> tuple[nn.Module, Plan, str]:
    """Network in eval mode, its plan, and the first 12 hex digits of the weights' SHA-256. Raises CheckpointError."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from seg_backbone.nets import build_network

    folder = find_model(name)
    plan = Plan.read(folder / PLAN)
    network = build_network(plan.network, len(plan.ct_windows_hu), len(plan.classes) + 1, plan.network_options)
    data = (folder / WEIGHTS).read_bytes()
    try:
        state = {key: value.float() if value.is_floating_point() else value for key, value in load(data).items()}
    except SafetensorError as error:
        raise CheckpointError(folder / WEIGHTS, "safetensors", str(error), "fetch the model again") from None
    wanted = {key: value.shape for key, value in own_weights(network).items()}
    if {key: value.shape for key, value in state.items()} != wanted:
        raise CheckpointError(folder, "weights that fit plan.json", "other layers or shapes", "fetch the model again")
    network.load_state_dict(state, strict=False)
    network.eval().to(memory_format=torch.channels_last_3d)
    return network, plan, hashlib.sha256(data).hexdigest()[:12]


def own_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network, each tensor under one name: nnU-Net's networks register most of theirs three times."""
    names = {name for name, _ in chain(network.named_parameters(), network.named_buffers())}
    return {name: value for name, value in network.state_dict().items() if name in names}
