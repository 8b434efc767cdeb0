"""What `make demo` runs: a real CT in, its mask, an overlay, five answers with evidence and a JSON report out."""

from __future__ import annotations

import json
import time
from pathlib import Path

from seg_backbone.io import write_mask
from seg_backbone.preview import write_preview
from vlm import Engine
from vlm.cli.show import evidence_lines

HERE = Path(__file__).parent
SCANS = {
    "sarcoma": HERE / "scans/Dataset102_SarcomaCT/imagesTr/sarc_001_0000.nii.gz",
    "head_and_neck": HERE / "scans/Dataset101_HeadNeckCT/imagesTr/hn_019_0000.nii.gz",
}
QUESTIONS = (
    ("sarcoma", "classification", "Is there a tumour in this scan?", ("yes", "no")),
    ("sarcoma", "detection", "Where is the tumour?", ()),
    ("sarcoma", "counting", "How many tumours are there?", ()),
    ("sarcoma", "measurement", "What is the longest axial diameter of the tumour?", ()),
    ("sarcoma", "regression", "What percentage of the body is fat?", ()),
    ("head_and_neck", "measurement", "What is the volume of the left parotid gland?", ()),
)


def main(out: Path = Path("demo-output")) -> None:
    """Write OUT/NAME.nii.gz, OUT/NAME.png and OUT/report.json, and print the answers."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    print("Loading the models (the language model is fetched once, 98 MB) ...")
    engine = Engine.load("default")
    opened, report = {}, {"scans": {}, "answers": []}
    for name, path in SCANS.items():
        scan = opened[name] = engine.open(path)
        write_mask(scan.mask, out / f"{name}.nii.gz")
        write_preview(scan.volume, scan.mask, scan.instances, out / f"{name}.png")
        report["scans"][name] = scan.segmentation.report | {"source": path.name}
        found = ", ".join(f"{i.label} {i.volume_ml:.1f} ml" for i in scan.instances)
        print(f"\n{name} ({path.name}): {found or 'nothing found'}")
    (out / "labels.json").write_text(json.dumps(engine.segmenter.plan.labels, indent=1) + "\n")
    print()
    for name, kind, question, options in QUESTIONS:
        answer = engine.ask(opened[name], question, kind, options)
        report["answers"].append({"scan": name, "question": question} | answer.to_json())
        print(f"{kind:>14} | {question}\n{'':>14} | {answer.text}")
        for line in evidence_lines(answer):
            print(f"{'':>14} |   {line}")
    report["seconds"] = round(time.perf_counter() - started, 1)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{report['seconds']} s. Masks, overlays and report.json are in {out}/")


if __name__ == "__main__":
    main()
