"""A set of annotated scans -> an nnU-Net raw dataset, with what each case annotates in manifest.jsonl beside it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib

from seg_backbone.cases import lines_of_others
from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing
from vlm.data.sources.scan_source import File, ScanCase, ScanSet, ScanSource, load_image


@dataclass(frozen=True)
class ImportedScans:
    """Scans with labels (imagesTr, labelsTr), scans without (imagesTs), and class -> cases that annotate it."""

    labelled: int
    unlabelled: int
    annotated: Mapping[str, int]


def import_scans(
    source: ScanSource,
    path: str | Path,
    out: str | Path,
    copy: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> ImportedScans:
    """Write PATH as the nnU-Net raw dataset `out` (a new folder) and its lines into manifest.jsonl beside `out`.

    .nii.gz files are linked (symbolic, absolute), or copied; every other file is written anew. The source is only read.
    Labelled scans go to imagesTr, the others to imagesTs. Lines of other datasets in the manifest stay. On an error
    nothing is left behind. progress: called with (cases done, 0, case). Raises ConfigError: `out` exists, or lies in
    PATH, or PATH is not of this source; and the errors of the readers.
    """
    path, out = Path(path).resolve(), Path(out).resolve()
    if not path.is_dir():
        raise ConfigError(path, f"a folder of {source.name}", "none", "check the path")
    if out.exists() or path == out or path in out.parents:
        taken = "one that exists" if out.exists() else f"one inside {path}"
        raise ConfigError(out, "a new folder outside of the source", taken, "choose another -o")
    manifest = out.parent / "manifest.jsonl"
    others = lines_of_others(manifest, out.name)
    found = source.read(path)
    rows: list[dict[str, Any]] = []
    unlabelled = 0
    temporary = out.with_name(f".{os.getpid()}.{out.name}")
    try:
        for folder in ("imagesTr", "labelsTr"):
            (temporary / folder).mkdir(parents=True)
        for done, case in enumerate(found.cases):
            if progress:
                progress(done, 0, case.case)
            _place_case(case, temporary, copy)
            if case.mask is None:
                unlabelled += 1
            else:
                rows.append(_manifest_row(case, found, out.name))
        (temporary / "dataset.json").write_text(json.dumps(_dataset(source, found, out.name, len(rows)), indent=1))
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    with replacing(manifest) as file:
        file.write_text("".join(line + "\n" for line in [*others, *map(json.dumps, rows)]), encoding="utf-8")
    drawn = [name for row in rows for name in row["annotated"]]
    return ImportedScans(len(rows), unlabelled, {name: drawn.count(name) for name in found.labels})


def _place_case(case: ScanCase, folder: Path, copy: bool) -> None:
    images = folder / ("imagesTr" if case.mask is not None else "imagesTs")
    for number, channel in enumerate(case.channels):
        _place(channel, images / f"{case.case}_{number:04d}.nii.gz", copy)
    if case.mask is not None:
        _place(case.mask, folder / "labelsTr" / f"{case.case}.nii.gz", copy)
    if case.targets is not None:
        _place(case.targets, folder / "targetsTr" / f"{case.case}.nii.gz", copy)


def _place(file: File, target: Path, copy: bool) -> None:
    target.parent.mkdir(exist_ok=True)
    if not isinstance(file, Path):
        file(target)
    elif not file.name.endswith(".nii.gz"):
        nib.save(load_image(file), target)
    elif copy:
        shutil.copyfile(file, target)
    else:
        target.symlink_to(file.resolve())


def _manifest_row(case: ScanCase, found: ScanSet, dataset: str) -> dict[str, Any]:
    row = {"dataset": dataset, "case": case.case, "modality": case.modality, "annotated": list(case.annotated)}
    return row | ({"region": found.region} if found.region else {})


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
