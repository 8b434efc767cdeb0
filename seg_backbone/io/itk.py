"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) in, by SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from seg_backbone.errors import ScanError
from seg_backbone.io.image import Image, grid_of

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# where a header names the file of its voxels: MetaImage, NRRD
DATA_FILE = re.compile(r"^(?:ElementDataFile\s*=|data ?file:)\s*(.+?)\s*$", re.MULTILINE | re.IGNORECASE)


def read_image(path: str | Path) -> Image:
    """The scalar voxels of a file and their grid; a trailing axis of length one is dropped.

    ITK turns an NRRD in RAS or LAS into LPS as it reads. MetaImage has no other convention than LPS.
    Raises ScanError: unreadable, not 3D, several channels, or an NRRD that does not say which way is left.
    """
    path = Path(path)
    _require_data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    sitk.ProcessObject.GlobalWarningDisplayOff()
    try:
        reader.ReadImageInformation()
        channels, size = reader.GetNumberOfComponents(), reader.GetSize()
        if len(size) == 4 and size[3] == 1:
            reader.SetExtractSize([*size[:3], 0])
            size = size[:3]
        if channels != 1:
            raise ScanError(path, "a grey-value image", f"{channels} values a voxel", "export a scalar volume")
        if len(size) != 3:
            grid_of(path, size, np.eye(4))  # raises
        image = reader.Execute()
    except RuntimeError as error:
        found = f"data that cannot be read ({str(error).splitlines()[-1]})"
        raise ScanError(path, "an NRRD or MetaImage file", found, "export or copy the file again") from None
    if path.name.lower().endswith((".nrrd", ".nhdr")):
        space = image.GetMetaData("NRRD_space") if image.HasMetaDataKey("NRRD_space") else "none"
        if space != "left-posterior-superior":
            todo = "export it with left-posterior-superior or right-anterior-superior"
            raise ScanError(path, "an anatomical NRRD space", space, todo)
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    # SimpleITK's numpy arrays are indexed (k, j, i)
    return Image(sitk.GetArrayFromImage(image).transpose(2, 1, 0), grid_of(path, size, LPS_TO_RAS @ lps))


def _require_data_file(path: Path) -> None:
    """Raises ScanError where a header names one file for its voxels and that is not there."""
    if not path.name.lower().endswith((".mhd", ".nhdr")):
        return
    named = DATA_FILE.search(path.read_text(encoding="latin-1"))
    data = named.group(1) if named else "LOCAL"
    several = data.upper().startswith(("LOCAL", "LIST")) or "%" in data
    if not several and not (path.parent / data).is_file():
        raise ScanError(path, f"its voxels in {data}", "no such file", "keep header and data file together")
