"""An nnU-Net raw dataset of real scans with synthetic tumours in them, marked as synthetic wherever one may look.

    OUT/imagesTr/CASE_synthetic1_0000.nii.gz, labelsTr/CASE_synthetic1.nii.gz    a scan and its mask
    OUT/synthetic/CASE_synthetic1.json    its tumours, measured; `"synthetic": true` there and of each tumour
    OUT/dataset.json                      `"synthetic": true`, and what all of it was made from
    manifest.jsonl beside OUT             a line a case with `"synthetic": true` and the patient of the real scan

A case keeps its patient, so no split puts one patient on both sides. Training takes such a dataset as any other, and
neither validates nor evaluates on it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from seg_backbone.cases import CaseFiles, lines_of_others, list_cases, read_drawn, split_cases
from seg_backbone.errors import ConfigError, InputError, LabelError, ScanError
from seg_backbone.fingerprint import read_channels
from seg_backbone.io import add_channels, read_mask, read_volume, replacing, write_mask, write_volume
from seg_backbone.labels import LabelFile, read_label_file
from seg_backbone.synthetic_tumours import BODY, Synthesis, TumourRecipe, add_tumours
from seg_backbone.volume import Mask

RECORDS = "synthetic"


@dataclass
class SyntheticDataset:
    """What was written. by_size, by_place: tumours. skipped: case -> why it got none; failed: case -> its error."""

    cases: int = 0
    by_size: Counter[str] = field(default_factory=Counter)
    by_place: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Marked `"synthetic": true`."""
        return {"synthetic": True, "tumours": self.by_size.total()} | vars(self)


def synthesise(
    dataset: str | Path,
    out: str | Path,
    recipe: TumourRecipe,
    copies: int = 1,
    seed: int = 0,
    split: Mapping[str, list[str]] | None = None,
    lesion_free: bool = False,
    regions: str | Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> SyntheticDataset:
    """Write OUT from the cases of an nnU-Net raw dataset, `copies` of each, the same for the same arguments.

    split: only its training patients. lesion_free: what does not annotate the recipe's label shows none of it; without
    it such cases are skipped, because a real one may be there unseen. regions: folder of masks CASE.*, outside of which
    nothing is drawn. A run that was interrupted goes on when it is called again. progress: called with (done, all,
    case).
    Raises ConfigError or LabelError: no such dataset, a synthetic one, OUT made otherwise, an unknown class in
    `recipe.inside`, no case with tumours in the end. A case that cannot be read is among the failed.
    """
    dataset, out = Path(dataset).resolve(), Path(out).resolve()
    cases = list_cases(dataset.parent, dataset.name)
    if not all(files.real for files in cases):
        found = "synthetic tumours or pseudo-labels"
        raise ConfigError(dataset, "a dataset of real scans and labels", found, "name the one it was made from")
    if regions is not None and not Path(regions).is_dir():
        raise ConfigError("--regions", "a folder of masks CASE.nii.gz", f"{regions}", "check the path")
    description, value, channels = _description(dataset, recipe)
    made_from = {
        "dataset": str(dataset),
        "recipe": json.loads(json.dumps(recipe.to_json())),
        "copies": copies,
        "seed": seed,
        "split": dict(split) if split else None,
        "lesion_free": lesion_free,
        "regions": str(regions) if regions else None,
    }
    _claim(out, dataset, made_from)
    others = lines_of_others(out.parent / "manifest.jsonl", out.name)
    chosen = split_cases(cases, dict(split), "training") if split else cases
    jobs = [(files, f"{files.case}_synthetic{number}") for files in chosen for number in range(1, copies + 1)]
    description |= {"name": out.name, "synthetic": True, "synthesis": made_from}
    with replacing(out / "dataset.json") as file:
        file.write_text(json.dumps(description, indent=1), encoding="utf-8")
    result = SyntheticDataset()
    try:
        for done, (files, name) in enumerate(jobs):
            if progress:
                progress(done, len(jobs), name)
            if (out / RECORDS / f"{name}.json").is_file():
                continue
            if recipe.label not in files.annotated and not lesion_free:
                result.skipped[name] = f"{recipe.label} is not annotated, so a real one may be there unseen"
                continue
            try:
                random = np.random.default_rng([seed, crc32(f"{files.dataset}/{name}".encode())])
                made = _draw_case(files, recipe, value, channels, random, regions)
                if made.records:
                    _write_case(files, name, made, recipe.label, out)
                else:
                    result.skipped[name] = f"nothing of {', '.join(recipe.inside)} is in view and has room"
            except InputError as error:
                result.failed[name] = str(error)
    finally:
        records = _finish(out, [name for _, name in jobs], others, description)
    if progress:
        progress(len(jobs), len(jobs), "")
    if not records:
        (out / "dataset.json").unlink()
        out.rmdir()
        reasons = sorted({*result.skipped.values(), *result.failed.values()}) or ["no cases in the split"]
        raise ConfigError(dataset, "cases to draw tumours in", "; ".join(reasons), "see --inside and --lesion-free")
    for record in records:
        result.by_size.update(tumour["size"] for tumour in record["tumours"])
        result.by_place.update(tumour["inside"] for tumour in record["tumours"])
    result.cases = len(records)
    return result


def _draw_case(
    files: CaseFiles,
    recipe: TumourRecipe,
    value: int,
    channels: int,
    random: np.random.Generator,
    regions: str | Path | None,
) -> Synthesis:
    """A case with tumours of id `value`. Raises the errors of the readers."""
    volume = add_channels(read_volume(files.image, files.modality), channels)
    if files.mask is None:
        mask = Mask(np.zeros(volume.grid.shape, dtype=np.uint8), volume.grid, {}, str(files.image))
    else:
        mask = read_drawn(files)
    region = None
    if regions is not None:
        found = next(Path(regions).glob(f"{escape(files.case)}.*"), None)
        if found is None:
            raise ScanError(Path(regions) / files.case, "a mask of this case", "none", "add it")
        region = read_mask(found)
    mask = replace(mask, labels=mask.labels | {recipe.label: value})
    return add_tumours(volume, mask, files.annotated, recipe, random, region)


def _write_case(files: CaseFiles, name: str, made: Synthesis, label: str, out: Path) -> None:
    """Write one case, its record last: a case without one is made again."""
    write_mask(made.mask, out / "labelsTr" / f"{name}.nii.gz")
    for number, array in enumerate(made.volume.channels):
        write_volume(replace(made.volume, array=array, others=()), out / "imagesTr" / f"{name}_{number:04d}.nii.gz")
    record = {
        "dataset": out.name,
        "case": name,
        "synthetic": True,
        "made_from": f"{files.dataset}/{files.case}",
        "patient": files.patient,
        "modality": files.modality,
        "annotated": list(dict.fromkeys([*files.annotated, label])),
        **({"region": files.region} if files.region else {}),
        "tumours": [tumour.to_json() for tumour in made.records],
    }
    with replacing(out / RECORDS / f"{name}.json") as file:
        file.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")


def _finish(out: Path, names: list[str], others: list[str], description: dict[str, Any]) -> list[dict[str, Any]]:
    """Bring manifest and dataset.json up to what is written; returns the records of it."""
    paths = [out / RECORDS / f"{name}.json" for name in names]
    records = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]
    rows = [
        json.dumps({key: one for key, one in row.items() if key != "tumours"}, ensure_ascii=False) for row in records
    ]
    if rows:
        with replacing(out.parent / "manifest.jsonl") as file:
            file.write_text("".join(f"{line}\n" for line in [*others, *rows]), encoding="utf-8")
        with replacing(out / "dataset.json") as file:
            file.write_text(json.dumps(description | {"numTraining": len(rows)}, indent=1), encoding="utf-8")
    return records


