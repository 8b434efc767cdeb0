"""What the encoder saw on the way to a mask, kept window by window for whoever answers questions about the scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from seg_backbone.geometry import Grid
from seg_backbone.scan_heads import ScanPool, WithPooled
from seg_backbone.sliding_window import Forward


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder saw, as points in the patient.

    vectors: stage -> (n, channels) float32; positions_mm: stage -> (n, 3) float32 world mm, the centre of the
    region behind each vector. Stages are counted from fine (0) to coarse (-1); only the kept ones are here.
    """

    vectors: dict[int, np.ndarray]
    positions_mm: dict[int, np.ndarray]


class Collector:
    """The network as a function of windows, which keeps encoder features and where in the patient they lie.

    pool: also fed with every window, from one pass `classify` for both it and the mask. mirrored: the mask still comes
    from `forward` then, unless features are kept.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        forward: Forward,
        grid: Grid,
        stages: tuple[int, ...],
        pool: ScanPool | None = None,
        classify: WithPooled | None = None,
        mirrored: bool = False,
    ) -> None:
        self.network, self.forward, self.grid = network, forward, grid
        self.pool, self.classify, self.mirrored = pool, classify, mirrored
        self.vectors: dict[int, list[np.ndarray]] = {stage: [] for stage in stages}
        self.positions: dict[int, list[np.ndarray]] = {stage: [] for stage in stages}
        self.count = 0

    def __call__(self, windows: torch.Tensor, origins: list[tuple[int, ...]]) -> torch.Tensor:
        self.count += len(windows)
        if not self.vectors:
            if not self.pool or not self.classify:
                return self.forward(windows)
            logits, statistics = self.classify(windows)
            self.pool.add(statistics)
            return self.forward(windows) if self.mirrored else logits
        maps = self.network.encoder(windows)
        for stage in self.vectors:
            for features, origin in zip(maps[stage], origins, strict=True):
                self.vectors[stage].append(features.flatten(1).T.float().cpu().numpy())
                cell = np.array(windows.shape[2:]) / np.array(features.shape[1:])
                index = np.indices(features.shape[1:]).reshape(3, -1).T
                voxel = np.array(origin) + (index + 0.5) * cell - 0.5
                self.positions[stage].append(self.grid.voxel_to_world(voxel).astype(np.float32))
        logits = self.network.decoder(maps)
        if self.pool:
            self.pool.add(self.pool.network.pooled(maps, logits))
        return logits

    def features(self) -> Features:
        """Every kept vector and its place. Windows overlap, so a place may come up more than once."""
        return Features(
            {stage: np.concatenate(parts) for stage, parts in self.vectors.items()},
            {stage: np.concatenate(parts) for stage, parts in self.positions.items()},
        )
