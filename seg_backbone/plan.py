"""Plan: every choice that turns a scan into network input and logits into a mask. Saved beside the weights as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seg_backbone.errors import CheckpointError

SCHEMES = ("ct", "zscore", "zscore_nonzero", "rescale_to_0_1", "rgb_to_0_1", "none")
RESAMPLINGS = ("smooth", "cubic", "nnunet")
ORIENTATIONS = ("RAS", "file")
POOLINGS = ("lesion", "volume")  # features under the predicted lesions, and of the whole scan


@dataclass(frozen=True)
class Channel:
    """An input channel that is normalised as nnU-Net does it; outside of the scan it is 0.

    name: as in dataset.json ("CT", "T1"). scheme: ct: clipped to [low, high], minus mean, over std, which are those of
    the training data's foreground. zscore: minus the scan's mean, over its deviation; zscore_nonzero: both inside what
    is not zero in any channel (holes filled), 0 outside. rescale_to_0_1: the scan's range. rgb_to_0_1: over 255.
    """

    name: str
    scheme: str
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0

    def __post_init__(self) -> None:
        assert self.scheme in SCHEMES, f"a channel's scheme is one of {SCHEMES}"
        assert self.scheme != "ct" or (self.low < self.high and self.std > 0), "a ct channel needs low, high and std"


@dataclass(frozen=True)
class Roi:
    """How a low-resolution pass finds the part of a scan that is worth looking at.

    stride: the pass sees every n-th voxel of the working grid, by axis. threshold: foreground probability above which a
    voxel counts. margin_mm: padding of the box around them.
    """

    stride: tuple[int, int, int] = (2, 2, 2)
    threshold: float = 0.05
    margin_mm: float = 32.0

    def __post_init__(self) -> None:
        assert all(n >= 1 for n in self.stride) and 0 < self.threshold < 1 and self.margin_mm >= 0


@dataclass(frozen=True)
class GatePlan:
    """A classifier that says whether a window holds foreground; its weights are `gate.safetensors` beside the model's.

    ct_windows_hu: its input channels, one each, as in Plan; here chest and abdomen. network, network_options: see
    seg_backbone.nets.CLASSIFIERS. threshold: windows with a lower probability are skipped. validation: what it was
    chosen on: windows with and without foreground, the shares of the former that it keeps (recall) and of the latter
    that it skips.
    """

    threshold: float
    ct_windows_hu: tuple[tuple[float, float], ...] = ((-900.0, 650.0), (-175.0, 250.0))
    network: str = "resnet18"
    network_options: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert 0 <= self.threshold <= 1 and self.ct_windows_hu


@dataclass(frozen=True)
class ScanTask:
    """A question about whole scans. classes: by number. pooling: the parts of a scan whose features its head sees."""

    classes: tuple[str, ...]
    pooling: tuple[str, ...] = POOLINGS

    def __post_init__(self) -> None:
        assert len(set(self.classes)) == len(self.classes) > 1, "a task has two classes or more, each named once"
        known = self.pooling and set(self.pooling) <= set(POOLINGS)
        assert known and len(set(self.pooling)) == len(self.pooling), f"pooling is some of {POOLINGS}"


@dataclass(frozen=True)
class ScanHeadPlan:
    """Heads that classify whole scans; their weights are `heads.safetensors` beside the model's.

    tasks: name -> classes and pooling. lesions: the classes of the mask that count as lesion; () for all of them.
    hidden: width of each head's one hidden layer.
    """

    tasks: dict[str, ScanTask]
    lesions: tuple[str, ...] = ()
    hidden: int = 64

    def __post_init__(self) -> None:
        assert self.tasks and self.hidden > 0, "heads need a task and a hidden layer"

    @staticmethod
    def of(data: dict[str, Any]) -> ScanHeadPlan:
        """From what JSON or YAML holds; a task may be the list of its classes alone."""
        tasks = {
            str(name): ScanTask(**{k: tuple(map(str, v)) for k, v in task.items()})
            if isinstance(task, dict)
            else ScanTask(tuple(map(str, task)))
            for name, task in data["tasks"].items()
        }
        return ScanHeadPlan(**data | {"tasks": tasks, "lesions": tuple(data.get("lesions", ()))})


@dataclass(frozen=True)
class Plan:
    """A readable, editable recipe for one segmentation model.

    classes: foreground names; the id of classes[n] is n + 1. spacing_mm: working grid, (right, anterior, superior).
    patch: window in voxels. ct_windows_hu: one input channel each, mapped linearly to [-1, 1] and clipped; unused where
    there are `channels`, which are files of their own (CASE_0000, CASE_0001, ...), normalised as nnU-Net does.
    regions: name of a union -> its classes, for what overlaps (whole tumour: core and oedema); trained and scored too.
    trained_on: modality -> classes that were annotated in training scans of it; anything else is untrained.
    minimum_ml: predicted components below this volume are dropped. single: classes that keep only their largest
    component, because anatomy has one. network / network_options: see seg_backbone.nets. mirror_axes: those that
    training mirrored, of (right, anterior, superior); mirror_swaps_sides: a mirrored left organ was taught as the right
    one. roi: the low-resolution pass of fast mode; None where it does not pay, or loses what the windows find.
    gate: the classifier of fast mode; None without one. heads: classes of the whole scan; None without any.
    resampling: of a scan of `channels`, "smooth" (see resample.py) or by "cubic" splines, which keep more detail than a
    coarse grid can hold; "nnunet": splines, and mirrored, blended and stepped as nnU-Net does when it predicts.

    What imported models need (seg_backbone.nnunet): orientation: axes the network sees, "RAS" or as in the "file".
    crop_nonzero: to the box of what is not zero. painted: of a network trained on regions, the id that each output
    paints where it is above 0, over what was painted before; without them the outputs are background and the classes,
    and the largest wins. members: networks whose logits are averaged.
    """

    name: str
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0)
    patch: tuple[int, int, int] = (48, 48, 48)
    step: float = 0.5
    ct_windows_hu: tuple[tuple[float, float], ...] = ((-160.0, 240.0), (-1000.0, 1000.0))
    channels: tuple[Channel, ...] = ()
    network: str = "residual_unet"
    network_options: dict[str, Any] = field(default_factory=dict)
    regions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    trained_on: dict[str, tuple[str, ...]] = field(default_factory=dict)
    minimum_ml: dict[str, float] = field(default_factory=dict)
    single: tuple[str, ...] = ()
    mirror_axes: tuple[int, ...] = (0,)
    mirror_swaps_sides: bool = True
    roi: Roi | None = None
    gate: GatePlan | None = None
    heads: ScanHeadPlan | None = None
    orientation: str = "RAS"
    resampling: str = "smooth"
    crop_nonzero: bool = False
    painted: tuple[int, ...] = ()
    members: int = 1

    def __post_init__(self) -> None:
        assert len(set(self.classes)) == len(self.classes) > 0, "class names must differ"
        assert {part for parts in self.regions.values() for part in parts} <= set(self.classes), "regions name classes"
        assert not set(self.regions) & set(self.classes), "a region has a class's name"
        assert len(self.spacing_mm) == 3 and all(s > 0 for s in self.spacing_mm), "spacing_mm is above 0 on three axes"
        sides = len(self.patch) == 3 and all(isinstance(side, int) and side > 0 for side in self.patch)
        assert sides, "patch is three whole numbers of voxels"
        assert 0 < self.step <= 1, "step is above 0 and up to 1"
        assert set(self.mirror_axes) <= {0, 1, 2}, "mirror_axes are among 0, 1, 2"
        assert self.orientation in ORIENTATIONS, f"orientation is one of {ORIENTATIONS}"
        assert self.resampling in RESAMPLINGS, f"resampling is one of {RESAMPLINGS}"
        assert set(self.painted) <= set(self.labels.values()), "painted are ids of classes"
        assert self.members >= 1, "members is 1 or more"
        assert self.heads is None or set(self.heads.lesions) <= set(self.classes), "heads.lesions are classes"

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> id in the written mask."""
        return {name: number + 1 for number, name in enumerate(self.classes)}

    @property
    def inputs(self) -> int:
        """Input channels of the network."""
        return len(self.channels) or len(self.ct_windows_hu)

    @property
    def outputs(self) -> int:
        """Output channels of the network."""
        return len(self.painted) or len(self.classes) + 1

    def to_json(self) -> str:
        """Indented JSON with every field."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def with_(self, **changes: Any) -> Plan:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @staticmethod
    def of(data: dict[str, Any]) -> Plan:
        """A plan from what JSON or YAML holds. Raises TypeError, KeyError, AttributeError or AssertionError."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        fields["ct_windows_hu"] = tuple(tuple(window) for window in fields.get("ct_windows_hu", Plan.ct_windows_hu))
        fields["channels"] = tuple(Channel(**channel) for channel in fields.get("channels", ()))
        if roi := fields.get("roi"):
            fields["roi"] = Roi(**roi | {"stride": tuple(roi["stride"])})
        if gate := fields.get("gate"):
            fields["gate"] = GatePlan(**gate | {"ct_windows_hu": tuple(tuple(w) for w in gate["ct_windows_hu"])})
        if heads := fields.get("heads"):
            fields["heads"] = ScanHeadPlan.of(heads)
        for key in ("regions", "trained_on"):
            fields[key] = {name: tuple(parts) for name, parts in fields.get(key, {}).items()}
        return Plan(**fields)

    @staticmethod
    def read(path: str | Path) -> Plan:
        """Read plan.json. Raises CheckpointError where a field is unknown, missing or impossible."""
        try:
            return Plan.of(json.loads(Path(path).read_text()))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            raise CheckpointError(
                path, "a plan.json", f"{type(error).__name__}: {error}", "fetch the model again"
            ) from None
