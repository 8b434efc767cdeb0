"""Alignment: projector and heads learn to speak the language model's tongue; the language model stays as it is."""

from __future__ import annotations

from typing import Any

import torch

from seg_backbone.predict import Segmenter
from vlm.data.targets import read_targets
from vlm.encoders import build_encoder
from vlm.facts import NAMES
from vlm.llm import load_llm
from vlm.model import VisionLanguageModel, VlmConfig
from vlm.train.config import StageConfig
from vlm.train.loop import run_stage
from vlm.train.processes import place


def train_alignment(config: StageConfig, resume: bool = False, **hooks: Any) -> Any:
    """Train and save to `config.output`/model; returns that folder. hooks: report and progress, see run_stage."""
    targets = read_targets(config.targets)
    with torch.random.fork_rng():  # the heads begin alike, whatever the encoder
        encoder = build_encoder(config.encoder, Segmenter.load(config.segmentation), config.encoder_options)
        visual, instance = encoder.channels
    told: dict[str, Any] = {
        "llm": config.llm,
        "segmentation": config.segmentation,
        "encoder": config.encoder,
        "encoder_options": config.encoder_options,
        "visual_channels": visual,
        "instance_channels": instance,
        "facts": (*NAMES, *targets.targets),
        "labels": targets.labels,
        "counted": targets.counted,
    }
    settings = VlmConfig(**told | config.model)
    llm, tokenizer = load_llm(settings.llm, place(config.device), config.precision, settings.quantize)
    torch.manual_seed(config.seed)
    return run_stage(config, VisionLanguageModel(settings, llm, tokenizer), resume, **hooks)
