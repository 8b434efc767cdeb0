"""A set of annotated scans -> an nnU-Net raw dataset, with what each case annotates in manifest.jsonl beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib

from seg_backbone.cases import lines_of_others
from seg_backbone.errors import ConfigError, InputError
from seg_backbone.io import replacing
from vlm.data.sources.scan_source import File, ScanCase, ScanSet, ScanSource, load_image


@dataclass(frozen=True)
class ImportedScans:
    """Scans with labels (imagesTr, labelsTr), scans without (imagesTs), and class -> cases that annotate it.

    overlaps: "upper over lower" -> the cases where one class took voxels of another, and the ml of all. notes: what the
    source has to tell. faults: why cases were left out.
    """

    labelled: int
    unlabelled: int
    annotated: Mapping[str, int]
    overlaps: Mapping[str, tuple[int, float]]
    notes: Sequence[str]
    faults: Sequence[str]


def import_scans(
    source: ScanSource,
    path: str | Path,
    out: str | Path,
    copy: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
    classes: Path | None = None,
    skip_bad: bool = False,
) -> ImportedScans:
    """Write PATH as the nnU-Net raw dataset `out` (a new folder) and its lines into manifest.jsonl beside `out`.

    .nii.gz files are linked (symbolic, absolute), or copied; every other file is written anew. The source is only read.
    Labelled scans go to imagesTr, the others to imagesTs. Lines of other datasets in the manifest stay. On an error
    nothing is left behind. progress: called with (cases done, 0, case). classes: names of structures, for a source that
    takes them. skip_bad: leave out the cases that cannot be read and tell which. Raises ConfigError: `out` exists, or
    lies in PATH, or PATH is not of this source; and the errors of the readers.
    """
    path, out = Path(path).resolve(), Path(out).resolve()
    if not path.is_dir():
        raise ConfigError(path, f"a folder of {source.name}", "none", "check the path")
    if out.exists() or path == out or path in out.parents:
        taken = "one that exists" if out.exists() else f"one inside {path}"
        raise ConfigError(out, "a new folder outside of the source", taken, "choose another -o")
    manifest = out.parent / "manifest.jsonl"
    others = lines_of_others(manifest, out.name)
    found = source.read(path, classes) if source.named else source.read(path)
    rows: list[dict[str, Any]] = []
    notes, faults = [*found.notes], []
    overlaps: dict[str, list[float]] = defaultdict(list)
    unlabelled = 0
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        for folder in ("imagesTr", "labelsTr"):
            (temporary / folder).mkdir(parents=True)
        for done, case in enumerate(found.cases):
            try:
                if isinstance(case, InputError):
                    raise case
                if progress:
                    progress(done, 0, case.case)
                _place_case(case, temporary, copy)
            except InputError as error:
                if not skip_bad:
                    raise
                faults.append(str(error))
                continue
            notes += case.notes
            for pair, volume_ml in case.overlaps.items():
                overlaps[pair].append(volume_ml)
            if case.mask is None:
                unlabelled += 1
            else:
                rows.append(_manifest_row(case, found, out.name))
        if not rows and not unlabelled:
            raise ConfigError(path, f"cases of {source.name}", faults[0] if faults else "none", "mend or add them")
        (temporary / "dataset.json").write_text(json.dumps(_dataset(source, found, out.name, len(rows)), indent=1))
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with replacing(manifest) as file:
        file.write_text("".join(line + "\n" for line in [*others, *map(json.dumps, rows)]), encoding="utf-8")
    drawn = [name for row in rows for name in row["annotated"]]
    counts = {name: drawn.count(name) for name in found.labels}
    lost = {pair: (len(each), round(sum(each), 3)) for pair, each in sorted(overlaps.items())}
    return ImportedScans(len(rows), unlabelled, counts, lost, notes, faults)


def _place_case(case: ScanCase, folder: Path, copy: bool) -> None:
    """Write the files of a case; on an error none of them stays."""
    images = folder / ("imagesTr" if case.mask is not None else "imagesTs")
    files = {images / f"{case.case}_{number:04d}.nii.gz": channel for number, channel in enumerate(case.channels)}
    if case.mask is not None:
        files[folder / "labelsTr" / f"{case.case}.nii.gz"] = case.mask
    if case.targets is not None:
        files[folder / "targetsTr" / f"{case.case}.nii.gz"] = case.targets
    try:
        for target, file in files.items():
            _place(file, target, copy)
    except InputError:
        for target in files:
            target.unlink(missing_ok=True)
        raise


def _place(file: File, target: Path, copy: bool) -> None:
    target.parent.mkdir(exist_ok=True)
    if not isinstance(file, Path):
        file(target)
    elif not file.name.lower().endswith(".nii.gz"):
        nib.save(load_image(file), target)
    elif copy:
        shutil.copyfile(file, target)
    else:
        target.symlink_to(file.resolve())


def _manifest_row(case: ScanCase, found: ScanSet, dataset: str) -> dict[str, Any]:
    row = {"dataset": dataset, "case": case.case, "modality": case.modality, "annotated": list(case.annotated)}
    told = {"region": found.region, "patient": case.patient}
    return row | {key: value for key, value in told.items() if value}


def _dataset(source: ScanSource, found: ScanSet, name: str, labelled: int) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": name,
        "source": source.name,
        "channel_names": {str(number): channel for number, channel in enumerate(found.channels)},
        "labels": {"background": 0, **found.labels},
        "numTraining": labelled,
        "file_ending": ".nii.gz",
    }
    if found.targets:
        data["target_labels"] = {"background": 0, **found.targets}
    return data
