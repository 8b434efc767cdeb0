"""MICCAI FLARE 2022 to 2025: abdominal organs, organs and lesions, lesions of the whole body, in CT.

Files: images*/CASE_0000.nii.gz and labels*/CASE.nii.gz, unlabelled scans in any other folder; a folder of corrections
inside the masks' folder takes precedence (labelsTr2200/20230507-fix).
- flare22: 13 organs, all annotated in the 50 labelled cases.
- flare23: 13 organs and lesion, partly annotated, which ones is not told by the masks: the classes that occur in a mask
  are annotated, every other one is unknown there. So each mask is read once.
- flare24, flare25 (task 1, pan-cancer): lesion = 1, annotated where there is a mask.
Licence: the terms of each release, for research. Cite: Ma et al., Unleashing the strengths of unlabelled data in deep
learning-assisted pan-cancer abdominal organ quantification: the FLARE22 challenge, Lancet Digital Health 6 (2024), and
the overview of the year.

    labelsTr2200/FLARE23_0007.nii.gz with the values 1 and 14 -> annotated: liver, tumour
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from seg_backbone.errors import InputError
from seg_backbone.io import read_mask
from seg_backbone.labels import FLARE23_LABELS, FLARE24_LABELS
from vlm.data.sources.scan_source import ScanCase, ScanSet, ScanSource, find_pairs, paired_source


def _read_partial(folder: Path) -> ScanSet:
    scans, masks, notes = find_pairs(folder)
    return ScanSet(FLARE23_LABELS, _partial_cases(scans, masks), region="abdomen", notes=notes)


def _partial_cases(scans: dict[str, Path], masks: dict[str, Path]) -> Iterator[ScanCase | InputError]:
    for case, scan in scans.items():
        try:
            drawn: set[int] = set(np.unique(read_mask(masks[case]).array).tolist()) if case in masks else set()
        except InputError as error:
            yield error
            continue
        annotated = tuple(name for name, value in FLARE23_LABELS.items() if value in drawn)
        yield ScanCase(case, (scan,), masks.get(case), annotated)


ORGANS = {name: value for name, value in FLARE23_LABELS.items() if name != "tumour"}
FLARE22 = paired_source("flare22", ORGANS, "abdomen")
FLARE23 = ScanSource("flare23", _read_partial)
FLARE24 = paired_source("flare24", FLARE24_LABELS, "")
FLARE25 = paired_source("flare25", FLARE24_LABELS, "")
