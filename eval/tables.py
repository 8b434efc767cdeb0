"""Small tables: markdown for a file or a pipe, rich for a terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Table:
    """columns: the heads. rows: as many strings each. notes: sentences under the table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)


def with_interval(value: float | None, interval: tuple[float, float] | None, digits: int) -> str:
    """ "0.812 [0.790, 0.833]"; a dash where there is no value, no brackets where there is no interval."""
    if value is None or np.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return text if interval is None else f"{text} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def p_text(p: float) -> str:
    """A p value to four decimals; a dash where there is none."""
    return "–" if np.isnan(p) else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def markdown(tables: list[Table]) -> str:
    """The tables as GitHub markdown, each under its title and above its notes."""
    blocks = []
    for table in tables:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in [table.columns, *table.rows]]
        lines = [f"| {' | '.join(row)} |" for row in cells]
        rule = "|" + " --- |" * len(table.columns)
        notes = [f"- {note}" for note in table.notes]
        blocks.append(
            "\n".join([f"## {table.title}", "", lines[0], rule, *lines[1:], *([""] if notes else []), *notes])
        )
    return "\n\n".join(blocks) + "\n"


def show(tables: list[Table]) -> None:
    """Print to standard output: rich tables on a terminal, markdown anywhere else."""
    if not sys.stdout.isatty():
        print(markdown(tables), end="")
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    console = Console()
    for table in tables:
        grid = RichTable(title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            grid.add_column(column, justify="left" if index == 0 else "right")
        for row in table.rows:
            grid.add_row(*row)
        console.print(grid)
        for note in table.notes:
            console.print(f"[dim]- {note}[/dim]", highlight=False)