def _description(dataset: Path, recipe: TumourRecipe) -> tuple[dict[str, Any], int, int]:
    """The dataset.json to be, the tumours' id, and the number of channels."""
    path = dataset / "dataset.json"
    meaning = read_label_file(path) if path.is_file() else LabelFile({}, {}, {})
    data = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    channels = read_channels(path)[0] if path.is_file() else ("CT",)
    if unknown := sorted(set(recipe.inside) - {BODY, *meaning.labels}):
        expected = f"{BODY}, or classes among {', '.join(meaning.labels) or 'none'}"
        raise LabelError(path, expected, ", ".join(unknown), "correct --inside")
    if recipe.label in meaning.regions:
        raise LabelError(path, "a class of one value to draw", f"{recipe.label}, a region", "choose another --label")
    labels = data.get("labels", {"background": 0})
    if all(key.isdigit() for key in labels):  # id -> name, as of old
        labels = {name: int(number) for number, name in labels.items()}
    value = meaning.labels.get(recipe.label)
    if value is None:
        taken = [number for one in labels.values() for number in (one if isinstance(one, list) else [one])]
        value = max(map(int, taken), default=0) + 1
        labels = labels | {recipe.label: value}
    kept = {key: data[key] for key in ("may_be", "region", "licence", "citation") if key in data}
    order = {"regions_class_order": [*data["regions_class_order"], value]} if "regions_class_order" in data else {}
    names = {str(number): channel for number, channel in enumerate(channels)}
    return kept | order | {"channel_names": names, "labels": labels, "file_ending": ".nii.gz"}, value, len(channels)


def _claim(out: Path, dataset: Path, made_from: dict[str, Any]) -> None:
    """Raises ConfigError unless OUT is new, empty, or of this very synthesis."""
    if out == dataset or dataset in out.parents:
        raise ConfigError(out, "a folder outside of the dataset", f"one inside {dataset}", "choose another -o")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        try:
            same = json.loads((out / "dataset.json").read_text(encoding="utf-8"))["synthesis"] == made_from
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            found = "another folder, or tumours drawn otherwise"
            raise ConfigError(out, "a new folder, or one to go on with", found, "choose another -o")
