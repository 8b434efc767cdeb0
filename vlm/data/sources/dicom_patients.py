"""A folder of DICOM patients with objects that draw on their series (RTSTRUCT or DICOM-SEG) -> annotated cases.

A case is one CT or MR series that an object refers to, by its SeriesInstanceUID, else as the only series in the
object's frame of reference. The rules of its masks:

- A class annotated in a case is one that is drawn there. Names become classes by vlm/data/roi_names.yaml.
- Planning target volumes (PTV, CTV, ITV) go to targetsTr, never to the mask.
- Where structures overlap, the smaller class is painted over the larger one, and lesions over all others. What every
  class loses is told. A class that loses more than half is not annotated in that case: "lungs" under both lungs.
- Of two structure sets of a series that draw one class, the newer one counts; segments of one class are joined, because
  many archives keep an object for each lesion.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmread

from seg_backbone.errors import ConfigError, InputError, ScanError
from seg_backbone.geometry import Grid
from seg_backbone.io import dicom, write_mask, write_volume
from seg_backbone.io.image import first_line, to_volume
from seg_backbone.io.structures import RTSTRUCT, list_structures
from seg_backbone.volume import MODALITIES
from vlm.data.roi_names import TARGETS, RoiNames, read_roi_names
from vlm.data.sources.scan_source import ScanCase, ScanSet
from vlm.data.structure_mask import Drawn, drawn_in, hide, paint

TAGS = [
    "PatientID", "Modality", "SOPClassUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows",
    "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence", "StructureSetDate", "StructureSetTime",
    "ContentDate", "ContentTime",
]  # fmt: skip


@dataclass
class Scan:
    """One CT or MR series. files: its slices; objects: what draws on it, the oldest first."""

    uid: str
    patient: str
    modality: str
    frame: str
    files: list[Path] = field(default_factory=list)
    objects: list[Path] = field(default_factory=list)


def read_patients(folder: Path, classes: Path | None, kinds: tuple[str, ...], what: str) -> ScanSet:
    """The cases of a folder, at any depth. kinds: SOP classes of the objects, called `what` in complaints. classes: a
    file of names before those of roi_names.yaml. Raises ConfigError, ScanError."""
    scans, notes = _survey(folder, kinds, what)
    rules = read_roi_names(classes)
    named: dict[str, Counter[str]] = defaultdict(Counter)
    for scan in scans:
        for path in scan.objects:
            for structure in list_structures(path):
                named[rules.class_of(structure) or ""][structure.name or structure.coded] += 1
    labels = {name: number for number, name in enumerate(sorted({*named} - {"", *TARGETS}), start=1)}
    targets = {name: number for number, name in enumerate([one for one in TARGETS if one in named], start=1)}
    if not labels:
        left = ", ".join(named[""]) or "none"
        raise ConfigError(folder, f"{what} of anatomy or lesions", f"names left out: {left}", "name them: --classes")
    for name in sorted(named):
        counts = ", ".join(f"{written} ({count})" for written, count in named[name].most_common())
        notes.append(f"{name} = {counts}" if name else f"not imported: {counts}")
    modalities = sorted({scan.modality for scan in scans})
    return ScanSet(
        labels, _cases(folder, scans, rules, labels, targets), (" or ".join(modalities),), "", targets or None, notes
    )


def _survey(folder: Path, kinds: tuple[str, ...], what: str) -> tuple[list[Scan], list[str]]:
    """The series that objects draw on, by patient, and notes on the rest. Raises ConfigError where there are none."""
    scans: dict[str, Scan] = {}
    objects: list[tuple[str, Path, Dataset]] = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        header = _header(path)
        if header is None:
            continue
        if header.get("SOPClassUID") in kinds:
            date = [str(header.get(part) or "") for part in TAGS[-4:]]
            objects.append((date[0] + date[1] or date[2] + date[3], path, header))
        elif header.get("Modality") in MODALITIES and "Rows" in header and "SeriesInstanceUID" in header:
            uid = str(header.SeriesInstanceUID)
            patient = str(header.get("PatientID") or path.relative_to(folder).parts[0])
            frame = str(header.get("FrameOfReferenceUID") or "")
            scans.setdefault(uid, Scan(uid, patient, str(header.Modality), frame)).files.append(path)
    if not objects:
        raise ConfigError(folder, f"{what} objects", f"{len(scans)} CT and MR series, no {what}", "check the path")
    notes = []
    for _, path, header in sorted(objects, key=lambda item: item[:2]):
        uids, frame = _referred(header)
        meant = [scans[uid] for uid in uids if uid in scans]
        meant = meant or [scan for scan in scans.values() if frame and scan.frame == frame]
        if len(meant) == 1:
            meant[0].objects.append(path)
        else:
            found = f"{len(meant)} in its frame of reference" if meant else "none"
            notes.append(f"left out: {path}: expected one CT or MR series that it refers to, found {found}")
    drawn = [scan for scan in scans.values() if scan.objects]
    if not drawn:
        raise ConfigError(folder, f"CT or MR series of the {len(objects)} {what}", "none", "put them into the folder")
    if others := len(scans) - len(drawn):
        notes.append(f"left out: {others} CT or MR series without {what}")
    return sorted(drawn, key=lambda scan: (scan.patient, str(scan.files[0]))), notes


def _header(path: Path) -> Dataset | None:
    """What `_survey` asks of a DICOM file; None for another file. Raises ScanError for a broken one."""
    try:
        with path.open("rb") as file:
            return dicom.read_header(file, TAGS)
    except Exception as error:  # pydicom has no class for a broken file
        found = f"a header that cannot be read ({first_line(error)})"
        raise ScanError(path, "a complete DICOM file", found, "copy it again") from None


def _referred(header: Dataset) -> tuple[list[str], str]:
    """SeriesInstanceUIDs that an object refers to, and its frame of reference."""
    series = [str(one.SeriesInstanceUID) for one in header.get("ReferencedSeriesSequence") or ()]
    frame = str(header.get("FrameOfReferenceUID") or "")
    for reference in header.get("ReferencedFrameOfReferenceSequence") or ():
        frame = frame or str(reference.get("FrameOfReferenceUID") or "")
        for study in reference.get("RTReferencedStudySequence") or ():
            series += [str(one.SeriesInstanceUID) for one in study.get("RTReferencedSeriesSequence") or ()]
    return list(dict.fromkeys(series)), frame


def _cases(
    folder: Path, scans: list[Scan], rules: RoiNames, labels: dict[str, int], targets: dict[str, int]
) -> Iterator[ScanCase | InputError]:
    stems = [re.sub(r"[^A-Za-z0-9.-]+", "-", scan.patient).strip("-.") or "case" for scan in scans]
    for number, (scan, stem) in enumerate(zip(scans, stems, strict=True)):
        name = stem if stems.count(stem) == 1 else f"{stem}-s{stems[:number].count(stem) + 1}"
        try:
            yield _case(folder, name, scan, rules, labels, targets)
        except InputError as error:
            yield error


def _case(
    folder: Path, name: str, scan: Scan, rules: RoiNames, labels: dict[str, int], targets: dict[str, int]
) -> ScanCase:
    grid = dicom.read_grid(folder, scan.uid, scan.files)
    drawn, notes = _drawn(name, scan, rules, grid)
    organs = {one: drawn[one] for one in labels if one in drawn}
    aimed = {one: drawn[one] for one in targets if one in drawn}
    mask, covered = paint(organs, labels, grid)
    lost = hide(mask, organs)
    notes += [f"{name}: {one} is not annotated, {share:.0%} of it lies under others" for one, share in lost.items()]
    annotated = tuple(one for one in organs if one not in lost)
    return ScanCase(
        name,
        (partial(_write_scan, folder, scan),),
        partial(write_mask, mask) if annotated else None,
        annotated,
        scan.modality,
        targets=partial(write_mask, paint(aimed, targets, grid)[0]) if aimed else None,
        patient=scan.patient,
        overlaps={pair: count * grid.voxel_volume_ml for pair, count in covered.items()},
        notes=tuple(notes),
    )


def _drawn(name: str, scan: Scan, rules: RoiNames, grid: Grid) -> tuple[Drawn, list[str]]:
    """What all objects of a scan draw, by class, and notes on the case."""
    drawn: Drawn = {}
    notes = []
    for path in scan.objects:
        found, empty = drawn_in(path, grid, rules)
        notes += [f"{name}: {one} covers no voxel in {path.name}" for one in empty]
        for class_ in sorted(found.keys() & drawn.keys()):
            if dcmread(path, specific_tags=["SOPClassUID"]).SOPClassUID == RTSTRUCT:
                notes.append(f"{name}: {class_} of {path.name}, the newest of several structure sets")
            else:
                found[class_] = np.union1d(found[class_], drawn[class_])
        drawn |= found
    return drawn, notes


def _write_scan(folder: Path, scan: Scan, target: Path) -> None:
    image = dicom.read_image(folder, scan.uid, scan.files)
    write_volume(to_volume(image, scan.files[0].parent, scan.modality), target)
