"""Faults of an nnU-Net raw dataset folder, found before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from seg_backbone.cases import CaseFiles, list_cases
from seg_backbone.errors import InputError
from seg_backbone.fingerprint import channel_file, read_channels
from seg_backbone.io import read_mask, read_volume
from seg_backbone.io.nifti import SUFFIXES as NIFTI
from seg_backbone.io.nifti import read_grid
from seg_backbone.labels import read_label_file
from seg_backbone.scan_classes import CLASS_FILE, read_scan_classes, read_tasks
from seg_backbone.volume import Mask, Volume, require_same_grid

SCAN = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})(?P<ending>\.[^_]+)")


def find_faults(folder: str | Path, progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """One line a fault, each naming its file; empty for none.

    Files: no scans, one case only, another number of cases than dataset.json says, names or formats that are not read,
    a missing channel, another number of channels than dataset.json or than the other cases, a scan without a mask
    (where other scans have one), a mask without a scan, a manifest, a splits_final.json or a cls_data.csv that names
    what is not there, classes of scans that do not fit dataset.json, a task of which no scan has a class.
    Content: unreadable, not finite, another grid than channel 0 of the case, label values that are not whole or outside
    dataset.json, an empty mask, the same scan twice, an annotated class that dataset.json lacks or that no mask shows.

    progress: called with (cases done, cases, case). Raises ConfigError where `folder` is no nnU-Net raw dataset.
    """
    folder = Path(folder)
    cases, names, faults = _listed(folder)
    if cases is None:
        return faults
    faults += [*_file_faults(folder, cases), *_channel_faults(folder, len(names)), *_listing_faults(folder, cases)]
    faults += _class_faults(folder)
    shown: set[int] = set()
    first_of: dict[bytes, Path] = {}
    for done, files in enumerate(cases):
        if progress:
            progress(done, len(cases), files.case)
        if unnamed := [name for name in files.annotated if name not in files.labels]:
            faults.append(f"{files.image}: annotated {', '.join(unnamed)}, which dataset.json does not name")
        faults += _content_faults(files, shown, first_of)
    if progress:
        progress(len(cases), len(cases), "")
    for name, value in cases[0].labels.items() if cases else ():
        if value not in shown and any(name in case.annotated and case.mask for case in cases):
            faults.append(f"{folder / 'labelsTr'}: no mask shows {name}")
    return faults


def find_cheap_faults(folder: str | Path) -> list[str]:
    """The faults that training would stumble over and that are seen without reading a voxel: a dataset.json that cannot
    be read, missing or surplus channels, masks that are missing, headers that cannot be read or differ in their grid.

    Raises ConfigError where `folder` is no nnU-Net raw dataset.
    """
    folder = Path(folder)
    cases, names, faults = _listed(folder)
    if cases is None:
        return faults
    faults = [*_missing_masks(folder, cases), *_channel_faults(folder, len(names))]  # without a dataset.json, too
    for files in cases:
        faults += _header_faults(files)
    return faults


def _listed(folder: Path) -> tuple[list[CaseFiles] | None, tuple[str, ...], list[str]]:
    """The cases, the channels by name, and the faults of dataset.json; no cases where it leaves nothing to check by."""
    description = folder / "dataset.json"
    try:
        names, _ = read_channels(description)
        read_label_file(description)
    except InputError as error:
        if description.is_file():
            return None, (), [str(error)]
        return list_cases(folder.parent, folder.name), (), [str(error)]
    return list_cases(folder.parent, folder.name), names, []


def _file_faults(folder: Path, cases: list[CaseFiles]) -> Iterator[str]:
    """Names and numbers of files that do not fit."""
    images, masks, ending = folder / "imagesTr", folder / "labelsTr", _ending(folder)
    known = set()
    for file in sorted(item for item in images.iterdir() if not item.name.startswith(".")):
        if (match := SCAN.fullmatch(file.name)) and match["ending"] == ending:
            known.add(match["case"])
        else:
            yield f"{file}: not read, scans are named CASE_0000{ending}"
    if not known:
        yield f"{images}: no scans (CASE_0000{ending})"
    if len(known) == 1:
        yield f"{images}: a single case, nothing is left to validate on"
    numbered = read_channels(folder / "dataset.json")[1] if (folder / "dataset.json").is_file() else 0
    if numbered and numbered != len(known):
        yield f"{folder / 'dataset.json'}: numTraining is {numbered}, there are {len(known)} cases"
    for mask in sorted(masks.iterdir()) if masks.is_dir() else ():
        if mask.name.removesuffix(ending) not in known and not mask.name.startswith("."):
            yield f"{mask}: a mask without a scan"
    yield from _missing_masks(folder, cases)


def _missing_masks(folder: Path, cases: list[CaseFiles]) -> Iterator[str]:
    """Scans without a mask in a dataset that has some, unless the manifest says that they annotate nothing."""
    if any(files.mask for files in cases):
        for files in cases:
            if files.mask is None and files.labels and files.annotated:
                yield f"{files.image}: no mask in {folder / 'labelsTr'}; if it has none, say `annotated: []` of it"


def _channel_faults(folder: Path, named: int) -> Iterator[str]:
    """Channels that are missing or too many. named: channels in dataset.json, 0 where not known."""
    images, ending = folder / "imagesTr", _ending(folder)
    channels: dict[str, set[int]] = {}
    for file in sorted(images.iterdir()):
        match = SCAN.fullmatch(file.name)
        if match and match["ending"] == ending and not file.name.startswith("."):
            channels.setdefault(match["case"], set()).add(int(match["channel"]))
    expected = set(range(named)) or set().union(*channels.values())
    for case, found in channels.items():
        for number in sorted(expected - found):
            yield f"{channel_file(images / f'{case}_0000{ending}', number)}: missing, the case has other channels"
        for number in sorted(found - expected):
            extra = channel_file(images / f"{case}_0000{ending}", number)
            yield f"{extra}: a channel that dataset.json does not name ({len(expected)} are)"


def _ending(folder: Path) -> str:
    """How the names of the dataset's files end."""
    path = folder / "dataset.json"
    return json.loads(path.read_text()).get("file_ending", ".nii.gz") if path.is_file() else ".nii.gz"


