"""What a training file may say: YAML, or the JSON of `vlm configure`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seg_backbone.augment import Augmentation
from seg_backbone.cases import DatasetEntry
from seg_backbone.errors import ConfigError
from seg_backbone.plan import Plan


@dataclass(frozen=True)
class SegmentationConfig:
    """What `vlm train segmentation --config FILE` reads. Paths are relative to the working directory.

    data: folder of nnU-Net raw datasets. output: run folder (checkpoint, log). datasets: see DatasetEntry.
    start: model folder whose weights to begin from. steps x batch windows are drawn; AdamW with a linear warm-up and a
    cosine to zero over schedule_steps (default: steps); ema: decay of the averaged weights, which are the ones
    validated and saved. class_weight: class -> weight of its voxels in the cross entropy, 1 for those not named.
    focal: exponent of the focal loss, 0 for plain cross entropy.
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
    focal: float = 0.0
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
            plan["regions"] = {name: tuple(parts) for name, parts in plan.get("regions", {}).items()}
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
