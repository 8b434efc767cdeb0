"""Does a model find a tumour, or the middle of its crop? Sarcoma scans of the validation patients, cropped.

    python benchmarks/crops.py --data ../shared/data [--model DIR] [--datasets NAME ...] [--crops 4] [--mirror]

The scans are crops around their tumours, so a model could learn where tumours lie in a crop. Here every axis is cut to
a share of its length, at a place drawn at random among those that keep the tumour whole: the anatomy is the same, its
place in the scan another. Prints the mean Dice of the whole scans and of the crops, with 95 % bootstrap intervals over
patients.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from eval.bootstrap import mean_interval
from eval.overlap import dice
from eval.tables import with_interval
from seg_backbone.boxes import bounds
from seg_backbone.cases import list_cases, read_split, split_cases
from seg_backbone.io import read_mask, read_volume
from seg_backbone.predict import Segmenter
from seg_backbone.volume import Volume

DATASETS = ("Dataset102_SarcomaCT", "Dataset103_SarcomaMR")
SEED = 20261121


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--split", type=Path, default=Path("configs/split.json"))
    parser.add_argument("--model", default="default")
    parser.add_argument("--datasets", nargs="+", default=DATASETS, metavar="NAME")
    parser.add_argument("--crops", type=int, default=4, help="a scan")
    parser.add_argument("--share", type=float, default=0.8, help="of the length of each axis")
    parser.add_argument("--mirror", action="store_true", help="the mean over flips; by default of no model")
    given = parser.parse_args()
    segmenter, rng = Segmenter.load(given.model), np.random.default_rng(SEED)
    for dataset in given.datasets:
        whole, cropped, moved = [], [], []
        cases = split_cases(list_cases(given.data, dataset), read_split(given.split), "validation")
        for case in cases:
            volume = read_volume(case.image, case.modality)
            tumour = read_mask(case.mask, case.labels).of("tumour")
            places = [draw(rng, tumour, given.share) for _ in range(given.crops)]
            drawn = [segmenter(part, mirror=given.mirror) for part in (volume, *(crop(volume, p) for p in places))]
            first, *others = [segmentation.mask.of("tumour") for segmentation in drawn]
            whole.append(dice(first, tumour))
            cropped.append(np.mean([dice(own, tumour[p]) for own, p in zip(others, places, strict=True)]))
            moved += [distance_mm(tumour, place, volume.grid.spacing_mm) for place in places]
        for name, values in (("whole", whole), ("crops", cropped), ("crops - whole", np.subtract(cropped, whole))):
            interval = mean_interval(np.array(values), [case.patient for case in cases])
            print(f"{dataset} {name}: {with_interval(float(np.mean(values)), interval, 3)}, n {len(values)}")
        print(f"{dataset}: the tumour lies {np.median(moved):.0f} mm (median) from where it lay in its scan")


def draw(rng: np.random.Generator, tumour: np.ndarray, share: float) -> tuple[slice, ...]:
    """A box of `share` of each axis, or more where the tumour is longer, that holds the whole (i, j, k) tumour."""
    place = []
    for size, inside in zip(tumour.shape, bounds(tumour) or (slice(0, 1),) * 3, strict=True):
        length = max(round(share * size), inside.stop - inside.start)
        start = int(rng.integers(max(0, inside.stop - length), min(inside.start, size - length) + 1))
        place.append(slice(start, start + length))
    return tuple(place)


def crop(volume: Volume, place: tuple[slice, ...]) -> Volume:
    """The part of a scan inside an index box."""
    return Volume(volume.array[place], volume.grid.cropped(place), volume.modality, volume.source)


def distance_mm(tumour: np.ndarray, place: tuple[slice, ...], spacing_mm: np.ndarray) -> float:
    """How far the middle of the crop is from the middle of the scan."""
    middles = [(side.start + side.stop - size) / 2 for side, size in zip(place, tumour.shape, strict=True)]
    return float(np.linalg.norm(np.array(middles) * spacing_mm))


if __name__ == "__main__":
    main()
