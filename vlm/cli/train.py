"""`vlm train segmentation|gate|encoder|alignment|instruction --config FILE`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Train a stage; each goes on where it was interrupted with --resume.", no_args_is_help=True)
Config = Annotated[Path, typer.Option("--config", help="YAML, see configs/")]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint")]
Data = Annotated[Path | None, typer.Option("--data", help="folder of nnU-Net raw datasets, instead of the file's")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="run folder, instead of the file's")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="steps, instead of the file's")]


@app.command()
def segmentation(
    config: Config, resume: Resume = False, data: Data = None, output: Output = None, steps: Steps = None
) -> None:
    """Mask network on nnU-Net raw data with per-case partial labels.

    Several GPUs: accelerate launch -m vlm.cli train segmentation ...
    """
    from seg_backbone.train import SegmentationConfig, train_segmentation

    settings = SegmentationConfig.read(config, data=data, output=output, steps=steps)
    refuse_faults(settings.data / entry.name for entry in settings.datasets)
    _run(train_segmentation, settings, resume)


@app.command()
def gate(config: Config, resume: Resume = False, data: Data = None, output: Output = None, steps: Steps = None) -> None:
    """Classifier of windows for a segmentation model: --fast skips those that it finds empty."""
    from seg_backbone.train.gate import GateConfig, train_gate

    settings = GateConfig.read(config, data=data, output=output, steps=steps)
    refuse_faults(settings.training.data / entry.name for entry in settings.training.datasets)
    _run(train_gate, settings, resume)


@app.command()
def encoder(
    config: Config, resume: Resume = False, data: Data = None, output: Output = None, steps: Steps = None
) -> None:
    """Vision transformer for `encoder: vit`, from scratch and without labels."""
    from vlm.train.encoder import EncoderConfig, train_encoder

    settings = EncoderConfig.read(config, data=data, output=output, steps=steps)
    _run(train_encoder, settings, resume)


@app.command()
def alignment(
    config: Config, resume: Resume = False, data: Data = None, output: Output = None, steps: Steps = None
) -> None:
    """Projector and heads, language model frozen.

    Several GPUs: accelerate launch --config_file configs/accelerate/ddp.yaml -m vlm.cli train alignment ...
    """
    from vlm.train.align import train_alignment
    from vlm.train.config import StageConfig

    settings = StageConfig.read(config, "alignment", data=data, output=output, steps=steps)
    _run(train_alignment, settings, resume)


@app.command()
def instruction(
    config: Config,
    resume: Resume = False,
    data: Data = None,
    output: Output = None,
    steps: Steps = None,
    start: Annotated[Path | None, typer.Option(help="aligned weights, instead of the file's")] = None,
) -> None:
    """LoRA, projector and heads.

    Several GPUs: accelerate launch --config_file configs/accelerate/ddp.yaml -m vlm.cli train instruction ...
    """
    from vlm.train.config import StageConfig
    from vlm.train.instruct import train_instruction

    settings = StageConfig.read(config, "instruction", data=data, output=output, steps=steps, start=start)
    _run(train_instruction, settings, resume)


def refuse_faults(folders: Iterable[Path]) -> None:
    """List what is wrong with datasets as far as it is seen without reading a voxel; leave with 2 if anything is."""
    from vlm.data.check import find_cheap_faults

    if faults := [fault for folder in folders for fault in find_cheap_faults(folder)]:
        if _is_first_process():
            lines = [" ".join(fault.splitlines()) for fault in faults]  # names of files may hold line breaks
            typer.echo("\n".join([*lines, "`vlm data check DATASET` looks into the voxels too"]), err=True)
        raise typer.Exit(2)


def _run(train: Any, settings: Any, resume: bool) -> None:
    import json
    import sys

    from seg_backbone.io import require_writable
    from vlm.cli.progress import stages

    own = getattr(settings, "training", settings)
    for folder in filter(None, (own.output, getattr(own, "cache", None))):
        require_writable(folder)

    def report(row: dict[str, Any]) -> None:
        if not sys.stderr.isatty():
            typer.echo(json.dumps(row), err=True)
        for one in row.get("samples", ()) if sys.stderr.isatty() else ():  # above the bar
            typer.echo(f"{one['question']}\n    {one['answer']} (reference: {one['reference']})", err=True)

    with stages() as progress:
        try:
            folder = train(settings, resume=resume, report=report, progress=progress)
        except KeyboardInterrupt:
            typer.echo("interrupted; --resume goes on from the last checkpoint, if there is one", err=True)
            raise
    if _is_first_process():
        typer.echo(folder)


def _is_first_process() -> bool:
    """True but in the further processes of `accelerate launch`."""
    import os

    return os.environ.get("RANK", "0") == "0"
