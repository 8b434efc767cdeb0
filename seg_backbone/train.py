"""Training a segmentation model: configuration, data, loop, validation, checkpoint. Reads top to bottom.

The same seed gives the same windows whatever happened in between: step n draws from a generator seeded by (seed, n),
so a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from seg_backbone.augment import Augmentation, draw_window
from seg_backbone.cases import DatasetEntry, TrainingCase, list_cases, load_case, read_split, split_cases
from seg_backbone.checkpoint import load_model, save_model
from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing
from seg_backbone.nets import build_network
from seg_backbone.partial_labels import marginal_loss
from seg_backbone.plan import Plan
from seg_backbone.sliding_window import predict_logits


@dataclass(frozen=True)
class SegmentationConfig:
    """What `vlm train segmentation --config FILE` reads: YAML, or the JSON of `vlm configure`. Paths are relative to
    the working directory.

    data: folder of nnU-Net raw datasets. output: run folder (checkpoint, log). datasets: see DatasetEntry.
    start: model folder whose weights to begin from. steps x batch windows are drawn; AdamW with a linear warm-up and a
    cosine to zero over schedule_steps (default: steps); ema: decay of the averaged weights, which are the ones
    validated and saved. class_weight: class -> weight of its voxels in the cross entropy, 1 for those not named.
    validation_cases: at most this many a dataset meanwhile.
    """

    data: Path
    output: Path
    split: Path
    plan: Plan
    datasets: tuple[DatasetEntry, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    start: Path | None = None
    steps: int = 5000
    schedule_steps: int | None = None
    batch: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 100
    class_weight: dict[str, float] = field(default_factory=dict)
    ema: float = 0.998
    validate_every: int = 1000
    validation_cases: int = 6
    checkpoint_minutes: float = 3.0
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.datasets:
            raise ConfigError("configuration", "steps, batch and datasets", "none of one of them", "add it")

    @staticmethod
    def read(path: str | Path, **changes: Any) -> SegmentationConfig:
        """Read YAML; `changes` override single fields. Raises ConfigError naming the field that does not fit."""
        try:
            data = yaml.safe_load(Path(path).read_text()) | {k: v for k, v in changes.items() if v is not None}
            data.pop("configured", None)  # how `vlm configure` came to this file
            plan: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["plan"].items()}
            data["plan"] = Plan(**plan)
            data["datasets"] = tuple(
                DatasetEntry(**(entry | {"absent": tuple(entry.get("absent", ()))})) for entry in data["datasets"]
            )
            data["augmentation"] = Augmentation(**data.get("augmentation", {}))
            for key in ("data", "output", "split", *(["start"] if data.get("start") else [])):
                data[key] = Path(data[key])
            return SegmentationConfig(**data)
        except (OSError, TypeError, KeyError, AttributeError, AssertionError, UnicodeError, yaml.YAMLError) as error:
            raise ConfigError(
                path, "a segmentation training file", f"{error}", "see configs/segmentation.yaml"
            ) from None


def train_segmentation(
    config: SegmentationConfig,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Train and save a model folder under `config.output`/model. Returns that folder.

    resume: go on from `config.output`/checkpoint.pt where there is one. report(row) receives every log row, which also
    goes to log.jsonl. progress(stage, done, total) is for a progress bar. Raises ConfigError for data that is missing.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    plan = config.plan
    split = read_split(config.split)

    groups: list[list[TrainingCase]] = []
    validation: list[TrainingCase] = []
    for entry in config.datasets:
        files = list_cases(config.data, entry.name)
        kept = split_cases(files, split, "training")
        held = split_cases(files, split, "validation")[: config.validation_cases]
        with ThreadPoolExecutor(config.threads) as pool:
            loaded = []
            for case in pool.map(lambda f, e=entry: load_case(f, e, plan), kept + held):  # type: ignore[misc]
                loaded.append(case)
                if progress:
                    progress(f"reading {entry.name}", len(loaded), len(kept) + len(held))
        groups.append(loaded[: len(kept)])
        validation += loaded[len(kept) :]
    if not all(groups):
        raise ConfigError(config.data, "training cases in every dataset", "none in one of them", "check the split")
    plan = plan.with_(trained_on=_annotated(groups, plan))
    shares = np.array([entry.weight for entry in config.datasets])
    slots = _interleave(shares / shares.sum(), 240)
    if strange := sorted(set(config.class_weight) - set(plan.classes)):
        raise ConfigError("class_weight", f"classes of the plan: {list(plan.classes)}", f"{strange}", "correct it")
    class_weight = torch.tensor([1.0, *(config.class_weight.get(name, 1.0) for name in plan.classes)])

    network = build_network(plan.network, len(plan.ct_windows_hu), len(plan.classes) + 1, plan.network_options)
    if config.start:
        try:
            network.load_state_dict(load_model(config.start)[0].state_dict())
        except RuntimeError:  # torch lists every layer, on many lines
            raise ConfigError(
                config.start, "a model with the network of the plan", "another one", "change it"
            ) from None
    network = network.to(memory_format=torch.channels_last_3d)
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema)
    )
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config))
    first = 0
    checkpoint = config.output / "checkpoint.pt"
    if resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]

    def draw(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        random = np.random.default_rng([config.seed, step])
        items = []
        for n in range(config.batch):
            group = groups[slots[(step * config.batch + n) % len(slots)]]
            items.append(draw_window(group[random.integers(len(group))], plan, config.augmentation, random))
        image, codes, table = (torch.stack(part) for part in zip(*items, strict=True))
        return image.to(memory_format=torch.channels_last_3d), codes, table

    def save(step: int) -> None:
        parts = {"network": network, "average": average, "optimizer": optimizer, "schedule": schedule}
        with replacing(checkpoint) as temporary:
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, temporary)

    log = (config.output / "log.jsonl").open("a", encoding="utf-8")
    started = saved = time.monotonic()
    waited, recent = 0.0, []
    with ThreadPoolExecutor(1) as drawer, log:
        coming = drawer.submit(draw, first)
        for step in range(first, config.steps):
            asked = time.monotonic()
            image, codes, table = coming.result()
            waited += time.monotonic() - asked
            coming = drawer.submit(draw, step + 1)
            network.train()
            cross_entropy, dice = marginal_loss(network(image), codes, table, class_weight)
            loss = cross_entropy + dice
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(network)
            recent.append((float(cross_entropy.detach()), float(dice.detach())))
            done = step + 1
            row: dict[str, Any] = {}
            if done % 50 == 0 or done == config.steps:
                seconds = time.monotonic() - started
                mean = np.mean(recent, axis=0)
                row = {
                    "step": done,
                    "cross_entropy": round(float(mean[0]), 4),
                    "dice_loss": round(float(mean[1]), 4),
                    "seconds_per_step": round(seconds / (done - first), 3),
                    "waiting": round(waited / seconds, 3),
                }
                recent = []
            if done % config.validate_every == 0 or done == config.steps:
                row["validation_dice"] = validate(average.module, validation, plan)
            if row:
                log.write(json.dumps(row) + "\n")
                log.flush()
                if report:
                    report(row)
            if progress:
                progress("training", done, config.steps)
            if done == config.steps or time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(done)
                saved = time.monotonic()
    return save_model(average.module, plan, config.output / "model", half=True)


def validate(network: torch.nn.Module, cases: list[TrainingCase], plan: Plan) -> dict[str, float]:
    """Mean Dice per "MODALITY class" on the working grid, over the cases that annotate the class."""
    network.eval()
    scores: dict[str, list[float]] = {}
    for case in cases:
        image = torch.from_numpy(case.image.astype(np.float32))
        logits = predict_logits(lambda window, _: network(window), image, plan.patch, step=0.75)
        predicted = logits.argmax(dim=0).numpy()
        for name in case.files.annotated:
            if name in plan.labels:
                ours, theirs = predicted == plan.labels[name], case.codes == plan.labels[name]
                size = int(ours.sum() + theirs.sum())
                if theirs.any():
                    key = f"{case.files.modality} {name}"
                    scores.setdefault(key, []).append(2 * int((ours & theirs).sum()) / size)
    return {key: round(float(np.mean(values)), 4) for key, values in sorted(scores.items())}


def _rate(step: int, config: SegmentationConfig) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    length = (config.schedule_steps or config.steps) - config.warmup
    return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - config.warmup) / max(1, length)))))


def _interleave(shares: np.ndarray, length: int) -> list[int]:
    """A fixed order of `length` group numbers in which every group comes up evenly, in proportion to its share."""
    owed, order = np.zeros(len(shares)), []
    for _ in range(length):
        owed += shares
        order.append(int(owed.argmax()))
        owed[order[-1]] -= 1
    return order


def _annotated(groups: list[list[TrainingCase]], plan: Plan) -> dict[str, tuple[str, ...]]:
    """Modality -> classes with at least one voxel drawn in training scans of that modality."""
    seen: dict[str, set[int]] = {}
    for case in (case for group in groups for case in group):
        seen.setdefault(case.files.modality, set()).update(case.drawn)
    return {m: tuple(n for n in plan.classes if plan.labels[n] in ids) for m, ids in sorted(seen.items())}
