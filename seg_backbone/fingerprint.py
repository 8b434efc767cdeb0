"""Fingerprint: what one pass over a dataset shows, and every choice of a plan follows from. Saved as JSON.

The quantities are those of nnU-Net v2 (Isensee et al. 2021): spacing, shape before and after the crop to the box of
voxels that are not zero, and the values under the drawn foreground. nnU-Net draws equally many foreground voxels of
each case at random; here each case counts alike too, by its moments and its quantiles, so there is no chance in it.
Axes are canonical (right, anterior, superior).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seg_backbone.cases import CaseFiles, list_cases, read_drawn
from seg_backbone.errors import ConfigError, Gathered, LabelError
from seg_backbone.geometry import to_canonical
from seg_backbone.io import read_volume
from seg_backbone.volume import Mask, Volume, require_same_grid

QUANTILES = (np.arange(2000) + 0.5) / 2000  # of each case; the data set's percentiles are those of all of them together


@dataclass(frozen=True)
class Intensities:
    """Values of one channel under the drawn foreground (HU for CT), every case that shows some counting alike."""

    mean: float
    std: float
    minimum: float
    percentile_00_5: float
    median: float
    percentile_99_5: float
    maximum: float


@dataclass(frozen=True)
class CaseShape:
    """One case. shape and cropped: voxels before and after the crop to what is not zero in any channel."""

    case: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    cropped: tuple[int, int, int]


@dataclass(frozen=True)
class Fingerprint:
    """A dataset as a planner sees it.

    channels: names by number ("CT", "MR_T1"), by which nnU-Net chooses the normalisation. classes: foreground, by
    canonical names. outputs: entries of `labels` in dataset.json, background included. training_cases: `numTraining`.
    modalities: of the cases, sorted.
    """

    dataset: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    outputs: int
    training_cases: int
    cases: tuple[CaseShape, ...]
    intensities: tuple[Intensities, ...]
    modalities: tuple[str, ...] = ()

    @property
    def relative_size(self) -> float:
        """Median over the cases of the share of a scan that the crop keeps, 0 to 1."""
        return float(np.median([np.prod(case.cropped) / np.prod(case.shape) for case in self.cases]))

    def to_json(self) -> str:
        """Indented JSON with every field."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def read(path: str | Path) -> Fingerprint:
        """Read what `to_json` wrote. Raises ConfigError for anything else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            cases = [
                CaseShape(row["case"], tuple(row["spacing_mm"]), tuple(row["shape"]), tuple(row["cropped"]))
                for row in data["cases"]
            ]
            lists = {key: tuple(data[key]) for key in ("channels", "classes")}
            values = tuple(Intensities(**channel) for channel in data["intensities"])
            lists["modalities"] = tuple(data.get("modalities", ()))
            return Fingerprint(**data | lists | {"cases": tuple(cases), "intensities": values})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            found = f"{type(error).__name__}: {error}"
            raise ConfigError(path, "a fingerprint", found, "leave it out to read the scans again") from None


def fingerprint(
    folder: str | Path, progress: Callable[[int, int], None] | None = None, threads: int | None = None
) -> Fingerprint:
    """Read every case of an nnU-Net raw dataset once.

    progress(done, total) is called after each. threads: as many as cores by default, 8 at most; each holds a scan.

    Raises ConfigError for a folder that is no dataset or whose masks show no class, else the errors of the readers, all
    cases together.
    """
    folder = Path(folder)
    channels, numbered = read_channels(folder / "dataset.json")
    files = [case for case in list_cases(folder.parent, folder.name) if case.mask is not None]
    if not files:
        raise ConfigError(folder, "scans with masks", "none", "see `vlm data check`")
    measured, wrong = [], Gathered()
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(wrong.attempt(lambda case: _measure(case, len(channels))), files)
        for done, result in enumerate(results, start=1):
            measured += [result] if result else []
            if progress:
                progress(done, len(files))
    wrong.tell()
    drawn = [samples for _, samples in measured if samples]
    if not drawn:
        raise ConfigError(folder, "masks that show a class", "none", "see `vlm data check`")
    return Fingerprint(
        dataset=folder.name,
        channels=channels,
        classes=tuple(files[0].labels),
        outputs=1 + len(files[0].labels),
        training_cases=numbered or len(files),
        cases=tuple(shape for shape, _ in measured),
        intensities=tuple(_pool([samples[number] for samples in drawn]) for number in range(len(channels))),
        modalities=tuple(sorted({case.modality for case in files})),
    )


def read_channels(path: str | Path) -> tuple[tuple[str, ...], int]:
    """Channel names by number and `numTraining` (0 where it is not given) of a dataset.json. Raises LabelError."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names: dict[str, Any] = data["channel_names"] if "channel_names" in data else data["modality"]
        ordered = tuple(str(names[str(number)]) for number in range(len(names)))
        numbered = int(data.get("numTraining", 0))
    except FileNotFoundError:
        raise LabelError(path, "a dataset.json", "no such file", "write one, see nnU-Net's") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        expected = 'channel_names {"0": "CT", ...} and a whole `numTraining`, if any'
        raise LabelError(path, expected, found, "see nnU-Net's dataset.json") from None
    return ordered, numbered


