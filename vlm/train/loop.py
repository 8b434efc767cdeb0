"""The loop that both language stages share: draw a scene, pack questions behind it, step, validate, checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from seg_backbone.cases import DatasetEntry
from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing
from seg_backbone.predict import Segmenter
from vlm.data.wordings import Wordings, read_wordings
from vlm.encoders import build_encoder
from vlm.facts import FACTS
from vlm.grounding import mentions_in
from vlm.heads.reading import Calibration
from vlm.heads.regression import TARGETS, quantile_loss
from vlm.llm import DEFAULT_LLM
from vlm.model import VisionLanguageModel, mention_features, quantile_inputs, route
from vlm.scene import scene_classes
from vlm.schema import Question
from vlm.train.calibrate import calibrate
from vlm.train.examples import Example, invent, load_examples, questions_about

POINTED = tuple(name for name, fact in FACTS.items() if fact.takes != "scan")  # facts whose question selects instances


@dataclass(frozen=True)
class StageConfig:
    """One language stage, read from YAML. Paths are relative to the working directory.

    start: folder of the weights to begin from (instruction starts from alignment's). segmentation: model that makes the
    masks. encoder, encoder_options: see vlm.encoders; alignment chooses, instruction keeps its choice. cases: at most
    this many training cases a dataset. pack: questions behind one scene. invented: share of scenes that are invented.
    accumulate: packs a step. hide_mentions: share of questions whose lexical match is hidden from the pointer, so that
    it learns to read. calibration: how confidences are calibrated on the validation cases once the adapter is trained,
    "temperature" or "isotonic" (vlm.train.calibrate); without one, or without such cases, they are not.
    """

    data: Path
    output: Path
    split: Path
    datasets: tuple[DatasetEntry, ...]
    start: Path | None = None
    segmentation: str = "default"
    encoder: str = "segmentation"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    llm: str = DEFAULT_LLM
    lora_rank: int = 8
    cases: int = 40
    validation_cases: int = 8
    pack: int = 8
    invented: float = 0.6
    accumulate: int = 1
    steps: int = 400
    learning_rate: float = 1e-3
    adapter_rate: float = 3e-4
    warmup: int = 20
    hide_mentions: float = 0.3
    validate_every: int = 200
    checkpoint_minutes: float = 3.0
    calibration: str | None = "temperature"
    seed: int = 0
    threads: int = 2
    loss_weights: dict[str, float] = field(
        default_factory=lambda: {"router": 1.0, "pointer": 2.0, "answer": 0.5, "regression": 0.5}
    )

    @staticmethod
    def read(path: str | Path, stage: str, **changes: Any) -> StageConfig:
        """Read the common part of a YAML file and that of one stage. Raises ConfigError."""
        try:
            table = yaml.safe_load(Path(path).read_text())
            given = {key: value for key, value in changes.items() if value is not None}
            data = {k: v for k, v in table.items() if k not in ("alignment", "instruction")} | table[stage] | given
            data["datasets"] = tuple(
                DatasetEntry(**(e | {"absent": tuple(e.get("absent", ()))})) for e in data["datasets"]
            )
            for key in ("data", "output", "split", "start"):
                if data.get(key):
                    data[key] = Path(data[key])
            return StageConfig(**data)
        except (OSError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(path, f"a training file with `{stage}`", f"{error}", "see configs/vlm.yaml") from None


def run_stage(
    config: StageConfig,
    model: VisionLanguageModel,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Train whatever in `model` requires gradients; save to `config.output`/model and return that folder.

    Step n draws its scene, questions and wordings from a generator seeded by (seed, n): a resumed run sees what an
    uninterrupted one would have seen. Rows of the log go to log.jsonl and to report(row).
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    encoder = build_encoder(model.config.encoder, Segmenter.load(config.segmentation), model.config.encoder_options)
    model.calibration = Calibration()  # what was fitted to other weights
    cache, wordings = config.output.parent / "features", read_wordings()
    common = (config.data, config.datasets, config.split)
    train = load_examples(*common, "training", encoder, cache, config.cases, progress)
    held = load_examples(*common, "validation", encoder, cache, config.validation_cases, progress)
    if model.config.regression_scale is None:
        fats = [e.fat for e in train if e.fat is not None]
        scale = {"fat_percent": (float(np.mean(fats)), float(np.std(fats)))}
        object.__setattr__(model.config, "regression_scale", scale)

    adapter = [p for n, p in model.named_parameters() if p.requires_grad and n.startswith("llm.")]
    rest = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith("llm.")]
    groups = [{"params": rest, "lr": config.learning_rate}]
    groups += [{"params": adapter, "lr": config.adapter_rate}] if adapter else []
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    checkpoint, first = config.output / "checkpoint.pt", 0
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["weights"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]

    recent: dict[str, list[float]] = {}
    started = saved = time.monotonic()
    with (config.output / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in range(first, config.steps):
            model.train()
            for turn in range(config.accumulate):
                random = Random(f"{config.seed}/{step}/{turn}")
                torch.manual_seed(random.getrandbits(31))
                example = random.choice(train)
                if random.random() < config.invented:
                    example = invent(train, wordings.extra_names, random)
                questions = questions_about(example, wordings, random, 24, "train")
                questions = random.sample(questions, min(config.pack, len(questions)))
                losses = pack_losses(model, example, questions, config, random)
                total = torch.stack([config.loss_weights[k] * v for k, v in losses.items()]).sum()
                (total / config.accumulate).backward()
                for key, value in losses.items():
                    recent.setdefault(key, []).append(float(value.detach()))
            torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            done = step + 1
            row: dict[str, Any] = {}
            if done % 25 == 0 or done == config.steps:
                seconds = (time.monotonic() - started) / (done - first)
                row = {"step": done, "seconds_per_step": round(seconds, 2)}
                row |= {key: round(float(np.mean(values)), 4) for key, values in recent.items()}
                recent = {}
            if done % config.validate_every == 0 or done == config.steps:
                row["validation"] = validate(model, held, train, wordings, config)
            if row:
                log.write(json.dumps(row) + "\n")
                log.flush()
                if report:
                    report(row)
            if progress:
                progress("training", done, config.steps)
            if done == config.steps or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                state = {"weights": {n: p.detach() for n, p in trained.items()}, "step": done}
                state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                with replacing(checkpoint) as temporary:
                    torch.save(state, temporary)
                saved = time.monotonic()
    model.eval()
    folder = model.save(config.output / "model")
    if config.calibration and adapter and held:
        figures = calibrate(model, held, wordings, config.calibration, config.seed)
        model.save(folder)
        if report:
            report({"step": config.steps, "calibration": figures})
    return folder


def pack_losses(
    model: VisionLanguageModel, example: Example, questions: list[Question], config: StageConfig, random: Random
) -> dict[str, torch.Tensor]:
    """The four losses of one pack, each a scalar: router, pointer, answer (words), regression (pinball)."""
    scene, prompt = example.scene, model.prompt
    starts, segments = [], []
    for question in questions:
        options = question.options if random.random() < 0.7 else ()
        ids = prompt.question(question.question, options)
        starts.append(len(ids))
        spoken = question.type == "classification" and isinstance(question.answer, str)
        segments.append(ids + (prompt.answer(question.answer) if spoken else []))
    scan, states, places = model.pack(scene, segments)
    asked = torch.stack([states[place.start + start - 1] for place, start in zip(places, starts, strict=True)]).float()

    facts = torch.tensor([model.config.facts.index(question.extra["fact"]) for question in questions])
    losses = {"router": F.cross_entropy(model.router(asked), facts)}

    if scene.instances:
        geometry = torch.from_numpy(scene.geometry)
        named = [
            mention_features(
                scene,
                mentions_in(question.question, question.options, scene_classes(scene)),
                random.random() < config.hide_mentions,
            )
            for question in questions
        ]
        logits = model.pointer(asked, scan[len(scan) - len(scene.instances) :].float(), geometry, torch.stack(named))
        wanted, weight = pointer_targets(questions, example)
        error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        losses["pointer"] = (error * weight).sum() / weight.sum().clamp(min=1)

    head = model.llm.get_output_embeddings()
    answers = []
    for place, start, segment in zip(places, starts, segments, strict=True):
        if len(segment) > start:
            logits = head(states[place.start + start - 1 : place.stop - 1])
            answers.append(F.cross_entropy(logits.float(), torch.tensor(segment[start:])))
    if answers:
        losses["answer"] = torch.stack(answers).mean()

    mean, spread = (model.config.regression_scale or {})["fat_percent"]
    if example.fat is not None:
        predicted = model.quantiles(*quantile_inputs(scene, model.config.visual_channels))[TARGETS.index("fat_percent")]
        losses["regression"] = quantile_loss(predicted, torch.tensor((example.fat - mean) / spread))
    return losses


def pointer_targets(questions: list[Question], example: Example) -> tuple[torch.Tensor, torch.Tensor]:
    """(Q, K) 0/1 targets and weights. Where words give a size threshold, code applies it: the target is before it."""
    ids = [instance.id for instance in example.scene.instances]
    wanted = torch.zeros(len(questions), len(ids))
    weight = torch.zeros(len(questions), len(ids))
    for row, question in enumerate(questions):
        if question.extra["fact"] in POINTED:
            chosen = question.extra.get("candidates") or question.extra["instances"]
            wanted[row] = torch.tensor([float(n in chosen) for n in ids])
            weight[row] = 1.0
    return wanted, weight


@torch.inference_mode()
def validate(
    model: VisionLanguageModel, held: list[Example], train: list[Example], wordings: Wordings, config: StageConfig
) -> dict[str, float]:
    """Held-out wordings: router accuracy and exact selections, on validation scans and on invented scenes."""
    model.eval()
    out: dict[str, float] = {}
    random = Random(config.seed)
    invented = [invent(train, wordings.extra_names, random) for _ in range(10)]
    for name, examples in (("real", held), ("invented", invented)):
        routed, exact = [], []
        for example in examples:
            questions = questions_about(example, wordings, random, 16, "heldout")
            opened = model.open(example.scene)
            wanted, weight = pointer_targets(questions, example)
            for row, question in enumerate(questions):
                mention = mentions_in(question.question, question.options, scene_classes(example.scene))
                scores = model.read(example.scene, opened, question.question, question.options, mention)
                routed.append(route(scores.router, model.config.facts, None)[0] == question.extra["fact"])
                if weight[row].sum() > 0:
                    exact.append(bool(((scores.selection > 0) == (wanted[row] > 0.5)).all()))
        out |= {
            f"{name} router": round(float(np.mean(routed)), 3),
            f"{name} selection": round(float(np.mean(exact)), 3),
        }
    return out


def _rate(step: int, config: StageConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
