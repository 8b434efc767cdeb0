"""Instruction: LoRA layers in the language model learn with projector and heads, from where alignment left them."""

from __future__ import annotations

from typing import Any

from seg_backbone.errors import ConfigError
from vlm.model import VisionLanguageModel
from vlm.train.loop import StageConfig, run_stage


def train_instruction(config: StageConfig, resume: bool = False, **hooks: Any) -> Any:
    """Train and save to `config.output`/model; returns that folder. Raises ConfigError without a `start` folder."""
    if config.start is None:
        raise ConfigError("instruction", "`start`: a folder of aligned weights", "none", "run alignment first")
    model = VisionLanguageModel.load(config.start)
    if not hasattr(model.llm, "peft_config"):
        model.add_adapter()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or not name.startswith("llm."))
    return run_stage(config, model, resume, **hooks)
