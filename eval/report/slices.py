"""One axial slice as a picture: the scan in grey, reference and prediction outlined along their voxels.

The picture is an <svg> in millimetres, as a radiologist looks at it: the patient's right on the viewer's left, anterior
up. Outlines are vectors, so they stay sharp on any screen; the scan is a JPEG inside the markup.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from seg_backbone.errors import InputError
from seg_backbone.geometry import Grid, to_canonical
from seg_backbone.io import case_name, find_scans
from seg_backbone.preview import window_of
from seg_backbone.volume import Volume

MARGIN_MM = 25.0  # around what is shown
LEAST_MM = 120.0  # shown along each axis, where the slice is that large
MOST_PIXELS = 512  # of the JPEG along each axis; a finer scan is thinned out

Window = tuple[float, float]


@dataclass(frozen=True, eq=False)
class View:
    """One axial slice, axes (right, anterior) from low to high.

    image: (i, j) values, or None without a scan; window: the values drawn black and white. reference, prediction:
    boolean (i, j), None where there is none. spacing_mm: (2,). number, of: the slice's place from 1, counted from the
    feet. boxes: (side, low, high) in voxels of this slice, where side is "reference" or "prediction". lines: (2, 2)
    voxel indices of two ends each, drawn as measured.
    """

    spacing_mm: np.ndarray
    number: int
    of: int
    image: np.ndarray | None = None
    window: Window = (0.0, 1.0)
    reference: np.ndarray | None = None
    prediction: np.ndarray | None = None
    boxes: Sequence[tuple[str, np.ndarray, np.ndarray]] = ()
    lines: Sequence[np.ndarray] = ()

    @property
    def shape(self) -> tuple[int, int]:
        array = next(one for one in (self.image, self.reference, self.prediction) if one is not None)
        return array.shape[0], array.shape[1]


@dataclass(frozen=True, eq=False)
class Background:
    """A scan on canonical axes, (right, anterior, superior). window: the values drawn black and white."""

    array: np.ndarray
    window: Window

    @classmethod
    def of(cls, volume: Volume) -> Background:
        return cls(to_canonical(volume.array, volume.grid)[0], window_of(volume))

    def behind(self, view: View) -> View:
        """The view with its slice of the scan."""
        return replace(view, image=self.array[:, :, view.number - 1], window=self.window)


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder of scans or masks, where a file is found by its path in it or by the name of its case."""

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise InputError(self.path, "a folder", "a file" if self.path.exists() else "none", "check the path")

    def require(self, name: str) -> Path:
        """The file of a case, or of a path as a question names its image. Raises InputError where there is none."""
        if (self.path / name).exists():
            return self.path / name
        if case_name(name) not in self._cases:
            raise InputError(self.path, f"a file of {case_name(name)}", "none", "name the folder that holds it")
        return self._cases[case_name(name)]

    @cached_property
    def _cases(self) -> dict[str, Path]:
        return {case_name(path): path for path in find_scans(self.path)[0]}


def worst_slice(reference: np.ndarray, prediction: np.ndarray | None, grid: Grid) -> View | None:
    """The slice with the most voxels of one side alone, else the one with the largest mask; None where both are empty.

    reference, prediction: boolean (i, j, k) on `grid`; prediction None where it is missing.
    """
    truth, turned = to_canonical(reference, grid)
    ours = None if prediction is None else to_canonical(prediction, grid)[0]
    either = truth if ours is None else truth | ours
    if not either.any():
        return None
    apart = either if ours is None else truth ^ ours
    where = int((apart if apart.any() else either).sum(axis=(0, 1)).argmax())
    return View(
        turned.spacing_mm[:2],
        where + 1,
        turned.shape[2],
        reference=truth[:, :, where],
        prediction=None if ours is None else ours[:, :, where],
    )


