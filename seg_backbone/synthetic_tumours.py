"""Synthetic tumours: lesions that were never there, drawn into real scans to learn from. Nothing is evaluated on them.

Enters a Volume with its Mask and a `TumourRecipe`, leaves both with tumours in them and a record of each, which says
that it is synthetic; the same for the same random generator. Sizes, edges, texture and mass effect are in millimetres,
contrast in HU (CT) or as a share of the signal (MR).

After Hu et al. 2023, "Label-Free Liver Tumor Segmentation": ellipsoids of several sizes, elastic deformation, blurred
noise for texture, a contrast to the organ, a soft edge, mass effect. Here a tumour has its volume whatever the voxels,
goes round what it must not enter, and is as grainy as the tissue it replaces. Limits: bone and air are displaced as
soft tissue is, nothing is infiltrated, and there is no necrosis, no capsule and no oedema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import pi
from typing import Any

import cc3d
import numpy as np
from scipy import ndimage

from seg_backbone.boxes import Box, bounds, box_of
from seg_backbone.errors import ConfigError, LabelError
from seg_backbone.geometry import Grid
from seg_backbone.labels import SIDES, canonical, is_lesion
from seg_backbone.lesions import BODY_FRACTION
from seg_backbone.lumps import Lump, grow, paint, press
from seg_backbone.measure import Point
from seg_backbone.volume import Mask, Volume, require_same_grid

BODY = "body"  # a place to draw in: soft tissue that no class of the mask covers
# Diameters of a ball of the same volume, mm. Hu et al.'s radii of 4, 8, 16 and 32 voxels lie in the middle of them.
SIZES_MM = {"tiny": (5.0, 10.0), "small": (10.0, 20.0), "medium": (20.0, 40.0), "large": (40.0, 80.0)}
# Mean of the tumour minus the tissue it replaces, HU, of the order seen after contrast medium in the portal venous
# phase (lung: a solid nodule against air; brain: without contrast medium). Hu et al. draw -145 to -65 in the liver.
# The body's is that against muscle, in fat too.
CONTRAST_HU = {
    BODY: (-45.0, -10.0),
    "brain": (-20.0, -8.0),
    "kidney": (-120.0, -30.0),
    "liver": (-120.0, -30.0),
    "lung": (750.0, 900.0),
    "pancreas": (-60.0, -20.0),
    "spleen": (-70.0, -25.0),
}
OTHER_CONTRAST_HU = (-60.0, -20.0)
MUSCLE_HU = 55.0
TISSUE_HU = (-150.0, 200.0)  # fat to enhanced organs: neither air nor bone
PAIRS = {"count", "bend", "edge_mm", "texture", "texture_mm", "mass_effect", "contrast_mr"}

Range = tuple[float, float]


@dataclass(frozen=True)
class TumourRecipe:
    """What is drawn and how it looks. Every pair is the least and the most of an even draw for each tumour.

    label: the class that the tumours are. inside: classes to draw in, one at random of those in view; "body" is the
    soft tissue that no class covers. count: tumours a scan. sizes: size class (SIZES_MM) -> how often; where one does
    not fit, the next smaller is drawn. stretch: the largest factor on an axis. bend: unevenness of the surface, as a
    share of the radius. edge_mm: blur of the surface. texture: standard deviation inside, as a share of that of the
    tissue it replaces; texture_mm: length of its grain. mass_effect: share of the tumour's radius by which tissue at
    its surface was pushed outwards. contrast_hu: class -> HU, before CONTRAST_HU; a side or the rest of a name may be
    left out ("kidney", "lung"). contrast_mr: change of the signal, brighter or darker by chance. gap_mm: between two
    lesions.
    """

    label: str = "tumour"
    inside: tuple[str, ...] = (BODY,)
    count: tuple[int, int] = (1, 3)
    sizes: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(SIZES_MM, 1.0))
    stretch: float = 1.3
    bend: Range = (0.05, 0.25)
    edge_mm: Range = (0.5, 1.5)
    texture: Range = (0.5, 1.2)
    texture_mm: Range = (1.5, 4.0)
    mass_effect: Range = (0.0, 0.5)
    contrast_hu: Mapping[str, Range] = field(default_factory=dict)
    contrast_mr: Range = (0.2, 0.6)
    gap_mm: float = 4.0

    def __post_init__(self) -> None:
        if not self.inside or self.label in self.inside:
            raise ConfigError(
                "inside", f"classes other than {self.label}, or body", f"{list(self.inside)}", "name some"
            )
        known = ", ".join(SIZES_MM)
        if not set(self.sizes) <= set(SIZES_MM) or not any(self.sizes.values()) or min(self.sizes.values()) < 0:
            raise ConfigError("sizes", f"shares of {known}", f"{dict(self.sizes)}", "correct them")
        limits = {"count": (1, 100), "bend": (0, 0.5), "edge_mm": (0, 10), "texture": (0, 10), "texture_mm": (1, 50)}
        limits |= {"mass_effect": (0, 0.9), "contrast_mr": (0, 10)}
        pairs = {name: (getattr(self, name), *limits[name]) for name in limits}
        pairs |= {f"contrast_hu of {name}": (value, -2000, 2000) for name, value in self.contrast_hu.items()}
        for name, (value, least, most) in pairs.items():
            whole = name != "count" or all(isinstance(number, int) for number in value)
            if len(value) != 2 or not least <= value[0] <= value[1] <= most or not whole:
                expected = f"two {'whole ' * (name == 'count')}numbers from {least} to {most}, the smaller first"
                raise ConfigError(name, expected, f"{list(value)}", "correct them")
        if not 1 <= self.stretch <= 3 or not 0 <= self.gap_mm <= 100:
            found = f"{self.stretch} and {self.gap_mm}"
            raise ConfigError("stretch and gap_mm", "1 to 3, and 0 to 100 mm", found, "correct them")

    @staticmethod
    def of(data: Mapping[str, Any], source: str = "recipe") -> TumourRecipe:
        """The recipe of a mapping as JSON or YAML hold it; what it leaves out is as above. Raises ConfigError.

        One number stands for a pair of it, one name for a list of it.
        """
        known = TumourRecipe.__dataclass_fields__
        if unknown := sorted(set(data) - set(known)):
            raise ConfigError(source, f"keys among {', '.join(known)}", ", ".join(unknown), "correct or drop them")
        try:
            fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            for key in PAIRS & {key for key, value in fields.items() if isinstance(value, int | float)}:
                fields[key] = (fields[key], fields[key])
            if "inside" in fields:
                names = [fields["inside"]] if isinstance(fields["inside"], str) else fields["inside"]
                fields["inside"] = tuple(map(canonical, names))
            if "label" in fields:
                fields["label"] = canonical(fields["label"])
            if "contrast_hu" in fields:
                table = fields["contrast_hu"].items()
                fields["contrast_hu"] = {canonical(name): tuple(pair) for name, pair in table}
            return TumourRecipe(**fields)
        except (TypeError, AttributeError) as error:
            raise ConfigError(source, "a recipe of synthetic tumours", f"{error}", "see TumourRecipe") from None

    def contrast_in(self, place: str) -> Range:
        """HU of a class: by its name, by the name without its side, by its first word; the recipe's own first."""
        structure, _, side = place.rpartition("_")
        names = (place, structure if side in SIDES else place, place.split("_")[0])
        tables = (self.contrast_hu, CONTRAST_HU)
        return next((table[name] for table in tables for name in names if name in table), OTHER_CONTRAST_HU)

    def to_json(self) -> dict[str, Any]:
        """Every field, as JSON holds it."""
        return asdict(self)


