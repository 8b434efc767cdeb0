"""`vlm info SCAN`: what a scan is, and what a model can find in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def info(
    scan: Annotated[Path, typer.Argument(help="NIfTI, NRRD or MetaImage file, DICOM folder or zip.")],
    model: Annotated[str, typer.Option(help="A segmentation model that ships, or a model folder.")] = "default",
    modality: Annotated[Literal["CT", "MR"] | None, typer.Option(help="Guessed without it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a scan's grid, modality and values, and what the model can find in it."""
    import json

    from seg_backbone.checkpoint import PLAN, find_model
    from seg_backbone.io import read_volume
    from seg_backbone.plan import Plan

    volume = read_volume(scan, modality)
    plan = Plan.read(find_model(model) / PLAN)
    grid, trained = volume.grid, plan.trained_on.get(volume.modality, ())
    facts: dict[str, Any] = {
        "scan": str(scan),
        "shape": list(grid.shape),
        "spacing_mm": [round(float(step), 4) for step in grid.spacing_mm],
        "size_mm": [round(float(step * count), 1) for step, count in zip(grid.spacing_mm, grid.shape, strict=True)],
        "orientation": grid.orientation,
        "modality": volume.modality,
        "modality_from": volume.modality_from,
        "values": [volume.array.min().item(), volume.array.max().item()],
        "model": plan.name,
        "can_find": [name for name in plan.classes if name in trained],
        "not_trained_for": [name for name in plan.classes if name not in trained],
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    unit = " HU" if volume.modality == "CT" else ""
    print(f"{scan}: {facts['modality']} ({facts['modality_from']})")
    print(f"  shape        {_by(facts['shape'])} voxels, axes toward {grid.orientation}")
    print(f"  spacing      {_by(facts['spacing_mm'])} mm")
    print(f"  size         {_by(facts['size_mm'])} mm")
    print(f"  values       {facts['values'][0]:g} to {facts['values'][1]:g}{unit}")
    print(f"  {plan.name} finds: {', '.join(facts['can_find']) or 'nothing, it was not trained on this modality'}")


def _by(numbers: list[float]) -> str:
    return " x ".join(f"{number:g}" for number in numbers)
