"""What nnU-Net v2's own planner says, as plain numbers; and the script that writes tests/nnunet_plans.json.

nnunetv2 brings torchvision, which must fit torch exactly, so it is not installed beside this project. Install it in an
environment of its own (`pip install -e ".[dev,nnunet]"`) and run, from the repository:

    python tests/nnunet_reference.py ../shared/data > tests/nnunet_plans.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seg_backbone.fingerprint import CaseShape, Fingerprint, Intensities

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"  # environment variables
PLANNERS = {"plain": "ExperimentPlanner", "resenc_m": "nnUNetPlannerResEncM", "resenc_l": "nnUNetPlannerResEncL"}
DATASETS = ("Dataset101_HeadNeckCT", "Dataset102_SarcomaCT", "Dataset103_SarcomaMR", "Dataset104_BrainTumourMR")
# in a dataset.json: the planner opens no image then
UNREAD = {
    "overwrite_image_reader_writer": "SimpleITKIO",
    "dataset": {"a": {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}},
}
UNUSED = Intensities(0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def synthetic() -> dict[str, Fingerprint]:
    """Fingerprints from isotropic to very anisotropic, tiny to large, few cases to many, one to four channels.

    Each by: spacing (right, anterior, superior), its spread, voxels, cases, channels, labels, share kept by the crop.
    """
    rows: dict[str, tuple[Any, ...]] = {
        "abdomen_ct": ((0.8, 0.8, 2.5), 0.1, (480, 480, 140), 40, ("CT",), 14, 1.0),
        "thick_ct": ((0.7, 0.7, 5.0), 0.4, (512, 512, 40), 25, ("CT",), 2, 1.0),
        "cine_mr": ((1.5, 1.5, 10.0), 0.3, (220, 260, 9), 50, ("MR",), 4, 1.0),
        "brain_mr": ((1.0, 1.0, 1.0), 0.0, (140, 170, 138), 300, ("FLAIR", "T1", "T1c", "T2"), 4, 0.5),
        "hippocampus": ((1.0, 1.0, 1.0), 0.0, (35, 50, 36), 260, ("MR",), 3, 1.0),
        "prostate": ((0.62, 0.62, 3.6), 0.05, (320, 320, 20), 32, ("T2", "ADC"), 3, 0.74),
        "sagittal": ((3.3, 0.6, 0.6), 0.1, (17, 448, 448), 12, ("MR",), 2, 0.9),
        "coronal": ((0.9, 4.0, 0.9), 0.0, (400, 30, 400), 6, ("zscore",), 5, 1.0),
        "micro": ((0.05, 0.05, 0.05), 0.0, (900, 800, 700), 4, ("noNorm",), 2, 1.0),
        "coarse": ((4.0, 4.0, 4.0), 0.2, (90, 70, 60), 3, ("rescale_to_0_1",), 9, 1.0),
        "two_cases": ((1.2, 0.9, 3.0), 0.3, (200, 181, 63), 2, ("CT", "PET"), 2, 0.6),
        "lung": ((0.7, 0.7, 1.25), 0.2, (512, 512, 250), 63, ("ct",), 2, 1.0),
    }
    random, found = np.random.default_rng(1), {}
    for name, (spacing, spread, voxels, count, channels, outputs, kept) in rows.items():
        cases = []
        for number in range(count):
            step = np.array(spacing) * np.exp(random.uniform(-spread, spread, 3))
            size = np.maximum(4, np.rint(voxels * np.exp(random.uniform(-0.2, 0.2, 3)))).astype(int)
            full = np.ceil(size * [1.0, 1.0, 1 / kept]).astype(int)
            triples = [tuple(part.tolist()) for part in (step.round(4), full, size)]
            cases.append(CaseShape(f"{name}_{number}", *triples))
        classes = tuple(f"class_{number}" for number in range(1, outputs))
        found[name] = Fingerprint(name, channels, classes, outputs, count, tuple(cases), (UNUSED,) * len(channels))
    return found


def as_nnunet(fingerprint: Fingerprint) -> tuple[dict[str, Any], dict[str, Any]]:
    """dataset.json and dataset_fingerprint.json as nnU-Net writes them: axes (superior, anterior, right)."""
    dataset = {
        "channel_names": {str(number): name for number, name in enumerate(fingerprint.channels)},
        "labels": {f"class_{number}": number for number in range(fingerprint.outputs)},
        "numTraining": fingerprint.training_cases,
        "file_ending": ".nii.gz",
    } | UNREAD
    facts = {
        "spacings": [case.spacing_mm[::-1] for case in fingerprint.cases],
        "shapes_after_crop": [case.cropped[::-1] for case in fingerprint.cases],
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": fingerprint.relative_size,
    }
    return dataset, facts


def plans(dataset: dict[str, Any], facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Preset -> the numbers of nnU-Net's 3d_fullres plan, axes back to (right, anterior, superior)."""
    raw = Path(os.environ.setdefault(RAW, tempfile.mkdtemp()))
    preprocessed = Path(os.environ.setdefault(PREPROCESSED, tempfile.mkdtemp()))
    os.environ.setdefault(RESULTS, str(preprocessed))
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners

    for root, file, content in ((raw, "dataset.json", dataset), (preprocessed, "dataset_fingerprint.json", facts)):
        (root / "Dataset001_Test").mkdir(exist_ok=True)
        (root / "Dataset001_Test" / file).write_text(json.dumps(content))
    found = {}
    for preset, name in PLANNERS.items():
        planner = getattr(residual_encoder_unet_planners, name, ExperimentPlanner)
        with redirect_stdout(sys.stderr), torch.device("meta"):  # it builds networks to count their feature maps
            plan = planner("Dataset001_Test").plan_experiment()
        found[preset] = _numbers(plan["configurations"]["3d_fullres"], plan["transpose_backward"])
    return found


