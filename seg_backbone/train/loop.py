"""Training a segmentation model: data, model, loop, validation, checkpoint. Reads top to bottom.

The same seed gives the same windows whatever happened in between: batch n draws from a generator seeded by (seed, n),
so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from seg_backbone.cases import TrainingCase, list_cases, load_case, read_split, split_cases
from seg_backbone.checkpoint import save_model
from seg_backbone.errors import ConfigError
from seg_backbone.plan import Plan
from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.log import Log
from seg_backbone.train.model import build_model, running_average
from seg_backbone.train.objective import Step, build_terms, total
from seg_backbone.train.optimise import build_optimizer, build_schedule
from seg_backbone.train.samples import Batches, LabelledCases, Source, ahead
from seg_backbone.train.state import load_state, save_state
from seg_backbone.train.validation import validate

LOG_EVERY = 50
MOST_GRADIENT = 5.0  # norm to which the gradient is clipped

Progress = Callable[[str, int, int], None]


def train_segmentation(
    config: SegmentationConfig,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train and save a model folder under `config.output`/model. Returns that folder.

    resume: go on from `config.output`/checkpoint.pt where there is one. report(row) receives every log row, which also
    goes to log.jsonl. progress(stage, done, total) is for a progress bar. Raises ConfigError for data that is missing.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)

    training, validation = read_cases(config, progress)
    plan = config.plan.with_(trained_on=annotated(training, config.plan))
    batches = Batches(build_sources(config, training), config.batch, config.seed)
    terms = build_terms(config)

    model = build_model(config)
    average = running_average(model, config.ema)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config)
    parts = {"model": model, "average": average, "optimizer": optimizer, "schedule": schedule}
    checkpoint = config.output / "checkpoint.pt"
    first = load_state(checkpoint, parts) if resume else 0

    saved = asked = time.monotonic()
    with Log(config.output, report) as log:
        for done, batch in enumerate(ahead(batches, range(first, config.steps)), start=first + 1):
            waited = time.monotonic() - asked
            model.train()
            batch = batch.to(torch.device("cpu"))
            loss, values = total(terms, Step(done - 1, model, average.module, batch, model(batch.image)))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MOST_GRADIENT)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            log.step(values, waited)

            last = done == config.steps
            row: dict[str, Any] = {"step": done} | log.means() if done % LOG_EVERY == 0 or last else {}
            if done % config.validate_every == 0 or last:
                row |= {"validation_dice": validate(average.module.network, validation, plan)}
            if row:
                log.write(row)
            if progress:
                progress("training", done, config.steps)
            if last or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save_state(checkpoint, parts, done)
                saved = time.monotonic()
            asked = time.monotonic()
    return save_model(average.module.network, plan, config.output / "model", half=True)


def read_cases(
    config: SegmentationConfig, progress: Progress | None
) -> tuple[list[list[TrainingCase]], list[TrainingCase]]:
    """The training cases of each dataset, and the validation cases of all. Raises ConfigError where one has none."""
    split = read_split(config.split)
    training: list[list[TrainingCase]] = []
    validation: list[TrainingCase] = []
    for entry in config.datasets:
        files = list_cases(config.data, entry.name)
        kept = split_cases(files, split, "training")
        held = split_cases(files, split, "validation")[: config.validation_cases]
        loaded = []
        with ThreadPoolExecutor(config.threads) as pool:
            for case in pool.map(lambda f, e=entry: load_case(f, e, config.plan), kept + held):  # type: ignore[misc]
                loaded.append(case)
                if progress:
                    progress(f"reading {entry.name}", len(loaded), len(kept) + len(held))
        training.append(loaded[: len(kept)])
        validation += loaded[len(kept) :]
    if not all(training):
        raise ConfigError(config.data, "training cases in every dataset", "none in one of them", "check the split")
    return training, validation


def build_sources(config: SegmentationConfig, training: Sequence[Sequence[TrainingCase]]) -> list[Source]:
    """Where the windows come from: one source a dataset."""
    return [
        LabelledCases(entry.weight, cases, config.plan, config.augmentation)
        for entry, cases in zip(config.datasets, training, strict=True)
    ]


def annotated(groups: Sequence[Sequence[TrainingCase]], plan: Plan) -> dict[str, tuple[str, ...]]:
    """Modality -> classes with at least one voxel drawn in training scans of that modality."""
    seen: dict[str, set[int]] = {}
    for case in (case for group in groups for case in group):
        seen.setdefault(case.files.modality, set()).update(case.drawn)
    return {m: tuple(n for n in plan.classes if plan.labels[n] in ids) for m, ids in sorted(seen.items())}
