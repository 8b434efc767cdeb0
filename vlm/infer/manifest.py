"""The manifest beside a file of answers: what gave them, and whether a further run may add to them.

`answers.jsonl` has `answers.manifest.json`: the weights, the question file and the settings that all its answers share,
how many there are of each state, and one entry a run with its command, machine, versions and seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from seg_backbone import checkpoint
from seg_backbone.errors import ConfigError
from seg_backbone.io import replacing
from vlm.infer.engine import find_vlm
from vlm.model import ADAPTER, CALIBRATION, CONFIG, WEIGHTS, VlmConfig

PACKAGES = ("flare-vlm", "torch", "transformers", "peft", "monai", "numpy", "nibabel", "ray")
START_OVER = "name another file of answers, or pass --no-resume to start over"


class Manifest:
    """What the answers of one file have in common, and the runs that gave them.

    model: see model_identity. settings: what else changes an answer. run: what is worth keeping of this run; its
    start, seconds, machine and versions are added.
    """

    def __init__(
        self, answers: Path, questions: Path, model: dict[str, Any], settings: dict[str, Any], run: dict[str, Any]
    ) -> None:
        self.answers, self.path = answers, answers.with_name(f"{answers.stem}.manifest.json")
        self.questions, self.model, self.settings = questions, model, settings
        self.run = {**run, "started": datetime.now(UTC).isoformat(timespec="seconds")}
        self.run |= {"machine": machine(), "versions": versions()}
        self.clock = time.monotonic()
        self.file = {"path": str(questions), "bytes": questions.stat().st_size, "sha256": _sha256(questions)}
        self.earlier: list[dict[str, Any]] = []

    def check(self, resume: bool = True) -> None:
        """Whether this run may add to the answers that are there; answers without a manifest may come from anything.

        Raises ConfigError for other weights, other settings, or a question file that did more than grow at its end.
        """
        if not (resume and self.answers.is_file() and self.path.is_file()):
            return
        try:
            old = json.loads(self.path.read_text(encoding="utf-8"))
            before = {key: old[key] for key in ("model", "settings", "questions")}
            size, sha256 = int(before["questions"]["bytes"]), before["questions"]["sha256"]
            self.earlier = list(old["runs"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(self.path, "the manifest of a batch", "something else", START_OVER) from None
        for what, now in (("model", self.model), ("settings", self.settings)):
            for key, value in now.items():
                then = before[what].get(key)
                if then != value:
                    expected, found = (f"{key} {_short(one)}" for one in (value, then))
                    raise ConfigError(
                        self.answers, f"answers by {expected}", f"{found} in {self.path.name}", START_OVER
                    )
        if _sha256(self.questions, size) != sha256:
            found = f"other questions in {self.path.name}"
            raise ConfigError(self.answers, f"answers to {self.questions}", found, START_OVER)

    def save(self, counts: Mapping[str, int], now: Mapping[str, int], finished: bool = False) -> None:
        """Write the file. counts: all its answers by state; now: those of this run."""
        run = {**self.run, "seconds": round(time.monotonic() - self.clock, 1), "finished": finished, **_by_state(now)}
        data = {
            "model": self.model,
            "settings": self.settings,
            "questions": self.file,
            "answers": _by_state(counts),
            "runs": [*self.earlier, run],
        }
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def model_identity(name: str | Path) -> dict[str, Any]:
    """A model's name, its parts, and a SHA-256 over every file of its weights and settings.

    A language model that is no folder counts by its name. Raises CheckpointError where a part is not there.
    """
    folder = find_vlm(name)
    config = VlmConfig(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    segmentation = checkpoint.find_model(config.segmentation)
    files = [folder / part for part in (CONFIG, WEIGHTS, f"{ADAPTER}.safetensors", CALIBRATION)]
    files += [segmentation / part for part in (checkpoint.WEIGHTS, checkpoint.PLAN)]
    for part in (config.llm, str(config.encoder_options.get("weights", ""))):
        files += sorted(Path(part).glob("*")) if part and Path(part).is_dir() else []
    weights = hashlib.sha256("".join(_sha256(file) for file in files if file.is_file()).encode()).hexdigest()
    return {"name": config.name, "llm": config.llm, "encoder": config.encoder, "weights_sha256": weights}


def machine() -> dict[str, Any]:
    """Kind of machine: system, processor, cores, memory in GB, names of the GPUs."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": gpus,
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed among PACKAGES."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """The processor's name; Linux tells it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _by_state(counts: Mapping[str, int]) -> dict[str, int]:
    return {state: counts.get(state, 0) for state in ("answered", "abstained", "unscored")}


def _sha256(path: Path, size: int | None = None) -> str:
    """SHA-256 of a file, or of its first `size` bytes."""
    digest, left = hashlib.sha256(), path.stat().st_size if size is None else size
    with path.open("rb") as file:
        while chunk := file.read(min(left, 1 << 20)):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
