"""Faults of an nnU-Net raw dataset folder, found before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from seg_backbone.cases import CaseFiles, list_cases
from seg_backbone.errors import InputError
from seg_backbone.fingerprint import channel_file, read_channels
from seg_backbone.io import read_mask, read_volume
from seg_backbone.io.nifti import SUFFIXES as NIFTI
from seg_backbone.io.nifti import read_grid
from seg_backbone.scan_classes import CLASS_FILE, read_scan_classes, read_tasks
from seg_backbone.volume import Mask, Volume, require_same_grid

SCAN = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})(?P<ending>\.[^_]+)")


def find_faults(folder: str | Path, progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """One line a fault, each naming its file; empty for none.

    Files: no scans, one case only, another number of cases than dataset.json says, names or formats that are not read,
    a missing channel, another number of channels than dataset.json or than the other cases, a scan without a mask
    (where other scans have one), no mask at all where dataset.json names classes, a mask without a scan, regions
    without their order, a manifest, a splits_final.json or a cls_data.csv that names what is not there or that training
    cannot use, an annotated class that dataset.json lacks, classes of scans that do not fit dataset.json or that no
    scan has.
    Content: unreadable, not finite, another grid than channel 0 of the case, label values that are not whole or outside
    dataset.json, an empty mask, the same scan twice, a class that no mask shows.

    progress: called with (cases done, cases, case). Raises ConfigError where `folder` is no nnU-Net raw dataset.
    """
    folder = Path(folder)
    cases, names, faults = _listed(folder)
    if cases is None:
        return faults
    faults += [*_file_faults(folder), *_missing_masks(folder, cases), *_channel_faults(folder, names)]
    faults += [*_annotation_faults(folder, cases), *_region_faults(folder), *_class_faults(folder)]
    faults += [*_manifest_faults(folder), *_fold_faults(folder, cases)]
    if cases and cases[0].labels and not any(files.mask for files in cases) and any(f.annotated for f in cases):
        faults.append(f'{folder / "labelsTr"}: no masks; if nobody drew any, say `"annotated": []` in dataset.json')
    shown: set[int] = set()
    first_of: dict[bytes, Path] = {}
    for done, files in enumerate(cases):
        if progress:
            progress(done, len(cases), files.case)
        faults += _content_faults(files, shown, first_of)
    if progress:
        progress(len(cases), len(cases), "")
    for name, value in cases[0].labels.items() if cases else ():
        if value not in shown and any(name in case.annotated and case.mask for case in cases):
            faults.append(f"{folder / 'labelsTr'}: no mask shows {name}")
    return faults


def find_cheap_faults(folder: str | Path) -> list[str]:
    """The faults that training would stumble over and that are seen without reading a voxel: a dataset.json that cannot
    be read, missing or surplus channels, missing masks or scans, an annotated class without a name, folds that name no
    case or hold back who trains, headers that cannot be read or differ in their grid.

    Raises ConfigError where `folder` is no nnU-Net raw dataset.
    """
    folder = Path(folder)
    cases, names, faults = _listed(folder)
    if cases is None:
        return faults
    if not (folder / "dataset.json").is_file():
        faults = []  # it need not have one where it has no masks
    faults += [*_missing_masks(folder, cases), *_masks_alone(folder), *_channel_faults(folder, names)]
    faults += [*_annotation_faults(folder, cases), *_fold_faults(folder, cases)]
    for files in cases:
        faults += _header_faults(files)
    return faults


def _listed(folder: Path) -> tuple[list[CaseFiles] | None, tuple[str, ...], list[str]]:
    """The cases, the channels by name, and why they cannot be told; no cases where dataset.json leaves nothing to check
    by, and an empty list where a manifest does.
    """
    faults: list[str] = []
    names: tuple[str, ...] = ()
    try:
        names, _ = read_channels(folder / "dataset.json")
    except InputError as error:
        faults.append(str(error))
    try:
        return list_cases(folder.parent, folder.name), names, faults
    except InputError as error:
        if not (folder / "imagesTr").is_dir():
            raise
        if error.source == str(folder.parent / "manifest.jsonl"):
            return [], names, [*faults, *_broken_lines(folder.parent / "manifest.jsonl")]
        return None, names, faults if not _described(folder)[0] else [*faults, str(error)]


def _file_faults(folder: Path) -> Iterator[str]:
    """Names and numbers of files that do not fit."""
    images, ending = folder / "imagesTr", _described(folder)[1]
    known = set(_channels_of(folder))
    for file in sorted(item for item in images.iterdir() if not item.name.startswith(".")):
        if not (match := SCAN.fullmatch(file.name)) or match["ending"] != ending:
            yield f"{file}: not read, scans are named CASE_0000{ending}"
    if not known:
        yield f"{images}: no scans (CASE_0000{ending})"
    if len(known) == 1:
        yield f"{images}: a single case, nothing is left to validate on"
    numbered = _described(folder)[0].get("numTraining")
    if isinstance(numbered, int) and numbered != len(known):
        yield f"{folder / 'dataset.json'}: numTraining is {numbered}, there are {len(known)} cases"
    yield from _masks_alone(folder)


def _masks_alone(folder: Path) -> Iterator[str]:
    """Masks of which there is no scan."""
    masks, ending, known = folder / "labelsTr", _described(folder)[1], _channels_of(folder)
    for mask in sorted(masks.iterdir()) if masks.is_dir() else ():
        if mask.name.removesuffix(ending) not in known and not mask.name.startswith("."):
            yield f"{mask}: a mask without a scan"


def _missing_masks(folder: Path, cases: list[CaseFiles]) -> Iterator[str]:
    """Scans without a mask in a dataset that has some, unless the manifest says that they annotate nothing."""
    if any(files.mask for files in cases):
        for files in cases:
            if files.mask is None and files.labels and files.annotated:
                yield f"{files.image}: no mask in {folder / 'labelsTr'}; if it has none, say `annotated: []` of it"


def _channel_faults(folder: Path, names: tuple[str, ...]) -> Iterator[str]:
    """Channels that are missing or too many. names: those in dataset.json; without any, the other cases tell."""
    channels, (_, ending) = _channels_of(folder), _described(folder)
    expected = set(range(len(names))) or set().union(*channels.values())
    for case, found in channels.items():
        first = folder / "imagesTr" / f"{case}_0000{ending}"
        for number in sorted(expected - found):
            yield f"{channel_file(first, number)}: missing, the case has other channels"
        for number in sorted(found - expected):
            yield f"{channel_file(first, number)}: a channel that dataset.json does not name ({len(expected)} are)"


def _channels_of(folder: Path) -> dict[str, set[int]]:
    """Case -> its channels, of the files that are named as dataset.json has it."""
    ending = _described(folder)[1]
    channels: dict[str, set[int]] = {}
    for file in sorted((folder / "imagesTr").iterdir()):
        match = SCAN.fullmatch(file.name)
        if match and match["ending"] == ending and not file.name.startswith("."):
            channels.setdefault(match["case"], set()).add(int(match["channel"]))
    return channels


def _described(folder: Path) -> tuple[dict[str, Any], str]:
    """What dataset.json holds, {} for none that can be read, and how the names of the dataset's files end."""
    try:
        data = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = {}
    data = data if isinstance(data, dict) else {}
    ending = data.get("file_ending")
    return data, ending if isinstance(ending, str) else ".nii.gz"


