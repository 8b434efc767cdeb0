"""Tiny models trained by nnU-Net v2 itself, with a scan each and nnU-Net's own prediction of it.

In an environment with nnunetv2 (see the extra `nnunet`), from the repository, on a CPU in about a minute:

    python tests/nnunet_fixture.py tests/nnunet_models

thick_ct: one CT channel, coarse along the first axis, so that nnU-Net turns the axes and takes the nearest slice;
plain U-Net, two folds. regions_mr: two MR channels around a mostly empty scan, residual encoder, trained on regions.
Optimizer states are left out of the checkpoints; all else is as nnU-Net wrote it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"  # environment variables
WORKERS = "nnUNet_n_proc_DA"


@dataclass(frozen=True)
class Recipe:
    """A dataset of phantoms and the network to train on it. shape, spacing_mm: of the first case, i, j, k."""

    name: str
    channels: tuple[str, ...]
    labels: dict[str, Any]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    planner: str
    folds: tuple[int, ...]
    order: tuple[int, ...] = ()
    empty: int = 0
    scheme: dict[str, Any] | None = None


RECIPES = (
    Recipe(
        "Dataset901_thick_ct",
        ("CT",),
        {"background": 0, "tumour": 1, "bone": 2},
        (14, 46, 40),
        (3.6, 0.9, 0.9),
        "ExperimentPlanner",
        (0, 1),
    ),
    Recipe(
        "Dataset902_regions_mr",
        ("T1", "FLAIR"),
        {"background": 0, "whole": [1, 2], "core": 2},
        (30, 34, 28),
        (1.6, 1.5, 1.7),
        "nnUNetPlannerResEncM",
        (0,),
        order=(1, 2),
        empty=6,
    ),
)


def phantom(recipe: Recipe, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Channels (int16), label map and affine: two nested or separate balls in a body, noise on top."""
    random = np.random.default_rng(seed)
    shape = np.array(recipe.shape) + random.integers(-2, 3, 3)
    spacing = np.array(recipe.spacing_mm) * np.exp(random.uniform(-0.06, 0.06, 3))
    place = np.moveaxis(np.indices(shape), 0, -1) * spacing
    size = shape * spacing
    centre = size * random.uniform(0.4, 0.6, 3)
    far = np.linalg.norm(place - centre, axis=-1)
    radius = size.min() * random.uniform(0.2, 0.26)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[far < radius] = 1
    other = centre if recipe.order else size * random.uniform(0.15, 0.25, 3)
    labels[np.linalg.norm(place - other, axis=-1) < 0.55 * radius] = 2
    noise = random.normal(0, 12, (len(recipe.channels), *shape))
    levels = ((40, 120, 500), (100, 300, 200))  # of background, first and second label, in each channel
    images = [np.choose(labels, levels[n]) + noise[n] for n in range(len(recipe.channels))]
    if recipe.empty:
        inside = np.zeros(shape, dtype=bool)
        inside[recipe.empty : -recipe.empty, 4:-4, 5:-2] = True
        images = [np.where(inside, image + 50, 0) for image in images]
        labels[~inside] = 0
    turn = np.diag([*spacing, 1.0])
    turn[:3, 3] = (10, -20, 5)
    return [np.rint(image).astype(np.int16) for image in images], labels, turn


def write(recipe: Recipe, folder: Path, seeds: range, kind: str) -> None:
    """Cases of a recipe as nnU-Net raw files; without masks for kind "Ts"."""
    for seed in seeds:
        images, labels, affine = phantom(recipe, seed)
        for number, image in enumerate(images):
            path = folder / f"images{kind}" / f"case{seed}_{number:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(image, affine), path)
        if kind == "Tr":
            (folder / "labelsTr").mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(labels, affine), folder / "labelsTr" / f"case{seed}.nii.gz")


