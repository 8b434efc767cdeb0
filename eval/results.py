"""Scores on disk: JSON for programs, CSV for a closer look, markdown for people."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any, Protocol

from eval.tables import Table, markdown
from seg_backbone.io.atomic import replacing

FILES = ("metrics.json", "per_case.csv", "table.md")


class Results(Protocol):
    """What every kind of result offers."""

    def metrics(self) -> dict[str, Any]: ...

    def rows(self) -> list[dict[str, Any]]: ...

    def tables(self) -> list[Table]: ...


def write_results(results: Results, out_dir: str | Path, names: tuple[str, str, str] = FILES) -> list[Path]:
    """Write metrics, rows and tables to OUT under the three names, each atomically. Returns the three paths."""
    texts = (metrics_json(results), _csv(results.rows()), markdown(results.tables()))
    paths = [Path(out_dir) / name for name in names]
    for path, text in zip(paths, texts, strict=True):
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return paths


def metrics_json(results: Results) -> str:
    """The metrics as strict JSON: a value that is not a number becomes null."""
    return json.dumps(_finite(results.metrics()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if isinstance(v, float) and math.isnan(v) else v for key, v in row.items()})
    return text.getvalue()
