"""Scores on disk: metrics.json for programs, per_case.csv for a closer look, table.md for people."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, Protocol

from eval.tables import Table, markdown


class Results(Protocol):
    """What every kind of result offers."""

    def metrics(self) -> dict[str, Any]: ...

    def rows(self) -> list[dict[str, Any]]: ...

    def tables(self) -> list[Table]: ...


def write_results(results: Results, out_dir: str | Path) -> list[Path]:
    """Write OUT/metrics.json, OUT/per_case.csv and OUT/table.md, each atomically. Returns the three paths."""
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    contents = {
        "metrics.json": metrics_json(results),
        "per_case.csv": _csv(results.rows()),
        "table.md": markdown(results.tables()),
    }
    return [_write(out_dir / name, text) for name, text in contents.items()]


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


def _write(path: Path, text: str) -> Path:
    handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path
