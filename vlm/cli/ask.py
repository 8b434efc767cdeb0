"""`vlm ask SCAN "question"`: one answer with its evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def ask(
    scan: Annotated[Path, typer.Argument(help="NIfTI, NRRD or MetaImage file, DICOM folder or zip")],
    question: Annotated[str, typer.Argument(help="the question, in quotes")],
    type: Annotated[str | None, typer.Option("--type", help="kind of answer; without it the model decides")] = None,
    options: Annotated[str, typer.Option(help='choices, separated by semicolons: "a;b;c"')] = "",
    json: Annotated[bool, typer.Option("--json", help="print the answer as JSON")] = False,
    save: Annotated[Path | None, typer.Option(help="folder for answer.json, the mask and an overlay")] = None,
    mask: Annotated[
        Path | None, typer.Option(help="answer from this label map, RTSTRUCT or DICOM-SEG instead of the model's")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="dataset.json or name -> id JSON of the mask")] = None,
    model: Annotated[str, typer.Option(help="a model that ships, or a folder")] = "default",
    modality: Annotated[str | None, typer.Option(help="CT or MR; guessed without it")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Ask one question about a scan."""
    from seg_backbone.io import read_volume
    from seg_backbone.labels import read_labels
    from vlm.cli.show import print_answer, save_answer
    from vlm.infer.engine import Engine
    from vlm.schema import Question, check_type

    check_type(type, "--type")
    choices = tuple(option.strip() for option in options.split(";") if option.strip())
    asked = Question.from_json({"id": "question", "image": str(scan), "question": question, "type": type}, "question")
    asked = Question(asked.id, asked.image, asked.question, type, choices)
    names = read_labels(labels) if labels else None
    volume = read_volume(scan, modality)  # before the models load: a wrong path is told at once
    engine = Engine.load(model, device)
    opened = engine.open(volume, mask, names)
    answer = engine.ask(opened, asked)
    if save:
        save_answer(opened, answer, save)
    print_answer(answer, json)
