"""Instruction: LoRA layers in the language model learn with projector and heads, from where alignment left them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from seg_backbone.errors import ConfigError
from vlm.model import VisionLanguageModel, VlmConfig
from vlm.train.config import StageConfig
from vlm.train.loop import run_stage
from vlm.train.processes import place

ADAPTER = ("lora_rank", "lora_alpha", "lora_targets", "lora_dropout", "dora", "rslora")  # fields of VlmConfig


def train_instruction(config: StageConfig, resume: bool = False, **hooks: Any) -> Any:
    """Train and save to `config.output`/model; returns that folder.

    Weights without an adapter get the one of `config.model`; one that is there already is trained on as it is. Raises
    ConfigError without a `start` folder, and where `config.model` asks for another model than its weights are of.
    """
    if config.start is None:
        raise ConfigError("instruction", "`start`: a folder of aligned weights", "none", "run alignment first")
    model = VisionLanguageModel.load(config.start, place(config.device), config.precision)
    wanted = VlmConfig(**asdict(model.config) | config.model)
    chosen = () if model.has_adapter else ADAPTER
    for name in config.model:
        ours, theirs = getattr(wanted, name), getattr(model.config, name)
        if name not in chosen and ours != theirs:
            raise ConfigError(f"model: {name}", f"{theirs!r}, as in {config.start}", repr(ours), "align anew with it")
    if not model.has_adapter:
        model.config = replace(model.config, **{name: getattr(wanted, name) for name in ADAPTER})
        if model.config.lora_rank:
            torch.manual_seed(config.seed)
            model.add_adapter()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or not name.startswith(("llm.", "lexical.")))
    return run_stage(config, model, resume, **hooks)