@dataclass(frozen=True)
class SyntheticTumour:
    """One tumour that was drawn, measured on the mask as it is at the end.

    instance: its value in `Synthesis.instances`. inside: the class it was drawn in, or "body". size: by diameter_mm,
    that of a ball of its volume. contrast: mean minus the median of the tissue it replaced, in HU, or as a share of
    that signal ("relative"). center_mm: centroid; box: outer voxel faces; world RAS mm.
    """

    instance: int
    label: str
    inside: str
    size: str
    voxels: int
    volume_ml: float
    diameter_mm: float
    center_mm: Point
    box: Box
    contrast: float
    contrast_unit: str
    edge_mm: float
    mass_effect: float

    def to_json(self) -> dict[str, Any]:
        """The record, marked `"synthetic": true`."""
        rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in vars(self).items()}
        center = [round(x, 2) for x in self.center_mm]
        return {"synthetic": True} | rounded | {"center_mm": center, "box": self.box.to_json()}


@dataclass(frozen=True, eq=False)
class Synthesis:
    """A scan with synthetic tumours. mask: with them and with what else it had, displaced where they push.

    instances: (i, j, k) uint16, n where records[n - 1] lies, 0 elsewhere; empty where nothing had room.
    """

    volume: Volume
    mask: Mask
    instances: np.ndarray
    records: tuple[SyntheticTumour, ...]


