"""Training cases: from nnU-Net raw folders plus what is known of each case, to arrays on the working grid.

What a case annotates comes from `manifest.jsonl` beside the datasets (one line a case: dataset, case, annotated, and
where known modality, region, patient), else from `annotated` in its dataset.json (a list of classes for all cases, or
case -> list), else it is every label. `pseudo` in the manifest or in dataset.json marks what a model labelled
(pseudo_dataset.py), `synthetic` what has synthetic tumours (synthetic_dataset.py): it trains, and nothing is validated
on it. A dataset entry of the configuration may add
- absent: classes that no scan of it shows, because its body region cannot contain them or everybody is healthy (they
  count as background there, not as unknown); a dataset needs no masks for that;
- lesion_free_outside: a folder of target volumes that hold all gross disease, so that voxels outside them are
  certainly not lesion while voxels inside may be;
- labelled: the patients whose annotation is used, to measure what labels are worth.
Labels that stand for several classes (regions, ignore labels: see labels.read_label_file) become codes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from seg_backbone.errors import ConfigError
from seg_backbone.io import SUFFIXES, add_channels, read_mask, read_volume
from seg_backbone.labels import LESIONS, LabelFile, canonical, read_label_file
from seg_backbone.plan import Plan
from seg_backbone.preprocess import oriented, preprocess, scan_box
from seg_backbone.resample import resample_labels
from seg_backbone.volume import Mask, Volume, require_same_grid

MARKS = ("pseudo", "synthetic")  # of what is not real


@dataclass(frozen=True)
class DatasetEntry:
    """One dataset of a training configuration.

    name: of its folder in the configuration's `data`, or the path of a dataset elsewhere. weight: share of the samples
    drawn from it. absent, lesion_free_outside: see above. labelled: patients whose annotation is used, None for all;
    the other ones that train count as unlabelled.
    """

    name: str
    weight: float = 1.0
    absent: tuple[str, ...] = ()
    lesion_free_outside: str | None = None
    labelled: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies and what it annotates (canonical names). patient: the unit of every split.

    labels, regions, unsure: what the values of the mask stand for, see labels.LabelFile. pseudo: labelled by a model;
    synthetic: with synthetic tumours drawn in; such cases train, and never validate.
    """

    dataset: str
    case: str
    patient: str
    modality: str
    image: Path
    mask: Path | None
    labels: dict[str, int]
    annotated: tuple[str, ...]
    region: str = ""
    regions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unsure: dict[int, tuple[str, ...]] = field(default_factory=dict)
    pseudo: bool = False
    synthetic: bool = False

    @property
    def real(self) -> bool:
        """Neither scan nor labels were made up."""
        return not (self.pseudo or self.synthetic)


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """Arrays on the canonical working grid.

    image (channels, i, j, k) float16; codes (i, j, k) uint8; table (codes, classes) bool, see partial_labels;
    drawn: code -> (n, 3) int16 voxel indices of what was drawn, to centre samples on; codes up to the number of classes
    are class ids.
    """

    files: CaseFiles
    image: np.ndarray
    codes: np.ndarray
    table: np.ndarray
    drawn: dict[int, np.ndarray]

    @property
    def teaches(self) -> bool:
        """False where every voxel may be any class, so that no loss of the mask depends on it."""
        return bool(self.drawn) or not bool(self.table[0].all())


