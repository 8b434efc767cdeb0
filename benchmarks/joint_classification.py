"""The joint task of FLARE26 on real scans, end to end: a dataset with classes of whole scans, training, results.csv,
scores of the validation patients.

    python benchmarks/joint_classification.py --data ../shared/data -o runs/experiments/joint

1. OUT/Dataset201_Joint: scans of the datasets 101 to 103 under one numbering of labels, with `classification_labels`
   in dataset.json, cls_data.csv, splits_final.json (of configs/split.json) and a manifest. Its classes follow from what
   is known of each scan: modality and region from the manifest; the esophagus is in view where people drew it, out of
   view on limbs, and unknown else; a sarcoma is smaller or larger than the median of the training patients' masks.
2. `vlm train segmentation --config configs/experiments/joint.yaml`.
3. `vlm segment` on the validation patients writes masks and results.csv; `vlm evaluate classification` scores it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import numpy as np
from validation import run_vlm

from seg_backbone.cases import CaseFiles, list_cases, read_split
from seg_backbone.io import read_mask, write_mask
from seg_backbone.volume import Mask

ROOT = Path(__file__).parents[1]
NAME = "Dataset201_Joint"
HEAD, *SARCOMAS = "Dataset101_HeadNeckCT", "Dataset102_SarcomaCT", "Dataset103_SarcomaMR"
NOT_ON_LIMBS = ("brainstem", "parotid_right", "parotid_left", "esophagus", "larynx", "mandible")
TASKS = {
    "modality": ("CT", "MR"),
    "region": ("head and neck", "soft tissue"),
    "esophagus": ("out of view", "in view"),
    "tumour_size": ("smaller", "larger"),
}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--split", type=Path, default=ROOT / "configs" / "split.json")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/experiments/joint"))
    given = parser.parse_args()
    folder, out = given.output / NAME, given.output
    if not (folder / "cls_data.csv").is_file():
        prepare(given.data, set(read_split(given.split)["validation"]), folder)
    train = ("train", "segmentation", "--config", ROOT / "configs" / "experiments" / "joint.yaml", "--resume")
    run_vlm(*train, "--data", out, "-o", out / "run")
    held = set(json.loads((folder / "splits_final.json").read_text())[0]["val"])
    scans = [folder / "imagesTr" / f"{case}_0000.nii.gz" for case in sorted(held)]
    run_vlm("segment", *scans, "-o", out / "masks", "--model", out / "run" / "model", "--report", out / "report.json")
    with (folder / "cls_data.csv").open(newline="") as file, (out / "reference.csv").open("w", newline="") as kept:
        rows = csv.DictReader(file)
        writer = csv.DictWriter(kept, rows.fieldnames or ())
        writer.writeheader()
        writer.writerows(row for row in rows if row["identifier"] in held)
    where = ("--reference", out / "reference.csv", "--labels", folder / "dataset.json", "-o", out / "scores")
    run_vlm("evaluate", "classification", out / "masks" / "results.csv", *where)


def prepare(data: Path, held: set[str], folder: Path) -> None:
    """Write the dataset, cls_data.csv last. held: the patients that validate."""
    organs = list_cases(data, HEAD)
    labels = organs[0].labels | {"tumour": max(organs[0].labels.values()) + 1}
    volumes, manifest, rows, parts = {}, [], [], {"train": [], "val": []}
    cases = [
        (f"{dataset[7:10]}_{files.case}", files) for dataset in (HEAD, *SARCOMAS) for files in list_cases(data, dataset)
    ]
    for name, files in cases:
        _place(files, name, folder, labels, volumes)
        known = list(files.annotated) if files.dataset == HEAD else ["tumour", *NOT_ON_LIMBS]
        manifest.append(
            {
                "dataset": folder.name,
                "case": name,
                "patient": files.patient,
                "modality": files.modality,
                "region": files.region,
                "annotated": known,
            }
        )
        parts["val" if files.patient in held else "train"].append(name)
    median = np.median([volumes[name] for name in parts["train"] if name in volumes])
    for name, files in cases:
        head = files.dataset == HEAD
        drawn = "in view" if "esophagus" in files.annotated else ""
        size = "" if head else "larger" if volumes[name] > median else "smaller"
        rows.append([name, files.modality, files.region, drawn if head else "out of view", size])
    classes = {task: {str(n): name for n, name in enumerate(names)} for task, names in TASKS.items()}
    description = {"labels": {"background": 0, **labels}, "channel_names": {"0": "CT"}, "numTraining": len(cases)}
    (folder / "dataset.json").write_text(json.dumps(description | {"classification_labels": classes}, indent=1))
    (folder / "splits_final.json").write_text(json.dumps([parts]))
    (folder.parent / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in manifest))
    with (folder / "cls_data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["identifier", *TASKS], *rows])
    print(f"{len(cases)} cases in {folder}; a tumour above {median:.0f} ml is a larger one", flush=True)


def _place(files: CaseFiles, name: str, folder: Path, labels: dict[str, int], volumes: dict[str, float]) -> None:
    """Link a scan; link its mask, or write it with the value of tumour here, whose ml go into `volumes`."""
    image, mask = folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz"
    for target, source in ((image, files.image), (mask, files.mask)):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        assert source is not None, f"{name} has no mask"
        if target == image or files.dataset == HEAD:
            os.symlink(source.resolve(), target)
            continue
        drawn = read_mask(source, files.labels)
        tumour = drawn.of("tumour")
        volumes[name] = float(tumour.sum() * drawn.grid.voxel_volume_ml)
        write_mask(Mask((tumour * labels["tumour"]).astype(np.uint8), drawn.grid, labels), target)


if __name__ == "__main__":
    main()
