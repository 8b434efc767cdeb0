"""CutMix that carries a lesion with its surroundings into another scan, most often one without labels.

A box around one lesion of a drawn window replaces the same part of a window of another scan of that modality. In the
box the labels are those of the first scan, outside of it those of the second, unknown or not: the rows of both tables
are kept side by side. After Yun et al. 2019, "CutMix", with a box that follows a lesion instead of a random one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cc3d
import numpy as np
import torch

from seg_backbone.augment import Augmentation, draw_window
from seg_backbone.boxes import bounds
from seg_backbone.cases import TrainingCase
from seg_backbone.errors import ConfigError
from seg_backbone.labels import is_lesion
from seg_backbone.plan import Plan
from seg_backbone.train.samples import Sample

TRIES = 4  # windows near a lesion, in search of one that shows some of it


@dataclass(frozen=True)
class CutMix:
    """The key `cutmix` of a training file.

    weight: share of the windows, relative to the weights of the datasets. margin_mm: least and largest width of what is
    carried around the lesion, drawn for each face of the box.
    """

    weight: float = 0.25
    margin_mm: tuple[float, float] = (10.0, 40.0)

    def __post_init__(self) -> None:
        assert self.weight > 0, "cutmix: weight is above 0"
        low, high = self.margin_mm
        assert 0 <= low <= high, "cutmix: margin_mm is two widths, the smaller one first"


@dataclass(frozen=True)
class CarriedLesions:
    """Windows of `hosts` into which a lesion of one of the `donors` is carried. donors: `drawn` holds lesions alone."""

    weight: float
    donors: Sequence[TrainingCase]
    hosts: dict[str, Sequence[TrainingCase]]  # by modality
    plan: Plan
    augmentation: Augmentation
    margin_mm: tuple[float, float]

    def draw(self, random: np.random.Generator) -> Sample:
        """One window; of the donor alone where none of TRIES windows shows a lesion."""
        aimed = replace(self.augmentation, centred=1.0)
        for _ in range(TRIES):
            donor = self.donors[int(random.integers(len(self.donors)))]
            image, codes, table = draw_window(donor, self.plan, aimed, random)
            box = self._box(lesion_voxels(codes, table, self.plan), random)
            if box is not None:
                break
        else:
            return Sample(image, codes, table, donor.files.case)
        hosts = self.hosts[donor.files.modality]
        host = hosts[int(random.integers(len(hosts)))]
        mixed, marks, rows = draw_window(host, self.plan, self.augmentation, random)
        assert len(rows) + len(table) <= 256, "codes are uint8"
        mixed[(slice(None), *box)] = image[(slice(None), *box)]
        marks[box] = codes[box] + len(rows)
        return Sample(mixed, marks, torch.cat([rows, table]), host.files.case)

    def _box(self, lesion: np.ndarray, random: np.random.Generator) -> tuple[slice, ...] | None:
        """The box of one piece, drawn by size, with its margins; None without any."""
        places = np.argwhere(lesion)
        if not len(places):
            return None
        pieces = cc3d.connected_components(lesion.view(np.uint8), connectivity=26)
        box = bounds(pieces == pieces[tuple(places[random.integers(len(places))])])
        assert box is not None
        widths = random.uniform(*self.margin_mm, (2, 3)) / np.array(self.plan.spacing_mm)
        before, after = widths.round().astype(int).tolist()
        return tuple(
            slice(max(0, side.start - low), side.stop + high)
            for side, low, high in zip(box, before, after, strict=True)
        )


def lesion_voxels(codes: torch.Tensor, table: torch.Tensor, plan: Plan) -> np.ndarray:
    """(i, j, k) bool: voxels of a window that are certainly of a lesion class."""
    lesions = [value for name, value in plan.labels.items() if is_lesion(name)]
    certain = table[:, lesions].any(dim=1) & (table.sum(dim=1) == 1)
    return np.ascontiguousarray(certain[codes.long()].numpy())


def carried_lesions(
    settings: CutMix, cases: Sequence[TrainingCase], plan: Plan, augmentation: Augmentation
) -> CarriedLesions:
    """The source of a configuration: lesions that people drew, into scans in which nobody drew anything or a model
    did; into all scans where there are none of these.

    Raises ConfigError where no scan shows a lesion, or none of its modality can receive it.
    """
    lesions = {value for name, value in plan.labels.items() if is_lesion(name)}
    shown = [
        replace(case, drawn={code: places for code, places in case.drawn.items() if code in lesions})
        for case in cases
        if not case.files.pseudo
    ]
    hosts: dict[str, list[TrainingCase]] = {}
    for case in [case for case in cases if case.files.pseudo or not case.drawn] or cases:
        hosts.setdefault(case.files.modality, []).append(case)
    donors = [case for case in shown if case.drawn and case.files.modality in hosts]
    if not donors:
        found = (
            "lesions in no scan" if not any(case.drawn for case in shown) else f"scans to receive in {[*hosts]} only"
        )
        raise ConfigError("cutmix", "drawn lesions, and scans of their modality", found, "leave `cutmix` out")
    return CarriedLesions(settings.weight, donors, dict(hosts), plan, augmentation, settings.margin_mm)
