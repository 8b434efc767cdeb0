"""What a training file of the language stages may say: YAML, see configs/vlm.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from seg_backbone.cases import DatasetEntry
from seg_backbone.errors import ConfigError
from vlm.llm import DEFAULT_LLM
from vlm.model import VlmConfig
from vlm.train.answered import QuestionFile

CHOICES: dict[str, tuple[str | None, ...]] = {
    "precision": ("auto", "fp32", "bf16"),
    "device": ("auto", "cpu", "cuda"),
    "calibration": ("temperature", "isotonic", None),
}
LEAST = {
    "cases": 1,
    "validation_cases": 0,
    "pack": 1,
    "accumulate": 1,
    "steps": 1,
    "validate_every": 1,
    "patience": 0,
    "lexical": 0,
}
LOSSES = {"router": 1.0, "pointer": 2.0, "answer": 0.5, "labels": 0.5, "regression": 0.5}
SHARES = ("invented", "hide_mentions")


@dataclass(frozen=True)
class StageConfig:
    """One language stage. Paths are relative to the working directory.

    Model. segmentation: model that makes the masks. encoder, encoder_options: see vlm.encoders. llm: name, folder or
    hub id. model: further fields of vlm.model.VlmConfig (adapter, tokens, answers). Alignment chooses all of these;
    instruction goes on from `start`, the folder of aligned weights, and only gives it its adapter.

    Data. datasets: of nnU-Net raw data in `data`, see DatasetEntry, divided by `split`; where their weights differ they
    are the shares of the real scenes, else every case comes as often. targets: a file of scan-level targets
    (vlm.data.targets). questions: files of questions with answers (vlm.train.answered), beside the datasets or instead,
    for a model that writes its answers. cases: at most this many training cases a dataset. pack: questions behind one
    scene. invented: share of scenes that are invented. hide_mentions: share of questions whose lexical match is hidden
    from the pointer, so that it learns to read. lexical: questions from which the words' say is learnt first; 0: none.

    Steps. One step sees `accumulate` packs in each process. precision: of the language model's weights and states (its
    adapter and the heads stay float32), "auto": bf16 on a GPU. activation_checkpointing: less memory, more time.
    patience: validations without a better mean until training ends, with the best weights; 0: never, with the last.
    loss_weights: other than those of LOSSES.

    Watching. tensorboard: also write events for it. samples: questions of each validation whose answers are shown.
    calibration: how confidences are calibrated on the validation cases once the adapter is trained, "temperature" or
    "isotonic" (vlm.train.calibrate); without one, or without such cases, they are not.
    """

    output: Path
    data: Path = Path()
    split: Path | None = None
    datasets: tuple[DatasetEntry, ...] = ()
    start: Path | None = None
    segmentation: str = "default"
    encoder: str = "segmentation"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    llm: str = DEFAULT_LLM
    model: dict[str, Any] = field(default_factory=dict)
    targets: Path | None = None
    questions: tuple[QuestionFile, ...] = ()
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
    lexical: int = 0
    precision: str = "auto"
    device: str = "auto"
    activation_checkpointing: bool = False
    validate_every: int = 200
    patience: int = 0
    samples: int = 4
    checkpoint_minutes: float = 3.0
    tensorboard: bool = False
    calibration: str | None = "temperature"
    seed: int = 0
    threads: int = 2
    loss_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(name, f"one of {', '.join(map(str, allowed))}", repr(value), "choose one of them")
        for name, least in LEAST.items():
            if (number := getattr(self, name)) < least:
                raise ConfigError(name, f"{least} or more", f"{number}", "correct it")
        for name in SHARES:
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ConfigError(name, "a share from 0 to 1", f"{share}", "correct it")
        if self.datasets and self.split is None:
            raise ConfigError("split", "a file of patients, as configs/split.json", "none", "add it")
        if any(share < 0 for share in self.shares.values()) or not sum(self.shares.values()):
            raise ConfigError("datasets", "weights from 0, one above it", f"{self.shares}", "correct them")
        if strange := set(self.loss_weights) - set(LOSSES):
            raise ConfigError("loss_weights", f"losses among {', '.join(LOSSES)}", f"{sorted(strange)}", "correct them")
        object.__setattr__(self, "loss_weights", LOSSES | self.loss_weights)
        VlmConfig(**self.model)  # whether it can be read is known before a scan is

    @property
    def shares(self) -> dict[str, float]:
        """Dataset or question file -> its weight."""
        return {e.name: e.weight for e in self.datasets} | {str(e.file): e.weight for e in self.questions}

    @staticmethod
    def read(path: str | Path, stage: str, **changes: Any) -> StageConfig:
        """Read the common part of a YAML file and that of one stage. Raises ConfigError."""
        try:
            table = yaml.safe_load(Path(path).read_text())
            given = {key: value for key, value in changes.items() if value is not None}
            data = {k: v for k, v in table.items() if k not in ("alignment", "instruction")} | table[stage] | given
            data["datasets"] = tuple(
                DatasetEntry(**(e | {"absent": tuple(e.get("absent", ()))})) for e in data.get("datasets", ())
            )
            data["questions"] = tuple(QuestionFile(**entry) for entry in data.get("questions", ()))
            for key in ("data", "output", "split", "start", "targets"):
                if data.get(key):
                    data[key] = Path(data[key])
            return StageConfig(**data)
        except (OSError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(path, f"a training file with `{stage}`", f"{error}", "see configs/vlm.yaml") from None
