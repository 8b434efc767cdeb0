"""The loop that both language stages share: draw a scene, pack questions behind it, step, validate, checkpoint.

Step s of P processes that each gather A packs takes the packs (s, 0) to (s, A x P - 1), so that P processes see what
one would that gathers A x P.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing
from seg_backbone.predict import Segmenter
from seg_backbone.train.log import Log
from vlm.data.targets import read_targets
from vlm.data.wordings import Wordings, read_wordings
from vlm.encoders import build_encoder
from vlm.facts import NAMES
from vlm.grounding import mentions_in
from vlm.heads import decode
from vlm.heads.reading import Calibration
from vlm.model import Opened, VisionLanguageModel, route
from vlm.scene import Scene, scene_classes
from vlm.schema import Question
from vlm.train.answered import load_answered
from vlm.train.calibrate import calibrate
from vlm.train.config import StageConfig
from vlm.train.examples import Example, invent, load_examples, questions_about
from vlm.train.losses import in_words, pack_losses, pointer_targets, values_of
from vlm.train.processes import divide, gather, is_sharded, start_processes
from vlm.train.state import Best, load_state, save_state
from vlm.train.words import learn_words

LOG_EVERY = 25
DRAWN = 24  # questions about a scene, of which `pack` are taken
INVENTED, ASKED = 10, 16  # of a validation: invented scenes, and questions about each scene
Report = Callable[[dict[str, Any]], None]
Progress = Callable[[str, int, int], None]


def run_stage(
    config: StageConfig,
    model: VisionLanguageModel,
    resume: bool = False,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train whatever in `model` requires gradients; save to `config.output`/model and return that folder.

    Pack t of step n draws its scene, questions and wordings from a generator seeded by (seed, n, t): a resumed run sees
    what an uninterrupted one would have seen. Rows of the log go to log.jsonl and to report(row), answers to held-out
    questions to samples.jsonl and to report. Raises ConfigError for data or a device that is not there.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    machine = start_processes(config.device)
    first_process = machine.is_main_process
    config.output.mkdir(parents=True, exist_ok=True)
    if config.questions and model.config.answers != "text":
        found = "a model with heads, which learn from masks"
        raise ConfigError("questions", "`model: {answers: text}`", found, "set it, in alignment too")
    segmenter = Segmenter.load(config.segmentation)
    encoder = build_encoder(model.config.encoder, segmenter, model.config.encoder_options)
    model.calibration = Calibration()  # what was fitted to other weights
    targets = read_targets(config.targets)
    cache, wordings = config.output.parent / "features", read_wordings().with_targets(targets)
    common = (config.data, config.datasets, config.split)
    shown, cells = progress if first_process else None, model.config.cells
    with machine.main_process_first():  # the first one fills the cache, the others read it
        parts = []
        for part, most in (("training", config.cases), ("validation", config.validation_cases)):
            examples = load_examples(*common, part, encoder, cache, most, shown, cells, targets)
            for source in config.questions:
                examples += load_answered(source, part, segmenter, encoder, cache, most, cells, shown)
            parts.append(examples)
    train, held = parts
    if not train:
        raise ConfigError(config.data, "training cases with masks", "none", "check `datasets` and the split")
    if model.config.regression_scale is None:
        model.config = replace(model.config, regression_scale=scale_of(train))
    if config.activation_checkpointing:
        model.llm.gradient_checkpointing_enable({"use_reentrant": False})

    if config.lexical:
        learn_words(config, model, train, wordings, resume, shown)

    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    adapter = [p for n, p in trained.items() if n.startswith("llm.")]
    rest = [p for n, p in trained.items() if not n.startswith("llm.")]
    groups = [{"params": rest, "lr": config.learning_rate}]
    groups += [{"params": adapter, "lr": config.adapter_rate}] if adapter else []
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    kept = [n for n in model.state_dict() if not n.startswith("llm.") or n in trained]
    best = Best()
    through, stepper = divide(machine, model, optimizer)
    checkpoint = config.output / "checkpoint.pt"
    first = load_state(checkpoint, machine, through, optimizer, schedule, best) if resume else 0

    saved, sharded = time.monotonic(), is_sharded(machine)
    with Log(config.output, first, config.steps, report, config.tensorboard, first_process) as log:
        for step in range(first, first if best.is_stale(first, config) else config.steps):
            through.train()
            waited = 0.0
            for turn in range(config.accumulate):
                random = Random(f"{config.seed}/{step}/{turn * machine.num_processes + machine.process_index}")
                torch.manual_seed(random.getrandbits(31))
                asked = time.monotonic()
                example, questions = draw(config, model.config.facts, train, wordings, random)
                waited += time.monotonic() - asked
                with nullcontext() if turn + 1 == config.accumulate else machine.no_sync(through):
                    losses = through(pack_losses, example, questions, config.hide_mentions, random)
                    total = torch.stack([config.loss_weights[k] * v for k, v in losses.items()]).sum()
                    machine.backward(total / config.accumulate)
                log.part(losses)
            machine.clip_grad_norm_(through.parameters(), 1.0)
            stepper.step()
            stepper.zero_grad(set_to_none=True)
            schedule.step()
            log.step(waited)

            done = step + 1
            last = done == config.steps
            row: dict[str, Any] = {"step": done} | log.means() if done % LOG_EVERY == 0 or last else {}
            validated = done % config.validate_every == 0 or last
            if validated:
                with torch.no_grad():
                    figures, samples = through(validate, held, train, wordings, config)
                better = bool(figures) and best.is_better(float(np.mean(list(figures.values()))), done)
                if better and config.patience:
                    best.weights = gather(machine, through, trained)
                row = {"step": done} | row | {"validation": figures, "best_step": best.step}
                if first_process:
                    show(samples, done, config.output, report)
            if row:
                log.write(row)
            if shown:
                shown("training", done, config.steps)
            stop = best.is_stale(done, config)
            # processes that each hold a part must save together, and their clocks differ
            due = validated if sharded else time.monotonic() - saved > 60 * config.checkpoint_minutes
            if (last or stop or due) and (sharded or first_process):
                save_state(checkpoint, machine, through, optimizer, schedule, best, done, trained)
                saved = time.monotonic()
            if stop:
                break
    weights = gather(machine, through, kept) | best.weights
    if first_process:
        finish(config, model, weights, held if adapter else [], wordings, report, sharded)
    machine.wait_for_everyone()
    return config.output / "model"


def scale_of(examples: list[Example]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of every value that is regressed, 1 for one that does not vary."""
    known = [values_of(example) for example in examples]
    names = dict.fromkeys(name for values in known for name in values)
    columns = {name: [values[name] for values in known if name in values] for name in names}
    return {name: (float(np.mean(column)), float(np.std(column)) or 1.0) for name, column in columns.items()}


