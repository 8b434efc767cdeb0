"""AMOS22: 15 abdominal organs in 500 CT and 100 MR scans.

Files: imagesTr, labelsTr, imagesVa, labelsVa, imagesTs with amos_NNNN.nii.gz; a number above 500 is MR. Every organ is
annotated in every labelled case.
Licence: CC BY 4.0 (Zenodo 7155725). Cite: Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile
Medical Image Segmentation, NeurIPS 2022, arXiv:2206.08023.

    imagesTr/amos_0507.nii.gz, labelsTr/amos_0507.nii.gz -> imagesTr/amos_0507_0000.nii.gz, labelsTr/amos_0507.nii.gz
"""

from __future__ import annotations

import re
from pathlib import Path

from vlm.data.sources.scan_source import ScanSet, ScanSource, paired

LAST_CT = 500
LABELS = {
    "spleen": 1,
    "kidney_right": 2,
    "kidney_left": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior_vena_cava": 9,
    "pancreas": 10,
    "adrenal_gland_right": 11,
    "adrenal_gland_left": 12,
    "duodenum": 13,
    "bladder": 14,
    "prostate_or_uterus": 15,
}


def _modality(case: str) -> str:
    number = re.search(r"\d+$", case)
    return "MR" if number and int(number[0]) > LAST_CT else "CT"


def _read(folder: Path) -> ScanSet:
    return paired(folder, LABELS, _modality, ("CT or MR",), "abdomen")


SOURCE = ScanSource("amos", _read)
