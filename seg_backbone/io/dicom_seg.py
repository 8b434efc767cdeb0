"""A mask as a DICOM Segmentation object, so that viewers and archives show it on the scan it was drawn on.

Enters a Mask on the grid of a DICOM series and where that series lies, leaves one binary SEG (PS3.3 A.51) by highdicom,
one segment a class that was found. A class is coded in SNOMED CT where there is a code, else privately by its name.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import highdicom as hd
import numpy as np
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from seg_backbone.errors import ScanError
from seg_backbone.io.atomic import replacing
from seg_backbone.io.dicom import read_headers
from seg_backbone.io.formats import is_dicom, split_series
from seg_backbone.io.image import first_line
from seg_backbone.labels import LESIONS, display
from seg_backbone.volume import Mask

# class without its side -> SNOMED CT, from DICOM's context groups (PS3.16) as pydicom keeps them; the brainstem is not
# in those: "brainstem structure" of SNOMED CT itself
SNOMED: dict[str, Code] = {
    "tumour": codes.SCT.Neoplasm,
    "brainstem": Code("15926001", "SCT", "Brainstem"),
    "spinal_cord": codes.SCT.SpinalCord,
    "parotid": codes.SCT.ParotidGland,
    "esophagus": codes.SCT.Esophagus,
    "larynx": codes.SCT.Larynx,
    "mandible": codes.SCT.Mandible,
    "liver": codes.SCT.Liver,
    "kidney": codes.SCT.Kidney,
    "spleen": codes.SCT.Spleen,
    "pancreas": codes.SCT.Pancreas,
    "aorta": codes.SCT.Aorta,
    "inferior_vena_cava": codes.SCT.InferiorVenaCava,
    "adrenal_gland": codes.SCT.AdrenalGland,
    "gallbladder": codes.SCT.Gallbladder,
    "stomach": codes.SCT.Stomach,
    "duodenum": codes.SCT.Duodenum,
}
SIDES = {"left": codes.SCT.Left, "right": codes.SCT.Right}
PRIVATE_SCHEME = "99FLAREVLM"


def require_dicom(scan: str | Path) -> None:
    """Raises ScanError for a scan that a DICOM-SEG cannot refer to."""
    path, _ = split_series(scan)
    if path.exists() and not path.name.lower().endswith(".zip") and not is_dicom(path):
        raise ScanError(scan, "a DICOM scan for a DICOM-SEG", "another format", "leave out --dicom-seg")


def write_dicom_seg(mask: Mask, scan: str | Path, path: str | Path, model: str) -> Path | None:
    """Write the classes that have voxels as segments 1, 2, ... in order of their ids, atomically.

    mask: on the grid of `scan`. scan: the DICOM folder, zip or file (PATH#UID too) it was made from. model: name and
    version, as "default@SHA". Returns the path, or None, and nothing is written, where the mask is empty.
    Raises ScanError: not DICOM, or headers that lack what a DICOM-SEG must refer to.
    """
    require_dicom(scan)
    found = sorted((value, name) for name, value in mask.labels.items() if (mask.array == value).any())
    if not found:
        return None
    numbers = np.zeros(int(mask.array.max()) + 1, dtype=np.uint8)
    numbers[[value for value, _ in found]] = np.arange(1, len(found) + 1)
    name, _, version = model.partition("@")
    algorithm = hd.AlgorithmIdentificationSequence(
        name=f"flare-vlm {name}"[:64], family=codes.DCM.ArtificialIntelligence, version=version or "unknown"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of patient names and UIDs that are not as the standard wants them
        headers, order = read_headers(*split_series(scan))
        for header in headers:
            header.setdefault("SliceThickness", float(mask.grid.spacing_mm[2]))  # the SEG must have one
        try:
            segmentation = hd.seg.Segmentation(
                source_images=headers,
                pixel_array=numbers[mask.array].transpose(2, 1, 0)[order],  # (slice, row, column)
                segmentation_type="BINARY",
                segment_descriptions=[_describe(n, label, algorithm) for n, (_, label) in enumerate(found, start=1)],
                series_instance_uid=hd.UID(),
                series_number=1,
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="flare-vlm",
                manufacturer_model_name=name,
                software_versions=version or "unknown",
                device_serial_number="0",
                series_description=f"flare-vlm {name}"[:64],
            )
        except (AttributeError, ValueError, TypeError) as error:
            refused = f"headers that do not do ({first_line(error)})"
            todo = "use the scan as it left the scanner, or leave out --dicom-seg"
            raise ScanError(scan, "headers that a DICOM-SEG can refer to", refused, todo) from None
        with replacing(path) as temporary:
            segmentation.save_as(temporary)
    return Path(path)


def _describe(number: int, label: str, algorithm: hd.AlgorithmIdentificationSequence) -> hd.seg.SegmentDescription:
    structure, _, side = label.rpartition("_")
    if side not in SIDES:
        structure, side = label, ""
    kind = codes.SCT.MorphologicallyAbnormalStructure if label in LESIONS else codes.SCT.AnatomicalStructure
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=display(label)[:64],
        segmented_property_category=kind,
        segmented_property_type=SNOMED.get(structure, Code(structure, PRIVATE_SCHEME, structure[:64])),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    if side:
        modifier = hd.sr.CodedConcept.from_code(SIDES[side])
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description
