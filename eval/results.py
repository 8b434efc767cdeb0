"""Scores on disk: JSON for programs, CSV for a closer look, markdown for people."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from eval.tables import Table, markdown
from seg_backbone.io.atomic import replacing

FILES = ("metrics.json", "per_case.csv", "table.md")


class Results(Protocol):
    """What every kind of result offers."""

    def metrics(self) -> dict[str, Any]: ...

    def rows(self) -> Iterable[dict[str, Any]]: ...

    def tables(self) -> list[Table]: ...


def write_results(results: Results, out_dir: str | Path, names: tuple[str, str, str] = FILES) -> list[Path]:
    """Write metrics, rows and tables to OUT under the three names, each atomically. Returns the three paths."""
    metrics, tables = metrics_json(results), markdown(results.tables())
    paths = [Path(out_dir) / name for name in names]
    with replacing(paths[0]) as temporary:
        temporary.write_text(metrics, encoding="utf-8")
    with replacing(paths[1]) as temporary:
        _write_csv(temporary, results.rows())
    with replacing(paths[2]) as temporary:
        temporary.write_text(tables, encoding="utf-8")
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


def _write_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Rows of the same keys, one at a time; NaN becomes an empty cell."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, row in enumerate(rows):
            if number == 0:
                writer.writerow(row)
            writer.writerow(["" if v != v else v for v in row.values()])
