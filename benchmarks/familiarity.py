"""Do the encoder's features tell scans of unseen anatomy, in which the model invents tumours, from those it knows?

    python benchmarks/familiarity.py --data ../shared/data [--stage 4] [--training 40]

Each window with body is one vector: mean and standard deviation over the body of every channel of a stage, weighed by
the share of body in a cell. A scan's vector is the same over all of its windows. How unfamiliar a vector is: the
smallest Mahalanobis distance to the mean of one of the three training datasets, with the covariance inside of them
(Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples") shrunk as by Ledoit & Wolf.
A scan counts as unfamiliar where its distance, or that of its most unfamiliar window, is above that of 95 % of the
training scans, each measured without its patient. Prints distance / threshold: above 1 is unfamiliar.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.covariance import ledoit_wolf

from seg_backbone.cases import CaseFiles, list_cases, read_split, split_cases
from seg_backbone.io import read_volume
from seg_backbone.predict import FAST_STEP, Segmenter
from seg_backbone.preprocess import preprocess
from seg_backbone.skips import Tiling, body_mask

KNOWN = ("Dataset101_HeadNeckCT", "Dataset102_SarcomaCT", "Dataset103_SarcomaMR")
STRANGE = ("Dataset104_BrainTumourMR", "Dataset105_Torso", "Dataset106_ChestCT_unlabelled")
LEAST_BODY = 0.02  # of a window
QUANTILE = 0.95


@dataclass(frozen=True, eq=False)
class Seen:
    """A scan's vectors. whole: (2 x channels,); windows: (n, 2 x channels)."""

    files: CaseFiles
    trains: bool
    whole: np.ndarray
    windows: np.ndarray


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--split", type=Path, default=Path("configs/split.json"))
    parser.add_argument("--model", default="default")
    parser.add_argument("--stage", type=int, default=4, help="of the encoder, 0 the finest")
    parser.add_argument("--training", type=int, default=40, help="training scans a dataset, at most")
    given = parser.parse_args()
    segmenter, split = Segmenter.load(given.model, runtime="torch"), read_split(given.split)
    scans = []
    for dataset in (*KNOWN, *STRANGE):
        cases = list_cases(given.data, dataset)
        held = cases if dataset in STRANGE else split_cases(cases, split, "validation")
        kept = [] if dataset in STRANGE else split_cases(cases, split, "training")[: given.training]
        for files in (*kept, *held):
            scans.append(see(segmenter, files, given.stage, files in kept))
            print(f"{files.case}: {len(scans[-1].windows)} windows", file=sys.stderr)
    for name, found in (("whole scan", unfamiliar(scans, False)), ("its windows", unfamiliar(scans, True))):
        for dataset in KNOWN:
            values = [one for scan, one in zip(scans, found, strict=True) if held_of(scan, dataset)]
            over = sum(one > 1 for one in values)
            print(f"{name}, {dataset}: {over} of {len(values)} above 1, largest {max(values):.2f}")
        for scan, one in zip(scans, found, strict=True):
            if scan.files.dataset in STRANGE:
                print(f"{name}, {scan.files.case}: {one:.2f}")


def held_of(scan: Seen, dataset: str) -> bool:
    """Whether a scan is of the validation part of a dataset."""
    return scan.files.dataset == dataset and not scan.trains


@torch.inference_mode()
def see(segmenter: Segmenter, files: CaseFiles, stage: int, trains: bool) -> Seen:
    """Run the encoder over the windows of a scan that hold body."""
    plan = segmenter.plan
    image, grid = preprocess(read_volume(files.image, files.modality), plan)
    body = body_mask(image, files.modality, plan)
    assert body is not None, "the shipped plan has a window of HU that tells body from air"
    tiling, sums = Tiling(grid.shape, plan.patch, FAST_STEP), []
    for start in tiling.starts():
        place = tiling.inside(start)
        short = [(0, side - size) for side, size in zip(plan.patch, body[place].shape, strict=True)]
        inside = torch.from_numpy(np.pad(body[place], short).astype(np.float32))
        if inside.mean() < LEAST_BODY and len(tiling.starts()) > 1:
            continue
        least = image.min(axis=(1, 2, 3))
        window = np.stack([np.pad(x[place], short, constant_values=low) for x, low in zip(image, least, strict=True)])
        features = segmenter.network.encoder(torch.from_numpy(window)[None].float())[stage][0]
        weight = F.adaptive_avg_pool3d(inside[None], features.shape[1:])[0]
        moments = [(features**n * weight).sum((1, 2, 3)).numpy() for n in (1, 2)]
        sums.append((float(weight.sum()), *moments))
    total = tuple(map(sum, zip(*sums, strict=True)))
    return Seen(files, trains, pooled(*total), np.stack([pooled(*one) for one in sums]))


def pooled(weight: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Weight, weighed sum and sum of squares of the channels -> their means, then their standard deviations."""
    mean = first / weight
    return np.concatenate([mean, np.sqrt(np.maximum(second / weight - mean**2, 0))])


def unfamiliar(scans: Sequence[Seen], windows: bool) -> list[float]:
    """How unfamiliar each scan is, over the threshold; training scans are measured without their patient."""
    apart = [one for scan in scans for one in measured(scans, scan, windows)]
    threshold = np.quantile([one for scan, one in zip(scans, apart, strict=True) if scan.trains], QUANTILE)
    return [float(one / threshold) for one in apart]


def measured(scans: Sequence[Seen], scan: Seen, windows: bool) -> Iterator[float]:
    """The distance of a scan, or the largest one of its windows, to the training scans of other patients."""
    others = [one for one in scans if one.trains and one.files.patient != scan.files.patient]
    groups = {one.files.dataset: [] for one in others}
    for one in others:
        groups[one.files.dataset].append(one.windows if windows else one.whole[None])
    yield max(distances(list(map(np.concatenate, groups.values())), scan.windows if windows else scan.whole[None]))


def distances(groups: Sequence[np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """(n, d) vectors -> (n,) Mahalanobis distance to the nearest mean of (m, d) groups of one covariance."""
    means = [group.mean(axis=0) for group in groups]
    inside = np.concatenate([group - mean for group, mean in zip(groups, means, strict=True)])
    scale = inside.std(axis=0) + 1e-6
    inverse = np.linalg.inv(ledoit_wolf(inside / scale, assume_centered=True)[0])
    gaps = [(vectors - mean) / scale for mean in means]
    return np.sqrt(np.min([np.einsum("ni,ij,nj->n", gap, inverse, gap) for gap in gaps], axis=0))


if __name__ == "__main__":
    main()
