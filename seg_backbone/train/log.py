"""Rows of the log: what training costs and scores, as JSON lines and, if asked for, for TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing


class Log:
    """Gathers the terms of steps, and writes their mean with speed and waiting as rows of log.jsonl.

    first: steps done before; rows beyond them are of an interrupted run that is now repeated, and are dropped. total:
    steps of the run. Of several processes each has a log, and only the first one `writes`.
    """

    def __init__(
        self,
        folder: Path,
        first: int,
        total: int,
        report: Callable[[dict[str, Any]], None] | None = None,
        tensorboard: bool = False,
        writes: bool = True,
    ) -> None:
        self.path, self.first, self.total, self.report, self.writes = folder / "log.jsonl", first, total, report, writes
        self.board = _board(folder / "tensorboard", first) if tensorboard and writes else None
        self.started, self.waited, self.steps = time.monotonic(), 0.0, 0
        self.recent: list[dict[str, torch.Tensor]] = []
        if writes:
            kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= first]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.board:
            self.board.close()

    def part(self, terms: dict[str, torch.Tensor]) -> None:
        """The terms of one batch."""
        self.recent.append({name: value.detach() for name, value in terms.items()})

    def step(self, waited: float) -> None:
        """One optimiser step, which waited so many seconds for data."""
        self.waited += waited
        self.steps += 1

    def require_finite(self) -> None:
        """Raises ConfigError where a term since the last row was not finite."""
        for name in {name for terms in self.recent for name in terms}:
            values = torch.stack([terms[name] for terms in self.recent if name in terms])
            if not values.isfinite().all():
                raise ConfigError(name, "a finite loss", "NaN or infinity", "lower `learning_rate`, then --resume")

    def means(self) -> dict[str, Any]:
        """The mean of every term since the last call; seconds a step, the share spent waiting, and minutes to go."""
        names = dict.fromkeys(name for terms in self.recent for name in terms)
        row = {
            name: round(float(torch.stack([terms[name] for terms in self.recent if name in terms]).mean()), 4)
            for name in names
        }
        self.recent = []
        seconds = time.monotonic() - self.started
        each = seconds / self.steps
        minutes = round(each * (self.total - self.first - self.steps) / 60, 1)
        share = round(self.waited / seconds, 3)
        return row | {"seconds_per_step": round(each, 3), "waiting": share, "minutes_left": minutes}

    def write(self, row: dict[str, Any]) -> None:
        """Write a row and report it."""
        if not self.writes:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.report:
            self.report(row)
        if self.board:
            for name, value in _flat(row).items():
                self.board.add_scalar(name, value, row["step"])


def _flat(row: dict[str, Any], above: str = "") -> dict[str, float]:
    """Numbers of a nested row under "outer/inner"."""
    out: dict[str, float] = {}
    for name, value in row.items():
        out |= _flat(value, f"{above}{name}/") if isinstance(value, dict) else {f"{above}{name}": value}
    return out


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; none without one."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]


def _board(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard", "the package tensorboard", "none", 'pip install "flare-vlm[tensorboard]"'
        ) from None
    return SummaryWriter(str(folder), purge_step=first + 1)
