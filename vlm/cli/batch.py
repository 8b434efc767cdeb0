"""`vlm batch QUESTIONS.jsonl -o ANSWERS.jsonl`: every question of a file, resumable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def batch(
    questions: Annotated[Path, typer.Argument(help="JSONL, one question a line")],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSONL to write; an existing one is gone on with")],
    scans: Annotated[Path | None, typer.Option(help="folder that `image` is relative to")] = None,
    masks: Annotated[Path | None, typer.Option(help="folder of CASE.nii.gz (.nrrd, .mha) to answer from")] = None,
    labels: Annotated[Path | None, typer.Option(help="dataset.json or name -> id JSON of the masks")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N questions of the file")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="part I of N, whole scans together, shared out by work")
    ] = None,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="start over")] = False,
    no_image: Annotated[bool, typer.Option("--no-image", help="the language model alone, as a baseline")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="fewer overlapping windows")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave faulty questions out and say which")] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="this machine, or a Ray cluster (one is started if none is there)")
    ] = "local",
    cpus_per_worker: Annotated[
        int, typer.Option(min=1, help="with --engine ray where there is no GPU: cores of each worker")
    ] = 4,
    model: Annotated[str, typer.Option(help="a model that ships, or a folder")] = "default",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="print the summary as JSON")] = False,
) -> None:
    """Answer every question of a file, each scan opened once. ANSWERS.manifest.json says what gave the answers.

    A second run answers what is missing and tries the unscored again.
    """
    import json as encoder
    import shlex
    from functools import partial

    from seg_backbone.errors import ConfigError, QuestionError
    from seg_backbone.labels import read_labels
    from vlm.cli.progress import bar
    from vlm.infer.batch import Files, Loader, answer_here, run_batch
    from vlm.infer.index import index_questions
    from vlm.infer.manifest import Manifest

    for folder, flag in ((scans, "--scans"), (masks, "--masks")):
        if folder is not None and not folder.is_dir():
            raise QuestionError(folder, f"a folder for {flag}", "none", "check the path")
    if output.exists() and questions.exists() and output.samefile(questions):
        raise ConfigError(output, "a file of its own for the answers", "the questions", "name another file")
    # every line is checked before the models load
    index = index_questions(questions, skip_bad, limit)
    if shard:
        index = index.shard(*_shard(shard))
    for fault in index.faults.values():
        typer.echo(f"left out: {fault}", err=True)
    load = Loader(model, device, no_image)
    files = Files(scans or questions.parent, masks, read_labels(labels) if labels else None, fast)
    runner = partial(answer_here, load, files)
    if engine == "ray":
        from vlm.infer.distributed import answer_on_ray

        runner = partial(answer_on_ray, load, files, cpus_per_worker)
    manifest = Manifest(
        output,
        questions,
        model=load.identity(),
        settings={"masks": masks and str(masks.resolve()), "labels": files.labels, "fast": fast},
        run={"command": shlex.join(["vlm", *sys.argv[1:]]), "engine": engine, "shard": index.part, "limit": limit},
    )
    with bar("answering") as progress:
        result = run_batch(runner, index, output, not no_resume, manifest, progress)
    if json:
        typer.echo(encoder.dumps(result.__dict__))
    else:
        done = f"{result.answered} answered, {result.abstained} abstained, {result.unscored} unscored"
        left_out = f", {len(index.faults)} left out (line {', '.join(map(str, index.faults))})" if index.faults else ""
        typer.echo(f"{done}, {result.kept} kept from before{left_out}: {output}")
    raise typer.Exit(1 if result.unscored else 0)


def _shard(text: str) -> tuple[int, int]:
    """ "2/8" -> (2, 8)."""
    from seg_backbone.errors import ConfigError

    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ConfigError("--shard", "I/N, such as 2/8", repr(text), "correct it")
    return int(number), int(count)
