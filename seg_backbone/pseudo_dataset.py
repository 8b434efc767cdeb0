"""An nnU-Net raw dataset of pseudo-labels: scans that people did not label, or not wholly, and a model in, a folder
that training reads out.

    OUT/pseudo.json           what the labels depend on: model, rules, the round before; a run with others is refused
    OUT/pseudo/CASE.nii.gz    the labels of each scan, and CASE.json: what it annotates; what is there is not made again
    OUT/imagesTr, labelsTr, dataset.json, and a line for each case in manifest.jsonl beside OUT: when all scans are done

Values of the masks are those of the model's plan; the last one, "ignore", stands for what is uncertain. What people
drew stays, and the model fills the classes that they left open; cases of which it fills none are left out. `pseudo` in
dataset.json and in the manifest marks all of it, there with the `classes` that the model drew in the case: it trains,
and nothing is validated or measured on it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seg_backbone.cases import CaseFiles, DatasetEntry, encoding, lines_of_others, read_drawn
from seg_backbone.checkpoint import load_model
from seg_backbone.errors import ConfigError, InputError
from seg_backbone.io import add_channels, further_channel, read_mask, read_volume, replacing, write_mask, write_volume
from seg_backbone.labels import LESIONS
from seg_backbone.plan import Plan
from seg_backbone.pseudo_labels import IGNORE, PseudoRules, annotation, draw, fill, pseudo_labels, taught
from seg_backbone.volume import Volume, require_same_grid

SETTINGS, WORK = "pseudo.json", "pseudo"


@dataclass(frozen=True)
class ScanToLabel:
    """One scan to label. image: channel 0. modality: "CT", "MR" or None to tell by the file.

    absent: classes known not to be in view, which are taught as such. files: the case of a dataset that it is, with
    what people drew; lesion_free_outside: as in its DatasetEntry.
    """

    case: str
    image: Path
    modality: str | None = None
    patient: str | None = None
    region: str = ""
    absent: tuple[str, ...] = ()
    files: CaseFiles | None = None
    lesion_free_outside: str | None = None

    @staticmethod
    def of(files: CaseFiles, entry: DatasetEntry) -> ScanToLabel:
        """The scan of a case of a dataset."""
        own = (files.case, files.image, files.modality, files.patient, files.region)
        return ScanToLabel(*own, entry.absent, files, entry.lesion_free_outside)

    def encoding(self, plan: Plan) -> tuple[dict[int, int], np.ndarray]:
        """What the values of its mask are, see `cases.encoding`; of a scan without one, what is not absent is open."""
        bare = CaseFiles("", self.case, self.case, self.modality or "", self.image, None, {}, ())
        entry = DatasetEntry("", absent=self.absent, lesion_free_outside=self.lesion_free_outside)
        return encoding(self.files or bare, entry, plan)

    def left_open(self, plan: Plan) -> tuple[str, ...]:
        """The classes that nobody drew, though they may be in view."""
        unknown = self.encoding(plan)[1][0]
        return tuple(name for name, value in plan.labels.items() if unknown[value])


@dataclass(frozen=True)
class PseudoDataset:
    """cases: written. left_out: that annotate nothing. annotated: class -> cases that do.

    ignored: share of the voxels of the cases that are to be ignored, mean over cases.
    """

    cases: int
    left_out: tuple[str, ...]
    annotated: dict[str, int]
    ignored: float


def label_scans(
    out: Path,
    scans: Sequence[ScanToLabel],
    model: str | Path,
    rules: PseudoRules,
    previous: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Label the scans that are not labelled yet, into OUT/pseudo. Returns the faults of scans that could not be read.

    model: see `load_model`. previous: the dataset of the round before, with which the labels are held to agree. Several
    processes may each do their share of the scans. progress: called with (scans done, scans).
    Raises ConfigError where OUT is another folder or was begun with other settings, and for rules or a model that do
    not fit; CheckpointError for a folder that is no model.
    """
    network, plan, version = load_model(model)
    if plan.painted:
        raise ConfigError(model, "a model whose classes do not overlap", "one of nnU-Net's regions", "use another one")
    if strange := sorted(set(rules.minimum_ml) - set(plan.classes)):
        raise ConfigError("minimum_ml", f"classes of the model: {list(plan.classes)}", f"{strange}", "correct it")
    before = None if previous is None else _settings(previous)["model"]
    settings = {"model": f"{plan.name}@{version}", "rules": asdict(rules), "previous": before}
    settings["labels"] = pseudo_labels(plan)
    if out.exists() and any(out.iterdir()) and _settings(out) != settings:
        raise ConfigError(out, "labels by this model and these rules", "others", "delete the folder or choose another")
    with replacing(out / SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings, indent=1))
    network.to(device)
    faults = []
    for done, scan in enumerate(scans):
        if progress:
            progress(done, len(scans))
        if not (out / WORK / f"{scan.case}.json").is_file():
            try:
                _label(out, scan, network, plan, rules, previous)
            except InputError as error:
                faults.append(str(error))
    if progress:
        progress(len(scans), len(scans))
    return faults


def _settings(folder: Path) -> dict[str, Any]:
    """What the labels of a folder depend on. Raises ConfigError for any other folder."""
    try:
        return json.loads((folder / SETTINGS).read_text())
    except (OSError, ValueError):
        raise ConfigError(folder, f"a folder of pseudo-labels ({SETTINGS})", "another one", "check the path") from None


