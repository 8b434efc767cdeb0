"""TotalSegmentator data sets, CT and MR: up to 117 structures a scan, one binary mask each.

Files: sNNNN/{ct.nii.gz or mri.nii.gz, segmentations/STRUCTURE.nii.gz}. The masks of a case are merged into one label
map, ids in the order of the names; where two overlap the first name keeps the voxel. A structure is annotated in the
cases that have a file of it, also an empty one (looked for, not there).
Licence: CC BY 4.0 (CT, Zenodo 10047292), CC BY-NC-SA 2.0 (MR). Cite: Wasserthal et al., TotalSegmentator, Radiology:
Artificial Intelligence 5, e230024 (2023).

    s0007/ct.nii.gz, segmentations/{liver, spleen}.nii.gz -> imagesTr/s0007_0000.nii.gz, labelsTr/s0007.nii.gz
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from seg_backbone.errors import ConfigError, InputError
from seg_backbone.io import read_mask, write_mask
from seg_backbone.labels import canonical
from seg_backbone.volume import Mask, require_same_grid
from vlm.data.sources.scan_source import ScanCase, ScanSet, ScanSource, folders_with

SCANS = {"CT": "ct.nii.gz", "MR": "mri.nii.gz"}


def _read(folder: Path) -> ScanSet:
    folders = folders_with(folder, "segmentations", "folders sNNNN")
    found = {case: sorted((case / "segmentations").glob("*.nii.gz")) for case in folders}
    names = sorted({_name(path) for paths in found.values() for path in paths})
    labels = {name: number for number, name in enumerate(names, start=1)}
    channel = "CT or MR" if any((case / SCANS["MR"]).is_file() for case in folders) else "CT"
    return ScanSet(labels, _cases(found, labels), (channel,))


def _cases(found: Mapping[Path, list[Path]], labels: Mapping[str, int]) -> Iterator[ScanCase | InputError]:
    for case, paths in found.items():
        modality = next((one for one, name in SCANS.items() if (case / name).is_file()), None)
        if modality is None:
            yield ConfigError(case, " or ".join(SCANS.values()), "neither", "download the scan again")
            continue
        mask = partial(_write_merged, paths, labels) if paths else None
        yield ScanCase(case.name, (case / SCANS[modality],), mask, tuple(map(_name, paths)), modality)


def _name(path: Path) -> str:
    return canonical(path.name.removesuffix(".nii.gz"))


def _write_merged(paths: list[Path], labels: Mapping[str, int], target: Path) -> None:
    first = read_mask(paths[0])
    merged = np.zeros(first.array.shape, dtype=np.uint8 if len(labels) < 256 else np.uint16)
    for path in paths:
        mask = read_mask(path)
        require_same_grid(first, mask)
        merged[(mask.array > 0) & (merged == 0)] = labels[_name(path)]
    write_mask(Mask(merged, first.grid, dict(labels), str(paths[0].parent)), target)


SOURCE = ScanSource("totalsegmentator", _read)
