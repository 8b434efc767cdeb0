"""Medical Segmentation Decathlon: ten tasks of organs and tumours in CT and MR.

Files: TaskNN_Name/{imagesTr, labelsTr, imagesTs, dataset.json}; names and modality come from dataset.json. A 4D file
(brain tumour, prostate) becomes one file a channel. Every label is annotated in every training case; the test scans
have none. "cancer", "Tumour" and "colon cancer primaries" are the class tumour.
Licence: CC BY-SA 4.0. Cite: Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128
(2022).

    Task03_Liver/{imagesTr, labelsTr}/liver_7.nii.gz -> imagesTr/liver_7_0000.nii.gz, labelsTr/liver_7.nii.gz
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib

from seg_backbone.errors import ConfigError, InputError, ScanError
from seg_backbone.labels import canonical
from vlm.data.sources.scan_source import ScanCase, ScanSet, ScanSource, load_image, paired

NAMES = {"colon cancer primaries": "tumour"}


def _read(folder: Path) -> ScanSet:
    path = folder / "dataset.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        channels = tuple(str(name) for _, name in sorted(data["modality"].items(), key=lambda item: int(item[0])))
        labels = {NAMES.get(name, canonical(name)): int(value) for value, name in data["labels"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ConfigError(path, "a decathlon dataset.json (modality, labels)", found, "name a TaskNN folder") from None
    labels = {name: value for name, value in labels.items() if value}
    modality = "CT" if channels[0].upper().startswith("CT") else "MR"
    scans = paired(folder, labels, lambda case: modality, channels)
    return scans if len(channels) == 1 else replace(scans, cases=_divided(scans.cases, len(channels)))


def _divided(cases: Iterable[ScanCase | InputError], channels: int) -> Iterator[ScanCase | InputError]:
    """The cases with one file a channel of their 4D ones."""
    for case in cases:
        assert isinstance(case, ScanCase)
        files = tuple(partial(_write_channel, case.channels[0], number) for number in range(channels))
        yield replace(case, channels=files)


def _write_channel(scan: Any, number: int, target: Path) -> None:
    image = load_image(scan)
    if image.ndim != 4 or number >= image.shape[3]:
        raise ScanError(scan, f"4D, {number + 1} or more volumes", f"shape {image.shape}", "download it again")
    nib.save(image.slicer[..., number], target)


SOURCE = ScanSource("msd", _read)