def _numbers(plan: dict[str, Any], backward: list[int]) -> dict[str, Any]:
    arch = plan["architecture"]["arch_kwargs"]

    def turn(values: Any) -> list[float]:
        return [np.asarray(values)[axis].item() for axis in backward][::-1]

    return {
        "spacing_mm": turn(plan["spacing"]),
        "median_shape": turn(plan["median_image_size_in_voxels"]),
        "patch": turn(plan["patch_size"]),
        "strides": [turn(stride) for stride in arch["strides"]],
        "kernels": [turn(kernel) for kernel in arch["kernel_sizes"]],
        "features": list(arch["features_per_stage"]),
        "encoder_blocks": list(arch.get("n_conv_per_stage") or arch["n_blocks_per_stage"]),
        "decoder_convolutions": list(arch["n_conv_per_stage_decoder"]),
        "batch": int(plan["batch_size"]),
        "normalisation": [
            list(pair) for pair in zip(plan["normalization_schemes"], plan["use_mask_for_norm"], strict=True)
        ],
    }


def main(data: Path) -> None:
    """Print plans of the synthetic fingerprints, and fingerprints (by nnU-Net) and plans of the datasets in `data`."""
    os.environ[PREPROCESSED] = tempfile.mkdtemp()
    os.environ[RAW] = tempfile.mkdtemp()
    for name in DATASETS:
        (Path(os.environ[RAW]) / name).symlink_to((data / name).resolve())
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor

    with redirect_stdout(sys.stderr):
        facts = {name: DatasetFingerprintExtractor(name, num_processes=1).run() for name in DATASETS}
    real = {}
    for name in DATASETS:
        dataset = json.loads((data / name / "dataset.json").read_text()) | UNREAD
        intensities = facts[name]["foreground_intensity_properties_per_channel"]
        share = float(facts[name]["median_relative_size_after_cropping"])
        real[name] = {"plans": plans(dataset, facts[name]), "intensities": list(intensities.values()), "kept": share}
    made = {name: plans(*as_nnunet(fingerprint)) for name, fingerprint in synthetic().items()}
    print(json.dumps({"nnunetv2": version("nnunetv2"), "datasets": real, "synthetic": made}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