def train(recipe: Recipe, epochs: int = 40, iterations: int = 12) -> Path:
    """Plan, preprocess and train with nnU-Net; returns its model folder."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )
    from nnunetv2.run.run_training import get_trainer_from_args

    os.environ[WORKERS] = "1"
    identifier = int(recipe.name[7:10])
    raw = Path(os.environ[RAW]) / recipe.name
    write(recipe, raw, range(5), "Tr")
    dataset = {
        "channel_names": {str(n): name for n, name in enumerate(recipe.channels)},
        "labels": recipe.labels,
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    if recipe.order:
        dataset["regions_class_order"] = list(recipe.order)
    (raw / "dataset.json").write_text(json.dumps(dataset))
    extract_fingerprints([identifier], num_processes=1, check_dataset_integrity=False)
    name = plan_experiments([identifier], experiment_planner_class_name=recipe.planner)
    name = name if isinstance(name, str) else name[0]
    path = Path(os.environ[PREPROCESSED]) / recipe.name / f"{name}.json"
    plans = json.loads(path.read_text())
    configuration = plans["configurations"]["3d_fullres"]
    architecture = configuration["architecture"]["arch_kwargs"]
    stages = 3
    for key, value in architecture.items():
        if isinstance(value, list) and key != "n_conv_per_stage_decoder":
            architecture[key] = value[:stages]
    architecture |= {"n_stages": stages, "features_per_stage": [4, 8, 12]}
    architecture["n_conv_per_stage_decoder"] = architecture["n_conv_per_stage_decoder"][: stages - 1]
    step = np.prod(architecture["strides"], axis=0)
    patch = zip(configuration["patch_size"], step, strict=True)
    configuration["patch_size"] = [int(max(s, 0.6 * n // s * s)) for n, s in patch]  # several windows a scan
    configuration["batch_size"] = 2
    path.write_text(json.dumps(plans))
    preprocess([identifier], plans_identifier=name, configurations=["3d_fullres"], num_processes=[1])
    os.environ[WORKERS] = "0"  # augmentation in this process; the planner wants 1
    trainer = None
    for fold in recipe.folds:
        torch.manual_seed(fold)
        np.random.seed(fold)
        trainer = get_trainer_from_args(
            str(identifier), "3d_fullres", fold, plans_identifier=name, device=torch.device("cpu")
        )
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = (
            epochs,
            iterations,
            2,
        )
        trainer.initial_lr = 0.02
        trainer.run_training()
    return Path(trainer.output_folder_base)


def predict(model: Path, folder: Path, out: Path) -> None:
    """nnU-Net's own prediction of folder/imagesTs, with its defaults."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir(parents=True)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    predictor.predict_from_files_sequential(str(folder / "imagesTs"), str(out))


def main(out: Path) -> None:
    """Train, predict and copy what the tests need to `out`."""
    torch.set_num_threads(1)
    for recipe in RECIPES:
        model = train(recipe)
        target = out / recipe.name
        shutil.rmtree(target, ignore_errors=True)
        write(recipe, target, range(7, 8), "Ts")
        predict(model, target, target / "predicted")
        for other in (target / "predicted").iterdir():
            if not other.name.endswith(".nii.gz"):
                other.unlink()
        for file in ("dataset.json", "plans.json"):
            (target / model.name).mkdir(exist_ok=True)
            shutil.copy(model / file, target / model.name / file)
        for fold in recipe.folds:
            kept = torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
            kept["optimizer_state"] = {}
            (target / model.name / f"fold_{fold}").mkdir()
            torch.save(kept, target / model.name / f"fold_{fold}" / "checkpoint_final.pth")


if __name__ == "__main__":
    home = Path(tempfile.mkdtemp())
    for variable in (RAW, PREPROCESSED, RESULTS):
        os.environ[variable] = str(home / variable)
    os.environ |= {"nnUNet_compile": "f", "OMP_NUM_THREADS": "1"}
    main(Path(sys.argv[1]))
