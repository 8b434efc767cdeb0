"""Training cases: from nnU-Net raw folders plus what is known of each case, to arrays on the working grid.

What a case annotates comes from `manifest.jsonl` beside the datasets (one line a case: dataset, case, modality,
annotated), else from its dataset.json (every label). A dataset entry of the configuration may add
- absent: classes that its body region cannot contain (they count as background there, not as unknown);
- lesion_free_outside: a folder of target volumes that hold all gross disease, so that voxels outside them are
  certainly not lesion while voxels inside may be.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seg_backbone.errors import ConfigError
from seg_backbone.geometry import to_canonical
from seg_backbone.io import read_mask, read_volume
from seg_backbone.labels import LESIONS, canonical, read_labels
from seg_backbone.plan import Plan
from seg_backbone.preprocess import preprocess
from seg_backbone.resample import resample_labels
from seg_backbone.volume import require_same_grid


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset of a training configuration. weight: share of the samples drawn from it."""

    name: str
    weight: float = 1.0
    absent: tuple[str, ...] = ()
    lesion_free_outside: str | None = None


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies and what it annotates (canonical names). patient: the unit of every split."""

    dataset: str
    case: str
    patient: str
    modality: str
    image: Path
    mask: Path | None
    labels: dict[str, int]
    annotated: tuple[str, ...]
    region: str = ""


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """Arrays on the canonical working grid.

    image (channels, i, j, k) float16; codes (i, j, k) uint8; table (codes, classes) bool, see partial_labels;
    drawn: class id -> (n, 3) int16 voxel indices, to centre samples on.
    """

    files: CaseFiles
    image: np.ndarray
    codes: np.ndarray
    table: np.ndarray
    drawn: dict[int, np.ndarray]


def list_cases(root: str | Path, dataset: str) -> list[CaseFiles]:
    """The cases of ROOT/DATASET in name order. Raises ConfigError: not nnU-Net raw, or a broken manifest."""
    root = Path(root)
    folder = root / dataset
    if not (folder / "imagesTr").is_dir():
        raise ConfigError(folder, "an nnU-Net raw dataset (imagesTr, labelsTr, dataset.json)", "none", "check --data")
    manifest = {}
    if (root / "manifest.jsonl").is_file():
        for number, line in enumerate((root / "manifest.jsonl").read_text().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                manifest[row["dataset"], row["case"]] = row
            except (ValueError, KeyError, TypeError) as error:
                found = f"{type(error).__name__} in line {number}"
                raise ConfigError(root / "manifest.jsonl", "JSON with dataset and case", found, "mend it") from None
    labels = read_labels(folder / "dataset.json") if (folder / "dataset.json").is_file() else {}
    channel = _first_channel(folder / "dataset.json")
    cases = []
    for image in sorted((folder / "imagesTr").glob("*_0000.nii.gz")):
        case = image.name.removesuffix("_0000.nii.gz")
        row = manifest.get((dataset, case), {})
        annotated = row.get("annotated", list(labels))
        names = tuple(canonical(n) for n in annotated) if isinstance(annotated, list) else ()
        mask = folder / "labelsTr" / f"{case}.nii.gz"
        modality = "CT" if str(row.get("modality", channel)).upper().startswith("CT") else "MR"
        drawn = mask if mask.is_file() else None
        cases.append(CaseFiles(dataset, case, case, modality, image, drawn, labels, names, row.get("region", "")))
    return cases


def _first_channel(path: Path) -> str:
    """The name of channel 0 in a dataset.json ("CT", "MR_T1"), by which nnU-Net tells modalities; CT without one."""
    channels = json.loads(path.read_text()).get("channel_names", {}) if path.is_file() else {}
    return str(channels.get("0", "CT"))


def load_case(files: CaseFiles, entry: DatasetEntry, plan: Plan) -> TrainingCase:
    """Read, resample and encode one case. Raises the errors of the readers, GridError for a mask on another grid."""
    volume = read_volume(files.image, files.modality)
    image, grid = preprocess(volume, plan)
    count = len(plan.classes) + 1
    maybe_lesion = count  # an extra code: background, or a lesion that nobody outlined
    codes = np.zeros(grid.shape, dtype=np.uint8)
    if files.mask is not None:
        mask = read_mask(files.mask, files.labels)
        require_same_grid(volume, mask)
        drawn = np.zeros(mask.array.shape, dtype=np.uint8)
        if entry.lesion_free_outside:
            targets = read_mask(files.image.parent.parent / entry.lesion_free_outside / files.mask.name)
            require_same_grid(volume, targets)
            drawn[targets.array > 0] = maybe_lesion
        for name in files.annotated:
            if name in plan.labels:
                drawn[mask.of(name)] = plan.labels[name]
        codes = resample_labels(to_canonical(drawn, mask.grid)[0], grid.shape)
    table = np.zeros((count + 1, count), dtype=bool)
    table[range(count), range(count)] = True
    decided = set(files.annotated if files.mask is not None else ()) | set(entry.absent)
    if entry.lesion_free_outside and files.mask is not None:
        decided |= set(LESIONS)
    table[0] |= [name not in decided and name != "" for name in ("", *plan.classes)]
    table[maybe_lesion] = table[0]
    table[maybe_lesion, [plan.labels[name] for name in LESIONS if name in plan.labels]] = True
    places = {
        value: np.argwhere(codes == value).astype(np.int16) for value in range(1, count) if (codes == value).any()
    }
    return TrainingCase(files, image.astype(np.float16), codes, table, places)


def read_split(path: str | Path) -> dict[str, list[str]]:
    """Read a split file: {"validation": [patients], ...}. Every patient not listed trains. Raises ConfigError."""
    try:
        return {str(name): list(patients) for name, patients in json.loads(Path(path).read_text())["patients"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(path, "a split file with `patients`", str(error), "see configs/split.json") from None


def split_cases(cases: list[CaseFiles], split: dict[str, list[str]], part: str) -> list[CaseFiles]:
    """The cases whose patient is in `part`; part "training" means those in no other part."""
    held = {patient for patients in split.values() for patient in patients}
    keep: Callable[[CaseFiles], bool] = (
        (lambda c: c.patient not in held) if part == "training" else (lambda c: c.patient in split.get(part, []))
    )
    return [case for case in cases if keep(case)]
