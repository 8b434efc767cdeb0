"""Training the classifier that skips windows: what a window holds, a loss, the threshold that keeps what is there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml

from seg_backbone.augment import draw_window
from seg_backbone.cases import TrainingCase
from seg_backbone.checkpoint import PLAN, find_model
from seg_backbone.errors import ConfigError, InputError
from seg_backbone.gate import WEIGHTS, foreground_probability, gate_input, gate_network
from seg_backbone.io import replacing
from seg_backbone.plan import GatePlan, Plan
from seg_backbone.skips import Start, Tiling
from seg_backbone.train.config import SegmentationConfig, read_mapping
from seg_backbone.train.data import Progress, read_cases
from seg_backbone.train.keys import made
from seg_backbone.train.log import Log
from seg_backbone.train.loop import LOG_EVERY, Report, start_machine, workers_of
from seg_backbone.train.optimise import build_optimizer, build_schedule
from seg_backbone.train.samples import Batches, Sample, Source, ahead
from seg_backbone.train.state import load_state, save_state

TRIES = 4  # windows drawn in search of one with the label that is wanted
VALIDATION_STEP = 0.8  # between the windows that the threshold is chosen on: that of fast mode
UNKNOWN = -1.0


@dataclass(frozen=True)
class GateConfig:
    """What `vlm train gate --config FILE` reads: the keys of a segmentation file but `plan`, and these.

    model: the model folder that the gate is for; grid and window are its plan's. gate: network, its options and HU
    windows, see GatePlan. recall: the share of the validation windows with foreground that must be kept.
    """

    model: Path
    training: SegmentationConfig
    gate: GatePlan = field(default_factory=lambda: GatePlan(threshold=0.0))
    recall: float = 0.999

    @staticmethod
    def read(path: str | Path, **changes: Any) -> GateConfig:
        """Read YAML; `changes` override single fields. Raises ConfigError naming the field that does not fit."""
        try:
            data = read_mapping(path) | {k: v for k, v in changes.items() if v is not None}
            own = {"threshold": 0.0} | data.pop("gate", {})
            if "ct_windows_hu" in own:
                own["ct_windows_hu"] = tuple((float(low), float(high)) for low, high in own["ct_windows_hu"])
            gate = made(GatePlan, own, "gate")
            model, recall = Path(data.pop("model", None) or ""), float(data.pop("recall", 0.999))
            if model == Path():
                raise ConfigError("the file", "the key `model`", "none", "name the model that the gate is for")
            if "plan" in data:
                raise ConfigError("plan", "none: a gate has that of `model`", "one", "leave it out")
            assert 0 < recall <= 1, "recall is a share"
            plan = gate_input(Plan.read(find_model(model) / PLAN), gate)
            training = SegmentationConfig.parse(data | {"plan": plan})
            if training.batch < 2:
                raise ConfigError("batch", "2 or more, over which the gate's batch norm averages", "1", "raise it")
            return GateConfig(model, training, gate, recall)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.source}", error.expected, error.found, error.todo) from None
        except InputError:
            raise
        except (OSError, TypeError, ValueError, KeyError, AttributeError, AssertionError, yaml.YAMLError) as error:
            raise ConfigError(path, "a gate training file", f"{error}", "see configs/gate.yaml") from None


@dataclass(frozen=True)
class LabelledWindows:
    """Windows with and without foreground, each half of them where the scans allow it."""

    weight: float
    cases: Sequence[TrainingCase]
    config: SegmentationConfig

    def draw(self, random: np.random.Generator) -> Sample:
        wanted = float(random.random() < 0.5)
        aimed = replace(self.config.augmentation, centred=wanted)
        for _ in range(TRIES):
            case = self.cases[int(random.integers(len(self.cases)))]
            image, codes, table = draw_window(case, self.config.plan, aimed, random)
            label = holds_foreground(codes.numpy(), table.numpy())
            if label == wanted:
                break
        return Sample(image, codes, table, case.files.case, {"foreground": torch.tensor(label)})


def holds_foreground(codes: np.ndarray, table: np.ndarray) -> float:
    """1 where a voxel of a window is certainly foreground, 0 where none may be, else UNKNOWN (see partial_labels)."""
    present = np.unique(codes)
    if (~table[present, 0]).any():
        return 1.0
    return UNKNOWN if table[present, 1:].any() else 0.0


def train_gate(
    config: GateConfig,
    resume: bool = False,
    report: Report | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train a gate and save the model with it under `output`/model. Returns that folder.

    resume, report, progress: as in `train_segmentation`. Raises ConfigError for data that is missing, and where no
    validation window is known to hold foreground.
    """
    training = config.training
    torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    machine = start_machine(training)  # for its device; the network is small, so float32 on one
    training.output.mkdir(parents=True, exist_ok=True)
    groups, validation = read_cases(training, training.output / "cases", progress)
    if not any(case.drawn for case in validation):
        raise no_foreground(config)
    sources: list[Source] = [
        LabelledWindows(entry.weight, cases, training) for entry, cases in zip(training.datasets, groups, strict=True)
    ]
    batches = Batches(sources, training.batch, training.seed)

    network = gate_network(config.gate).to(machine.device)
    optimizer = build_optimizer(network, training)
    schedule = build_schedule(optimizer, training)
    parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
    checkpoint = training.output / "checkpoint.pt"
    made_with = {"gate": str(config.gate), "window": str(training.plan.patch), "optimizer": training.optimizer}
    first = load_state(checkpoint, parts, made_with) if resume else 0

    saved = asked = time.monotonic()
    coming = ahead(batches, range(first, training.steps), workers_of(training, machine))
    with Log(training.output, first, training.steps, report, training.tensorboard) as log:
        for done, batch in enumerate(coming, start=first + 1):
            waited = time.monotonic() - asked
            batch = batch.to(machine.device)
            network.train()
            loss = cross_entropy(network(batch.image)[:, 0], batch.targets["foreground"])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
            optimizer.step()
            schedule.step()
            log.part({"cross_entropy": loss})
            log.step(waited)
            last = done == training.steps
            if done % LOG_EVERY == 0 or last:
                log.require_finite()
                log.write({"step": done} | log.means())
            if progress:
                progress("training", done, training.steps)
            if last or time.monotonic() - saved > 60 * training.checkpoint_minutes:
                save_state(checkpoint, parts, done, made_with)
                saved = time.monotonic()
            asked = time.monotonic()
        probability, label = score(network.eval(), validation, training.plan, machine.device, progress)
        gate = with_threshold(config, probability, label)
        log.write({"step": training.steps, "threshold": gate.threshold} | gate.validation)
    return save_gate(network, gate, config.model, training.output / "model")


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,) logits and labels -> mean binary cross entropy over the known ones; 0 where there are none."""
    known = labels != UNKNOWN
    return F.binary_cross_entropy_with_logits(logits[known], labels[known]) if known.any() else logits.sum() * 0


def score(
    network: torch.nn.Module,
    cases: Sequence[TrainingCase],
    plan: Plan,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability and label of every window of some scans whose label is known."""
    probabilities, labels = [np.empty(0)], [np.empty(0)]
    for number, case in enumerate(cases, start=1):
        tiling = Tiling(case.codes.shape, plan.patch, VALIDATION_STEP)
        starts: list[Start] = tiling.starts()
        label = np.array([holds_foreground(case.codes[tiling.inside(start)], case.table) for start in starts])
        known = [start for start, one in zip(starts, label, strict=True) if one != UNKNOWN]
        image = torch.from_numpy(case.image.astype(np.float32)).to(device)
        probabilities.append(foreground_probability(network, image, tiling, known))
        labels.append(label[label != UNKNOWN])
        if progress:
            progress("validation", number, len(cases))
    return np.concatenate(probabilities), np.concatenate(labels)