def _annotation_faults(folder: Path, cases: list[CaseFiles]) -> Iterator[str]:
    """Annotated classes that dataset.json does not name, and cases of its `annotated` that are not there."""
    for files in cases:
        if unnamed := [name for name in files.annotated if name not in files.labels] if files.labels else []:
            yield f"{files.image}: annotated {', '.join(unnamed)}, which dataset.json does not name"
    stated = _described(folder)[0].get("annotated")
    for case in sorted(set(stated) - {files.case for files in cases}) if isinstance(stated, dict) else ():
        yield f"{folder / 'dataset.json'}: `annotated` names {case}, of which there is no scan"


def _region_faults(folder: Path) -> Iterator[str]:
    """nnU-Net paints regions in their `regions_class_order`, a value for each label but the background."""
    data = _described(folder)[0]
    labels = data.get("labels")
    if isinstance(labels, dict) and any(isinstance(value, list) for value in labels.values()):
        count = sum(value != 0 and not name.startswith("ignore") for name, value in labels.items())
        order = data.get("regions_class_order")
        if not isinstance(order, list) or len(order) != count:
            expected = f"a list of {count} values, one for each label but the background"
            yield f"{folder / 'dataset.json'}: has regions, and regions_class_order is {order}, not {expected}"


def _manifest_faults(folder: Path) -> Iterator[str]:
    """Lines of manifest.jsonl that name no case, or say what is not understood."""
    manifest, known, seen = folder.parent / "manifest.jsonl", _channels_of(folder), set()
    for number, line in enumerate(manifest.read_text().splitlines() if manifest.is_file() else (), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
            if row.get("dataset") != folder.name:
                continue
            case = str(row["case"])
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # told of as broken
        if case not in known:
            yield f"{manifest}: line {number} names {case}, of which there is no scan"
        if case in seen:
            yield f"{manifest}: line {number} names {case} again"
        seen.add(case)
        if not isinstance(row.get("annotated", []), list):
            yield f"{manifest}: line {number}: `annotated` is no list of classes; of {case} nothing is used"
        if not str(row.get("modality", "CT")).upper().startswith(("CT", "MR")):
            yield f"{manifest}: line {number}: modality {row['modality']!r} is neither CT nor MR; it is read as MR"


def _broken_lines(manifest: Path) -> Iterator[str]:
    """Lines of manifest.jsonl that cannot be read."""
    for number, line in enumerate(manifest.read_text().splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else {"dataset": "", "case": ""}
            row["dataset"], row["case"]
        except (ValueError, KeyError, TypeError) as error:
            yield f"{manifest}: line {number} is no JSON with dataset and case ({type(error).__name__}: {error})"


def _fold_faults(folder: Path, cases: list[CaseFiles]) -> Iterator[str]:
    """Folds of splits_final.json that name no case, hold back who trains, or have nothing to train or validate on."""
    splits = folder / "splits_final.json"
    if not splits.is_file():
        return
    try:
        folds = json.loads(splits.read_text(encoding="utf-8"))
        if not isinstance(folds, list) or not folds:
            raise TypeError("no list of folds")
        if any(not isinstance(fold[part], list) for fold in folds for part in ("train", "val")):
            raise TypeError("a part of a fold is no list")
    except (ValueError, KeyError, TypeError) as error:
        yield f"{splits}: not a list of train and val ({type(error).__name__}: {error})"
        return
    known = {files.case for files in cases} | {files.patient for files in cases}
    for number, fold in enumerate(folds):
        train, held = (set(map(str, fold[part])) for part in ("train", "val"))
        for case in sorted((train | held) - known) if cases else ():
            yield f"{splits}: fold {number} names {case}, of which there is no scan"
        for case in sorted(train & held):
            yield f"{splits}: fold {number} both trains and validates {case}"
        for part, names in (("train", train), ("val", held)):
            if not names:
                yield f"{splits}: fold {number} has nobody under `{part}`"


def _class_faults(folder: Path) -> Iterator[str]:
    """Classes of whole scans: what does not fit, cases that are not there, classes that no scan has."""
    classes, description = folder / CLASS_FILE, folder / "dataset.json"
    try:
        tasks = read_tasks(description) if _described(folder)[0] else {}
        if not tasks:
            if classes.is_file():
                yield f"{classes}: not used, dataset.json has no `classification_labels`"
            return
        faults: list[str] = []
        known = read_scan_classes(classes, tasks, lambda error: faults.append(str(error)))
        yield from faults
    except InputError as error:
        yield str(error)
        return
    here = {
        file.name.rpartition("_")[0] for part in ("imagesTr", "imagesTs") for file in (folder / part).glob("*_0000.*")
    }
    for case in known:
        if case not in here:
            yield f"{classes}: names {case}, of which there is no scan in imagesTr or imagesTs"
    for task, names in tasks.items():
        shown = {known[case][task] for case in known if case in here and task in known[case]}
        if not shown:
            yield f"{classes}: no scan has a class of {task}"
        for number, name in enumerate(names if shown else ()):
            if number not in shown:
                yield f"{classes}: no scan is {name} ({task})"


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
    found = [files.image]
    while os.path.lexists(image := channel_file(files.image, len(found))):
        found.append(image)
    return found