@dataclass(frozen=True)
class Scale:
    """What the values of a channel mean. HU = gain x value + offset; gain 0: a signal above the channel's least value.

    low, high: what the channel can hold.
    """

    gain: float = 1.0
    offset: float = 0.0
    low: float = -np.inf
    high: float = np.inf


HU, SIGNAL = Scale(), Scale(gain=0.0)


@dataclass(frozen=True, eq=False)
class Canvas:
    """Arrays (i, j, k) on one grid that tumours are drawn into, in place.

    channels: images, with what their values mean in `scales`; the first one tells where the body is. ids: label map.
    instances: gets 1, 2, ... where each tumour lies; None where nobody asks.
    """

    channels: Sequence[np.ndarray]
    scales: Sequence[Scale]
    ids: np.ndarray
    spacing_mm: np.ndarray
    instances: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Drawn:
    """One tumour on a canvas. contrast: in HU, or relative where channel 0 is a signal."""

    lump: Lump
    place: str
    contrast: float
    edge_mm: float
    mass_effect: float


def add_tumours(
    volume: Volume,
    mask: Mask,
    annotated: Sequence[str],
    recipe: TumourRecipe,
    random: np.random.Generator,
    region: Mask | None = None,
) -> Synthesis:
    """Tumours in a scan; nothing that enters is changed.

    annotated: the classes that the mask annotates; others count as not in view. region: tumours lie where it is not 0.
    Channel 0 has HU where the scan is CT, all else is a signal. Where no class of `recipe.inside` is in view, or none
    has room, the records are empty. The mask's labels gain the tumours' class; voxels without a name stay as they are.
    Raises LabelError where the mask names no class of `recipe.inside`, GridError for grids that differ.
    """
    require_same_grid(volume, mask)
    if region is not None:
        require_same_grid(volume, region)
    if not {BODY, *mask.labels} & set(recipe.inside):
        found = f"{', '.join(mask.labels) or 'none'}"
        raise LabelError(mask.source, f"a class among {', '.join(recipe.inside)}", found, "name another place")
    largest = max([0, *mask.labels.values(), int(mask.array.max(initial=0))])
    value = mask.labels.get(recipe.label, largest + 1)
    ids = mask.array.astype(np.uint8 if max(value, largest) < 256 else np.uint16)
    canvas = Canvas(
        channels=[array.copy(order="K") for array in volume.channels],
        scales=[HU if volume.modality == "CT" else SIGNAL, *[SIGNAL] * len(volume.others)],
        ids=ids,
        spacing_mm=volume.grid.spacing_mm,
        instances=np.zeros_like(ids, dtype=np.uint16),
    )
    drawn = draw_tumours(
        canvas,
        recipe,
        random,
        value=value,
        places={name: mask.labels[name] for name in recipe.inside if name in mask.labels and name in annotated},
        lesions=[number for name, number in mask.labels.items() if is_lesion(name)],
        allowed=None if region is None else region.array > 0,
    )
    unit = "HU" if volume.modality == "CT" else "relative"
    name = f"{volume.source} with synthetic tumours"
    assert canvas.instances is not None
    return Synthesis(
        replace(volume, array=canvas.channels[0], others=tuple(canvas.channels[1:]), source=name),
        Mask(ids, mask.grid, mask.labels | {recipe.label: value}, source=name),
        canvas.instances,
        tuple(_record(n, one, canvas.instances, volume.grid, recipe.label, unit) for n, one in enumerate(drawn, 1)),
    )


