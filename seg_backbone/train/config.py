"""What a training file may say: YAML, or the JSON of `vlm configure`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from seg_backbone.augment import Augmentation
from seg_backbone.cases import DatasetEntry
from seg_backbone.errors import ConfigError, InputError
from seg_backbone.plan import Plan
from seg_backbone.pseudo_labels import PseudoRules
from seg_backbone.synthetic_tumours import BODY, TumourRecipe
from seg_backbone.train.consistency import Consistency
from seg_backbone.train.cutmix import CutMix
from seg_backbone.train.keys import made

CHOICES = {
    "sampling": ("cases", "annotations"),
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "poly"),
    "initialisation": ("torch", "he"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "device": ("auto", "cpu", "cuda"),
}
PARTS = ("encoder", "decoder")
INFINITE = float("inf")
LIMITS = {
    **dict.fromkeys(("steps", "schedule_steps", "batch", "accumulate", "validate_every", "threads"), (1, INFINITE)),
    **dict.fromkeys(("warmup", "validation_cases", "checkpoint_minutes", "workers", "seed", "fold"), (0, INFINITE)),
    **dict.fromkeys(("learning_rate", "weight_decay", "focal"), (0, INFINITE)),
    "clip": (1e-6, INFINITE),
    "ema": (0, 1),
    "momentum": (0, 1),
}


@dataclass(frozen=True)
class Member:
    """One network of an ensemble. fold, seed: instead of the configuration's; seed: by default its number added."""

    fold: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class PseudoLabels:
    """Training again on what the model of the round before labels, see rounds.py.

    rounds: trainings after the first one. weight: share of the windows from the scans that were labelled so, relative
    to the weights of the datasets. teacher: model folder that labels for the first round, instead of a first training.
    warm: each round begins from the weights of the one before. partial: the model also fills the classes that labelled
    scans leave open, else it labels only scans without labels. rules: what is kept of the labels, see PseudoRules.
    """

    rounds: int = 1
    weight: float = 1.0
    teacher: Path | None = None
    warm: bool = False
    partial: bool = True
    rules: PseudoRules = field(default_factory=PseudoRules)

    def __post_init__(self) -> None:
        assert self.rounds >= 1 and self.weight > 0, "pseudo_labels: rounds is 1 or more, weight above 0"


@dataclass(frozen=True)
class SyntheticTumours:
    """Tumours drawn into training windows as they come. share: of the windows, that are tried."""

    share: float
    recipe: TumourRecipe

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError("synthetic_tumours.share", "a value from 0 to 1", f"{self.share}", "correct it")

    @staticmethod
    def parse(data: dict[str, Any]) -> SyntheticTumours:
        """`share`, and beside it what a recipe may say. Raises ConfigError."""
        look = {key: value for key, value in data.items() if key != "share"}
        return SyntheticTumours(data.get("share", 0.5), TumourRecipe.of(look, "synthetic_tumours"))


@dataclass(frozen=True)
class ClassLoss:
    """What the classes of whole scans cost, where the plan has `heads`.

    weight: of each task beside the mask. learned: each task is also weighed by a weight of the model, which the
    optimiser updates. balanced: rare classes weigh more, so that each weighs alike; see train/classes.py.
    """

    weight: float = 1.0
    learned: bool = True
    balanced: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.weight < INFINITE:
            raise ConfigError("classification.weight", "a value from 0", f"{self.weight}", "correct it")


