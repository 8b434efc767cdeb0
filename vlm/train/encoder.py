"""The vision transformer from scratch: hidden patches of a scan are told from those around them, without any label.

As in SimMIM (Xie et al. 2022): patches drawn at random are blanked, a linear layer on the tokens predicts their voxels,
and the loss is the mean absolute error over the blanked ones. The linear layer is thrown away.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import nn

from seg_backbone.cases import DatasetEntry, list_cases, read_split, split_cases
from seg_backbone.errors import ConfigError
from seg_backbone.io import read_volume
from seg_backbone.io.atomic import replacing
from seg_backbone.preprocess import PAD, preprocess
from seg_backbone.sliding_window import pad_to_patch
from vlm.encoders.vit import VitConfig, build_vit, save_vit
from vlm.encoders.windows import crop_to_body


@dataclass(frozen=True)
class EncoderConfig:
    """What `vlm train encoder --config FILE` reads (YAML). Paths are relative to the working directory.

    cases: at most this many scans a dataset, labelled or not. hidden: share of the patches that are blanked. steps x
    batch windows are drawn; AdamW with one-cycle rate.
    """

    data: Path
    output: Path
    split: Path
    datasets: tuple[DatasetEntry, ...]
    network: VitConfig = field(default_factory=VitConfig)
    cases: int = 40
    steps: int = 2000
    batch: int = 4
    hidden: float = 0.6
    learning_rate: float = 3e-4
    checkpoint_every: int = 100
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not self.datasets or not 0 < self.hidden < 1:
            found = f"{self.steps}, {self.batch}, {len(self.datasets)}, {self.hidden}"
            raise ConfigError("encoder", "steps, batch, datasets, and hidden between 0 and 1", found, "correct it")

    @staticmethod
    def read(path: str | Path, **changes: Any) -> EncoderConfig:
        """Read YAML; `changes` override single fields. Raises ConfigError naming what does not fit."""
        try:
            data = yaml.safe_load(Path(path).read_text()) | {k: v for k, v in changes.items() if v is not None}
            data["datasets"] = tuple(DatasetEntry(**entry) for entry in data["datasets"])
            data["network"] = VitConfig(**data.get("network", {}))
            data |= {key: Path(data[key]) for key in ("data", "output", "split")}
            return EncoderConfig(**data)
        except (OSError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(path, "an encoder training file", f"{error}", "see configs/vit.yaml") from None


def train_encoder(
    config: EncoderConfig,
    resume: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Train and save a model folder for `encoder: vit` under `config.output`/model. Returns that folder.

    Step n draws from a generator seeded by (seed, n): a resumed run equals an uninterrupted one. Rows of the log go to
    log.jsonl and to report(row). Raises ConfigError for data that is missing.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.output.mkdir(parents=True, exist_ok=True)
    images = load_images(config, progress)
    channels, patch = len(config.network.ct_windows_hu), config.network.patch
    model = nn.ModuleDict(
        {"vit": build_vit(config.network), "voxels": nn.Linear(config.network.width, channels * patch**3)}
    )
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, config.steps, pct_start=0.1)
    checkpoint, first = config.output / "checkpoint.pt", 0
    if resume and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        for part, key in ((model, "weights"), (optimizer, "optimizer"), (schedule, "schedule")):
            part.load_state_dict(state[key])
        first = state["step"]

    losses: list[float] = []
    with (config.output / "log.jsonl").open("a", encoding="utf-8") as log:
        for step in range(first, config.steps):
            random = np.random.default_rng((config.seed, step))
            batch = torch.stack([draw_window(images, config.network.window, random) for _ in range(config.batch)])
            loss = hidden_error(model, batch, patch, config.hidden, random)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            done = step + 1
            if done % 25 == 0 or done == config.steps:
                row = {"step": done, "error": round(float(np.mean(losses)), 4)}
                losses = []
                log.write(json.dumps(row) + "\n")
                log.flush()
                if report:
                    report(row)
            if progress:
                progress("training", done, config.steps)
            if done % config.checkpoint_every == 0 or done == config.steps:
                state = {"weights": model.state_dict(), "step": done}
                state |= {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                with replacing(checkpoint) as file:
                    torch.save(state, file)
    return save_vit(model["vit"], config.network, config.output / "model")


def load_images(config: EncoderConfig, progress: Callable[[str, int, int], None] | None) -> list[torch.Tensor]:
    """(channels, i, j, k) float16 of the training cases' bodies, at the network's spacing and padded to its window."""
    split, plan, files = read_split(config.split), config.network.plan(), []
    for entry in config.datasets:
        cases = split_cases(list_cases(config.data, entry.name), split, "training")
        keep = np.linspace(0, len(cases) - 1, min(config.cases, len(cases))).round().astype(int)
        files += [cases[n] for n in keep]
    if not files:
        raise ConfigError(config.data, "training cases", "none", "check the split")
    images = []
    for number, case in enumerate(files):
        image, _ = preprocess(crop_to_body(read_volume(case.image, case.modality)), plan)
        images.append(pad_to_patch(torch.from_numpy(image), plan.patch)[0].half())
        if progress:
            progress("reading scans", number + 1, len(files))
    return images


def draw_window(images: list[torch.Tensor], window: tuple[int, ...], random: np.random.Generator) -> torch.Tensor:
    """(channels, *window) float32 from anywhere in one of the images."""
    image = images[random.integers(len(images))]
    start = [random.integers(size - w + 1) for size, w in zip(image.shape[1:], window, strict=True)]
    return image[(slice(None), *(slice(s, s + w) for s, w in zip(start, window, strict=True)))].float()


def hidden_error(
    model: nn.ModuleDict, batch: torch.Tensor, patch: int, share: float, random: np.random.Generator
) -> torch.Tensor:
    """Mean absolute error over the blanked patches of (B, channels, i, j, k) windows; a scalar."""
    size, grid = batch.shape[1], [n // patch for n in batch.shape[2:]]
    drawn = random.random((len(batch), int(np.prod(grid)))).argsort(axis=1)
    hidden = torch.from_numpy(drawn < max(1, round(share * drawn.shape[1])))
    blank = hidden.reshape(-1, 1, *grid)
    for axis in (2, 3, 4):
        blank = blank.repeat_interleave(patch, dim=axis)
    predicted = model["voxels"](model["vit"](batch.masked_fill(blank, PAD))[0])
    # (B, channels, i, p, j, p, k, p) -> (B, patches, channels * p^3), patches in the order of the tokens
    blocks = batch.reshape(len(batch), size, grid[0], patch, grid[1], patch, grid[2], patch)
    wanted = blocks.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)
    return F.l1_loss(predicted[hidden], wanted[hidden])
