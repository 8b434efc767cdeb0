"""Drawing one random training window from a case: crop, turn, scale, mirror and change of contrast in one resampling.

The sampling grid goes through `torch.nn.functional.grid_sample`, so the window costs the same whatever is done to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from seg_backbone.cases import TrainingCase
from seg_backbone.labels import other_side
from seg_backbone.plan import Plan
from seg_backbone.preprocess import MR_FLAG, PAD


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes.

    rotate_deg: about each axis; scale: isotropic factor range; mirror: chance of a left-right flip (classes with a
    side are swapped); crop_mm: how far each face of the scan may be cut away, so that a dataset of crops centred on
    the tumour teaches no position; shift_mm: how far the window is moved off the voxel it is centred on;
    intensity: spread of the random gain and offset, and of the bend of MR contrast; noise: largest standard deviation
    of added Gaussian noise; centred: chance that the window is placed on a class (see draw_window).
    """

    rotate_deg: float = 15.0
    scale: tuple[float, float] = (0.85, 1.2)
    mirror: float = 0.5
    crop_mm: float = 40.0
    shift_mm: float = 60.0
    intensity: float = 0.1
    noise: float = 0.08
    centred: float = 0.75


def draw_window(
    case: TrainingCase, plan: Plan, augmentation: Augmentation, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One window: image (channels, *patch) float32, codes (*patch) uint8, table (codes, classes) bool.

    With chance `centred` the window is placed near a voxel of a class drawn uniformly among those the case shows.
    """
    shape = np.array(case.codes.shape)
    patch = np.array(plan.patch)
    spacing = np.array(plan.spacing_mm)
    if case.drawn and random.random() < augmentation.centred:
        places = case.drawn[random.choice(list(case.drawn))]
        centre = places[random.integers(len(places))].astype(float)
        centre += random.uniform(-1, 1, 3) * np.minimum(augmentation.shift_mm / spacing, patch / 2 - 4)
    else:
        low = np.minimum(patch / 2, shape / 2) - 4
        centre = random.uniform(low, np.maximum(shape - low, low + 1e-3))

    turn = _rotation(np.deg2rad(random.uniform(-1, 1, 3) * augmentation.rotate_deg))
    matrix = turn / np.exp(random.uniform(*np.log(augmentation.scale)))
    flip = random.random() < augmentation.mirror
    if flip:
        matrix = matrix * np.array([-1.0, 1.0, 1.0])

    offsets = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in patch]
    grid = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1) @ torch.from_numpy(matrix.T.astype(np.float32))
    grid = grid + torch.from_numpy(centre.astype(np.float32))
    # grid_sample wants (last axis first), scaled so that -1 and 1 are the outer faces
    unit = ((2 * grid + 1) / torch.from_numpy(shape.astype(np.float32)) - 1).flip(-1)[None]

    image = torch.from_numpy(case.image.astype(np.float32))[None] - PAD
    image = F.grid_sample(image, unit, mode="bilinear", padding_mode="zeros", align_corners=False)[0] + PAD
    codes = torch.from_numpy(case.codes)[None, None].float()
    codes = F.grid_sample(codes, unit, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0].byte()
    if augmentation.crop_mm > 0:
        cut = random.uniform(0, augmentation.crop_mm, (2, 3)) * (random.random((2, 3)) < 0.5) / spacing
        lowest, highest = torch.from_numpy(cut[0] - 0.5), torch.from_numpy(shape - 0.5 - cut[1])
        outside = ((grid < lowest) | (grid > highest)).any(dim=-1)
        image[:, outside] = PAD
        codes[outside] = 0
    table = torch.from_numpy(case.table)
    if flip:
        codes, table = mirror_codes(codes, plan), mirror_table(table, plan)
    return _contrast(image, case.files.modality, augmentation, random), codes, table


def mirror_codes(codes: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Swap the ids of classes that have a side (left parotid <-> right parotid)."""
    table = torch.arange(256, dtype=torch.uint8)
    for name, value in plan.labels.items():
        table[value] = plan.labels.get(other_side(name) or name, value)
    return table[codes.long()]


def mirror_table(table: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The (codes, classes) table of a mirrored window: rows and columns of sided classes swapped."""
    order = mirror_codes(torch.arange(table.shape[1], dtype=torch.uint8), plan).long()
    rows = torch.cat([order, torch.arange(table.shape[1], table.shape[0])])
    return table[rows][:, order]


def _contrast(
    image: torch.Tensor, modality: str, augmentation: Augmentation, random: np.random.Generator
) -> torch.Tensor:
    spread = augmentation.intensity * (1.0 if modality == "CT" else 2.0)
    first = image[:1] if modality == "MR" else image
    gain, offset = 1 + random.uniform(-spread, spread), random.uniform(-spread, spread)
    first = first * gain + offset
    if modality == "MR" and random.random() < 0.5:  # MR contrast is arbitrary: bend it
        unit = ((first + 1) / 2.5).clamp(0, 1)
        first = unit ** float(np.exp(random.uniform(-2 * spread, 2 * spread))) * 2.5 - 1
    if random.random() < 0.3:
        first = first + torch.from_numpy(random.standard_normal(first.shape, dtype=np.float32)) * random.uniform(
            0, augmentation.noise
        )
    if modality == "MR":
        image = torch.cat([first, torch.full_like(image[1:], MR_FLAG)])
        return image.clamp(PAD, MR_FLAG)
    return first.clamp(-1.0, 1.0)


def _rotation(angles: np.ndarray) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
