"""Model folders: `weights.safetensors`, `plan.json`, `README.md` (the model card). No pickled code is ever read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from seg_backbone.errors import CheckpointError, ConfigError
from seg_backbone.plan import Plan

if TYPE_CHECKING:
    import torch
    from torch import nn

SHIPPED = Path(__file__).parent / "weights"
# what says how a network sees a scan and what its layers are
SAME_PLAN = (
    *("classes", "spacing_mm", "orientation", "ct_windows_hu", "channels", "resampling", "crop_nonzero"),
    *("network", "network_options", "heads", "members"),
)
WEIGHTS, PLAN = "weights.safetensors", "plan.json"


def imported_models() -> Path:
    """The user's folder of imported models, which are found by name as those that ship are."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "flare-vlm" / "models"


def find_model(name: str | Path) -> Path:
    """The folder of a model: as given, or by the name of one that ships or was imported. Raises CheckpointError."""
    homes = (SHIPPED, imported_models())
    folder = next((f for f in (Path(name), *(home / name for home in homes)) if (f / PLAN).is_file()), Path(name))
    if not (folder / PLAN).is_file() or not (folder / WEIGHTS).is_file():
        names = sorted(p.parent.name for home in homes for p in home.glob(f"*/{PLAN}"))
        todo = f"models that ship or were imported: {names}"
        if (folder / "plans.json").is_file() or any(folder.glob("*/plans.json")):
            todo = f"it is nnU-Net's: vlm model import nnunet:{folder}"
        raise CheckpointError(name, f"a model folder with {PLAN} and {WEIGHTS}", "none", todo)
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
    from seg_backbone.nets.wrappers import Ensemble, Regions

    folder = find_model(name)
    plan = Plan.read(folder / PLAN)
    try:
        members = [
            build_network(plan.network, plan.inputs, plan.outputs, plan.network_options) for _ in range(plan.members)
        ]
    except ConfigError as error:
        raise CheckpointError(folder / PLAN, error.expected, error.found, error.todo) from None
    network = members[0] if len(members) == 1 else Ensemble(members)
    if any(size % step for size, step in zip(plan.patch, network.divisor, strict=True)):  # type: ignore[arg-type]
        expected = f"a patch of multiples of {network.divisor}"
        raise CheckpointError(folder / PLAN, expected, f"{list(plan.patch)}", "change it, or fetch the model again")
    data = (folder / WEIGHTS).read_bytes()
    try:
        state = {key: value.float() if value.is_floating_point() else value for key, value in load(data).items()}
    except SafetensorError as error:
        raise CheckpointError(folder / WEIGHTS, "safetensors", str(error), "fetch the model again") from None
    wanted = {key: value.shape for key, value in own_weights(network).items()}
    if {key: value.shape for key, value in state.items()} != wanted:
        raise CheckpointError(folder, "weights that fit plan.json", "other layers or shapes", "fetch the model again")
    network.load_state_dict(state, strict=False)
    if plan.painted:
        network = Regions(network)
    network.eval().to(memory_format=torch.channels_last_3d)
    return network, plan, hashlib.sha256(data).hexdigest()[:12]


def average_models(names: Sequence[str | Path], folder: str | Path, half: bool = False) -> Path:
    """Write the mean of the weights of models of one plan, such as stages of one training ("model soup", Wortsman et
    al. 2022); plan and name are the first one's. Raises CheckpointError for models of different plans.
    """
    network, plan, _ = load_model(names[0])
    sums = {key: value.clone() for key, value in own_weights(network).items() if value.is_floating_point()}
    for name in names[1:]:
        other, its_plan, _ = load_model(name)
        if any(getattr(plan, key) != getattr(its_plan, key) for key in SAME_PLAN):
            raise CheckpointError(name, f"the {', '.join(SAME_PLAN)} of {names[0]}", "another plan", "average its kin")
        its_weights = own_weights(other)
        for key, total in sums.items():
            total += its_weights[key]
    network.load_state_dict({key: total / len(names) for key, total in sums.items()}, strict=False)
    return save_model(network, plan, folder, half)


def own_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network, each tensor under one name: nnU-Net's networks register most of theirs three times."""
    names = {name for name, _ in chain(network.named_parameters(), network.named_buffers())}
    return {name: value for name, value in network.state_dict().items() if name in names}
