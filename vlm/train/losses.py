"""The losses of one pack: a scene and the questions behind it, through the model, against what they should give."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
import torch.nn.functional as F

from vlm.facts import FACTS
from vlm.grounding import mentions_in
from vlm.heads.regression import quantile_loss
from vlm.model import VisionLanguageModel, mention_features, quantile_inputs
from vlm.scene import scene_classes
from vlm.schema import Question
from vlm.train.examples import Example

POINTED = tuple(name for name, fact in FACTS.items() if fact.takes != "scan")  # facts whose question selects instances
SHOW_OPTIONS = 0.7  # share of the questions that are shown with their options


def pack_losses(
    model: VisionLanguageModel, example: Example, questions: list[Question], hide_mentions: float, random: Random
) -> dict[str, torch.Tensor]:
    """Scalars: router, pointer, answer (words), labels, regression (pinball), as far as there is something to learn.

    A model that writes its answers itself learns nothing but words.
    """
    scene, prompt = model.visible(example.scene), model.prompt
    writes = model.config.answers == "text"
    starts, segments = [], []
    for question in questions:
        options = question.options if random.random() < SHOW_OPTIONS else ()
        ids = prompt.question(question.question, options)
        starts.append(len(ids))
        words = question.answer if isinstance(question.answer, str) else None
        spoken = in_words(question) if writes else words if question.type == "classification" else None
        segments.append(ids + (prompt.answer(spoken) if spoken else []))
    scan, states, places = model.pack(scene, segments)
    device = states.device
    losses: dict[str, torch.Tensor] = {}
    asked = torch.stack([states[place.start + start - 1] for place, start in zip(places, starts, strict=True)]).float()

    if not writes:
        facts = torch.tensor([model.config.facts.index(question.extra["fact"]) for question in questions])
        losses["router"] = F.cross_entropy(model.router(asked), facts.to(device))

    if scene.instances and not writes:
        geometry = torch.from_numpy(scene.geometry).to(device)
        named = [
            mention_features(
                scene,
                mentions_in(question.question, question.options, scene_classes(scene)),
                random.random() < hide_mentions,
            )
            for question in questions
        ]
        items = scan[len(scan) - len(scene.instances) :].float()
        logits = model.pointer(asked, items, geometry, torch.stack(named).to(device))
        wanted, weight = (part.to(device) for part in pointer_targets(questions, example))
        error = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        losses["pointer"] = (error * weight).sum() / weight.sum().clamp(min=1)

    head = model.llm.get_output_embeddings()
    answers = []
    for place, start, segment in zip(places, starts, segments, strict=True):
        if len(segment) > start:
            logits = head(states[place.start + start - 1 : place.stop - 1])
            answers.append(F.cross_entropy(logits.float(), torch.tensor(segment[start:], device=device)))
    if answers or writes:
        losses["answer"] = torch.stack(answers).mean() if answers else 0.0 * states.sum()

    named = [
        F.cross_entropy(model.labels(fact, asked[row]), torch.tensor(known.index(str(question.answer)), device=device))
        for row, question in enumerate(questions)
        if not writes and (known := model.config.labels.get(fact := question.extra["fact"]))
    ]
    if named:
        losses["labels"] = torch.stack(named).mean()

    scale = model.config.regression_scale or {}
    values = {name: value for name, value in values_of(example).items() if name in scale}
    if values and len(scene.visual) and not writes:
        inputs = (part.to(device) for part in quantile_inputs(scene, model.config.visual_channels))
        rows = [model.config.targets.index(name) for name in values]
        wanted = [(value - scale[name][0]) / scale[name][1] for name, value in values.items()]
        losses["regression"] = quantile_loss(model.quantiles(*inputs)[rows], torch.tensor(wanted, device=device))
    return losses


def values_of(example: Example) -> dict[str, float]:
    """What is regressed and known of a scan, by fact."""
    values = {fact: told.value for fact, told in example.told.items() if not isinstance(told.value, str)}
    return values | ({"fat_percent": example.fat} if example.fat is not None else {})


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


def in_words(question: Question) -> str | None:
    """The reference answer as text that vlm evaluate reads back; None without one.

    "yes", "3", "42.1 mm", "larynx; tumour", "[-29, -29, -23, -13, -13, -7]; [...]" (boxes), "none".
    """
    answer: Any = question.answer
    if isinstance(answer, float):
        return f"{answer:.1f} {question.unit or ''}".strip()
    if isinstance(answer, list):
        return "; ".join(map(_item_in_words, answer)) or "none"
    return None if answer is None else str(answer)


def _item_in_words(item: Any) -> str:
    if isinstance(item, dict):
        return f"[{', '.join(f'{edge:.0f}' for edge in (*item['min_mm'], *item['max_mm']))}]"
    return str(item)
