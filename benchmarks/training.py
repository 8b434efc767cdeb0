"""`vlm train segmentation` against nnU-Net v2: same patients, same compute, scored on patients that neither has seen.

    python benchmarks/training.py --nnunet-python ENV/bin/python -o runs/training             # 20 CPU minutes a system
    python benchmarks/training.py --nnunet-python ENV/bin/python --minutes 1 -o runs/quick    # whether it runs at all

Compute is CPU time of the training process and all of its children, user and system, with one thread each: a shared
machine makes wall-clock a matter of its other work. It begins with the interpreter and ends with the saved weights.
Planning, preprocessing and timed steps (see below) come before and are counted apart. The systems, in this order:

    vlm             the network that ships, from scratch, on its 4 mm grid: defaults of a training file
    vlm configured  plan and recipe of `vlm configure --max-seconds`
    vlm grid        its channels and augmentation with nnU-Net's optimiser, grid, network and batch (`nnunet grid`), so
                    that only the code differs
    nnunet grid     nnU-Net with the spacing and patch of `vlm`; topology and width by its own planner's rules, but the
                    least batch it knows: of a large dataset its rules want 35 such windows, of which few steps fit
    nnunet          nnU-Net with the plan that its planner makes of the dataset
    nnunet network  as `nnunet grid`, with the network of `vlm` too, so that only the recipes differ

nnU-Net runs by its own classes (trainer, loss, augmentation, SGD), 3d_fullres; the loop in `spend` replaces its epochs,
of which few would fit: it ends with the step that uses up the budget, its polynomial learning rate goes by the share of
the budget, so that the schedule is whole, and its windows are drawn in the training process. Ours knows steps only, so
their number comes from a few steps that are timed first; what `vlm` then really took is the budget of all others.
Nothing is validated meanwhile, nothing mirrored or cleaned up in the predictions. nnU-Net knows no partial labels: what
a case does not annotate is background to it, as it would be to any of its users.

Both see the same raw folder, with the training patients of the split in imagesTr. nnU-Net's packages live in an
environment of their own, whose interpreter --nnunet-python names. A run that was interrupted goes on with the stage
(preparing, training, predicting, scoring of one system) that it was in, from its start. Writes training.json and
training.md after every system.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from nnunet_words import architecture

ROOT = Path(__file__).parents[1]
SYSTEMS = ("vlm", "vlm configured", "vlm grid", "nnunet grid", "nnunet", "nnunet network")
# what ships (seg_backbone/weights/default), written out, without its classes
PLAN: dict[str, Any] = {
    "spacing_mm": [4.0, 4.0, 4.0],
    "patch": [48, 48, 48],
    "network": "resenc_unet",
    "network_options": {
        "features": [12, 24, 48, 96, 192],
        "blocks": [1, 1, 2, 2, 2],
        "strides": [[1, 1, 1], *[[2, 2, 2]] * 4],
        "kernels": [[3, 3, 3]] * 5,
    },
}
# what nnU-Net's planner makes of that spacing and patch
GRID_NETWORK = {
    "network": "plain_unet",
    "network_options": {"features": [32, 64, 128, 256], "deep_supervision": True},
}
BATCH = 2  # nnU-Net's least
TIMED, SKIPPED = 20, 5  # steps that are run to know what one takes, and those of them that warm up
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--dataset", default="Dataset102_SarcomaCT")
    parser.add_argument("--split", type=Path, default=ROOT / "configs" / "split.json")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/training"))
    parser.add_argument("--minutes", type=float, default=20.0, help="of CPU time that each training may use")
    parser.add_argument("--max-seconds", type=float, default=3.0, help="for a scan, of `vlm configured`")
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, metavar="SYSTEM", help=f"of {SYSTEMS}"
    )
    parser.add_argument("--nnunet-python", default=sys.executable, help="interpreter that can import nnunetv2")
    given = parser.parse_args()
    out = given.output.resolve()
    os.environ.update(dict.fromkeys(ONE_THREAD, "1"), PYTHONPATH=str(ROOT))
    convert(given.data, given.dataset, given.split, out / "raw")
    rows: list[dict[str, Any]] = []
    for system in (name for name in SYSTEMS if name in given.systems):
        work = out / system.replace(" ", "-")
        seconds = rows[0]["train_cpu_s"] if rows and rows[0]["system"] == "vlm" else 60 * given.minutes
        if system.startswith("vlm"):
            stages = with_vlm(system, given.dataset, out, seconds, given.max_seconds)
        else:
            stages = with_nnunet(system, given.dataset, out, seconds, given.nnunet_python)
        stages["score"] = partial(score, work / "masks", out / "raw" / given.dataset, work)
        row = {"system": system}
        for name, stage in stages.items():
            row |= kept(work, name, stage)
        rows.append(row)
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        write(rows, out, given.dataset, given.minutes)


def convert(data: Path, dataset: str, split: Path, raw: Path) -> None:
    """RAW/DATASET in nnU-Net's layout, of links: training patients in imagesTr and labelsTr, those who validate in
    imagesTs and labelsTs, the others nowhere. Beside it the manifest's lines of the dataset, and the split of `vlm
    train`, by which all that is in imagesTr trains.
    """
    from seg_backbone.cases import list_cases, read_split, split_cases

    cases, table, folder = list_cases(data, dataset), read_split(split), raw / dataset
    for part, ending in (("training", "Tr"), ("validation", "Ts")):
        for kind in ("images", "labels"):
            (folder / f"{kind}{ending}").mkdir(parents=True, exist_ok=True)
        for case in split_cases(cases, table, part):
            assert case.mask is not None, f"{case.image} has no mask"
            channels = case.image.parent.glob(case.image.name.replace("_0000", "_[0-9][0-9][0-9][0-9]"))
            for file, kind in (*((channel, "images") for channel in channels), (case.mask, "labels")):
                link = folder / f"{kind}{ending}" / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(file.resolve())
    description = json.loads((data / dataset / "dataset.json").read_text(encoding="utf-8"))
    description["numTraining"] = len(split_cases(cases, table, "training"))
    (folder / "dataset.json").write_text(json.dumps(description, indent=1), encoding="utf-8")
    if (data / "manifest.jsonl").is_file():
        lines = (data / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
        own = [line for line in lines if line.strip() and json.loads(line)["dataset"] == dataset]
        (raw / "manifest.jsonl").write_text("".join(f"{line}\n" for line in own), encoding="utf-8")
    (raw / "split.json").write_text(json.dumps({"patients": {"validation": []}}), encoding="utf-8")


Stages = dict[str, Callable[[], dict[str, Any]]]


def with_vlm(system: str, dataset: str, out: Path, seconds: float, max_seconds: float) -> Stages:
    """The stages of ours; each returns its part of the row."""
    from seg_backbone.cases import list_cases
    from seg_backbone.configure import OPTIMISER

    work, raw = out / system.replace(" ", "-"), out / "raw"
    file, log = work / "training.json", work / "log.txt"
    vlm = [sys.executable, "-m", "vlm.cli"]

    def prepare() -> dict[str, Any]:
        work.mkdir(exist_ok=True)
        cost = 0.0
        if system == "vlm":
            config = {"plan": {"name": "benchmark", **PLAN, "classes": list(list_cases(raw, dataset)[0].labels)}}
        else:
            options = ["-o", work / "plan.json", "--max-seconds", max_seconds, "--device", "cpu"]
            cost, _ = run([*vlm, "configure", raw / dataset, *options], log)
            config = json.loads((work / "plan.json").read_text(encoding="utf-8"))
        if system == "vlm grid":
            config["plan"] |= {"spacing_mm": PLAN["spacing_mm"], "patch": PLAN["patch"], "step": 0.5, **GRID_NETWORK}
            config |= {"batch": BATCH, "ema": 0, **OPTIMISER["cuda"]}
        config |= {"data": str(raw), "datasets": [{"name": dataset}], "split": str(raw / "split.json")}
        config |= {"output": str(work / "run"), "cache": str(work / "cases"), "device": "cpu", "threads": 1}
        config |= {"validation_cases": 0}
        file.write_text(json.dumps(config, indent=1), encoding="utf-8")
        probed, _ = run([sys.executable, __file__, "--child", "time_steps", file, seconds, work / "steps.json"], log)
        found = json.loads((work / "steps.json").read_text(encoding="utf-8"))
        return {"prepare_cpu_s": round(cost + probed, 1), **found}

    def train() -> dict[str, Any]:
        steps = json.loads((work / "steps.json").read_text(encoding="utf-8"))["steps"]
        cpu, wall = run([*vlm, "train", "segmentation", "--config", file, "--steps", steps], log)
        return {"train_cpu_s": round(cpu, 1), "train_wall_s": round(wall, 1)}

    def predict() -> dict[str, Any]:
        options = ["-o", work / "masks", "--model", work / "run" / "model", "--device", "cpu", "--no-mirror"]
        cpu, _ = run([*vlm, "segment", raw / dataset / "imagesTs", *options], log)
        return {"predict_cpu_s": round(cpu, 1)}

    return {"prepare": prepare, "train": train, "predict": predict}


def time_steps(file: Path, seconds: float, out: Path) -> None:
    """Child of ours: fill the cache of scans, time some steps, write how many of them `seconds` of CPU time hold."""
    from dataclasses import replace

    from seg_backbone.train import SegmentationConfig, train_segmentation

    imports = cpu_seconds()
    config = SegmentationConfig.read(file)
    config = replace(config, output=config.output.with_name("timed"), steps=1)
    train_segmentation(config)
    before, stamps = cpu_seconds(), []

    def stamp(stage: str, done: int, total: int) -> None:
        if stage == "training":
            stamps.append(cpu_seconds())

    train_segmentation(replace(config, steps=TIMED), progress=stamp)
    steps, each = steps_within(seconds, imports + stamps[0] - before, stamps)
    out.write_text(
        json.dumps({"steps": steps, "batch": config.batch * config.accumulate, "step_cpu_s": round(each, 3)})
    )


def steps_within(seconds: float, start: float, stamps: list[float]) -> tuple[int, float]:
    """How many steps fit, and what one takes. start: seconds until the first one is done; stamps: after each step."""
    each = (stamps[-1] - stamps[SKIPPED - 1]) / (len(stamps) - SKIPPED)
    return max(1, int((seconds - start) / each)), each


def with_nnunet(system: str, dataset: str, out: Path, seconds: float, python: str) -> Stages:
    """The stages of nnU-Net; each returns its part of the row."""
    work = out / system.replace(" ", "-")
    log, plans = work / "log.txt", system.replace(" ", "_").replace("nnunet", "nnUNetPlans")
    folders = {f"nnUNet_{name}": str(out / name) for name in ("raw", "preprocessed", "results")}
    os.environ.update(folders, nnUNet_def_n_proc="1", nnUNet_compile="f")

    def child(stage: str, *words: object) -> tuple[float, float]:
        return run([python, __file__, "--child", stage, dataset, plans, *words], log)

    def prepare() -> dict[str, Any]:
        os.environ.update(nnUNet_n_proc_DA="1")  # to its planner the number of threads of torch
        return {"prepare_cpu_s": round(child("nnunet_prepare", system)[0], 1)}

    def train() -> dict[str, Any]:
        os.environ.update(nnUNet_n_proc_DA="0")  # no workers: windows are drawn in the training process
        cpu, wall = child("nnunet_train", seconds, work / "steps.json")
        found = json.loads((work / "steps.json").read_text(encoding="utf-8"))
        return {"train_cpu_s": round(cpu, 1), "train_wall_s": round(wall, 1), **found}

    def predict() -> dict[str, Any]:
        return {"predict_cpu_s": round(child("nnunet_predict", work / "masks")[0], 1)}

    return {"prepare": prepare, "train": train, "predict": predict}


def nnunet_prepare(dataset: str, plans_name: str, system: str) -> None:
    """Child of nnU-Net: fingerprint, plan and preprocessed scans."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, preprocess_dataset

    number = int(dataset.removeprefix("Dataset")[:3])
    extract_fingerprint_dataset(number, num_processes=1, clean=False)
    spacing = None if system == "nnunet" else PLAN["spacing_mm"][::-1]  # its axes: superior, anterior, right
    planner = ExperimentPlanner(number, plans_name=plans_name, overwrite_target_spacing=spacing)
    plans = planner.plan_experiment()
    if spacing:
        own = plans["configurations"]["3d_fullres"]
        turned = turn([PLAN["spacing_mm"], PLAN["patch"]], plans["transpose_forward"])
        voxels = prod(own["median_image_size_in_voxels"]) * planner.dataset_json["numTraining"]
        # a patch is never planned larger than the median scan, so this one is taken as it
        rules = planner.get_plans_for_configuration(*turned, own["data_identifier"], voxels, {})
        own |= {key: rules[key] for key in ("patch_size", "architecture")} | {"batch_size": BATCH}
        if system == "nnunet network":
            options, transpose = PLAN["network_options"], plans["transpose_forward"]
            turned = (turn(options[name], transpose) for name in ("strides", "kernels"))
            own["architecture"] = architecture(options["features"], options["blocks"], *turned)
        planner.save_plans(plans)
    preprocess_dataset(number, plans_name, ("3d_fullres",), (1,))


def turn(triples: list[list[Any]], transpose: list[int]) -> list[list[Any]]:
    """Triples over (right, anterior, superior) in nnU-Net's order: superior, anterior, right, then its `transpose`."""
    return [[triple[::-1][axis] for axis in transpose] for triple in triples]


def nnunet_train(dataset: str, plans: str, seconds: float, out: Path) -> None:
    """Child of nnU-Net: train on all of imagesTr; writes steps and batch size."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(dataset, "3d_fullres", "all", plans_identifier=plans, device=torch.device("cpu"))
    trainer.on_train_start()
    trainer.network.train()
    steps = spend(trainer, seconds)
    trainer.on_train_end()
    out.write_text(json.dumps({"steps": steps, "batch": trainer.batch_size}))


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended, user and system."""
    return sum(os.times()[:4])


def spend(trainer: Any, seconds: float, clock: Callable[[], float] = cpu_seconds) -> int:
    """Train by a trainer of nnU-Net until the clock shows `seconds`; returns the number of steps.

    Its learning rate is initial_lr (1 - share)^0.9 with the share of its epochs; here it is the share of the seconds.
    """
    trainer.lr_scheduler.max_steps = seconds
    steps = 0
    while (used := clock()) < seconds:
        trainer.lr_scheduler.step(used)
        loss = trainer.train_step(next(trainer.dataloader_train))["loss"]
        steps += 1
        if steps % 10 == 0:
            print(json.dumps({"step": steps, "cpu_s": round(used), "loss": round(float(loss), 4)}), flush=True)
    return steps


def nnunet_predict(dataset: str, plans: str, out: Path) -> None:
    """Child of nnU-Net: the scans of imagesTs, one after the other."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.paths import nnUNet_raw, nnUNet_results

    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    model = Path(nnUNet_results, dataset, f"nnUNetTrainer__{plans}__3d_fullres")
    predictor.initialize_from_trained_model_folder(str(model), ("all",), "checkpoint_final.pth")
    out.mkdir(exist_ok=True)
    scans = str(Path(nnUNet_raw, dataset, "imagesTs"))
    predictor.predict_from_files_sequential(scans, str(out), overwrite=False)


def score(masks: Path, dataset: Path, out: Path) -> dict[str, Any]:
    """`vlm evaluate masks`: class -> mean and interval of DSC and NSD, and how many cases were scored."""
    command = [sys.executable, "-m", "vlm.cli", "evaluate", "masks", masks, dataset / "labelsTs", "-o", out / "scores"]
    run([*command, "--protocol", "corrected", "--labels", dataset / "dataset.json"], out / "log.txt")
    classes = json.loads((out / "scores" / "metrics.json").read_text(encoding="utf-8"))["classes"]
    return {"classes": {name: {key: own[key] for key in ("scored", "dsc", "nsd")} for name, own in classes.items()}}


def run(command: list[object], log: Path) -> tuple[float, float]:
    """CPU and wall seconds of a command, all of its processes included; ends this program where it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("a", encoding="utf-8") as file:
        code = subprocess.run([str(word) for word in command], stdout=file, stderr=subprocess.STDOUT).returncode
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {code}, see {log}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def kept(work: Path, stage: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a stage returned, now or in an earlier run."""
    from seg_backbone.io import replacing

    file = work / f"{stage}.done.json"
    if not file.exists():
        made = make()
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(made), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def write(rows: list[dict[str, Any]], out: Path, dataset: str, minutes: float) -> None:
    """training.json and training.md."""
    from eval.tables import Table, markdown, with_interval
    from seg_backbone.io import replacing

    machine = f"{os.cpu_count()} cores of {platform.machine()}, one thread, device cpu"
    cells = []
    for row in rows:
        costs = [f"{row[key] / 60:.1f}" for key in ("train_cpu_s", "train_wall_s", "prepare_cpu_s", "predict_cpu_s")]
        for name, own in row["classes"].items():
            figures = [with_interval(own[key]["mean"], own[key]["interval"], 3) for key in ("dsc", "nsd")]
            cells.append(
                [row["system"], f"{row['steps']} x {row['batch']}", *costs, name, str(own["scored"]), *figures]
            )
    times = ("CPU min", "wall min", "preparing", "predicting")
    headers = ["system", "steps x batch", *times, "class", "n", "DSC", "NSD"]
    notes = [
        f"Made by `python benchmarks/training.py --dataset {dataset} --minutes {minutes:g}` on {machine}.",
        "All times in minutes, those of preparing and predicting of CPU time. See the head of that file for the rest.",
    ]
    with replacing(out / "training.json") as temporary:
        temporary.write_text(json.dumps({"machine": machine, "dataset": dataset, "rows": rows}, indent=2))
    with replacing(out / "training.md") as temporary:
        temporary.write_text(markdown([Table("Training, same data and compute", headers, cells, notes)]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, *words = sys.argv[2:]
        if name == "time_steps":
            time_steps(Path(words[0]), float(words[1]), Path(words[2]))
        elif name == "nnunet_prepare":
            nnunet_prepare(*words)
        elif name == "nnunet_train":
            nnunet_train(words[0], words[1], float(words[2]), Path(words[3]))
        else:
            nnunet_predict(words[0], words[1], Path(words[2]))
    else:
        main()
