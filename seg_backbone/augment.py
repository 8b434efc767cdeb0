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
from seg_backbone.preprocess import MR_FLAG, PAD, padding


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes.

    rotate_deg: about each axis; scale: isotropic factor range; spatial: chance of a turn, and of a change of scale;
    mirror: chance of a flip along each of the plan's mirror_axes (left-right flips swap the classes with a side); crop:
    chance that faces of the scan are cut away, each in every second time and by up to crop_mm and a third of the scan,
    so that a dataset of crops centred on the tumour teaches no position (see docs/experiments.md for what it costs);
    shift_mm: how far the window is moved off the voxel it is centred on; intensity: spread of the random gain and
    offset, and of the bend of MR contrast; noise: largest standard deviation of added Gaussian noise; centred: chance
    that the window is placed on a class (see draw_window).

    Chances of what nnU-Net does besides, 0 unless asked for (Isensee et al. 2021, supplement: 0.2, 0.25, 0.15, 0.3):
    blur: Gaussian of 0.5 to 1 voxel; low_resolution: shrunk by up to 2 and enlarged again; contrast: values spread
    about their mean by 0.75 to 1.25; gamma: values to a power of 0.7 to 1.5. bias_field: the slow shading of MR alone.
    """

    rotate_deg: float = 15.0
    scale: tuple[float, float] = (0.85, 1.2)
    spatial: float = 1.0
    mirror: float = 0.5
    crop: float = 0.0
    crop_mm: float = 40.0
    shift_mm: float = 60.0
    intensity: float = 0.1
    noise: float = 0.08
    centred: float = 0.33
    blur: float = 0.0
    low_resolution: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    bias_field: float = 0.0

    def __post_init__(self) -> None:
        chances = ("blur", "low_resolution", "contrast", "gamma", "bias_field")
        for name in ("spatial", "mirror", "crop", "centred", *chances):
            assert 0 <= getattr(self, name) <= 1, f"{name} is a chance from 0 to 1"
        for name in ("rotate_deg", "crop_mm", "shift_mm", "intensity", "noise"):
            assert getattr(self, name) >= 0, f"{name} is not negative"
        assert 0 < self.scale[0] <= self.scale[1], "scale is two factors above 0, the smaller one first"


def draw_window(
    case: TrainingCase, plan: Plan, augmentation: Augmentation, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One window: image (channels, *patch) float32, codes (*patch) uint8, table (codes, classes) bool.

    With chance `centred` the window is placed near a voxel of a class drawn uniformly among those the case shows.
    Before it is turned it lies where windows lie when a scan is segmented: within the scan, or along an axis that is
    shorter than the window about the scan's middle, on whole voxels. A scan whose faces are cut away is drawn as one
    that ends there.
    """
    shape = np.array(case.codes.shape)
    patch = np.array(plan.patch)
    spacing = np.array(plan.spacing_mm)
    faces = np.array([np.zeros(3), shape - 1.0])  # outermost voxels
    if random.random() < augmentation.crop:
        cut = np.round(random.uniform(0, augmentation.crop_mm, (2, 3)) * (random.random((2, 3)) < 0.5) / spacing)
        faces += np.minimum(cut, (shape - 1) // 3) * [[1], [-1]]
    room = faces + [[1], [-1]] * np.minimum((patch - 1) / 2, (faces[1] - faces[0]) / 2)  # of the window's middle
    if case.drawn and random.random() < augmentation.centred:
        places = case.drawn[random.choice(list(case.drawn))]
        centre = places[random.integers(len(places))].astype(float)
        centre += random.uniform(-1, 1, 3) * np.minimum(augmentation.shift_mm / spacing, patch / 2 - 4)
        centre = np.clip(centre, *room)
    else:
        centre = random.uniform(*room)
    centre = np.floor(centre - (patch - 1) / 2 + 0.5) + (patch - 1) / 2  # on voxels: what is not turned stays sharp

    turned, scaled = random.random(2) < augmentation.spatial
    angles, factor = random.uniform(-1, 1, 3) * augmentation.rotate_deg, random.uniform(*np.log(augmentation.scale))
    matrix = _rotation(np.deg2rad(angles * turned)) / np.exp(factor * scaled)
    matrix *= spacing[None, :] / spacing[:, None]  # from mm to voxels
    flips = np.isin(range(3), plan.mirror_axes) & (random.random(3) < augmentation.mirror)
    matrix *= np.where(flips, -1.0, 1.0)

    offsets = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in patch]
    grid = torch.stack(torch.meshgrid(*offsets, indexing="ij"), dim=-1) @ torch.from_numpy(matrix.T.astype(np.float32))
    grid = grid + torch.from_numpy(centre.astype(np.float32))
    box = _around(grid, case.codes.shape)  # of a large scan only what the window sees is read
    size = torch.tensor([part.stop - part.start for part in box])
    # grid_sample wants (last axis first), scaled so that -1 and 1 are the outer faces
    unit = ((2 * (grid - torch.tensor([part.start for part in box])) + 1) / size - 1).flip(-1)[None]

    pad = padding(plan)
    image = torch.from_numpy(case.image[(slice(None), *box)].astype(np.float32))[None] - pad
    image = F.grid_sample(image, unit, mode="bilinear", padding_mode="zeros", align_corners=False)[0] + pad
    codes = torch.from_numpy(case.codes[box].astype(np.float32))[None, None]
    codes = F.grid_sample(codes, unit, mode="nearest", padding_mode="zeros", align_corners=False)[0, 0].byte()
    lowest, highest = torch.from_numpy(faces)
    outside = ((grid < lowest - 0.5) | (grid > highest + 0.5)).any(dim=-1)
    image[:, outside] = pad
    codes[outside] = 0
    table = torch.from_numpy(case.table)
    if flips[0] and plan.mirror_swaps_sides:
        codes, table = mirror_codes(codes, plan), mirror_table(table, plan)
    if plan.channels:
        return _contrast_of_channels(image, augmentation, random), codes, table
    return _contrast(image, case.files.modality, augmentation, random), codes, table


