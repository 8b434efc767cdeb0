"""An nnU-Net raw dataset of pseudo-labels: scans without labels and a model in, a folder that training reads out.

    OUT/pseudo.json           what the labels depend on: model, rules, the round before; a run with others is refused
    OUT/pseudo/CASE.nii.gz    the labels of each scan, and CASE.json: what it annotates; what is there is not made again
    OUT/imagesTr, labelsTr, dataset.json, and a line for each case in manifest.jsonl beside OUT: when all scans are done

Values of the masks are those of the model's plan; the last one, "ignore", stands for what is uncertain. Cases that
annotate nothing are left out. `pseudo` in dataset.json and in the manifest marks all of it: it trains, and nothing is
validated or measured on it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seg_backbone.cases import CaseFiles, lines_of_others
from seg_backbone.checkpoint import load_model
from seg_backbone.errors import ConfigError, InputError
from seg_backbone.io import add_channels, further_channel, read_mask, read_volume, replacing, write_mask, write_volume
from seg_backbone.plan import Plan
from seg_backbone.pseudo_labels import IGNORE, PseudoRules, annotation, draw, pseudo_labels, taught
from seg_backbone.volume import Volume, require_same_grid

SETTINGS, WORK = "pseudo.json", "pseudo"


@dataclass(frozen=True)
class UnlabelledScan:
    """One scan to label. image: channel 0. modality: "CT", "MR" or None to tell by the file.

    absent: classes known not to be in view, which are taught as such.
    """

    case: str
    image: Path
    modality: str | None = None
    patient: str | None = None
    region: str = ""
    absent: tuple[str, ...] = ()

    @staticmethod
    def of(files: CaseFiles, absent: tuple[str, ...] = ()) -> UnlabelledScan:
        """The scan of a case of a dataset."""
        return UnlabelledScan(files.case, files.image, files.modality, files.patient, files.region, absent)


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
    scans: Sequence[UnlabelledScan],
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
    scan: UnlabelledScan,
    network: torch.nn.Module,
    plan: Plan,
    rules: PseudoRules,
    previous: Path | None,
) -> None:
    volume = _read(scan, plan)
    mask = draw(network, plan, volume, rules, scan.absent)
    earlier = None
    if previous is not None:
        earlier = read_mask(previous / WORK / f"{scan.case}.nii.gz", _settings(previous)["labels"])
        require_same_grid(volume, earlier)
    annotated, stability = annotation(mask, earlier, taught(plan, volume.modality, scan.absent), rules)
    write_mask(mask, out / WORK / f"{scan.case}.nii.gz")
    facts = {
        "modality": volume.modality,
        "annotated": annotated,
        "stability": stability,
        "ignored": round(float(mask.of(IGNORE).mean()), 4),
    }
    with replacing(out / WORK / f"{scan.case}.json") as temporary:
        temporary.write_text(json.dumps(facts))


def _read(scan: UnlabelledScan, plan: Plan) -> Volume:
    volume = read_volume(scan.image, scan.modality)
    return add_channels(volume, plan.inputs) if plan.channels else volume


def finish_dataset(out: Path, scans: Sequence[UnlabelledScan], plan: Plan, copy: bool = False) -> PseudoDataset:
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


def _row(dataset: str, scan: UnlabelledScan, facts: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The line of a case in the manifest."""
    row = {"dataset": dataset, "case": scan.case, "modality": facts["modality"], "patient": scan.patient or scan.case}
    if scan.region:
        row["region"] = scan.region
    row["annotated"] = [*facts["annotated"], *(name for name in scan.absent if name in settings["labels"])]
    return row | {"pseudo": {"model": settings["model"], "stability": facts["stability"]}}


def _place(scan: UnlabelledScan, plan: Plan, folder: Path, copy: bool) -> None:
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