def draw(
    config: StageConfig, facts: tuple[str, ...], train: list[Example], wordings: Wordings, random: Random
) -> tuple[Example, list[Question]]:
    """A scene, real or invented, and at most `pack` questions about it whose facts are among `facts`."""
    shares = config.shares
    if len(set(shares.values())) > 1:
        there = sorted({example.files.dataset for example in train})
        (dataset,) = random.choices(there, [shares[name] for name in there])
        train = [example for example in train if example.files.dataset == dataset]
    example = random.choice(train)
    if not example.asked and random.random() < config.invented:
        example = invent([one for one in train if not one.asked], wordings.extra_names, random)
    unknown = set(NAMES) - set(facts)
    questions = questions_about(example, wordings, random, DRAWN if not unknown else DRAWN * len(NAMES), "train")
    questions = [question for question in questions if example.asked or question.extra["fact"] in facts][:DRAWN]
    return example, random.sample(questions, min(config.pack, len(questions)))


@torch.inference_mode()
def validate(
    model: VisionLanguageModel, held: list[Example], train: list[Example], wordings: Wordings, config: StageConfig
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Held-out wordings on validation scans and on invented scenes, and some answers about the former.

    Figures: accuracy of the router and exact selections; of a model that writes, the share of answers in the words of
    the reference.
    """
    model.eval()
    figures: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    random = Random(config.seed)
    pool = [example for example in train if not example.asked]
    invented = [invent(pool, wordings.extra_names, random) for _ in range(INVENTED)] if pool else []
    for name, examples in (("real", held), ("invented", invented)):
        routed, exact, worded = [], [], []
        for example in examples:
            questions = questions_about(example, wordings, random, ASKED, "heldout")
            facts = model.config.facts
            questions = [question for question in questions if example.asked or question.extra["fact"] in facts]
            scene = model.visible(example.scene)
            opened = model.open(scene)
            if name == "real" and len(samples) < config.samples and questions:
                samples.append(sample(model, example, opened, questions[len(samples) % len(questions)]))
            if model.config.answers == "text":
                worded += writes_right(model, scene, questions)
                continue
            wanted, weight = pointer_targets(questions, example)
            for row, question in enumerate(questions):
                mention = mentions_in(question.question, question.options, scene_classes(scene))
                scores = model.read(scene, opened, question.question, question.options, mention)
                routed.append(route(scores.router, model.config.facts, None)[0] == question.extra["fact"])
                if weight[row].sum() > 0:
                    exact.append(bool(((scores.selection.cpu() > 0) == (wanted[row] > 0.5)).all()))
        for what, right in (("router", routed), ("selection", exact), ("words", worded)):
            figures |= {f"{name} {what}": round(float(np.mean(right)), 3)} if right else {}
    return figures, samples


def writes_right(model: VisionLanguageModel, scene: Scene, questions: list[Question]) -> list[bool]:
    """Whether the model would write the reference of each question that has one, token by token the likeliest."""
    segments, starts = [], []
    for question in questions:
        if (words := in_words(question)) is not None:
            ids = model.prompt.question(question.question, question.options)
            starts.append(len(ids))
            segments.append(ids + model.prompt.answer(words))
    if not segments:
        return []
    _, states, places = model.pack(scene, segments)
    best = model.llm.get_output_embeddings()(states).argmax(-1).tolist()
    rows = zip(segments, starts, places, strict=True)
    return [best[at.start + start - 1 : at.stop - 1] == segment[start:] for segment, start, at in rows]


def sample(model: VisionLanguageModel, example: Example, opened: Opened, question: Question) -> dict[str, Any]:
    """A question with its reference and what the model says to it now."""
    scene = model.visible(example.scene)
    if model.config.answers == "text":
        said = model.write(scene, opened, question)["text"]
    else:
        said = decode(model.interpret(scene, opened, question)[0])["text"]
    return {"scan": scene.source, "question": question.question, "reference": in_words(question), "answer": said}


def show(samples: list[dict[str, Any]], done: int, folder: Path, report: Report | None) -> None:
    """Put the samples of a step into samples.jsonl and report them."""
    path = folder / "samples.jsonl"
    before = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in before if json.loads(line)["step"] < done]  # an interrupted run may have been further
    rows = [json.dumps({"step": done} | one, ensure_ascii=False) for one in samples]
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{row}\n" for row in (*kept, *rows)), encoding="utf-8")
    if report and samples:
        report({"step": done, "samples": samples})


def finish(
    config: StageConfig,
    model: VisionLanguageModel,
    weights: dict[str, torch.Tensor],
    held: list[Example],
    wordings: Wordings,
    report: Report | None,
    sharded: bool,
) -> None:
    """Save the model, calibrated on the examples held out. sharded: its own weights are in pieces now."""
    folder = model.save(config.output / "model", weights)
    if not (config.calibration and held and model.config.answers == "heads"):
        return
    if sharded:
        model = VisionLanguageModel.load(folder)
    else:
        model.load_state_dict(weights, strict=False)
    figures = calibrate(model, held, wordings, config.calibration, config.seed)
    model.save(folder, weights)
    if report:
        report({"step": config.steps, "calibration": figures})


def _rate(step: int, config: StageConfig) -> float:
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * min(1.0, done))))