def with_threshold(config: GateConfig, probability: np.ndarray, label: np.ndarray) -> GatePlan:
    """The gate with the highest threshold that keeps `recall` of the windows with foreground.

    Raises ConfigError where none has any.
    """
    held, empty = np.sort(probability[label == 1]), probability[label == 0]
    if not len(held):
        raise no_foreground(config)
    threshold = float(held[int(np.floor((1 - config.recall) * len(held) + 1e-9))])
    validation = {
        "windows_with": len(held),
        "windows_without": len(empty),
        "recall": float((held >= threshold).mean()),
        "skipped": float((empty < threshold).mean()) if len(empty) else 0.0,
    }
    return replace(config.gate, threshold=threshold, validation=validation)


def no_foreground(config: GateConfig) -> ConfigError:
    """Of a threshold that there is nothing to choose on."""
    where = config.training.split or config.training.data
    return ConfigError(
        where, "validation cases with windows that hold foreground", "none", "let more patients validate"
    )


def save_gate(network: torch.nn.Module, gate: GatePlan, model: Path, folder: Path) -> Path:
    """A copy of a model folder with a gate beside its weights. Returns `folder`."""
    from safetensors.torch import save_file

    source = find_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name not in (PLAN, WEIGHTS):
            with replacing(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
    with replacing(folder / WEIGHTS) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in network.state_dict().items()}, temporary)
    with replacing(folder / PLAN) as temporary:
        temporary.write_text(Plan.read(source / PLAN).with_(gate=gate).to_json())
    return folder
