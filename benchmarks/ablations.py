"""What each part of the model is worth: one command a row, one folder of tables each.

    python benchmarks/ablations.py question_only --data ../shared/data -o runs/ablations [--steps 60 150]

A row either trains a model of its own (`configs/vlm.yaml` with other `model:` settings, alignment then instruction;
each goes on where it was interrupted) or asks the weights that ship differently. Questions are about the validation
patients and, unless the row says otherwise, in held-out wordings, answered from the reference masks, so that no row is
better for its masks. `vlm evaluate answers` scores them beside the majority or median answer of training questions.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from validation import known_labels, run_vlm

DATASETS = ("Dataset101_HeadNeckCT", "Dataset102_SarcomaCT", "Dataset103_SarcomaMR")
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """model: settings of vlm.model.VlmConfig to train with; None asks the weights that ship.

    masks: answered from "reference" or "predicted" ones. wordings: "heldout" or "train". shuffled: with another
    patient's scan for every question.
    """

    about: str
    model: dict[str, Any] | None = None
    masks: str = "reference"
    wordings: str = "heldout"
    shuffled: bool = False


_TEXT: dict[str, Any] = {"answers": "text"}
ROWS = {
    "question_only": Row("text answers, no tokens of the scan", _TEXT | {"visual": False, "instances": False}),
    "text_visual": Row("text answers, visual tokens only", _TEXT | {"instances": False}),
    "text_instances": Row("text answers, instance tokens only", _TEXT | {"visual": False}),
    "text_both": Row("numbers written as text, all tokens", _TEXT),
    "heads_instances": Row("heads, no visual tokens", {"visual": False}),
    "heads_both": Row("heads, all tokens", {}),
    "perceiver": Row(
        "heads, 32 tokens of a perceiver over 96 cells", {"cells": [4, 4, 6], "perceiver": {"tokens": 32}}
    ),
    "lora_0": Row("heads, no adapter", {"lora_rank": 0}),
    "lora_2": Row("heads, LoRA rank 2", {"lora_rank": 2, "lora_alpha": 4}),
    "lora_32": Row("heads, LoRA rank 32", {"lora_rank": 32, "lora_alpha": 64}),
    "dora": Row("heads, DoRA rank 8", {"dora": True}),
    "shipped": Row("weights that ship"),
    "known_wordings": Row("weights that ship, wordings of training", wordings="train"),
    "predicted_masks": Row("weights that ship, predicted masks", masks="predicted"),
    "shuffled_images": Row("weights that ship, every question with another patient's scan", shuffled=True),
}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "; ".join(f"{name}: {row.about}" for name, row in ROWS.items())
    parser.add_argument("row", choices=ROWS, metavar="ROW", help=listed)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument(
        "--steps", type=int, nargs=2, metavar=("ALIGNMENT", "INSTRUCTION"), help="instead of those of configs/vlm.yaml"
    )
    parser.add_argument("--threads", type=int, help="of torch in training, instead of the file's")
    parser.add_argument("--per-case", type=int, default=6, help="questions a case")
    given = parser.parse_args()
    row, out = ROWS[given.row], given.output / given.row
    out.mkdir(parents=True, exist_ok=True)
    weights = "default" if row.model is None else train(row.model, given.data, out, given.steps, given.threads)
    questions, training = ask(row, given.data, given.output, given.per_case)
    answers = answer(row, weights, questions, given.data, out)
    scores = ("evaluate", "answers", answers, "--reference", questions, "--baseline-train", training)
    run_vlm(*scores, "-o", out / "scores")
    print(f"{given.row}: {row.about}\n{(out / 'scores' / 'table.md').read_text(encoding='utf-8')}")


def train(settings: dict[str, Any], data: Path, out: Path, steps: list[int] | None, threads: int | None) -> Path:
    """Alignment and instruction with these settings; the folder of the weights."""
    config = yaml.safe_load((REPOSITORY / "configs" / "vlm.yaml").read_text(encoding="utf-8"))
    config |= {"data": str(data), "split": str(REPOSITORY / "configs" / "split.json"), "model": settings}
    aligned, tuned = (out.parent / f"{out.name}_{stage}" for stage in ("alignment", "instruction"))  # share features
    config["alignment"] |= {"output": str(aligned)}
    config["instruction"] |= {"start": str(aligned / "model"), "output": str(tuned)}
    config |= {"threads": threads} if threads else {}
    for stage, number in zip(("alignment", "instruction"), steps or (), strict=False):
        config[stage]["steps"] = number
    file = out / "vlm.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    for stage in ("alignment", "instruction"):
        run_vlm("train", stage, "--config", file, "--resume")
    return tuned / "model"


def ask(row: Row, data: Path, out: Path, per_case: int) -> tuple[Path, Path]:
    """The files of validation and of training questions; the same for every row of the same wordings."""
    questions, training = out / f"questions_{row.wordings}.jsonl", out / "training_questions.jsonl"
    folders = [data / dataset for dataset in DATASETS]
    common = ("--split", REPOSITORY / "configs" / "split.json", "--per-case", per_case, "--seed", 7)
    for file, part, wordings in ((questions, "validation", row.wordings), (training, "training", "train")):
        if not file.is_file():
            run_vlm("data", "questions", *folders, "-o", file, *common, "--part", part, "--wordings", wordings)
    return questions, training


def answer(row: Row, weights: Path | str, questions: Path, data: Path, out: Path) -> Path:
    """The file of answers. With reference masks one run a dataset, since each has its own labels."""
    if row.shuffled:
        run_vlm("data", "shuffle", questions, "-o", out / "shuffled.jsonl")
        questions = out / "shuffled.jsonl"
    answers, parts = out / "answers.jsonl", []
    lines = questions.read_text(encoding="utf-8").splitlines()
    for dataset in DATASETS:
        mine, part = out / f"questions_{dataset}.jsonl", out / f"answers_{dataset}.jsonl"
        mine.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["dataset"] == dataset))
        masks = ("--masks", data / dataset / "labelsTr", "--labels", known_labels(data / dataset, out))
        given = masks if row.masks == "reference" else ()
        run_vlm("batch", mine, "-o", part, "--scans", data, "--model", weights, *given)
        parts.append(part.read_text(encoding="utf-8"))
    answers.write_text("".join(parts), encoding="utf-8")
    return answers


if __name__ == "__main__":
    main()
