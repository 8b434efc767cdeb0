"""`vlm batch QUESTIONS.jsonl -o ANSWERS.jsonl`: every question of a file, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def batch(
    questions: Annotated[Path, typer.Argument(help="JSONL, one question a line")],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSONL to write; an existing one is gone on with")],
    scans: Annotated[Path | None, typer.Option(help="folder that `image` is relative to")] = None,
    masks: Annotated[Path | None, typer.Option(help="folder of CASE.nii.gz (.nrrd, .mha) to answer from")] = None,
    labels: Annotated[Path | None, typer.Option(help="dataset.json or name -> id JSON of the masks")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N questions")] = None,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="start over")] = False,
    no_image: Annotated[bool, typer.Option("--no-image", help="the language model alone, as a baseline")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="fewer overlapping windows")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave faulty questions out and say which")] = False,
    engine: Annotated[str, typer.Option(help="where to run: local")] = "local",
    model: Annotated[str, typer.Option(help="a model that ships, or a folder")] = "default",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Answer every question of a file."""
    import json as encoder

    from seg_backbone.errors import ConfigError, QuestionError
    from seg_backbone.labels import read_labels
    from vlm.cli.progress import bar
    from vlm.infer.batch import good_questions, run_batch

    if engine != "local":
        raise ConfigError("--engine", "local", repr(engine), "leave it out")
    for folder, flag in ((scans, "--scans"), (masks, "--masks")):
        if folder is not None and not folder.is_dir():
            raise QuestionError(folder, f"a folder for {flag}", "none", "check the path")
    # every line is checked before the models load
    _, faults = good_questions(questions, skip_bad)
    for fault in faults.values():
        typer.echo(f"left out: {fault}", err=True)
    names = read_labels(labels) if labels else None
    runner: object
    if no_image:
        from vlm.infer.blind import BlindEngine

        runner = BlindEngine()
    else:
        from vlm.infer.engine import Engine

        runner = Engine.load(model, device)
    with bar("answering") as progress:
        result = run_batch(
            runner,  # type: ignore[arg-type]
            questions,
            output,
            scans,
            masks,
            names,
            limit,
            resume=not no_resume,
            fast=fast,
            progress=progress,
            skip_bad=skip_bad,
        )
    if json:
        typer.echo(encoder.dumps(result.__dict__))
    else:
        left_out = f", {len(faults)} left out (line {', '.join(map(str, faults))})" if faults else ""
        kept = f"{result.answered} answered, {result.kept} kept from before, {result.unscored} unscored"
        typer.echo(f"{kept}{left_out}: {output}")
    raise typer.Exit(1 if result.unscored else 0)
