"""A picture of a segmented scan: three planes through what matters most, for a quick look, not for a diagnosis.

Enters a Volume with its Mask and Instances, leaves a PNG. The planes are drawn on canonical axes in radiological
convention: the patient's right is on the viewer's left, anterior is up on the axial plane and left on the sagittal.
Every horizontal axis therefore runs from the canonical axis's end to its start.
"""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Patch

from seg_backbone.errors import ConfigError
from seg_backbone.geometry import Grid, to_canonical
from seg_backbone.io import replacing
from seg_backbone.labels import LESIONS, display
from seg_backbone.lesions import Instance, Instances
from seg_backbone.volume import Mask, Volume, require_same_grid

CT_WINDOW_HU = (-160.0, 240.0)  # soft tissue
MR_PERCENTILES = (1.0, 99.5)
ALPHA = 0.45
SLICE_PIXELS = 1024
LESION_RGB = (0.95, 0.2, 0.2)
# name, canonical axis of the slices, the viewer's left
PLANES = (("axial", 2, "R"), ("coronal", 1, "R"), ("sagittal", 0, "A"))


def write_preview(volume: Volume, mask: Mask, instances: Instances, path: str | Path) -> Path:
    """Write the PNG (1500 x 600 pixels), atomically, and return its path.

    The axial panel is the slice of the long axis of the largest lesion, else of the largest instance, with that axis
    drawn; the other two go through its centroid. Without instances all three go through the middle of the scan.
    Raises GridError where volume and mask differ in grid.
    """
    require_same_grid(volume, mask)
    image, grid = to_canonical(volume.array, volume.grid)
    ids, _ = to_canonical(mask.array, mask.grid)
    shown = _foremost(instances)
    centre = _voxel(grid, shown.center_mm) if shown else np.array(grid.shape) // 2
    ends = grid.world_to_voxel(np.array(shown.long_axis_points_mm)) if shown else None
    if ends is not None:
        centre[2] = round(float(ends[:, 2].mean()))  # the slice of the long axis need not be the centroid's

    figure = Figure(figsize=(15, 6), dpi=100, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    colours, window = _colours(mask.labels), window_of(volume)
    present: set[int] = set()
    for (name, axis, left), axes in zip(PLANES, figure.subplots(1, 3), strict=True):
        number = int(centre[axis])
        labels = ids.take(number, axis=axis)
        present |= set(np.unique(labels).tolist()) - {0}
        _draw(axes, image.take(number, axis=axis), colours[labels], window, np.delete(grid.spacing_mm, axis))
        axes.set_title(f"{name} {number + 1}/{grid.shape[axis]}", color="white", fontsize=11)
        axes.text(0.02, 0.5, left, color="white", fontsize=13, va="center", transform=axes.transAxes)
        if axis == 2 and shown and ends is not None:
            text = f"{display(shown.label)}: {shown.long_axis_mm:.1f} mm"
            axes.plot(ends[:, 0], ends[:, 1], color="yellow", linewidth=1.5, marker="+", label=text)
            legend = axes.legend(loc="lower right", fontsize=10, facecolor="black", labelcolor="yellow")
            legend.get_frame().set_alpha(0.6)
    patches = [Patch(color=colours[i][:3], label=display(n)) for n, i in mask.labels.items() if i in present]
    if patches:
        figure.legend(handles=patches, loc="outside lower center", ncols=8, facecolor="black", labelcolor="white")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def slice_png(volume: Volume, mask: Mask, plane: str, index: int, overlay: bool = True) -> bytes:
    """One slice as PNG, drawn as a preview draws it, its pixels square and at most SLICE_PIXELS on a side.

    plane: "axial", "coronal" or "sagittal". index: from 0 along the array axis nearest to the plane's normal, as in
    the file and in an instance's `slice`. overlay: with the mask's colours. Raises GridError where volume and mask
    differ in grid, ConfigError for an unknown plane or a slice outside the scan.
    """
    require_same_grid(volume, mask)
    slices = count_slices(volume.grid)
    if plane not in slices:
        raise ConfigError("plane", f"one of {', '.join(slices)}", repr(plane), "correct it")
    if not 0 <= index < slices[plane]:
        raise ConfigError(f"{plane} slice", f"0 to {slices[plane] - 1}", str(index), "take one inside the scan")
    axis = next(axis for name, axis, _ in PLANES if name == plane)
    (turned,) = (flip for along, flip in nib.io_orientation(volume.grid.affine) if along == axis)
    number = index if turned > 0 else slices[plane] - 1 - index
    image, grid = to_canonical(volume.array, volume.grid)
    ids, _ = to_canonical(mask.array, mask.grid)

    # pixel -> (horizontal, vertical) voxel: the nearest one, both axes from their end to their start
    size_mm = np.delete(grid.spacing_mm * grid.shape, axis)
    step = max(np.delete(grid.spacing_mm, axis).min(), size_mm.max() / SLICE_PIXELS)
    across, down = (
        ((np.arange(max(1, round(size / step))) + 0.5) * step / size * n).astype(int).clip(0, n - 1)[::-1]
        for size, n in zip(size_mm, np.delete(grid.shape, axis), strict=True)
    )
    low, high = window_of(volume)
    grey = np.clip((image.take(number, axis=axis)[across][:, down].T - low) / max(high - low, 1e-6), 0, 1)
    colour = _colours(mask.labels)[ids.take(number, axis=axis)[across][:, down].T] * overlay
    rgb = grey[..., None] * (1 - colour[..., 3:]) + colour[..., :3] * colour[..., 3:]
    png = io.BytesIO()
    imsave(png, (rgb * 255).round().astype(np.uint8), format="png")
    return png.getvalue()


def count_slices(grid: Grid) -> dict[str, int]:
    """Plane -> how many slices a scan has of it."""
    shape = to_canonical(np.broadcast_to(np.zeros(1), grid.shape), grid)[1].shape
    return {name: shape[axis] for name, axis, _ in PLANES}


def _foremost(instances: Instances) -> Instance | None:
    """The largest lesion, else the largest instance, else None."""
    return max(instances, key=lambda one: (one.label in LESIONS, one.volume_ml), default=None)


def _voxel(grid: Grid, point_mm: tuple[float, float, float]) -> np.ndarray:
    """(3,) index of the voxel that holds a world point, moved into the grid."""
    return np.clip(np.rint(grid.world_to_voxel(np.array(point_mm))).astype(int), 0, np.array(grid.shape) - 1)


def window_of(volume: Volume) -> tuple[float, float]:
    """The values drawn black and white."""
    if volume.modality == "CT":
        return CT_WINDOW_HU
    low, high = np.percentile(volume.array[::2, ::2, ::2], MR_PERCENTILES).tolist()
    return (low, high) if high > low else (float(volume.array.min()), float(volume.array.max()))


def _colours(labels: dict[str, int]) -> np.ndarray:
    """(largest id + 1, 4) RGBA by class id: background clear, lesions red, the others from green to magenta."""
    table = np.zeros((max(labels.values(), default=0) + 1, 4))
    for value, hue in zip(labels.values(), np.linspace(0.25, 0.88, len(labels)), strict=True):
        table[value] = colormaps["hsv"](hue, alpha=ALPHA)
    for name in LESIONS:
        if name in labels:
            table[labels[name]] = (*LESION_RGB, ALPHA)
    return table


def _draw(
    axes: Axes, image: np.ndarray, overlay: np.ndarray, window: tuple[float, float], spacing_mm: np.ndarray
) -> None:
    """One slice with its overlay. image: (horizontal, vertical), overlay the same with RGBA, spacing_mm (2,)."""
    low, high = window
    aspect = spacing_mm[1] / spacing_mm[0]
    axes.imshow(image.T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect)
    axes.imshow(overlay.transpose(1, 0, 2), origin="lower", aspect=aspect, interpolation="nearest")
    axes.invert_xaxis()
    axes.set_axis_off()