def draw_tumours(
    canvas: Canvas,
    recipe: TumourRecipe,
    random: np.random.Generator,
    value: int,
    places: Mapping[str, int],
    lesions: Sequence[int] = (),
    allowed: np.ndarray | None = None,
) -> list[Drawn]:
    """Draw tumours, id `value`, into a canvas. Returns those that found room, in the order of their instances.

    places: class -> its id, of the classes of the recipe that may be in view; "body" is found by the values of channel
    0. lesions: ids to keep gap_mm away from. allowed: bool, where tumours may lie at all.
    """
    body = None
    if BODY in recipe.inside and BODY not in places:
        body = body_tissue(canvas.channels[0], canvas.scales[0], canvas.spacing_mm)
    count = int(random.integers(recipe.count[0], recipe.count[1] + 1))
    wanted = sorted((_diameters(recipe, random) for _ in range(count)), reverse=True)  # the largest needs most room
    drawn: list[Drawn] = []
    for diameters_mm in wanted:
        barred = _grown(np.isin(canvas.ids, [value, *lesions]), recipe.gap_mm, canvas.spacing_mm)
        if allowed is not None:
            barred |= ~allowed
        for place in random.permutation([*places, *([BODY] if body is not None else [])]).tolist():
            tissue = canvas.ids == places.get(place, 0)
            if body is not None and place not in places:
                tissue &= body
            lump = _grow_first(tissue & ~barred, canvas.spacing_mm, diameters_mm, recipe, random)
            if lump is not None:
                drawn.append(_draw(canvas, lump, place, recipe, random))
                canvas.ids[lump.box][lump.inside] = value
                if canvas.instances is not None:
                    canvas.instances[lump.box][lump.inside] = len(drawn)
                break
        else:
            break  # what follows is smaller still, and that was tried too
    return drawn


def body_tissue(array: np.ndarray, scale: Scale, spacing_mm: np.ndarray) -> np.ndarray:
    """Bool array of soft tissue by its values, noise averaged over 3 mm: the largest piece, neither air nor bone.

    CT: TISSUE_HU, as far as the channel tells. Else: a signal above a tenth of the 99th percentile (bone marrow, too).
    """
    window = [2 * round(1.5 / step) + 1 for step in spacing_mm.tolist()]
    smooth = ndimage.uniform_filter(array, window, output=np.float32)
    if scale.gain:
        low, high = (scale.gain * limit + scale.offset for limit in (scale.low, scale.high))
        limits = (max(TISSUE_HU[0], low + 1), min(TISSUE_HU[1], high - 1))
        least, most = ((limit - scale.offset) / scale.gain for limit in limits)
        tissue = (smooth > least) & (smooth < most)
    else:
        low = float(array.min())
        tissue = smooth - low > BODY_FRACTION * (float(np.percentile(array, 99)) - low)
    return cc3d.largest_k(tissue.view(np.uint8), k=1, connectivity=26) > 0 if tissue.any() else tissue


def size_of(diameter_mm: float) -> str:
    """The size class of a diameter; the nearest for one beyond all."""
    return next((name for name, (_, most) in SIZES_MM.items() if diameter_mm < most), list(SIZES_MM)[-1])


def _diameters(recipe: TumourRecipe, random: np.random.Generator) -> list[float]:
    """A diameter of a size class drawn at random, then one of each smaller class that the recipe has, mm."""
    names = [name for name in SIZES_MM if recipe.sizes.get(name, 0) > 0]
    shares = np.array([recipe.sizes[name] for name in names])
    first = int(random.choice(len(names), p=shares / shares.sum()))
    return [float(random.uniform(*SIZES_MM[name])) for name in reversed(names[: first + 1])]


def _grow_first(
    free: np.ndarray,
    spacing_mm: np.ndarray,
    diameters_mm: Sequence[float],
    recipe: TumourRecipe,
    random: np.random.Generator,
) -> Lump | None:
    """A lump of the first diameter that has room."""
    for diameter_mm in diameters_mm:
        lump = grow(free, spacing_mm, diameter_mm, random, recipe.stretch, float(random.uniform(*recipe.bend)))
        if lump is not None:
            return lump
    return None


