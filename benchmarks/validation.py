"""Every figure of the README, from the shipped weights and the validation patients: one command, one folder of tables.

    python benchmarks/validation.py --data ../shared/data -o runs/validation

1. `vlm segment` on the validation scans, `vlm evaluate masks` per dataset (protocol `corrected`).
2. `vlm data questions` (held-out wordings), `vlm batch` with predicted masks, with the reference masks and without the
   image, `vlm evaluate answers` with the majority or median answer of the training questions beside them.
3. Tumour voxels predicted where there should be none: head-and-neck scans outside the planning target volumes, and the
   torso CT (held apart, never trained on).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

from seg_backbone.cases import list_cases, read_split, split_cases
from seg_backbone.io import read_mask

DATASETS = ("Dataset101_HeadNeckCT", "Dataset102_SarcomaCT", "Dataset103_SarcomaMR")
NEGATIVES = ("Dataset105_Torso",)


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--split", type=Path, default=Path("configs/split.json"))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/validation"))
    parser.add_argument("--per-case", type=int, default=6, help="questions a case")
    parser.add_argument("--no-image-limit", type=int, default=100, help="questions for the model without the image")
    parser.add_argument("--only", choices=("masks", "answers"), help="one half")
    parser.add_argument("--model", default="default", help="segmentation model whose masks are scored")
    given = parser.parse_args()
    if given.only != "answers":
        masks(given.data, given.split, given.output, given.model)
    if given.only != "masks":
        answers(given.data, given.split, given.output, given.per_case, given.no_image_limit)


def masks(data: Path, split: Path, out: Path, model: str) -> None:
    """Segment, score, and count tumour false positives."""
    table = read_split(split)
    for dataset in (*DATASETS, *NEGATIVES):
        part = "validation" if dataset in DATASETS else "evaluation"
        cases = split_cases(list_cases(data, dataset), table, part)
        written = ("-o", out / "masks" / dataset, "--report", out / f"{dataset}.json")
        run_vlm("segment", *(case.image for case in cases), *written, "--model", model)
        if dataset not in DATASETS:
            continue
        reference = out / "reference" / dataset
        reference.mkdir(parents=True, exist_ok=True)
        for case in cases:
            link = reference / f"{case.case}.nii.gz"
            if case.mask is not None and not link.exists():
                link.symlink_to(case.mask.resolve())
        labels = ("--labels", data / dataset / "dataset.json", "--manifest", data / "manifest.jsonl", "--allow-missing")
        where = ("evaluate", "masks", out / "masks" / dataset, reference)
        run_vlm(*where, "--protocol", "corrected", *labels, "-o", out / "scores" / dataset)
    false_positives(data, split, out)


def false_positives(data: Path, split: Path, out: Path) -> None:
    """Millilitres of predicted tumour where none can be; a table on stdout and false_positives.json."""
    rows = []
    for dataset in ("Dataset101_HeadNeckCT", *NEGATIVES):
        labels = json.loads((out / "masks" / dataset / "labels.json").read_text())
        for path in sorted((out / "masks" / dataset).glob("*.nii.gz")):
            mask = read_mask(path, labels)
            tumour = mask.of("tumour")
            targets = data / dataset / "targetsTr" / path.name
            if targets.is_file():
                tumour &= read_mask(targets).array == 0
            rows.append({"dataset": dataset, "case": path.name, "ml": float(tumour.sum() * mask.grid.voxel_volume_ml)})
    (out / "false_positives.json").write_text(json.dumps(rows, indent=1) + "\n")
    for dataset in ("Dataset101_HeadNeckCT", *NEGATIVES):
        volumes = [row["ml"] for row in rows if row["dataset"] == dataset]
        clean = sum(v == 0 for v in volumes)
        print(f"{dataset}: {clean} of {len(volumes)} scans without false tumour, median {np.median(volumes):.1f} ml")


def answers(data: Path, split: Path, out: Path, per_case: int, no_image_limit: int) -> None:
    """Generate, answer three ways, score beside two baselines."""
    folders = [data / dataset for dataset in DATASETS]
    common = ("--split", split, "--per-case", per_case, "--seed", 7)
    questions, training = out / "questions.jsonl", out / "training_questions.jsonl"
    run_vlm("data", "questions", *folders, "-o", questions, *common, "--part", "validation", "--wordings", "heldout")
    run_vlm("data", "questions", *folders, "-o", training, *common, "--part", "training", "--wordings", "train")
    run_vlm("batch", questions, "-o", out / "answers.jsonl", "--scans", data)
    compare = []
    for dataset in DATASETS:  # one labels file a dataset, so one run each
        mine = out / f"questions_{dataset}.jsonl"
        rows = [line for line in questions.read_text().splitlines() if json.loads(line)["dataset"] == dataset]
        mine.write_text("\n".join(rows) + "\n")
        given = ("--masks", data / dataset / "labelsTr", "--labels", known_labels(data / dataset, out))
        run_vlm("batch", mine, "-o", out / f"reference_{dataset}.jsonl", "--scans", data, *given)
    with (out / "answers_reference_masks.jsonl").open("w") as joined:
        joined.writelines((out / f"reference_{dataset}.jsonl").read_text() for dataset in DATASETS)
    compare += ["--compare", f"reference masks={out / 'answers_reference_masks.jsonl'}"]
    few = out / "questions_no_image.jsonl"
    rows = questions.read_text().splitlines()
    few.write_text("\n".join(rows[:: max(1, len(rows) // no_image_limit)]) + "\n")
    run_vlm("batch", few, "-o", out / "answers_no_image.jsonl", "--no-image")
    for reference, name, more in (
        (questions, "all", compare),
        (few, "no_image", ["--compare", f"no image={out / 'answers_no_image.jsonl'}"]),
    ):
        what = ("evaluate", "answers", out / "answers.jsonl", "--reference", reference)
        run_vlm(*what, "-o", out / "scores" / f"answers_{name}", "--baseline-train", training, *more)


def known_labels(dataset: Path, out: Path) -> Path:
    """A labels file of the reference masks: the classes of a dataset, and those that its body region cannot contain,
    which configs/vlm.yaml calls `absent`, with ids that no voxel has."""
    labels = json.loads((dataset / "dataset.json").read_text())["labels"]
    entries = yaml.safe_load((Path(__file__).parents[1] / "configs" / "vlm.yaml").read_text())["datasets"]
    absent = next(entry.get("absent", ()) for entry in entries if entry["name"] == dataset.name)
    file = out / f"labels_{dataset.name}.json"
    file.write_text(json.dumps(labels | dict(zip(absent, range(len(labels), 256), strict=False)), indent=1) + "\n")
    return file


def run_vlm(*words: object) -> None:
    """`vlm WORDS`; ends this program where that is refused."""
    command = [sys.executable, "-m", "vlm.cli", *map(str, words)]
    print("$ vlm", *map(str, words[:2]), "...", flush=True)
    if subprocess.run(command).returncode == 2:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
