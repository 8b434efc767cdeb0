"""The checkpoint of a language stage: all that the next step depends on, in one file that is whole or not there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing
from vlm.train.config import StageConfig
from vlm.train.processes import gather, is_sharded


@dataclass
class Best:
    """The highest mean of the validation figures, the step that reached it and, where they are wanted, its weights."""

    score: float = -1.0
    step: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def is_better(self, score: float, step: int) -> bool:
        """Whether a score is the highest so far; then it is kept."""
        if score <= self.score:
            return False
        self.score, self.step = score, step
        return True

    def is_stale(self, step: int, config: StageConfig) -> bool:
        """Whether `patience` validations have passed without a better one."""
        return 0 < config.patience <= step // config.validate_every - self.step // config.validate_every


def save_state(
    path: Path,
    machine: Accelerator,
    through: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    best: Best,
    step: int,
    trained: Iterable[str],
) -> None:
    """Write the trained weights and the rest on the first process; sharded weights need a call of all. step: done."""
    state: dict[str, Any] = {"weights": gather(machine, through, trained), "step": step, "best": vars(best)}
    if is_sharded(machine):
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state["optimizer"] = get_optimizer_state_dict(through, optimizer, options=whole)
    else:
        state["optimizer"] = optimizer.state_dict()
    state["schedule"] = schedule.state_dict()
    if machine.is_main_process:
        with replacing(path) as temporary:
            torch.save(state, temporary)


def load_state(
    path: Path,
    machine: Accelerator,
    through: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    best: Best,
) -> int:
    """Put the state back; returns the steps done, 0 without a file. Raises ConfigError for another run's file."""
    if not path.is_file():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if is_sharded(machine):
            whole = StateDictOptions(full_state_dict=True, strict=False)
            set_model_state_dict(through, {f"model.{n}": w for n, w in state["weights"].items()}, options=whole)
            set_optimizer_state_dict(through, optimizer, state["optimizer"], options=whole)
        else:
            machine.unwrap_model(through).model.load_state_dict(state["weights"], strict=False)
            optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        vars(best).update(state["best"])
        return int(state["step"])
    except (RuntimeError, KeyError, ValueError) as error:
        found = str(error).splitlines()[0]
        raise ConfigError(path, "a checkpoint of this configuration", found, "train without --resume") from None
