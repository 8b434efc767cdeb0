"""Time and peak memory of `vlm evaluate answers` on a million generated answers of all types.

    python benchmarks/answers.py -n 1000000 -o runs/answers

Half of the answers are structured, as `vlm batch` writes them, half are texts as other models write them. Half a per
cent of the questions have no answer, as many are unscored, and 5 % abstain. The child's peak resident memory is the
kernel's figure (getrusage), its processor time the sum over all threads and processes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ORGANS = ("liver", "spleen", "left kidney", "right kidney", "pancreas", "gallbladder", "stomach", "aorta")
WORDS = ("mass", "lesion", "tumour", "in", "the", "left", "right", "lobe", "with", "necrosis", "no", "fluid", "near")
TYPES = ("classification", "classification", "multilabel", "counting", "measurement", "regression", "detection", "open")


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=1_000_000, help="answers")
    parser.add_argument("--per-patient", type=int, default=10, help="questions a patient")
    parser.add_argument("--type", choices=sorted(set(TYPES)), help="one type alone")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/answers"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    questions, answers = given.output / "questions.jsonl", given.output / "answers.jsonl"
    with questions.open("w") as asked, answers.open("w") as said:
        for question, answer in generate(given.n, given.per_patient, given.type):
            asked.write(json.dumps(question) + "\n")
            if answer is not None:
                said.write(json.dumps(answer) + "\n")
    start = time.perf_counter()
    command = ["evaluate", "answers", answers, "--reference", questions, "-o", given.output / "scores"]
    subprocess.run([sys.executable, "-m", "vlm.cli", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = {
        "answers": given.n,
        "type": given.type or "all",
        "wall_seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024),
        "cores": len(os.sched_getaffinity(0)),
    }
    (given.output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def generate(count: int, per_patient: int, only: str | None) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """(question with its reference, answer or None) `count` times; the same for every run."""
    draw = random.Random(0)
    for number in range(count):
        kind = only or TYPES[number % len(TYPES)]
        patient = f"p{number // per_patient}"
        question = {
            "id": f"q{number}", "image": f"{patient}/ct.nii.gz", "question": "What is there?", "type": kind,
            "patient": patient, "region": draw.choice(("abdomen", "chest", "head and neck")),
            "modality": draw.choice(("CT", "MR")), "source": draw.choice(("one", "two")), "dataset": f"d{number % 7}",
        }  # fmt: skip
        fields, text = _content(draw, kind, question)
        chance = draw.random()
        answer: dict[str, Any] | None = {"id": question["id"], "type": kind, "text": text, "model": "generated"}
        assert answer is not None
        if chance < 0.005:
            answer = None
        elif chance < 0.01:
            answer["unscored"] = "file is broken"
        elif chance < 0.06:
            answer |= {"abstained": True, "reason": "outside the scan"}
        elif chance < 0.53:
            answer |= fields | {"confidence": round(draw.random(), 4), "evidence": [], "abstained": False}
        yield question, answer


def _content(draw: random.Random, kind: str, question: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Put the reference into the question; return the answer's fields and its text."""
    if kind == "classification":
        options = ["yes", "no"] if draw.random() < 0.5 else draw.sample(ORGANS, 4)
        question |= {"options": options, "answer": draw.choice(options)}
        choice = question["answer"] if draw.random() < 0.7 else draw.choice(options)
        letter = "ABCD"[options.index(choice)]
        text = draw.choice((choice, f"The answer is ({letter}).", f"{letter}. {choice}", f"It is the {choice}."))
        return {"choice": choice}, text
    if kind == "multilabel":
        options = draw.sample(ORGANS, 5)
        question |= {"options": options, "answer": draw.sample(options, draw.randint(0, 3))}
        chosen = draw.sample(options, draw.randint(0, 3))
        return {"choices": chosen}, "; ".join(chosen) or "None of them."
    if kind == "counting":
        question |= {"answer": draw.randint(0, 9)}
        value = question["answer"] + draw.choice((0, 0, 0, 1, -1, 4))
        return {"value": max(0, value)}, f"There are {max(0, value)} lesions." if value > 0 else "No lesions."
    if kind in ("measurement", "regression"):
        question |= {"unit": "mm" if kind == "measurement" else "HU", "answer": round(draw.uniform(5, 200), 2)}
        value = round(question["answer"] * draw.gauss(1, 0.1), 2)
        text = f"It measures {value / 10:.2f} cm." if kind == "measurement" else f"About {value} Hounsfield units"
        return {"value": value, "unit": question["unit"]}, text
    if kind == "detection":
        boxes = [_box(draw, [draw.uniform(-200, 200) for _ in range(3)], 40) for _ in range(draw.randint(0, 3))]
        question |= {"answer": boxes}
        found = [_box(draw, [v + draw.gauss(0, 5) for v in box["min_mm"]], 40) for box in boxes[: draw.randint(0, 3)]]
        found += [_box(draw, [draw.uniform(-200, 200) for _ in range(3)], 30) for _ in range(draw.randint(0, 1))]
        found = [{**box, "score": round(draw.random(), 3)} for box in found]
        return {"boxes": found}, json.dumps([[*box["min_mm"], *box["max_mm"]] for box in found])
    question |= {"answer": " ".join(draw.choices(WORDS, k=draw.randint(4, 20)))}
    return {}, " ".join(draw.choices(WORDS, k=draw.randint(4, 20)))


def _box(draw: random.Random, low: list[float], size: float) -> dict[str, Any]:
    low = [round(value, 1) for value in low]
    return {"label": "tumour", "min_mm": low, "max_mm": [round(v + size * draw.uniform(0.8, 1.2), 1) for v in low]}


if __name__ == "__main__":
    main()
