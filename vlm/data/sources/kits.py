"""KiTS: kidneys, kidney tumours and cysts in contrast CT. `kits` is KiTS21 and KiTS23, `kits19` lacks the cysts.

Files: case_NNNNN/{imaging.nii.gz, segmentation.nii.gz}, in KiTS21 aggregated_MAJ_seg.nii.gz (the majority of its
raters) as the mask; other masks in a case's folder are not read. A case without either (the test scans of KiTS19) has
no labels; masks whose scan was not downloaded are told. In KiTS19 a cyst is unknown, never absent.
Licence: CC BY-NC-SA 4.0. Cite: Heller et al., The KiTS21 Challenge, arXiv:2307.01984 (2023); for KiTS19 Heller et al.,
Medical Image Analysis 67, 101821 (2021).

    case_00007/imaging.nii.gz, segmentation.nii.gz -> imagesTr/case_00007_0000.nii.gz, labelsTr/case_00007.nii.gz
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from vlm.data.sources.scan_source import ScanCase, ScanSet, ScanSource, folders_with

MASKS = ("segmentation.nii.gz", "aggregated_MAJ_seg.nii.gz")
LABELS_19 = {"kidney": 1, "tumour": 2}
LABELS = {**LABELS_19, "cyst": 3}


def _read(folder: Path, labels: Mapping[str, int]) -> ScanSet:
    cases = []
    for case in folders_with(folder, "imaging.nii.gz", "folders case_NNNNN"):
        mask = next((case / name for name in MASKS if (case / name).is_file()), None)
        cases.append(ScanCase(case.name, (case / "imaging.nii.gz",), mask, tuple(labels) if mask else ()))
    alone = sorted(
        path for name in MASKS for path in folder.rglob(name) if not (path.parent / "imaging.nii.gz").exists()
    )
    return ScanSet(
        labels, cases, region="abdomen", notes=[f"left out: {path}: no imaging.nii.gz beside" for path in alone]
    )


KITS23 = ScanSource("kits", partial(_read, labels=LABELS))
KITS19 = ScanSource("kits19", partial(_read, labels=LABELS_19))