def _listing_faults(folder: Path, cases: list[CaseFiles]) -> Iterator[str]:
    """Lines of manifest.jsonl (which `list_cases` has read) and folds of splits_final.json that name no case."""
    known = {files.case for files in cases} | {files.patient for files in cases}
    manifest, splits = folder.parent / "manifest.jsonl", folder / "splits_final.json"
    seen = set()
    for number, line in enumerate(manifest.read_text().splitlines() if manifest.is_file() else (), start=1):
        row = json.loads(line) if line.strip() else {}
        if row.get("dataset") == folder.name:
            if row["case"] not in known:
                yield f"{manifest}: line {number} names {row['case']}, of which there is no scan"
            if row["case"] in seen:
                yield f"{manifest}: line {number} names {row['case']} again"
            seen.add(row["case"])
    if not splits.is_file():
        return
    try:
        folds = [(set(fold["train"]), set(fold["val"])) for fold in json.loads(splits.read_text())]
    except (ValueError, KeyError, TypeError) as error:
        yield f"{splits}: not a list of train and val ({type(error).__name__}: {error})"
        return
    for number, (train, held) in enumerate(folds):
        for case in sorted((train | held) - known):
            yield f"{splits}: fold {number} names {case}, of which there is no scan"
        for case in sorted(train & held):
            yield f"{splits}: fold {number} both trains and validates {case}"


def _class_faults(folder: Path) -> Iterator[str]:
    """Classes of whole scans: files that do not fit, cases that are not there, tasks without any case."""
    classes, description = folder / CLASS_FILE, folder / "dataset.json"
    try:
        tasks = read_tasks(description) if description.is_file() else {}
        known = read_scan_classes(classes, tasks) if tasks else {}
    except InputError as error:
        yield str(error)
        return
    here = {
        file.name.rpartition("_")[0] for part in ("imagesTr", "imagesTs") for file in (folder / part).glob("*_0000.*")
    }
    for case in known:
        if case not in here:
            yield f"{classes}: names {case}, of which there is no scan in imagesTr or imagesTs"
    for task in tasks:
        if not any(task in known[case] for case in known if case in here):
            yield f"{classes}: no scan has a class of {task}"


def _header_faults(files: CaseFiles) -> Iterator[str]:
    """Files whose header cannot be read, or that lie on another grid than channel 0."""
    paths = [*_channels(files), *([files.mask] if files.mask else [])]
    if not files.image.name.endswith(NIFTI):
        return  # the headers of other formats are not read apart from their voxels
    first: Mask | None = None
    for path in paths:
        try:
            grid = read_grid(path)
            header = Mask(np.broadcast_to(np.uint8(0), grid.shape), grid, source=str(path))
            first = first or header
            require_same_grid(first, header)
        except InputError as error:
            yield str(error)


def _content_faults(files: CaseFiles, shown: set[int], first_of: dict[bytes, Path]) -> Iterator[str]:
    """Faults of one case's voxels; `shown` gathers the values that masks hold, `first_of` what scans hold."""
    first: Volume | None = None
    digest = hashlib.blake2b(digest_size=16)
    for image in _channels(files):
        try:
            volume = read_volume(image, files.modality)
            digest.update(repr(volume.array.shape).encode() + np.ascontiguousarray(volume.array).tobytes())
            first = first or volume
            require_same_grid(first, volume)
        except InputError as error:
            yield str(error)
    if first is not None and (twin := first_of.setdefault(digest.digest(), files.image)) != files.image:
        yield f"{files.image}: the same voxels as {twin.name}; a split would put one scan on both sides"
    if files.mask is None:
        return
    try:
        mask = read_mask(files.mask)
        values = set(np.unique(mask.array).tolist()) - {0}
        shown |= values
        if unnamed := sorted(values - set(files.labels.values()) - set(files.unsure)):
            yield f"{files.mask}: label values {unnamed} that dataset.json does not name"
        if not values:
            yield f"{files.mask}: an empty mask"
        if first is not None:
            require_same_grid(first, Mask(mask.array, mask.grid, source=str(files.mask)))
    except InputError as error:
        yield str(error)


def _channels(files: CaseFiles) -> list[Path]:
    """The scan's files, channel 0 first, up to the first that is missing."""
    number, found = 0, []
    while (image := channel_file(files.image, number)).is_file():
        found.append(image)
        number += 1
    return found
