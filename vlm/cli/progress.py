"""Progress bars with an estimate on a terminal; silence when piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Yields report(stage, done, total): one bar a stage, on stderr, and only where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    more = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress("{task.description}", *more, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                # what was done before is no sample of the speed
                tasks[stage] = progress.add_task(stage, total=total, completed=done)
            progress.update(tasks[stage], completed=done, total=total)

        yield report


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields report(done, total): a single bar."""
    with stages() as report:
        yield lambda done, total: report(title, done, total)
