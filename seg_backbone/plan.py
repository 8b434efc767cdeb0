"""Plan: every choice that turns a scan into network input and logits into a mask. Saved beside the weights as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from seg_backbone.errors import CheckpointError


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
class Plan:
    """A readable, editable recipe for one segmentation model.

    classes: foreground names; the id of classes[n] is n + 1. spacing_mm: working grid, (right, anterior, superior).
    patch: window in voxels. ct_windows_hu: one input channel each, mapped linearly to [-1, 1] and clipped.
    regions: name of a union -> its classes, for what overlaps (whole tumour: core and oedema); trained and scored too.
    trained_on: modality -> classes that were annotated in training scans of it; anything else is untrained.
    minimum_ml: predicted components below this volume are dropped. single: classes that keep only their largest
    component, because anatomy has one. network / network_options: see seg_backbone.nets. mirror_axes: those that
    training mirrored, of (right, anterior, superior); mirror_swaps_sides: a mirrored left organ was taught as the right
    one. roi: the low-resolution pass of fast mode; None where it does not pay, or loses what the windows find.
    gate: the classifier of fast mode; None without one.
    """

    name: str
    classes: tuple[str, ...]
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 4.0)
    patch: tuple[int, int, int] = (48, 48, 48)
    step: float = 0.5
    ct_windows_hu: tuple[tuple[float, float], ...] = ((-160.0, 240.0), (-1000.0, 1000.0))
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

    def __post_init__(self) -> None:
        assert len(set(self.classes)) == len(self.classes) > 0, "class names must differ"
        assert {part for parts in self.regions.values() for part in parts} <= set(self.classes), "regions name classes"
        assert not set(self.regions) & set(self.classes), "a region has a class's name"
        assert all(s > 0 for s in self.spacing_mm) and 0 < self.step <= 1
        assert set(self.mirror_axes) <= {0, 1, 2}, "mirror_axes are among 0, 1, 2"

    @property
    def labels(self) -> dict[str, int]:
        """Class name -> id in the written mask."""
        return {name: number + 1 for number, name in enumerate(self.classes)}

    def to_json(self) -> str:
        """Indented JSON with every field."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def with_(self, **changes: Any) -> Plan:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @staticmethod
    def read(path: str | Path) -> Plan:
        """Read plan.json. Raises CheckpointError where a field is unknown, missing or impossible."""
        try:
            data = json.loads(Path(path).read_text())
            for key in ("classes", "spacing_mm", "patch", "single"):
                data[key] = tuple(data[key])
            data["ct_windows_hu"] = tuple(tuple(window) for window in data["ct_windows_hu"])
            data["regions"] = {name: tuple(parts) for name, parts in data.get("regions", {}).items()}
            data["trained_on"] = {modality: tuple(names) for modality, names in data["trained_on"].items()}
            data["mirror_axes"] = tuple(data.get("mirror_axes", (0,)))
            if data.get("roi"):
                data["roi"] = Roi(**data["roi"] | {"stride": tuple(data["roi"]["stride"])})
            if data.get("gate"):
                windows = tuple(tuple(window) for window in data["gate"]["ct_windows_hu"])
                data["gate"] = GatePlan(**data["gate"] | {"ct_windows_hu": windows})
            return Plan(**data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            raise CheckpointError(
                path, "a plan.json", f"{type(error).__name__}: {error}", "fetch the model again"
            ) from None
