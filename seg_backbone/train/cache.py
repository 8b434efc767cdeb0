"""Preprocessed cases on disk, mapped into memory: read once, shared by all workers and processes, kept for --resume."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from glob import escape
from pathlib import Path

import numpy as np

from seg_backbone.cases import CaseFiles, DatasetEntry, TrainingCase, load_case
from seg_backbone.io import replacing
from seg_backbone.plan import Plan

FORMAT = 1
# what a plan says of the network and of its use, not of its input
NOT_INPUT = (
    *("name", "patch", "step", "network", "network_options", "trained_on", "minimum_ml", "single"),
    *("mirror_axes", "mirror_swaps_sides", "roi", "gate", "heads"),
)


def cached_case(files: CaseFiles, entry: DatasetEntry, plan: Plan, folder: Path) -> TrainingCase:
    """`load_case`, kept under `folder`; made anew where the case's files, its entry or the plan's input has changed.

    Raises the errors of `load_case`.
    """
    place = folder / f"{files.dataset}__{files.case}"
    key = _key(files, entry, plan)
    facts = _facts(place / "case.json")
    if facts.get("key") != key:
        case = load_case(files, entry, plan)
        drawn = list(case.drawn.items())
        facts = {"key": key, "drawn": [[code, len(places)] for code, places in drawn], "table": case.table.tolist()}
        places = np.concatenate([np.zeros((0, 3), np.int16), *(places for _, places in drawn)])
        for name, array in {"image": case.image, "codes": case.codes, "places": places}.items():
            with replacing(place / f"{name}.npy") as temporary:
                np.save(temporary, array)
        with replacing(place / "case.json") as temporary:
            temporary.write_text(json.dumps(facts))
    image, codes, places = (np.load(place / f"{name}.npy", mmap_mode="r") for name in ("image", "codes", "places"))
    ends = np.cumsum([count for _, count in facts["drawn"]]).tolist()
    parts = {code: places[end - count : end] for (code, count), end in zip(facts["drawn"], ends, strict=True)}
    return TrainingCase(files, image, codes, np.array(facts["table"], dtype=bool), parts)


def _key(files: CaseFiles, entry: DatasetEntry, plan: Plan) -> str:
    """What the arrays of a case depend on: its files by size and time, and all that is said about it."""
    folder = files.image.parent.parent
    paths = sorted(files.image.parent.glob(f"{escape(files.case)}_[0-9][0-9][0-9][0-9].*"))
    paths += [files.mask] if files.mask else []
    paths += [folder / entry.lesion_free_outside / files.mask.name] if entry.lesion_free_outside and files.mask else []
    stats = [(path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()]
    said = {name: value for name, value in asdict(plan).items() if name not in NOT_INPUT}
    text = repr((FORMAT, stats, sorted(said.items()), asdict(files), entry.absent, entry.lesion_free_outside))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _facts(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
