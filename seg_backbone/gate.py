"""A classifier in front of the network: a window that it finds empty need not be run.

The first of the two stages of FLARE25's ResNet-18 and SwinUNETR. `vlm train gate` makes one for a model and stores it
beside the weights; its threshold is in the plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from seg_backbone.errors import CheckpointError
from seg_backbone.nets import build_classifier
from seg_backbone.plan import GatePlan, Plan
from seg_backbone.skips import Start, Tiling
from seg_backbone.sliding_window import pad_to_patch

WEIGHTS = "gate.safetensors"


def gate_network(gate: GatePlan) -> torch.nn.Module:
    """The classifier, untrained: (B, channels, *patch) -> (B, 1) logit of foreground."""
    return build_classifier(gate.network, len(gate.ct_windows_hu), 1, gate.network_options)


def gate_input(plan: Plan, gate: GatePlan) -> Plan:
    """The plan by which a scan becomes the classifier's input: the model's grid and window, its own channels."""
    return plan.with_(ct_windows_hu=gate.ct_windows_hu, channels=())


def load_gate(folder: Path, gate: GatePlan) -> torch.nn.Module:
    """The classifier of a model folder in eval mode. Raises CheckpointError where it is missing or does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    network = gate_network(gate)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError) as error:
        found = str(error).splitlines()[0]
        raise CheckpointError(
            folder / WEIGHTS, "the gate of plan.json", found, "train it again, or set gate to null"
        ) from None
    return network.eval()


@torch.inference_mode()
def foreground_probability(
    network: torch.nn.Module, image: torch.Tensor, tiling: Tiling, starts: Sequence[Start], batch: int = 1
) -> np.ndarray:
    """(n,) probability that each of n windows holds foreground, `batch` at once. image: (channels, i, j, k), see
    `gate_input`.
    """
    padded, _ = pad_to_patch(image, tiling.patch)
    found = [np.empty(0, dtype=np.float32)]
    for first in range(0, len(starts), batch):
        places = [
            tuple(slice(s, s + n) for s, n in zip(start, tiling.patch, strict=True))
            for start in starts[first : first + batch]
        ]
        crops = torch.stack([padded[(slice(None), *where)] for where in places])
        found.append(network(crops)[:, 0].sigmoid().float().cpu().numpy())
    return np.concatenate(found)
