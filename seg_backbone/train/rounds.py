"""Training in rounds: a teacher labels what people left open, a student trains on that too and is the next teacher.

    OUTPUT/round_0             the first training, on what people drew (none where a teacher is given)
    OUTPUT/pseudo_1            what its model labels, an nnU-Net raw dataset (see pseudo_dataset)
    OUTPUT/round_1             training on the datasets and pseudo_1
    OUTPUT/pseudo_2, round_2   ...
    OUTPUT/model               that of the last round

Labelled are the scans of the configuration's datasets that train and annotate nothing, or not every class; never one of
a patient that is held back. A resumed run goes on within a round, and within the labelling: a finished scan or training
is not repeated.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from seg_backbone.cases import DatasetEntry
from seg_backbone.checkpoint import PLAN, find_model
from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing
from seg_backbone.plan import Plan
from seg_backbone.pseudo_dataset import SETTINGS, ScanToLabel, finish_dataset, label_scans
from seg_backbone.train.config import SegmentationConfig
from seg_backbone.train.data import Progress, divide
from seg_backbone.train.loop import start_machine, train_segmentation


def train_rounds(
    config: SegmentationConfig,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train in rounds; the arguments, and the folder returned, are those of `train_segmentation`.

    Raises ConfigError where no scan is without labels, or the teacher is certain of nothing.
    """
    assert config.pseudo_labels is not None
    scans = scans_to_label(config)
    alone = replace(config, pseudo_labels=None, cache=config.cache or config.output / "cases")

    def train(number: int, **changes: Any) -> Path:
        name = f"round {number}"
        tell = (lambda row: report({"round": number} | row)) if report else None
        show = (lambda stage, done, of: progress(f"{name}: {stage}", done, of)) if progress else None
        own = replace(alone, output=config.output / f"round_{number}", **changes)
        return train_segmentation(own, resume, tell, show)

    model = config.pseudo_labels.teacher or train(0)
    previous = None
    for number in range(1, config.pseudo_labels.rounds + 1):
        name = f"round {number}: labelling"
        show = (lambda done, of, name=name: progress(name, done, of)) if progress else None
        previous = label(config, number, scans, model, previous, resume, show)
        entry = DatasetEntry(str(previous.resolve()), config.pseudo_labels.weight)
        start = model if config.pseudo_labels.warm else config.start
        model = train(number, datasets=(*config.datasets, entry), start=start)
    machine = start_machine(config)
    if machine.is_main_process:
        for file in model.iterdir():
            with replacing(config.output / "model" / file.name) as temporary:
                shutil.copyfile(file, temporary)
    machine.wait_for_everyone()
    return config.output / "model"


def scans_to_label(config: SegmentationConfig) -> list[ScanToLabel]:
    """The scans of a configuration that train without a label, or that leave a class open which scans of their modality
    annotate. Of two cases of one name each is called after its dataset, too. Raises ConfigError for no scan at all, and
    for a dataset that comes twice.
    """
    assert config.pseudo_labels is not None
    listed = [
        (files, ScanToLabel.of(files, entry))
        for entry, (kept, _) in zip(config.datasets, divide(config), strict=True)
        for files in kept
        if files.real
    ]
    seen = {(files.modality, name) for files, _ in listed if files.mask is not None for name in files.annotated}
    scans = []
    for files, scan in listed:
        fillable = any((files.modality, name) in seen for name in scan.left_open(config.plan))
        if files.mask is None or not files.annotated or (config.pseudo_labels.partial and fillable):
            scans.append(scan)
    if not scans:
        raise ConfigError("pseudo_labels", "training scans that leave a class open", "none", "add them to `datasets`")
    counts = Counter(scan.case for scan in scans)
    scans = [
        replace(scan, case=f"{scan.files.dataset}_{scan.case}") if scan.files and counts[scan.case] > 1 else scan
        for scan in scans
    ]
    if len({scan.case for scan in scans}) < len(scans):
        raise ConfigError("pseudo_labels", "each dataset once", "one twice", "list it once, with more weight")
    return scans


def label(
    config: SegmentationConfig,
    number: int,
    scans: list[ScanToLabel],
    model: Path,
    previous: Path | None,
    resume: bool,
    progress: Callable[[int, int], None] | None,
) -> Path:
    """Label the scans for a round, each process its share. Returns the dataset. Raises the first fault of a scan."""
    assert config.pseudo_labels is not None
    machine = start_machine(config)
    folder = config.output / f"pseudo_{number}"
    if machine.is_main_process and not resume and (folder / SETTINGS).is_file():
        shutil.rmtree(folder)
    machine.wait_for_everyone()
    share = scans[machine.process_index :: machine.num_processes]
    rules = config.pseudo_labels.rules
    faults = label_scans(folder, share, model, rules, previous, machine.device, progress)
    if faults:
        raise ConfigError(folder, "scans that can be read", faults[0], "mend it, then --resume")
    machine.wait_for_everyone()
    if machine.is_main_process:
        finish_dataset(folder, scans, Plan.read(find_model(model) / PLAN))
    machine.wait_for_everyone()
    return folder
