"""How answers look on the terminal and on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from vlm.infer.engine import Scan
    from vlm.schema import Answer


def print_answer(answer: Answer, as_json: bool = False) -> None:
    """The sentence, then one line an evidence; or the JSON object."""
    if as_json:
        typer.echo(json.dumps(answer.to_json()))
        return
    typer.echo(answer.text)
    for line in evidence_lines(answer):
        typer.echo(f"  {line}")


def evidence_lines(answer: Answer) -> list[str]:
    """One line an instance, in millimetres, and the confidence."""
    lines = []
    for item in answer.evidence:
        centre = ", ".join(f"{c:.0f}" for c in item["center_mm"])
        lines.append(
            f"#{item['instance']} {item['label']}: {item['volume_ml']:.1f} ml, "
            f"{item['long_axis_mm']:.1f} x {item['short_axis_mm']:.1f} mm, "
            f"centre ({centre}) mm, axial slice {item['slice']['index']}"
        )
    if not answer.abstained:
        lines.append(f"confidence {answer.confidence:.2f} ({answer.type})")
    return lines


def save_answer(scan: Scan, answer: Answer, folder: Path) -> None:
    """answer.json, mask.nii.gz with labels.json, overlay.png. Raises ConfigError where the folder cannot be made."""
    from seg_backbone.errors import ConfigError
    from seg_backbone.io import write_mask
    from seg_backbone.preview import write_preview

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = error.strerror or str(error)
        raise ConfigError(folder, "a folder to write to", found, "name another one") from None
    write_mask(scan.mask, folder / "mask.nii.gz")
    write_json(scan.mask.labels, folder / "labels.json")
    write_preview(scan.volume, scan.mask, scan.instances, folder / "overlay.png")
    write_json(answer.to_json(), folder / "answer.json")


def write_json(data: Any, path: Path) -> None:
    """Indented JSON, written whole or not at all."""
    from seg_backbone.io import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