def list_cases(root: str | Path, dataset: str) -> list[CaseFiles]:
    """The cases of ROOT/DATASET (or of the path DATASET) in name order. Raises ConfigError: not nnU-Net raw, or a
    broken manifest."""
    folder = Path(root) / dataset
    root, dataset = folder.parent, folder.name
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
    description = folder / "dataset.json"
    meaning = read_label_file(description) if description.is_file() else LabelFile({}, {}, {})
    channel, stated, ending, marks = _described(description)
    cases = []
    for image in sorted((folder / "imagesTr").glob(f"*_0000{ending}")):
        case = image.name.removesuffix(f"_0000{ending}")
        row = manifest.get((dataset, case), {})
        everywhere = stated if isinstance(stated, list) else stated.get(case, list(meaning.labels))
        annotated = row.get("annotated", everywhere)
        names = [canonical(str(name)) for name in annotated] if isinstance(annotated, list) else []
        mask = folder / "labelsTr" / f"{case}{ending}"
        modality = "CT" if str(row.get("modality", channel)).upper().startswith("CT") else "MR"
        cases.append(
            CaseFiles(
                dataset=dataset,
                case=case,
                patient=str(row.get("patient", case)),
                modality=modality,
                image=image,
                mask=mask if mask.is_file() else None,
                labels=meaning.labels,
                annotated=tuple(dict.fromkeys(part for name in names for part in meaning.regions.get(name, (name,)))),
                region=row.get("region", ""),
                regions=meaning.regions,
                unsure=meaning.unsure,
                pseudo="pseudo" in marks or bool(row.get("pseudo")),
                synthetic="synthetic" in marks or bool(row.get("synthetic")),
            )
        )
    return cases


def _described(path: Path) -> tuple[str, Any, str, tuple[str, ...]]:
    """Of a dataset.json: the name of channel 0 ("CT", "MR_T1"), by which nnU-Net tells modalities, CT without one; its
    `annotated`, a list of classes or case -> list; its `file_ending`; and which of MARKS it has."""
    if not path.is_file():
        return "CT", {}, ".nii.gz", ()
    data = json.loads(path.read_text(encoding="utf-8"))
    stated = data.get("annotated", {})
    if not isinstance(stated, list) and not (
        isinstance(stated, dict) and all(isinstance(names, list) for names in stated.values())
    ):
        raise ConfigError(path, "`annotated` to be a list of classes, or case -> list", repr(stated), "correct it")
    if (ending := data.get("file_ending", ".nii.gz")) not in SUFFIXES:
        raise ConfigError(path, f"a `file_ending` among {', '.join(SUFFIXES)}", repr(ending), "convert the files")
    marks = tuple(mark for mark in MARKS if data.get(mark))
    names = data.get("channel_names")
    return str(names.get("0", "CT")) if isinstance(names, dict) else "CT", stated, ending, marks


def lines_of_others(manifest: Path, dataset: str) -> list[str]:
    """The lines of a manifest that are not of `dataset`; none where there is no manifest. Raises ConfigError."""
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.is_file() else []
    try:
        return [line for line in lines if line.strip() and json.loads(line)["dataset"] != dataset]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(manifest, "JSON lines with dataset", str(error), "mend it") from None


def read_drawn(files: CaseFiles) -> Mask:
    """The mask of a case as its file has it: classes and unsure values. Raises the errors of the readers."""
    assert files.mask is not None
    unsure = {f"unsure {value}": value for value in files.unsure}
    return replace(read_mask(files.mask, files.labels | unsure), labels=files.labels)


def read_scan(files: CaseFiles, plan: Plan) -> Volume:
    """The scan of a case with the channels that the plan has. Raises the errors of the readers."""
    volume = read_volume(files.image, files.modality)
    return add_channels(volume, plan.inputs) if plan.channels else volume


def load_case(files: CaseFiles, entry: DatasetEntry, plan: Plan) -> TrainingCase:
    """Read, resample and encode one case. Raises the errors of the readers, GridError for a mask on another grid."""
    volume = read_scan(files, plan)
    image, grid = preprocess(volume, plan)
    code_of, table = encoding(files, entry, plan)
    codes = np.zeros(grid.shape, dtype=np.uint8)
    if files.mask is not None and files.annotated:  # else what is drawn has no name here
        mask = read_drawn(files)
        require_same_grid(volume, mask)
        lookup = np.zeros(int(mask.array.max()) + 1, dtype=np.uint8)
        for value, code in code_of.items():
            lookup[value : value + 1] = code
        drawn = lookup[mask.array]
        if entry.lesion_free_outside:
            targets = read_mask(files.image.parent.parent / entry.lesion_free_outside / files.mask.name)
            require_same_grid(volume, targets)
            drawn[(drawn == 0) & (targets.array > 0)] = table.shape[1]
        ((drawn,), _) = oriented((drawn,), mask.grid, plan)
        codes = resample_labels(drawn[scan_box(volume, plan)], grid.shape)
    shown = [code for code in np.unique(codes).tolist() if code in code_of.values() and not table[code, 0]]
    places = {code: np.argwhere(codes == code).astype(np.int16) for code in shown}
    return TrainingCase(files, image.astype(np.float16), codes, table, places)


