"""RTSTRUCT: a folder of DICOM patients whose CT or MR series have contours in structure sets of a planning system.

Files: DICOM files at any depth, under any names; `dicom_patients.py` says which series is a case, what it annotates and
what becomes of overlaps. ROI names become classes by vlm/data/roi_names.yaml (TG-263 and common spellings) or a file of
your own (--classes). PTV, CTV and ITV are targets and no lesions; what is drawn for planning alone (margins, rings, the
couch) is left out, and every name is told with its class. Contours are filled as `seg_backbone/io/rtstruct.py` says.
Licence: that of your collection. Cite: the collection, and for the names Mayo et al., American Association of
Physicists in Medicine Task Group 263: Standardizing Nomenclatures in Radiation Oncology, Int J Radiat Oncol Biol Phys
100, 1057 (2018).

    P7/CT/{1, 2, ...}.dcm, P7/plan.dcm with the ROIs GTV-1, Parotid_L and PTV70
        -> imagesTr/P7_0000.nii.gz, labelsTr/P7.nii.gz (tumour, parotid_left), targetsTr/P7.nii.gz (PTV)
"""

from __future__ import annotations

from pathlib import Path

from seg_backbone.io.structures import RTSTRUCT
from vlm.data.sources.dicom_patients import read_patients
from vlm.data.sources.scan_source import ScanSet, ScanSource


def _read(folder: Path, classes: Path | None = None) -> ScanSet:
    return read_patients(folder, classes, (RTSTRUCT,), "RTSTRUCT")


SOURCE = ScanSource("rtstruct", _read, named=True)
