"""The checkpoint of a run: all that the next step depends on, in one file that is whole or not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
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


def save_state(path: Path, parts: dict[str, Any], step: int, made_with: dict[str, str]) -> None:
    """parts: whatever has a state_dict. step: optimiser steps done. made_with: what a resumed run must have, too."""
    with replacing(path) as temporary:
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"step": step, "made_with": made_with}, temporary)


def load_state(path: Path, parts: dict[str, Any], made_with: dict[str, str]) -> int:
    """Put the state back into the parts; returns the steps done, 0 without a file.

    Raises ConfigError for a file that is no checkpoint, and for one of other parts or made with something else.
    """
    if not path.is_file():
        return 0
    expected, todo = "a checkpoint of this configuration", "train without --resume"
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        before, own = set(state) - {"step", "made_with"}, state["made_with"]
        if other := [name for name, value in made_with.items() if own.get(name) != value] or sorted(
            before ^ set(parts)
        ):
            raise ConfigError(path, expected, f"one of another {' and '.join(other)}", todo)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["step"]
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError, UnpicklingError) as error:
        if isinstance(error, ConfigError):
            raise
        found = f"no {error}" if isinstance(error, KeyError) else f"{error}".partition("\n")[0]
        found = "a file that is none" if isinstance(error, EOFError | UnpicklingError) else found
        raise ConfigError(path, expected, found, todo) from None
