"""Instances as a table: one CSV row each, every column a number or a word."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from seg_backbone.io import replacing
from seg_backbone.lesions import Instance

MEASURED = (
    "volume_ml", "long_axis_mm", "short_axis_mm", "diameter_3d_mm", "craniocaudal_mm",
    "intensity_mean", "intensity_std", "intensity_median", "probability",
)  # fmt: skip
COLUMNS = (
    "case", "instance", "label", "rank", "voxels", *MEASURED, "side", "axial_slice",
    *(f"{point}_{axis}_mm" for point in ("center", "box_min", "box_max") for axis in "xyz"),
)  # fmt: skip


def write_statistics(found: Iterable[tuple[str, Instance]], path: str | Path) -> Path:
    """Write (case, instance) pairs under COLUMNS, atomically; without any, the header alone. Returns the path.

    Rounded as `Instance.to_json` does; an empty cell is a value that is not known.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_row(case, instance) for case, instance in found)
    return Path(path)


def _row(case: str, instance: Instance) -> dict[str, object]:
    data = instance.to_json()
    plain = {key: data[key] for key in ("instance", "label", "rank", "voxels", *MEASURED, "side")}
    box = instance.box.to_json()
    points = {"center": data["center_mm"], "box_min": box["min_mm"], "box_max": box["max_mm"]}
    places = {
        f"{point}_{axis}_mm": value
        for point, values in points.items()
        for axis, value in zip("xyz", values, strict=True)  # type: ignore[call-overload]
    }
    return {"case": case, **plain, "axial_slice": instance.slice["index"], **places}