def _label(
    out: Path,
    scan: ScanToLabel,
    network: torch.nn.Module,
    plan: Plan,
    rules: PseudoRules,
    previous: Path | None,
) -> None:
    volume = _read(scan, plan)
    mask = draw(network, plan, volume, rules, scan.absent)
    open_classes = scan.left_open(plan)
    if scan.files and scan.files.mask and scan.files.annotated:
        drawn = read_drawn(scan.files)
        require_same_grid(volume, drawn)
        mask = fill(mask, drawn.array, *scan.encoding(plan))
    earlier = None
    if previous is not None:
        earlier = read_mask(previous / WORK / f"{scan.case}.nii.gz", _settings(previous)["labels"])
        require_same_grid(volume, earlier)
    filled = [name for name in taught(plan, volume.modality) if name in open_classes]
    annotated, stability = annotation(mask, earlier, filled, rules)
    unsure = LESIONS if scan.lesion_free_outside else ()  # which says where they may be, not where they are
    write_mask(mask, out / WORK / f"{scan.case}.nii.gz")
    facts = {
        "modality": volume.modality,
        "annotated": annotated,
        "known": [name for name in plan.classes if name not in {*open_classes, *unsure}],
        "stability": stability,
        "ignored": round(float(mask.of(IGNORE).mean()), 4),
    }
    with replacing(out / WORK / f"{scan.case}.json") as temporary:
        temporary.write_text(json.dumps(facts))


def _read(scan: ScanToLabel, plan: Plan) -> Volume:
    volume = read_volume(scan.image, scan.modality)
    return add_channels(volume, plan.inputs) if plan.channels else volume


def finish_dataset(out: Path, scans: Sequence[ScanToLabel], plan: Plan, copy: bool = False) -> PseudoDataset:
    """Turn the labelled scans of OUT/pseudo into a dataset. plan: the model's.

    .nii.gz scans are linked (symbolic, absolute), or copied; others are written anew. Scans without labels, because
    they could not be read, are left out. Raises ConfigError where no scan annotates anything, or for a broken manifest.
    """
    settings = _settings(out)
    facts = {
        scan.case: json.loads(path.read_text())
        for scan in scans
        if (path := out / WORK / f"{scan.case}.json").is_file()
    }
    kept = [scan for scan in scans if facts.get(scan.case, {}).get("annotated")]
    if not kept:
        found = f"none in {len(facts)} scans"
        raise ConfigError(
            out, "classes that the model finds and is certain of", found, "lower `certain`, or train more"
        )
    rows = [_row(out.name, scan, facts[scan.case], settings) for scan in kept]
    others = lines_of_others(out.parent / "manifest.jsonl", out.name)
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir()
    channels = [channel.name for channel in plan.channels] or sorted({row["modality"] for row in rows})[:1]
    description = {
        "name": out.name,
        "pseudo": settings,
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {"background": 0, **settings["labels"]},
        "annotated": {row["case"]: row["annotated"] for row in rows},
        "numTraining": len(rows),
        "file_ending": ".nii.gz",
    }
    with replacing(out / "dataset.json") as temporary:
        temporary.write_text(json.dumps(description, indent=1))
    with replacing(out.parent / "manifest.jsonl") as temporary:
        temporary.write_text("".join(f"{line}\n" for line in [*others, *map(json.dumps, rows)]), encoding="utf-8")
    for scan in kept:
        shutil.copy2(out / WORK / f"{scan.case}.nii.gz", out / "labelsTr" / f"{scan.case}.nii.gz")
        _place(scan, plan, out / "imagesTr", copy)
    names = [name for row in rows for name in row["annotated"]]
    return PseudoDataset(
        cases=len(kept),
        left_out=tuple(scan.case for scan in scans if scan not in kept),
        annotated={name: names.count(name) for name in plan.classes},
        ignored=round(sum(facts[scan.case]["ignored"] for scan in kept) / len(kept), 4),
    )


def _row(dataset: str, scan: ScanToLabel, facts: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The line of a case in the manifest."""
    row = {"dataset": dataset, "case": scan.case, "modality": facts["modality"], "patient": scan.patient or scan.case}
    if scan.region:
        row["region"] = scan.region
    row["annotated"] = [*facts["annotated"], *facts["known"]]
    told = {"model": settings["model"], "classes": facts["annotated"], "stability": facts["stability"]}
    return row | {"pseudo": told}


def _place(scan: ScanToLabel, plan: Plan, folder: Path, copy: bool) -> None:
    """The channels of a scan under nnU-Net's names."""
    targets = [folder / f"{scan.case}_{number:04d}.nii.gz" for number in range(len(plan.channels) or 1)]
    if not scan.image.name.lower().endswith(".nii.gz"):
        volume = _read(scan, plan)
        for array, target in zip(volume.channels, targets, strict=True):
            write_volume(replace(volume, array=array, others=()), target)
        return
    sources = [scan.image, *(further_channel(scan.image, number) for number in range(1, len(targets)))]
    for source, target in zip(sources, targets, strict=True):
        assert source is not None  # the scan was read with its channels
        if copy:
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
        else:
            os.symlink(source.resolve(), target)
