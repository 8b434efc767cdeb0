"""Rows of the log: what training costs and scores, as JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch


class Log:
    """Gathers the terms of steps, and writes their mean with speed and waiting as a row of log.jsonl."""

    def __init__(self, folder: Path, report: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.file = (folder / "log.jsonl").open("a", encoding="utf-8")
        self.report = report
        self.started, self.waited, self.steps = time.monotonic(), 0.0, 0
        self.recent: list[dict[str, float]] = []

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def step(self, terms: dict[str, torch.Tensor], waited: float) -> None:
        """One optimiser step: its terms, and the seconds that it waited for data."""
        self.recent.append({name: float(value.detach()) for name, value in terms.items()})
        self.waited += waited
        self.steps += 1

    def means(self) -> dict[str, Any]:
        """The mean of every term since the last call; seconds a step and the share spent waiting since the start."""
        names = dict.fromkeys(name for terms in self.recent for name in terms)
        row = {name: round(float(np.mean([t[name] for t in self.recent if name in t])), 4) for name in names}
        self.recent = []
        seconds = time.monotonic() - self.started
        speed = {"seconds_per_step": round(seconds / self.steps, 3), "waiting": round(self.waited / seconds, 3)}
        return row | speed

    def write(self, row: dict[str, Any]) -> None:
        """Write a row and report it."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.report:
            self.report(row)
