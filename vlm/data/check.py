"""Faults of an nnU-Net raw dataset folder, found before anything is trained on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from seg_backbone.cases import CaseFiles, list_cases
from seg_backbone.errors import InputError
from seg_backbone.fingerprint import channel_file, read_channels
from seg_backbone.io import read_mask, read_volume
from seg_backbone.volume import Mask, Volume, require_same_grid

SCAN = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})\.nii\.gz")


def find_faults(folder: str | Path, progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """One line a fault, each naming its file; empty for none.

    Files: no scans, one case only, another number of cases than dataset.json says, names or formats that are not read,
    a missing channel, another number of channels than dataset.json or than the other cases, a scan without a mask
    (where the dataset has labels), a mask without a scan. Content: unreadable, another grid than channel 0 of the case,
    label values outside dataset.json, an empty mask, an annotated class that dataset.json lacks or that no mask shows.

    progress: called with (cases done, cases, case). Raises ConfigError where `folder` is no nnU-Net raw dataset.
    """
    folder = Path(folder)
    description = folder / "dataset.json"
    faults: list[str] = []
    names: tuple[str, ...] = ()
    numbered = 0
    try:
        names, numbered = read_channels(description)
    except InputError as error:
        faults.append(str(error))
        if description.is_file():  # one that cannot be read leaves nothing to check against
            return faults
    cases = list_cases(folder.parent, folder.name)
    faults += _file_faults(folder, cases, len(names), numbered)
    shown: set[int] = set()
    for done, files in enumerate(cases):
        if progress:
            progress(done, len(cases), files.case)
        if unnamed := [name for name in files.annotated if name not in files.labels]:
            faults.append(f"{files.image}: annotated {', '.join(unnamed)}, which dataset.json does not name")
        faults += _content_faults(files, shown)
    if progress:
        progress(len(cases), len(cases), "")
    for name, value in cases[0].labels.items() if cases else ():
        if value not in shown and any(name in case.annotated and case.mask for case in cases):
            faults.append(f"{folder / 'labelsTr'}: no mask shows {name}")
    return faults


def _file_faults(folder: Path, cases: list[CaseFiles], named: int, numbered: int) -> Iterator[str]:
    """Faults that need no voxel. named: channels in dataset.json; numbered: its numTraining; 0 where not given."""
    images, masks = folder / "imagesTr", folder / "labelsTr"
    channels: dict[str, set[int]] = {}
    for file in sorted(item for item in images.iterdir() if not item.name.startswith(".")):
        if match := SCAN.fullmatch(file.name):
            channels.setdefault(match["case"], set()).add(int(match["channel"]))
        else:
            yield f"{file}: not read, scans are named CASE_0000.nii.gz"
    if not channels:
        yield f"{images}: no scans (CASE_0000.nii.gz)"
    if len(channels) == 1:
        yield f"{images}: a single case, nothing is left to validate on"
    if numbered and numbered != len(channels):
        yield f"{folder / 'dataset.json'}: numTraining is {numbered}, there are {len(channels)} cases"
    expected = set(range(named)) or set().union(*channels.values())
    for case, found in channels.items():
        for number in sorted(expected - found):
            yield f"{channel_file(images / f'{case}_0000.nii.gz', number)}: missing, the case has other channels"
        for number in sorted(found - expected):
            extra = channel_file(images / f"{case}_0000.nii.gz", number)
            yield f"{extra}: a channel that dataset.json does not name ({len(expected)} are)"
    for mask in sorted(masks.iterdir()) if masks.is_dir() else ():
        if mask.name.removesuffix(".nii.gz") not in channels and not mask.name.startswith("."):
            yield f"{mask}: a mask without a scan"
    for files in cases:
        if files.mask is None and files.labels:
            yield f"{files.image}: no mask in {masks}"


def _content_faults(files: CaseFiles, shown: set[int]) -> Iterator[str]:
    """Faults of one case's voxels; `shown` gathers the label values that masks hold."""
    first: Volume | None = None
    number = 0
    while (image := channel_file(files.image, number)).is_file():
        try:
            volume = read_volume(image, files.modality)
            first = first or volume
            require_same_grid(first, volume)
        except InputError as error:
            yield str(error)
        number += 1
    if files.mask is None:
        return
    try:
        mask = read_mask(files.mask)
        values = set(np.unique(mask.array).tolist()) - {0}
        shown |= values
        if unnamed := sorted(values - set(files.labels.values())):
            yield f"{files.mask}: label values {unnamed} that dataset.json does not name"
        if not values:
            yield f"{files.mask}: an empty mask"
        if first is not None:
            require_same_grid(first, Mask(mask.array, mask.grid, source=str(files.mask)))
    except InputError as error:
        yield str(error)