def _around(grid: torch.Tensor, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of an array of that shape that interpolation at the points of `grid` (..., 3) needs; never empty."""
    low = grid.reshape(-1, 3).amin(0).floor().int().tolist()
    high = grid.reshape(-1, 3).amax(0).ceil().int().tolist()
    starts = [min(max(a - 1, 0), n - 1) for a, n in zip(low, shape, strict=True)]
    return tuple(slice(s, max(min(b + 2, n), s + 1)) for s, b, n in zip(starts, high, shape, strict=True))


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
    first = _degrade(first, modality == "MR", augmentation, random)
    if modality == "MR":
        image = torch.cat([first, torch.full_like(image[1:], MR_FLAG)])
        return image.clamp(PAD, MR_FLAG)
    return first.clamp(-1.0, 1.0)


def _contrast_of_channels(image: torch.Tensor, augmentation: Augmentation, random: np.random.Generator) -> torch.Tensor:
    """Channels of nnU-Net's normalisations, which have no fixed range: each with a gain and an offset of its own."""
    for number in range(len(image)):
        channel = image[number : number + 1]
        gain, offset = (
            1 + random.uniform(-1, 1) * augmentation.intensity,
            random.uniform(-1, 1) * augmentation.intensity,
        )
        channel = channel * gain + offset * channel.std()
        if random.random() < 0.3:
            noise = torch.from_numpy(random.standard_normal(channel.shape, dtype=np.float32))
            channel = channel + noise * random.uniform(0, augmentation.noise)
        image[number] = _degrade(channel, True, augmentation, random)[0]
    return image


def _degrade(
    image: torch.Tensor, shaded: bool, augmentation: Augmentation, random: np.random.Generator
) -> torch.Tensor:
    """Blur, low resolution, contrast, gamma and, where it may be `shaded`, a bias field, by MONAI."""
    chances = (augmentation.blur, augmentation.low_resolution, augmentation.contrast, augmentation.gamma)
    if not any((*chances, augmentation.bias_field)):
        return image
    from monai import transforms

    drawn = random.random(5) < (*chances, augmentation.bias_field if shaded else 0.0)
    state = np.random.RandomState(random.integers(2**32))
    blur, low_resolution, contrast, gamma, bias_field = drawn.tolist()
    lowest = image.amin()
    image = image - lowest
    if blur:
        image = transforms.GaussianSmooth(random.uniform(0.5, 1.0))(image)
    if low_resolution:
        shrink = transforms.RandSimulateLowResolution(prob=1.0, zoom_range=(0.5, 1.0))
        shrink.set_random_state(state=state)
        image = shrink(image)
    if contrast:
        image = transforms.ScaleIntensityFixedMean(random.uniform(0.75, 1.25) - 1, preserve_range=True)(image)
    if gamma:
        image = transforms.AdjustContrast(float(np.exp(random.uniform(*np.log((0.7, 1.5))))))(image)
    if bias_field:
        shade = transforms.RandBiasField(prob=1.0)
        shade.set_random_state(state=state)
        image = shade(image)
    return torch.as_tensor(image).as_subclass(torch.Tensor) + lowest


def _rotation(angles: np.ndarray) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
