"""DICOM-SEG: a folder of DICOM patients whose CT or MR series have segmentations, as `vlm segment --dicom-seg` writes.

Files: DICOM files at any depth, under any names; `dicom_patients.py` says which series is a case, what it annotates and
what becomes of overlaps. Binary, fractional (from one half on) and label map segmentations on the grid of their series.
A segment is named by its label, else by its coded property type, and its side by either; names become classes as
those of ROIs do (vlm/data/roi_names.yaml, --classes).
Licence: that of your collection. Cite: the collection, and for the format Herz et al., dcmqi: an open source library
for standardized communication of quantitative image analysis results using DICOM, Cancer Research 77, e87 (2017).

    P7/CT/{1, 2, ...}.dcm, P7/P7.seg.dcm with the segments "tumour" and "left parotid gland"
        -> imagesTr/P7_0000.nii.gz, labelsTr/P7.nii.gz (parotid_left 1, tumour 2)
"""

from __future__ import annotations

from pathlib import Path

from seg_backbone.io.structures import SEGMENTATION
from vlm.data.sources.dicom_patients import read_patients
from vlm.data.sources.scan_source import ScanSet, ScanSource


def _read(folder: Path, classes: Path | None = None) -> ScanSet:
    return read_patients(folder, classes, SEGMENTATION, "DICOM-SEG")


SOURCE = ScanSource("dicom-seg", _read, named=True)
