"""Lumps: the shape of a tumour that is not there yet, and what it does to the voxels that make room for it.

Enters where it may grow (a boolean array) and the voxel spacing, leaves a `Lump`. A lump is an ellipsoid of random axes
and orientation, bent by smooth noise, that grows from its middle until it has its volume and goes round what it may not
enter. All of it is drawn in millimetres on a lattice of its own, so that one generator gives one shape whatever the
spacing, and thick slices cut the same lump as thin ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import cc3d
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from seg_backbone.boxes import bounds

REACH = 2.0  # the surroundings are displaced out to this many radii
SQUEEZED = 1.3  # how many radii a lump that is confined on one side may grow on the others
FITS = 0.8  # share of a ball of its volume that must be free before a lump is tried there
FEWEST_VOXELS = 4  # below, it has no shape
PLACES, TRIES, BALL = 256, 8, 64  # places drawn at random, of those how many are tried; points of the ball looked up
MOST_PLACES = 1 << 22  # of a larger region every n-th voxel is a place
NODES = 33  # of the lattice along each axis; odd, so that one lies in the middle
WAVE = 0.8  # length of the bends, in radii


@dataclass(frozen=True, eq=False)
class Lump:
    """One shape on the grid that it was grown on.

    box: the part of the grid that it reaches. center: (3,) voxel index of its middle. inside: (box) bool, its voxels.
    distance: (box) float32, from 0 in the middle over 1 at the free surface. diameter_mm: of a ball of its volume.
    """

    box: tuple[slice, slice, slice]
    center: np.ndarray
    inside: np.ndarray
    distance: np.ndarray
    diameter_mm: float


def grow(
    free: np.ndarray,
    spacing_mm: np.ndarray,
    diameter_mm: float,
    random: np.random.Generator,
    stretch: float = 1.3,
    bend: float = 0.2,
) -> Lump | None:
    """A lump of the volume of a ball of `diameter_mm`, all of it where `free` (i, j, k) is True, in one piece.

    stretch: the largest factor on a semi-axis before volumes are made equal. bend: standard deviation of the noise that
    moves the surface, in radii. None where no place has room, or the grid is too coarse for it.
    """
    if pi / 6 * diameter_mm**3 < FEWEST_VOXELS * np.prod(spacing_mm):
        return None
    for center in _places(free, spacing_mm, diameter_mm / 2, random):
        lump = grow_at(center, free, spacing_mm, diameter_mm, random, stretch, bend)
        if lump is not None:
            return lump
    return None


def grow_at(
    center: np.ndarray,
    free: np.ndarray,
    spacing_mm: np.ndarray,
    diameter_mm: float,
    random: np.random.Generator,
    stretch: float = 1.3,
    bend: float = 0.2,
) -> Lump | None:
    """`grow` around one voxel, (3,) its index; None where the lump would be torn, or squeezed too far."""
    radius_mm, wanted = diameter_mm / 2, round(pi / 6 * diameter_mm**3 / float(np.prod(spacing_mm)))
    ratios = np.exp(random.uniform(-1, 1, 3) * np.log(stretch))
    ratios /= ratios.prod() ** (1 / 3)
    turn = Rotation.from_quat(random.standard_normal(4)).as_matrix()
    half = radius_mm * (REACH * SQUEEZED * float(ratios.max()) + 3 * bend)
    axis = np.linspace(-half, half, NODES, dtype=np.float32)
    nodes = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    for number in range(3):
        shift = bend * radius_mm * smooth_noise([axis] * 3, half, WAVE * radius_mm, random)
        nodes[..., number] += shift - shift[(NODES // 2,) * 3]  # the middle stays where it is
    lattice = np.linalg.norm(nodes @ (turn / (radius_mm * ratios)).astype(np.float32), axis=-1)

    reached = bounds(lattice <= REACH * SQUEEZED)
    assert reached is not None, "the middle is reached"
    box, weights = [], []
    for side, c, step, size in zip(reached, center.tolist(), spacing_mm.tolist(), free.shape, strict=True):
        start = max(0, int(np.ceil(c + axis[side.start] / step)))
        stop = min(size, int(np.floor(c + axis[side.stop - 1] / step)) + 1)
        box.append(slice(start, stop))
        weights.append(_linear((np.arange(start, stop) - c) * step, axis))
    distance = _along_axes(lattice, weights)

    near = free[tuple(box)] & (distance <= SQUEEZED)
    values = distance[near]
    if len(values) < wanted:
        return None
    surface = float(np.partition(values, wanted - 1)[wanted - 1])
    inside = cc3d.largest_k((near & (distance <= surface)).view(np.uint8), k=1, connectivity=26) > 0
    voxels = int(inside.sum())
    if voxels < 0.9 * wanted or surface <= 0:
        return None
    grown_mm = float((6 / pi * voxels * np.prod(spacing_mm)) ** (1 / 3))
    return Lump((box[0], box[1], box[2]), center.astype(float), inside, distance / surface, grown_mm)


def press(array: np.ndarray, lump: Lump, strength: float, order: int) -> None:
    """Mass effect, in place: what lay within the lump is pushed out of it, and its surroundings make room.

    What lay at 1 - strength of the radius comes to lie at the surface, what lies at REACH radii stays; in between,
    distances from the middle are squeezed evenly. strength: 0 (nothing moves) to below 1. order: of the interpolation,
    1 for images, 0 for label maps. The middle of the lump holds its own tissue stretched; paint over it.
    """
    moved = np.nonzero(lump.distance < REACH)
    if strength <= 0 or not moved[0].size:
        return
    reached = lump.distance[moved]
    origin = np.where(reached < 1, reached * (1 - strength), reached - strength * (REACH - reached) / (REACH - 1))
    factor = origin / np.maximum(reached, 1e-6)
    middle = [c - side.start for c, side in zip(lump.center, lump.box, strict=True)]
    points = np.stack([c + (index - c) * factor for c, index in zip(middle, moved, strict=True)])
    part = array[lump.box]
    part[moved] = _as(array.dtype, ndimage.map_coordinates(part, points, np.float32, order, mode="nearest"))


def paint(
    array: np.ndarray,
    lump: Lump,
    spacing_mm: np.ndarray,
    value: float,
    random: np.random.Generator,
    spread: float = 0.0,
    grain_mm: float = 3.0,
    edge_mm: float = 1.0,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """Fill a lump, in place, with blurred noise of mean `value` and standard deviation `spread`, kept within `limits`.

    grain_mm: how far the noise is alike. edge_mm: standard deviation of the blur of the surface, as of partial volume.
    """
    margin = np.ceil(3 * edge_mm / spacing_mm).astype(int)
    tight = bounds(lump.inside)
    assert tight is not None, "a lump has voxels"
    box, parts = [], []
    for side, near, pad, size in zip(lump.box, tight, margin.tolist(), array.shape, strict=True):
        start, stop = max(0, side.start + near.start - pad), min(size, side.start + near.stop + pad)
        box.append(slice(start, stop))
        parts.append(slice(side.start + near.start - start, side.start + near.stop - start))
    share = np.zeros([side.stop - side.start for side in box], dtype=np.float32)
    share[tuple(parts)] = lump.inside[tight]
    share = ndimage.gaussian_filter(share, edge_mm / spacing_mm)
    places = [
        (np.arange(side.start, side.stop) - c) * step
        for side, c, step in zip(box, lump.center, spacing_mm, strict=True)
    ]
    reach_mm = 1.5 * lump.diameter_mm + 3 * edge_mm
    noise = smooth_noise(places, reach_mm, grain_mm, random) if spread > 0 else np.zeros_like(share)
    texture = np.clip(value + spread * noise, *limits)
    part = array[tuple(box)]
    part[...] = _as(array.dtype, part + share * (texture - part.astype(np.float32)))


def smooth_noise(
    places_mm: Sequence[np.ndarray], extent_mm: float, length_mm: float, random: np.random.Generator
) -> np.ndarray:
    """Gaussian noise of mean 0 and standard deviation 1 at the crossings of three axes, float32.

    White noise on nodes every `length_mm` from -extent_mm to extent_mm, blurred by a Gaussian of 0.8 length_mm, each
    point divided by the norm of its weights. It is a function of the place alone: other places, the same noise.
    """
    count = int(np.ceil(extent_mm / length_mm)) + 2
    nodes = np.arange(-count, count + 1) * length_mm
    noise = random.standard_normal((len(nodes),) * 3, dtype=np.float32)
    weights = []
    for place in places_mm:
        weight = np.exp(-0.5 * ((np.asarray(place)[:, None] - nodes) / (0.8 * length_mm)) ** 2)
        weights.append((weight / np.linalg.norm(weight, axis=1, keepdims=True)).astype(np.float32))
    return _along_axes(noise, weights)


def _places(free: np.ndarray, spacing_mm: np.ndarray, radius_mm: float, random: np.random.Generator) -> np.ndarray:
    """(n, 3) voxels around which most of a ball is free, at most TRIES, in random order."""
    tight = bounds(free)
    if tight is None:
        return np.zeros((0, 3), dtype=int)
    part = free[tight]
    stride = max(1, round((part.size / MOST_PLACES) ** (1 / 3)))
    found = np.argwhere(part[::stride, ::stride, ::stride]) * stride + [side.start for side in tight]
    if not len(found):
        return np.zeros((0, 3), dtype=int)
    places = found[random.integers(len(found), size=PLACES)]
    ball = random.standard_normal((BALL, 3))
    ball *= (random.random((BALL, 1)) ** (1 / 3)) * radius_mm / np.linalg.norm(ball, axis=1, keepdims=True)
    points = np.rint(places[:, None] + ball / spacing_mm).astype(int)
    within = ((points >= 0) & (points < free.shape)).all(axis=-1)
    points = np.where(within[..., None], points, 0)
    share = (free[tuple(np.moveaxis(points, -1, 0))] & within).mean(axis=1)
    return places[share >= FITS][:TRIES]


def _linear(places: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """(places, nodes) weights of linear interpolation between evenly spaced nodes."""
    step = nodes[1] - nodes[0]
    return np.maximum(0.0, 1 - np.abs(places[:, None] - nodes) / step).astype(np.float32)


def _along_axes(array: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """A 3D array multiplied by one (new, old) matrix along each axis."""
    for weight in weights:  # the first axis goes to the end, three times
        array = np.tensordot(array, weight, axes=(0, 1))
    return np.ascontiguousarray(array)


def _as(dtype: np.dtype, values: np.ndarray) -> np.ndarray:
    """Values fit to be stored in an array of that type: rounded and clipped where it holds integers."""
    if dtype.kind in "iu":
        values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype)