def channel_file(image: Path, channel: int) -> Path:
    """The file of another channel of the scan whose channel 0 is `image` (CASE_0000.nii.gz)."""
    case, ending = image.name.rsplit("_0000.", 1)
    return image.with_name(f"{case}_{channel:04d}.{ending}")


@dataclass(frozen=True, eq=False)
class _Sample:
    """One channel of one case under its foreground: moments, extremes, and `QUANTILES`."""

    mean: float
    square: float
    minimum: float
    maximum: float
    quantiles: np.ndarray


def _measure(files: CaseFiles, channels: int) -> tuple[CaseShape, list[_Sample]]:
    """Shape of a case and a sample a channel; no samples where nothing is drawn."""
    assert files.mask is not None
    volumes = [read_volume(channel_file(files.image, number), files.modality) for number in range(channels)]
    mask = read_drawn(files)
    others: list[Volume | Mask] = [*volumes[1:], mask]
    for other in others:
        require_same_grid(volumes[0], other)
    nonzero = np.logical_or.reduce([volume.array != 0 for volume in volumes])
    box = []
    for axis in range(3):
        inside = np.flatnonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    place = tuple(box)
    foreground = np.isin(mask.array[place], list(mask.labels.values()))
    samples = [_sample(volume.array[place][foreground]) for volume in volumes] if foreground.any() else []
    turned, grid = to_canonical(nonzero, volumes[0].grid)
    cropped, _ = to_canonical(foreground, volumes[0].grid)
    spacing = tuple(float(step) for step in grid.spacing_mm)
    return CaseShape(files.case, spacing, turned.shape, cropped.shape), samples  # type: ignore[arg-type]


def _sample(values: np.ndarray) -> _Sample:
    values = values.astype(np.float64)
    mean, square = float(values.mean()), float(np.square(values).mean())
    return _Sample(mean, square, float(values.min()), float(values.max()), np.quantile(values, QUANTILES))


def _pool(samples: list[_Sample]) -> Intensities:
    mean = float(np.mean([sample.mean for sample in samples]))
    variance = float(np.mean([sample.square for sample in samples])) - mean**2
    low, middle, high = np.percentile(np.concatenate([sample.quantiles for sample in samples]), (0.5, 50, 99.5))
    return Intensities(
        mean=mean,
        std=max(variance, 0.0) ** 0.5,
        minimum=min(sample.minimum for sample in samples),
        percentile_00_5=float(low),
        median=float(middle),
        percentile_99_5=float(high),
        maximum=max(sample.maximum for sample in samples),
    )
