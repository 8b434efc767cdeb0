"""Where training windows come from: sources, mixed into batches that depend on the seed and their number alone.

A source draws one `Sample` with the generator it is given. Another kind of data (scans without labels, pasted lesions,
made-up ones) is another source; the table of a sample says which classes each code may be, so all of them mix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader

from seg_backbone.augment import Augmentation, draw_window
from seg_backbone.cases import TrainingCase
from seg_backbone.errors import ConfigError
from seg_backbone.plan import Plan
from seg_backbone.scan_classes import UNKNOWN
from seg_backbone.train.consistency import Consistency, disturbed

SCAN = "scan"  # target and head: the number of the scan's class in each task


@dataclass(frozen=True, eq=False)
class Sample:
    """One window: image (channels, *patch) float32; codes (*patch) uint8; table (codes, classes) bool, see
    partial_labels. case: the scan it shows. targets: what extra heads learn from it, name -> tensor.
    """

    image: torch.Tensor
    codes: torch.Tensor
    table: torch.Tensor
    case: str = ""
    targets: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples on top of each other: image (B, channels, *patch), codes (B, *patch), tables (B, codes, classes).

    Tables of fewer codes are filled up with codes that no voxel has. targets: those that every sample has, and classes
    of the scan where one has them, UNKNOWN (-1) for the others. undisturbed: what a teacher sees where `image` was
    disturbed, see consistency.py.
    """

    image: torch.Tensor
    codes: torch.Tensor
    tables: torch.Tensor
    cases: tuple[str, ...]
    targets: dict[str, torch.Tensor]
    undisturbed: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """On another device, the image in the memory layout of the network there."""
        images = [
            image if image is None else image.to(device, memory_format=layout(device), non_blocking=True)
            for image in (self.image, self.undisturbed)
        ]
        targets = {name: value.to(device) for name, value in self.targets.items()}
        return Batch(images[0], self.codes.to(device), self.tables.to(device), self.cases, targets, images[1])


def layout(device: torch.device) -> torch.memory_format:
    """The memory layout of images and weights: channels last is faster on a CPU."""
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


class Source(Protocol):
    """One kind of samples."""

    @property
    def weight(self) -> float:
        """Its share of the samples, relative to the other sources'."""
        ...

    def draw(self, random: np.random.Generator) -> Sample:
        """One window. `random` is all that it may depend on."""
        ...


@dataclass(frozen=True)
class LabelledCases:
    """Windows of annotated scans, each scan as often as the others.

    classes: case -> the number of its class in each task of the plan's heads; a case that is not there has UNKNOWN.
    """

    weight: float
    cases: Sequence[TrainingCase]
    plan: Plan
    augmentation: Augmentation
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def draw(self, random: np.random.Generator) -> Sample:
        case = self.cases[int(random.integers(len(self.cases)))]
        image, codes, table = draw_window(case, self.plan, self.augmentation, random)
        targets = {SCAN: self._scan_target(case, codes)} if self.plan.heads else {}
        return Sample(image, codes, table, case.files.case, targets)

    def _scan_target(self, case: TrainingCase, codes: torch.Tensor) -> torch.Tensor:
        """(tasks,) numbers of classes. A head that sees lesions alone learns nothing from a window beside them."""
        heads = self.plan.heads
        assert heads is not None
        lesions = [self.plan.labels[name] for name in heads.lesions or self.plan.classes]
        beside = any(code in case.drawn for code in lesions) and not np.isin(codes, lesions).any()
        known = self.classes.get(case.files.case, (UNKNOWN,) * len(heads.tasks))
        blind = [beside and task.pooling == ("lesion",) for task in heads.tasks.values()]
        return torch.tensor([UNKNOWN if hidden else number for number, hidden in zip(known, blind, strict=True)])


@dataclass(frozen=True)
class Batches:
    """Batch n of a run: the sources in a fixed order, in proportion to their weights, drawn with (seed, n).

    consistency: how its images are disturbed for a mean teacher; None without one.
    """

    sources: Sequence[Source]
    size: int
    seed: int
    consistency: Consistency | None = None

    def __getitem__(self, number: int) -> Batch:
        random = np.random.default_rng([self.seed, number])
        order = interleave([source.weight for source in self.sources])
        first = number * self.size
        batch = stack([self.sources[order[n % len(order)]].draw(random) for n in range(first, first + self.size)])
        return disturbed(batch, self.consistency, random) if self.consistency else batch


def stack(samples: Sequence[Sample]) -> Batch:
    """Samples -> Batch."""
    rows = max(len(sample.table) for sample in samples)
    tables = [torch.nn.functional.pad(s.table, (0, 0, 0, rows - len(s.table)), value=True) for s in samples]
    names = set.intersection(*(set(sample.targets) for sample in samples))
    scan = next((sample.targets[SCAN] for sample in samples if SCAN in sample.targets), None)
    unknown = {} if scan is None else {SCAN: torch.full_like(scan, UNKNOWN)}
    return Batch(
        image=torch.stack([sample.image for sample in samples]),
        codes=torch.stack([sample.codes for sample in samples]),
        tables=torch.stack(tables),
        cases=tuple(sample.case for sample in samples),
        targets={
            name: torch.stack([(unknown | sample.targets)[name] for sample in samples])
            for name in sorted(names | set(unknown))
        },
    )


def ahead(batches: Batches, numbers: range, workers: int = 0) -> Iterator[Batch]:
    """The batches of those numbers in their order, drawn while the caller works on earlier ones.

    workers: processes that draw; with 0 a thread of this process draws one batch ahead. What comes out is the same.
    Raises ConfigError where a worker died, as the system ends them when memory runs out.
    """
    if workers == 0:
        yield from _ahead_in_a_thread(batches, numbers)
        return
    loader = DataLoader(batches, batch_size=None, sampler=numbers, num_workers=workers, prefetch_factor=4)
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        fewer = max(1, workers // 2)
        found = f"{workers} workers, one of which died; most often memory ran out"
        raise ConfigError("workers", "workers that live", found, f"set `workers: {fewer}`") from None


def _ahead_in_a_thread(batches: Batches, numbers: range) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as drawer:
        coming = [drawer.submit(batches.__getitem__, number) for number in numbers[:1]]
        for number in numbers:
            batch = coming.pop().result()
            if number + numbers.step in numbers:
                coming.append(drawer.submit(batches.__getitem__, number + numbers.step))
            yield batch


def interleave(weights: Sequence[float], length: int = 240) -> list[int]:
    """A fixed order of `length` numbers in which every number comes up evenly, in proportion to its weight."""
    shares = np.array(weights) / np.sum(weights)
    owed, order = np.zeros(len(shares)), []
    for _ in range(length):
        owed += shares
        order.append(int(owed.argmax()))
        owed[order[-1]] -= 1
    return order