def _draw(canvas: Canvas, lump: Lump, place: str, recipe: TumourRecipe, random: np.random.Generator) -> Drawn:
    """Push the surroundings of a lump away and paint it; its id is left to the caller."""
    contrast_hu = random.uniform(*recipe.contrast_in(place))
    relative = random.uniform(*recipe.contrast_mr) * random.choice((-1.0, 1.0))
    ranges = (recipe.mass_effect, recipe.edge_mm, recipe.texture, recipe.texture_mm)
    strength, edge_mm, texture, grain_mm = (float(random.uniform(*pair)) for pair in ranges)
    edge_mm = min(edge_mm, lump.diameter_mm / 6)  # a tiny one still shows its contrast in the middle
    tissues = [array[lump.box][lump.inside].astype(np.float32) for array in canvas.channels]
    medians = [float(np.median(tissue)) for tissue in tissues]
    in_hu = [(scale, median) for scale, median in zip(canvas.scales, medians, strict=True) if scale.gain]
    widest = max(in_hu, key=lambda one: one[0].gain * (one[0].high - one[0].low), default=None)
    contrasts = []
    for array, scale, tissue, median in zip(canvas.channels, canvas.scales, tissues, medians, strict=True):
        least = float(array.min())
        if scale.gain:
            assert widest is not None
            known, value = (scale, median) if scale.low < median < scale.high else widest
            hu = known.gain * value + known.offset
            mean = ((max(hu, MUSCLE_HU) if place == BODY else hu) + contrast_hu - scale.offset) / scale.gain
        else:
            mean = least + (median - least) * (1 + relative)
        limits = (max(scale.low, least), scale.high)
        mean = float(np.clip(mean, *limits))
        contrasts.append((mean - median) * scale.gain if scale.gain else (mean - median) / max(median - least, 1e-6))
        spread = texture * 1.4826 * float(np.median(np.abs(tissue - median)))  # the deviation of a normal distribution
        press(array, lump, strength, order=1)
        paint(array, lump, canvas.spacing_mm, mean, random, spread, grain_mm, edge_mm, limits)
    for labels in (canvas.ids, canvas.instances):
        if labels is not None:
            press(labels, lump, strength, order=0)
    return Drawn(lump, place, contrasts[0], edge_mm, strength)


def _record(number: int, drawn: Drawn, instances: np.ndarray, grid: Grid, label: str, unit: str) -> SyntheticTumour:
    """A tumour as it is after all others have pushed it."""
    where = instances == number
    tight, box = bounds(where), box_of(where, grid)
    assert tight is not None and box is not None, "tumours keep their distance"
    voxels = np.argwhere(where[tight]) + [side.start for side in tight]
    x, y, z = grid.voxel_to_world(voxels.mean(axis=0)).tolist()
    volume_ml = len(voxels) * grid.voxel_volume_ml
    diameter_mm = (6 / pi * 1000 * volume_ml) ** (1 / 3)
    return SyntheticTumour(
        instance=number,
        label=label,
        inside=drawn.place,
        size=size_of(diameter_mm),
        voxels=len(voxels),
        volume_ml=volume_ml,
        diameter_mm=diameter_mm,
        center_mm=(x, y, z),
        box=box,
        contrast=drawn.contrast,
        contrast_unit=unit,
        edge_mm=drawn.edge_mm,
        mass_effect=drawn.mass_effect,
    )


def _grown(mask: np.ndarray, margin_mm: float, spacing_mm: np.ndarray) -> np.ndarray:
    """A bool array grown by a margin, at least one voxel, along each axis."""
    grown = np.zeros_like(mask)
    tight = bounds(mask)
    if tight is not None:
        margin = np.maximum(1, np.ceil(margin_mm / spacing_mm)).astype(int).tolist()
        box = tuple(slice(max(0, side.start - m), side.stop + m) for side, m in zip(tight, margin, strict=True))
        grown[box] = ndimage.maximum_filter(mask[box].view(np.uint8), [2 * m + 1 for m in margin]) > 0
    return grown
