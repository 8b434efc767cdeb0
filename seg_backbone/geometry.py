"""Grid: where the voxels of an array lie in the patient.

Conventions, stated once for the whole project:
- Arrays are indexed (i, j, k) in the order of the file they came from (nibabel's order).
- World coordinates are RAS+ millimetres: +x the patient's right, +y anterior, +z superior.
- An affine maps voxel CENTRES: world = affine @ (i, j, k, 1). A voxel covers index +- 0.5 along each axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of a 3D array.

    shape: voxels along (i, j, k). affine: 4x4 float64, voxel index -> world mm (RAS+), invertible.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        assert len(self.shape) == 3 and affine.shape == (4, 4)
        assert abs(np.linalg.det(affine[:3, :3])) > 1e-12, "affine is singular"
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", affine)

    @cached_property
    def spacing_mm(self) -> np.ndarray:
        """(3,) distance between neighbouring voxel centres along each array axis, mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres (shear included: the determinant, not the product of spacings)."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @cached_property
    def orientation(self) -> str:
        """Nearest axis codes of (i, j, k), for example "LPS" where i grows toward the patient's left."""
        return "".join(nib.aff2axcodes(self.affine))

    @cached_property
    def axial_axis(self) -> int:
        """The array axis whose direction is nearest to world z: slices along it are the axial slices."""
        return ["S" in code or "I" in code for code in self.orientation].index(True)

    def voxel_to_world(self, index: np.ndarray) -> np.ndarray:
        """(..., 3) voxel indices -> (..., 3) world mm."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def world_to_voxel(self, point_mm: np.ndarray) -> np.ndarray:
        """(..., 3) world mm -> (..., 3) continuous voxel indices."""
        inverse = np.linalg.inv(self.affine)
        return np.asarray(point_mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]

    def extent_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """World-aligned box (min, max), each (3,) mm, that holds every voxel, outer faces included."""
        corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in self.shape], indexing="ij")).reshape(3, -1).T
        world = self.voxel_to_world(corners)
        return world.min(0), world.max(0)

    def cropped(self, box: tuple[slice, ...]) -> Grid:
        """The part inside an index box: the same voxels at the same places in the world."""
        affine = self.affine.copy()
        affine[:3, 3] = self.voxel_to_world(np.array([side.start for side in box]))
        shape = [side.stop - side.start for side in box]
        return Grid((shape[0], shape[1], shape[2]), affine)

    def same_as(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """True where both have one shape and every corner lies within `tolerance_mm`."""
        if self.shape != other.shape:
            return False
        far = np.array(self.shape, dtype=np.float64) - 1
        corners = np.array(np.meshgrid(*[(0.0, f) for f in far], indexing="ij")).reshape(3, -1).T
        return bool(np.abs(self.voxel_to_world(corners) - other.voxel_to_world(corners)).max() <= tolerance_mm)

    def with_spacing(self, spacing_mm: tuple[float, float, float]) -> Grid:
        """A grid over the same physical extent (outer faces) at another spacing; at least one voxel an axis."""
        spacing = np.asarray(spacing_mm, dtype=np.float64)
        shape = np.maximum(1, np.round(np.array(self.shape) * self.spacing_mm / spacing)).astype(int)
        step = np.array(self.shape) / shape  # old voxels per new voxel: keeps the outer faces exactly
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * step
        affine[:3, 3] = self.voxel_to_world((step - 1) / 2)
        return Grid((int(shape[0]), int(shape[1]), int(shape[2])), affine)


def to_canonical(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid]:
    """Flip and transpose so that (i, j, k) run nearest to (right, anterior, superior). A view where numpy allows."""
    transform = nib.io_orientation(grid.affine)
    turned = nib.apply_orientation(array, transform)
    return turned, Grid(turned.shape[:3], grid.affine @ nib.orientations.inv_ornt_aff(transform, grid.shape))


def from_canonical(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Undo `to_canonical`: an array on the canonical version of `grid` back onto `grid`'s own axes."""
    back = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]]), nib.io_orientation(grid.affine))
    return nib.apply_orientation(array, back)
