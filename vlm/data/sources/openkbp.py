"""OpenKBP: 340 head-and-neck planning CT scans with organs at risk and target volumes, as sparse csv.

Files: pt_N/{ct, voxel_dimensions, STRUCTURE}.csv for arrays of 128 x 128 x 128 voxels: an index into the flattened
array (rows toward posterior, columns toward left, slices from superior to inferior) and, for ct.csv, a value. Indices
that are missing are 0. CT values are Hounsfield units plus 1000 (the offset of CERR, from which the data came); the
data's description advises clipping to 0..4095, which is done. A structure is annotated where its file is there. Targets
go to targetsTr: planning target volumes, never lesions. The origin of the world is not in the files: it is set to the
middle of the array.
Licence: MIT. Cite: Babier et al., OpenKBP: The open-access knowledge-based planning grand challenge and dataset,
Medical Physics 48, 5549 (2021).

    pt_7/Mandible.csv        ,data
                             1040394,
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from seg_backbone.errors import ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask, write_volume
from seg_backbone.volume import Mask, Volume
from vlm.data.sources.scan_source import ScanCase, ScanSet, ScanSource, folders_with

SHAPE = (128, 128, 128)
CT_OFFSET, CT_HIGHEST = 1000, 4095
FILES = {  # class -> file
    "brainstem": "Brainstem",
    "spinal_cord": "SpinalCord",
    "parotid_right": "RightParotid",
    "parotid_left": "LeftParotid",
    "esophagus": "Esophagus",
    "larynx": "Larynx",
    "mandible": "Mandible",
}
LABELS = {name: number for number, name in enumerate(FILES, start=1)}
TARGETS = {"PTV56": 1, "PTV63": 2, "PTV70": 3}  # of two at one voxel the higher dose counts


def _read(folder: Path) -> ScanSet:
    cases = []
    for case in folders_with(folder, "ct.csv", "folders pt_N"):
        drawn = {name: case / f"{file}.csv" for name, file in FILES.items() if (case / f"{file}.csv").is_file()}
        aimed = {name: case / f"{name}.csv" for name in TARGETS if (case / f"{name}.csv").is_file()}
        cases.append(
            ScanCase(
                case.name,
                (partial(_write_ct, case),),
                partial(_write_labels, case, drawn, LABELS) if drawn else None,
                tuple(drawn),
                targets=partial(_write_labels, case, aimed, TARGETS) if aimed else None,
            )
        )
    return ScanSet(LABELS, cases, region="head and neck", targets=TARGETS)


def _write_ct(case: Path, target: Path) -> None:
    flat = np.zeros(np.prod(SHAPE), dtype=np.int16)
    index, values = _columns(case / "ct.csv", 2).T
    flat[index.astype(int)] = np.clip(values, 0, CT_HIGHEST)
    write_volume(Volume(_turned(flat) - CT_OFFSET, _grid(case), "CT", str(case)), target)


def _write_labels(case: Path, files: Mapping[str, Path], labels: Mapping[str, int], target: Path) -> None:
    flat = np.zeros(np.prod(SHAPE), dtype=np.uint8)
    for name, path in files.items():
        flat[_columns(path, 1)[:, 0].astype(int)] = labels[name]
    write_mask(Mask(_turned(flat), _grid(case), dict(labels), str(case)), target)


def _turned(flat: np.ndarray) -> np.ndarray:
    """(128, 128, 128) toward left, posterior and superior."""
    return np.ascontiguousarray(flat.reshape(SHAPE).transpose(1, 0, 2)[:, :, ::-1])


def _grid(case: Path) -> Grid:
    """Its axes run toward left, posterior and superior; the world's origin is in the middle."""
    path = case / "voxel_dimensions.csv"
    spacing = _columns(path, 1, header=0).ravel()
    if spacing.shape != (3,) or not (spacing > 0).all():
        raise ScanError(path, "three voxel sizes in mm", f"{spacing.tolist()}", "copy the file again")
    affine = np.diag([*(spacing[[1, 0, 2]] * (-1, -1, 1)), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return Grid(SHAPE, affine)


def _columns(path: Path, count: int, header: int = 1) -> np.ndarray:
    """(rows, count) float64 of the first columns; indices are checked to lie in the array."""
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=header, usecols=range(count), ndmin=2)
    except (OSError, ValueError) as error:
        raise ScanError(path, "a csv file of OpenKBP", str(error).splitlines()[0], "copy the file again") from None
    if header and table.size and not ((table[:, 0] >= 0) & (table[:, 0] < np.prod(SHAPE))).all():
        raise ScanError(path, f"indices below {np.prod(SHAPE)}", f"{table[:, 0].max():.0f}", "copy the file again")
    return table


SOURCE = ScanSource("openkbp", _read)