def encoding(files: CaseFiles, entry: DatasetEntry, plan: Plan) -> tuple[dict[int, int], np.ndarray]:
    """What each value of a case's mask becomes, and the (codes, classes) table of partial_labels.

    Codes: 0 for whatever else, 1 .. C the C classes of the plan, C + 1 background or a lesion that nobody outlined,
    above that the unions. Raises ConfigError for more than 256.
    """
    count = len(plan.classes) + 1
    maybe_lesion = count
    sets = [{0}, *({number} for number in range(1, count)), {0}]
    decided = {part for name in entry.absent for part in (name, *plan.regions.get(name, ()))}
    code_of: dict[int, int] = {}

    def ids(names: Iterable[str]) -> set[int]:
        """Class ids of names and regions, 0 for background and for what the plan does not know."""
        return {plan.labels.get(part, 0) for name in names for part in plan.regions.get(name, (name,))}

    def union(values: Iterable[int], classes: set[int]) -> None:
        code = next(iter(classes)) if len(classes) == 1 else len(sets)
        code_of.update(dict.fromkeys(values, code))
        if code == len(sets):
            sets.append(classes)

    if files.mask is not None:
        for name in files.annotated:
            decided |= {name, *plan.regions.get(name, ())}
            if name in files.labels:
                union([files.labels[name]], ids([name]))
        for name, parts in files.regions.items():  # of which the plan may have only the whole
            if name in plan.labels and set(parts) <= set(files.annotated):
                decided.add(name)
                union([files.labels[part] for part in parts], ids([name]))
        for value, names in files.unsure.items():
            leaves = [part for name in names for part in files.regions.get(name, (name,))]
            union([value], ids(leaves) if names else set(range(count)))
        if entry.lesion_free_outside:
            decided |= set(LESIONS)
    if len(sets) > 256:
        raise ConfigError(files.image, "at most 256 classes and unions of them", f"{len(sets)}", "train fewer")
    unknown = {plan.labels[name] for name in plan.classes if name not in decided}
    table = np.zeros((len(sets), count), dtype=bool)
    for code, classes in enumerate(sets):
        table[code, list(classes | unknown if 0 in classes else classes)] = True
    table[maybe_lesion, [plan.labels[name] for name in LESIONS if name in plan.labels]] = True
    return code_of, table


def read_split(path: str | Path, fold: int = 0) -> dict[str, list[str]]:
    """Read a split file: {"patients": {"validation": [patients], ...}}, or {"folds": [{"validation": ...}, ...]}, of
    which `fold` says which. Every patient not listed trains. Raises ConfigError.

    nnU-Net's splits_final.json, a list of {"train": [cases], "val": [cases]}, is read too, and only the cases under
    "training" train.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        listed = data if isinstance(data, list) else data.get("folds") or [data["patients"]]
        if fold < len(listed):
            if isinstance(data, list):
                return {"training": list(listed[fold]["train"]), "validation": list(listed[fold]["val"])}
            return {str(name): list(patients) for name, patients in listed[fold].items()}
        found = f"{len(listed)} folds" if isinstance(data, list) or "folds" in data else "one split"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(path, "a split file with `patients`", str(error), "see configs/split.json") from None
    raise ConfigError(path, f"a split file with fold {fold}, counted from 0", found, "set `fold` to one of them")


def split_cases(cases: list[CaseFiles], split: dict[str, list[str]], part: str) -> list[CaseFiles]:
    """The cases whose patient (or own name) is in `part`; "training" where not listed: those in no other part."""
    if part == "training" and part not in split:
        held = {patient for patients in split.values() for patient in patients}
        return [case for case in cases if case.patient not in held]
    listed = set(split.get(part, []))
    return [case for case in cases if {case.patient, case.case} & listed]