@dataclass(frozen=True)
class SegmentationConfig:
    """What `vlm train segmentation --config FILE` reads. Paths are relative to the working directory.

    Data. data: folder of nnU-Net raw datasets. output: run folder. datasets: see DatasetEntry. split: a file of
    patients (configs/split.json) or nnU-Net's splits_final.json, of which `fold` validates; without one each dataset's
    own splits_final.json, or else five folds of its patients. sampling: "cases" (every case of a dataset as often as
    the others) or "annotations" (every set of annotated classes as often as the others).

    synthetic_tumours: draws tumours into training windows, off without it, and never in validation; its keys are
    `share` (0.5) of the windows and those of seg_backbone.synthetic_tumours.TumourRecipe, with classes of the plan.

    Steps. start: model folder, or name of a model that ships, whose weights to begin from. frozen: parts of the network
    whose weights stay those of `start` to the bit, "encoder" (and with it every feature of it) or "decoder", or both
    where the plan has heads for whole scans, which always learn. One step sees `batch` windows times `accumulate` times
    the processes. optimizer: "adamw" or "sgd" (Nesterov, `momentum`); schedule: "cosine" or "poly", after a linear
    warm-up, to zero over schedule_steps (default: steps). initialisation: of new weights, as torch draws them, with
    nearly all background at first (model.begin_at_background), or as He et al. 2015, which is nnU-Net's and several
    times larger: the two want other rates. clip: the largest norm of
    the gradient. ema: decay of the averaged weights, which are the ones validated and saved; 0 for none. precision:
    "auto" (bf16 on a GPU that has it, else fp32), "fp32", "bf16" or "fp16". device: "auto", "cpu" or "cuda".

    Loss. class_weight: class -> weight of its voxels in the cross entropy, 1 for those not named. focal: exponent of
    the focal loss, 0 for plain cross entropy. classification: of the classes of whole scans; see ClassLoss.

    Without labels. consistency: a mean teacher, see Consistency. cutmix: lesions carried into other scans, see CutMix.
    pseudo_labels: training in rounds, see PseudoLabels. None of them by default. Scans without labels are drawn where
    there is a mean teacher, or no other scan.

    Watching. validation_cases: at most this many a dataset meanwhile. tensorboard: also write events for it.
    threads: of torch on a CPU. workers: processes that draw windows (default: none on a CPU, up to 8 on a GPU).
    members: an ensemble, each trained in turn with its own fold and seed; see Member. cache: folder of preprocessed
    scans that several runs may share, by default `cases` in the run folder.
    """

    data: Path
    output: Path
    plan: Plan
    datasets: tuple[DatasetEntry, ...]
    split: Path | None = None
    fold: int = 0
    sampling: Literal["cases", "annotations"] = "cases"
    augmentation: Augmentation = field(default_factory=Augmentation)
    synthetic_tumours: SyntheticTumours | None = None
    start: Path | None = None
    frozen: tuple[str, ...] = ()
    steps: int = 5000
    schedule_steps: int | None = None
    batch: int = 2
    accumulate: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "poly"] = "cosine"
    initialisation: Literal["torch", "he"] = "torch"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    momentum: float = 0.99
    warmup: int = 100
    clip: float = 5.0
    ema: float = 0.998
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    class_weight: dict[str, float] = field(default_factory=dict)
    focal: float = 0.0
    classification: ClassLoss = field(default_factory=ClassLoss)
    validate_every: int = 1000
    validation_cases: int = 6
    checkpoint_minutes: float = 3.0
    tensorboard: bool = False
    seed: int = 0
    threads: int = 2
    workers: int | None = None
    members: tuple[Member, ...] = ()
    consistency: Consistency | None = None
    cutmix: CutMix | None = None
    pseudo_labels: PseudoLabels | None = None
    cache: Path | None = None

    def __post_init__(self) -> None:
        if not self.datasets:
            raise ConfigError("datasets", "a dataset or more", "none", "list them")
        if self.plan.painted or self.plan.orientation != "RAS" or self.plan.members > 1:
            found = "one of an imported model or of an ensemble"
            raise ConfigError("plan", "a plan that training can fill", found, "start from `vlm configure`")
        if strange := sorted(set(self.frozen) - set(PARTS)):
            raise ConfigError(
                "frozen", f"one or both of {', '.join(PARTS)}", ", ".join(map(str, strange)), "correct it"
            )
        if self.frozen and not self.start:
            raise ConfigError("frozen", "`start`, the model whose weights are kept", "none", "add it")
        if set(self.frozen) == set(PARTS) and not self.plan.heads:
            raise ConfigError("frozen", "a part that is left to train", "none", "freeze one of them")
        if self.consistency and not self.ema:
            raise ConfigError("consistency", "`ema` above 0, whose average is the teacher", "0", "set it, say 0.99")
        if self.synthetic_tumours:
            recipe = self.synthetic_tumours.recipe
            if strange := sorted({recipe.label, *recipe.inside} - {BODY, *self.plan.classes}):
                expected = f"classes of the plan: {', '.join(self.plan.classes)} (or {BODY})"
                raise ConfigError("synthetic_tumours", expected, ", ".join(strange), "correct `label` or `inside`")
        for name, allowed in CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ConfigError(name, f"one of {', '.join(allowed)}", repr(value), "choose one of them")
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not (least <= value <= most and value < INFINITE):
                expected = f"a value from {least:g}" + (f" to {most:g}" if most < INFINITE else "")
                raise ConfigError(name, expected, f"{value}", "correct it")
        if negative := [name for name, value in self.class_weight.items() if not 0 <= value < INFINITE]:
            raise ConfigError("class_weight", "weights from 0", f"another one of {negative[0]}", "correct it")
        if light := [entry.name for entry in self.datasets if not 0 < entry.weight < INFINITE]:
            raise ConfigError(
                "datasets", "weights above 0", f"another one of {light[0]}", "correct it, or leave it out"
            )

    @staticmethod
    def read(path: str | Path, **changes: Any) -> SegmentationConfig:
        """Read YAML; `changes` override single fields. Raises ConfigError naming the field that does not fit."""
        try:
            data = read_mapping(path) | {k: v for k, v in changes.items() if v is not None}
            data.pop("configured", None)  # how `vlm configure` came to this file
            if "plan" not in data:
                raise ConfigError("the file", "the key `plan`", "none", "add it, or see `vlm configure`")
            return SegmentationConfig.parse(data | {"plan": Plan.of(data["plan"])})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error.source}", error.expected, error.found, error.todo) from None
        except InputError:
            raise
        except (OSError, TypeError, KeyError, AttributeError, AssertionError, ValueError, yaml.YAMLError) as error:
            found = f"no {error}" if isinstance(error, KeyError) else f"{error}"
            raise ConfigError(path, "a segmentation training file", found, "see configs/segmentation.yaml") from None

    @staticmethod
    def parse(data: dict[str, Any]) -> SegmentationConfig:
        """The configuration of a mapping whose plan is made. Raises ConfigError, and what its parts raise."""
        data = {key: value for key, value in data.items() if value or key not in ("data", "output")}
        if not isinstance(data.get("datasets", []), list):
            raise ConfigError("datasets", "a list", repr(data["datasets"]), "write `- name: Dataset001_Name`")
        data["datasets"] = tuple(made(DatasetEntry, entry, "datasets") for entry in data.get("datasets", []))
        for key, kind in (("classification", ClassLoss), ("augmentation", Augmentation)):
            data[key] = made(kind, data.get(key, {}), key)
        if data.get("synthetic_tumours") is not None:
            data["synthetic_tumours"] = SyntheticTumours.parse(data["synthetic_tumours"])
        named = data.get("frozen") or ()
        data["frozen"] = (named,) if isinstance(named, str) else tuple(named)
        data["members"] = tuple(made(Member, member, "members") for member in data.get("members", ()))
        for key, switch in (("consistency", Consistency), ("cutmix", CutMix)):
            if data.get(key) is not None:
                data[key] = made(switch, data[key], key)
        if data.get("pseudo_labels") is not None:
            own = dict(data["pseudo_labels"])
            own["rules"] = made(PseudoRules, own.get("rules", {}), "pseudo_labels.rules")
            own |= {"teacher": Path(own["teacher"])} if own.get("teacher") else {}
            data["pseudo_labels"] = made(PseudoLabels, own, "pseudo_labels")
        for key in (key for key in ("data", "output", "split", "start", "cache") if data.get(key)):
            data[key] = Path(data[key])
        return made(SegmentationConfig, data)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """What JSON or YAML holds; not JSON as YAML, which takes 3e-05 for text. Raises ConfigError for no mapping."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except ValueError:
        data = yaml.safe_load(text)
    if not isinstance(data, dict):
        raise ConfigError("the file", "lines of `key: value`", type(data).__name__, "see configs/segmentation.yaml")
    return data