def draw_slice(view: View) -> str:
    """The <svg>: cut to what is outlined with a margin, whole where nothing is."""
    (left, right), (back, front) = _shown(view)
    width, height = view.spacing_mm * (right - left, front - back)
    parts = [
        f'<svg viewBox="0 0 {width:.6g} {height:.6g}" role="img" preserveAspectRatio="xMidYMid meet">',
        # voxels of the slice -> millimetres of the picture: x runs from the patient's right, y from anterior
        f'<g transform="scale({view.spacing_mm[0]:.6g} {view.spacing_mm[1]:.6g})">',
    ]
    if view.image is not None:
        cut = view.image[left:right, back:front]
        parts.append(
            f'<image width="{right - left}" height="{front - back}" preserveAspectRatio="none" '
            f'href="data:image/jpeg;base64,{_jpeg(cut[::-1, ::-1].T, view.window)}"/>'
        )
    for side, mask in (("reference", view.reference), ("prediction", view.prediction)):
        if mask is not None and mask.any():
            drawn = mask[left:right, back:front][::-1, ::-1]
            if view.image is None:
                parts.append(f'<path class="{side}-area" d="{_area(drawn)}"/>')
            parts.append(f'<path class="outline {side}" d="{_outline(drawn)}"/>')
    for side, low, high in view.boxes:
        x, y = right - 0.5 - high[0], front - 0.5 - high[1]
        wide, tall = high - low
        parts.append(
            f'<rect class="outline {side}" x="{x:.6g}" y="{y:.6g}" width="{wide:.6g}" height="{tall:.6g}" '
            f'stroke-dasharray="5 4"/>'
        )
    for (x1, y1), (x2, y2) in [np.array([right, front]) - 0.5 - ends for ends in view.lines]:
        parts.append(f'<path class="outline measured" d="M{x1:.6g} {y1:.6g}L{x2:.6g} {y2:.6g}"/>')
    parts.append("</g>")
    bar = 50 if width > 150 else 20
    parts.append(
        f'<path class="bar" d="M{0.04 * width:.6g} {0.96 * height:.6g}h{bar}"/><g font-size="{0.045 * width:.3g}">'
        f'<text x="{0.04 * width:.6g}" y="{0.94 * height:.6g}">{bar} mm</text>'
        f'<text x="{0.02 * width:.6g}" y="{0.5 * height:.6g}">R</text></g></svg>'
    )
    return "".join(parts)


def _shown(view: View) -> list[tuple[int, int]]:
    """The half-open voxel range of each axis that is drawn."""
    marked = np.zeros(view.shape, dtype=bool)
    for mask in (view.reference, view.prediction):
        if mask is not None:
            marked |= mask
    ranges = []
    for axis in range(2):
        size, spacing = view.shape[axis], float(view.spacing_mm[axis])
        ends = [float(edge) for edge in np.flatnonzero(marked.any(axis=1 - axis))]
        ends += [float(edge) for _, low, high in view.boxes for edge in (low[axis] + 0.5, high[axis] - 0.5)]
        ends += [float(end) for line in view.lines for end in line[:, axis]]
        if not ends:
            ranges.append((0, size))
            continue
        margin = max(MARGIN_MM, (LEAST_MM - (max(ends) - min(ends)) * spacing) / 2) / spacing
        low, high = max(0, int(min(ends) - margin)), min(size, int(np.ceil(max(ends) + margin)) + 1)
        ranges.append((low, high) if low < high else (0, size))
    return ranges


def _jpeg(image: np.ndarray, window: Window) -> str:
    """(rows, columns) values as a grey JPEG in base64."""
    step = [-(-size // MOST_PIXELS) for size in image.shape]
    low, high = window
    file = io.BytesIO()
    shown = np.nan_to_num(image[:: step[0], :: step[1]].astype(np.float32))
    imsave(file, shown, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), format="jpeg", pil_kwargs={"quality": 85})
    return base64.b64encode(file.getvalue()).decode()


def _outline(mask: np.ndarray) -> str:
    """Path along the voxel faces between inside and outside. mask: (x, y), y downwards."""
    padded = np.pad(mask, 1).astype(np.int8)
    upright = np.argwhere(np.diff(padded[:, 1:-1], axis=0))
    level = np.argwhere(np.diff(padded[1:-1], axis=1))
    return "".join([f"M{x} {y}v1" for x, y in upright] + [f"M{x} {y}h1" for x, y in level])


def _area(mask: np.ndarray) -> str:
    """Path over every voxel inside, one rectangle a run of them. mask: (x, y), y downwards."""
    steps = np.diff(np.pad(mask, ((1, 1), (0, 0))).astype(np.int8), axis=0)
    starts, stops = np.argwhere(steps.T == 1), np.argwhere(steps.T == -1)
    return "".join(f"M{x} {y}h{end - x}v1h{x - end}z" for (y, x), (_, end) in zip(starts, stops, strict=True))
