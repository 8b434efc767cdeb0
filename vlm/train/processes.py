"""The device and the processes of a language stage: one, or all that `accelerate launch` started (DDP or FSDP)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn

from seg_backbone.errors import ConfigError
from vlm.model import VisionLanguageModel


class Through(nn.Module):
    """Runs a function of the model inside `forward`, where DDP and FSDP do their part.

    What the loop asks of the model (losses of a pack, validation) is not its forward, and must pass through one.
    """

    def __init__(self, model: VisionLanguageModel) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(model.llm, "_no_split_modules", None)  # the layers that FSDP gathers by turns

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)


def place(device: str) -> str:
    """Where this process trains: "cpu", or "cuda:N" with one GPU a process. device: "auto", "cpu" or "cuda".

    Raises ConfigError where there is no such device.
    """
    if device == "cpu" or not torch.cuda.is_available():
        if device == "cuda":
            raise ConfigError("device", "a CUDA device that torch can use", "none", "set `device: auto`")
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def start_processes(device: str) -> Accelerator:
    """All processes together; device as in `place`."""
    # a pack without instances leaves the pointer out, one without fat the regression
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    AcceleratorState._reset_state()  # of an earlier training in this process
    return Accelerator(cpu=place(device) == "cpu", mixed_precision="no", kwargs_handlers=[unused])


def divide(machine: Accelerator, model: VisionLanguageModel, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """The model inside `Through` and its optimizer, ready for the processes; sharded ones take both apart."""
    through, stepper = machine.prepare(Through(model), optimizer)
    if is_sharded(machine):
        # as find_unused_parameters: else processes whose packs leave out different heads wait for each other for ever
        through.set_reduce_scatter_unused_params(True)
    return through, stepper


def is_sharded(machine: Accelerator) -> bool:
    """Whether every process holds a part of each weight only (FSDP)."""
    return machine.distributed_type == DistributedType.FSDP


def gather(machine: Accelerator, through: nn.Module, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Copies of whole weights by their names in the model; nothing on the other processes where they are sharded."""
    state = {name.removeprefix("model."): value for name, value in machine.get_state_dict(through).items()}
    return {name: state[name].detach().clone() for name in names if name in state}
