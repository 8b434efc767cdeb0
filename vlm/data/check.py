"""Faults of an nnU-Net raw dataset folder, found before anything is trained on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from seg_backbone.cases import list_cases
from seg_backbone.errors import InputError
from seg_backbone.io import read_mask, read_volume
from seg_backbone.volume import require_same_grid


def find_faults(folder: str | Path, progress: Callable[[int, int, str], None] | None = None) -> list[str]:
    """One line a fault: unreadable scan or mask, no mask for a scan (where the dataset has labels), another grid, label
    values outside dataset.json, an annotated class that dataset.json lacks, a mask without a scan. Empty for none.

    progress: called with (cases done, cases, case). Raises ConfigError where `folder` is no nnU-Net raw dataset.
    """
    folder = Path(folder)
    cases = list_cases(folder.parent, folder.name)
    scans = {case.case for case in cases}
    faults = [f"{folder / 'imagesTr'}: no scans (CASE_0000.nii.gz)"] if not cases else []
    for mask in sorted((folder / "labelsTr").glob("*.nii.gz")):
        if mask.name.removesuffix(".nii.gz") not in scans:
            faults.append(f"{mask}: a mask without a scan")
    for done, files in enumerate(cases):
        if progress:
            progress(done, len(cases), files.case)
        if unnamed := [name for name in files.annotated if name not in files.labels]:
            faults.append(f"{files.case}: annotated {', '.join(unnamed)}, which dataset.json does not name")
        if files.mask is None and files.labels:
            faults.append(f"{files.image}: no mask in {folder / 'labelsTr'}")
        try:
            volume = read_volume(files.image, files.modality)
            if files.mask is not None:
                require_same_grid(volume, read_mask(files.mask, files.labels))
        except InputError as error:
            faults.append(str(error))
    if progress:
        progress(len(cases), len(cases), "")
    return faults
