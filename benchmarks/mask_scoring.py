"""What `vlm evaluate masks` costs on a large scan: 14 classes on 512 x 512 x 300 voxels, every protocol but flare24.

    python benchmarks/mask_scoring.py [--cases 2 --jobs 2]

The masks are invented: rough ellipsoids as large and as far apart as the organs of FLARE23, with their ids, on voxels
of 0.8 x 0.8 x 1.5 mm; the prediction has another roughness and is shifted by two voxels. Prints wall time, CPU time of
all processes and the peak memory of the largest, starting Python, reading and the report included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom

from seg_backbone.geometry import Grid
from seg_backbone.io import write_mask
from seg_backbone.labels import FLARE23_LABELS
from seg_backbone.volume import Mask

SHAPE, SPACING_MM = (512, 512, 300), np.array([0.8, 0.8, 1.5])
# class -> centre as shares of the scan, half axes in mm
ORGANS = {
    "liver": ((0.35, 0.50, 0.60), (85, 70, 75)),
    "kidney_right": ((0.36, 0.62, 0.35), (30, 28, 55)),
    "spleen": ((0.68, 0.58, 0.62), (35, 45, 50)),
    "pancreas": ((0.52, 0.48, 0.48), (65, 18, 20)),
    "aorta": ((0.52, 0.58, 0.50), (12, 12, 200)),
    "inferior_vena_cava": ((0.46, 0.58, 0.50), (11, 11, 150)),
    "adrenal_gland_right": ((0.42, 0.58, 0.50), (8, 6, 15)),
    "adrenal_gland_left": ((0.60, 0.58, 0.52), (8, 6, 15)),
    "gallbladder": ((0.40, 0.40, 0.45), (18, 18, 30)),
    "esophagus": ((0.52, 0.55, 0.80), (10, 9, 60)),
    "stomach": ((0.60, 0.42, 0.60), (50, 45, 60)),
    "duodenum": ((0.45, 0.48, 0.38), (30, 20, 35)),
    "kidney_left": ((0.66, 0.62, 0.38), (30, 28, 55)),
    "tumour": ((0.33, 0.45, 0.62), (20, 20, 20)),
}


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "labels.json").write_text(json.dumps(FLARE23_LABELS))
        grid = Grid(SHAPE, np.diag([*SPACING_MM, 1.0]))
        for case in range(given.cases):
            write_mask(Mask(organs(2 * case), grid), folder / "reference" / f"{case}.nii.gz")
            predicted = np.roll(organs(2 * case + 1), (2, -1, 1), axis=(0, 1, 2))
            write_mask(Mask(predicted, grid), folder / "predicted" / f"{case}.nii.gz")
        for protocol in ("corrected", "flare23", "automsc"):
            print(f"{protocol}: {measure(folder, protocol, given.jobs)}", flush=True)


def organs(seed: int) -> np.ndarray:
    """(512, 512, 300) uint8 of FLARE23's ids."""
    noise = np.random.default_rng(seed).standard_normal((20, 20, 20)).astype(np.float32)
    noise = zoom(noise, np.array(SHAPE) / 20, order=1)
    painted = np.zeros(SHAPE, dtype=np.uint8)
    extent = SHAPE * SPACING_MM
    for name, (share, half_mm) in ORGANS.items():
        centre, half = share * extent, np.array(half_mm)
        low = np.maximum(0, np.floor((centre - 1.4 * half) / SPACING_MM)).astype(int)
        high = np.minimum(SHAPE, np.ceil((centre + 1.4 * half) / SPACING_MM)).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ogrid[box]
        radius = sum(
            ((axis * step - middle) / reach) ** 2
            for axis, step, middle, reach in zip(axes, SPACING_MM, centre, half, strict=True)
        )
        painted[box][radius + 0.15 * noise[box] < 1] = FLARE23_LABELS[name]
    return painted


def measure(folder: Path, protocol: str, jobs: int) -> str:
    """Score the folder once; seconds and MB in words."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "vlm.cli", "evaluate", "masks", folder / "predicted", folder / "reference"]
    options = ["--protocol", protocol, "--labels", folder / "labels.json", "--jobs", jobs, "-o", folder / protocol]
    subprocess.run([str(word) for word in [*command, *options]], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return f"{wall:.1f} s wall, {cpu:.1f} s CPU, peak {after.ru_maxrss / 1024:.0f} MB a process"


if __name__ == "__main__":
    main()
