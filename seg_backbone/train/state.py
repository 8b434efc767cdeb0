"""The checkpoint of a run: all that the next step depends on, in one file that is whole or not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing


@dataclass
class Best:
    """The highest mean validation Dice so far, and the step that reached it; -1 before the first."""

    dice: float = -1.0
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        return {"dice": self.dice, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.dice, self.step = state["dice"], state["step"]


def save_state(path: Path, parts: dict[str, Any], step: int) -> None:
    """parts: whatever has a state_dict. step: optimiser steps done."""
    with replacing(path) as temporary:
        torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, temporary)


def load_state(path: Path, parts: dict[str, Any]) -> int:
    """Put the state back into the parts; returns the steps done, 0 without a file. Raises ConfigError."""
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["step"]
    except (RuntimeError, KeyError, ValueError) as error:
        found = str(error).splitlines()[0]
        raise ConfigError(path, "a checkpoint of this configuration", found, "train without --resume") from None
