"""A scan through an encoder with a network of its own: the box of the body at one spacing, window by window.

The box is found in the voxels and taken in canonical axes, and the spacing is fixed in millimetres: neither air around
the patient nor the orientation or spacing of the file changes where the windows lie in the body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from seg_backbone.geometry import to_canonical
from seg_backbone.plan import Plan
from seg_backbone.predict import Features
from seg_backbone.preprocess import preprocess
from seg_backbone.sliding_window import pad_to_patch, windows
from seg_backbone.volume import Volume
from vlm.body import body_place


@dataclass(frozen=True)
class Lattice:
    """Where one stage's features lie in a window: voxels of the first one's centre, and between neighbours."""

    first: tuple[float, float, float]
    stride: tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class WindowEncoder:
    """An encoder with a network of its own. See `vlm.encoders.Encoder`.

    network: (1, channels, i, j, k) window in canonical axes -> stage -> (1, width, i', j', k') features, by a module
    in eval mode. lattices: stage -> places. channels: widths of the coarsest and the finest stage. plan: of its
    fields, spacing, window (`patch`), overlap (`step`) and HU windows (one channel each, in [-1, 1]) count.
    """

    network: Callable[[torch.Tensor], dict[int, torch.Tensor]]
    lattices: dict[int, Lattice]
    channels: tuple[int, int]
    version: str
    plan: Plan
    device: torch.device
    shared_stages: tuple[int, ...] = ()

    @torch.inference_mode()
    def __call__(self, volume: Volume) -> Features:
        """Features of every window; where windows overlap a place comes up more than once."""
        image, grid = preprocess(crop_to_body(volume), self.plan)
        padded, place = pad_to_patch(torch.from_numpy(image), self.plan.patch)
        vectors: dict[int, list[np.ndarray]] = {stage: [] for stage in self.lattices}
        positions: dict[int, list[np.ndarray]] = {stage: [] for stage in self.lattices}
        for where, window in windows(padded, self.plan.patch, self.plan.step):
            origin = np.array([w.start - p.start for w, p in zip(where, place, strict=True)])
            maps = self.network(window.to(self.device))
            for stage, lattice in self.lattices.items():
                features = maps[stage][0]
                index = np.indices(features.shape[1:]).reshape(3, -1).T
                voxel = origin + np.array(lattice.first) + index * np.array(lattice.stride)
                vectors[stage].append(features.flatten(1).T.float().cpu().numpy())
                positions[stage].append(grid.voxel_to_world(voxel).astype(np.float32))
        return Features(
            {stage: np.concatenate(parts) for stage, parts in vectors.items()},
            {stage: np.concatenate(parts) for stage, parts in positions.items()},
        )


def crop_to_body(volume: Volume) -> Volume:
    """The box of the body in canonical axes."""
    place = body_place(volume)
    array, grid = to_canonical(volume.array[place], volume.grid.cropped(place))
    return Volume(array, grid, volume.modality, volume.source)
