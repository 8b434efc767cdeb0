"""`vlm segment` against nnU-Net's predictor and MONAI's sliding window: same weights, one run, one machine.

    python benchmarks/segment.py -o docs                 # 512 x 512 x 100, 300, 600 voxels; 2, 14, 60 classes: hours
    python benchmarks/segment.py --cases 300:14 300:60 -o docs   # two of them
    python benchmarks/segment.py --quick -o runs/quick   # small scans, 2 and 14 classes: minutes

Every measurement is a process of its own: cold is the wall time of a process that segments one scan (`vlm segment`
itself where it is ours), warm the second scan of a process that segments two; peaks are those of the cold one, as
`vlm evaluate efficiency` measures them. nnU-Net takes minutes, so it gets one process: its warm time is that of the
one scan without the start. Writes benchmarks.json, benchmarks.md and benchmarks.png. A run that was interrupted goes on
where it stopped.

The weights are the shipped ones with another head: their classes first, then copies that never win, so that the masks
stay those of a real model whatever the number of classes. Scans are a real CT that the model did not train on, resized
and repeated along the body, with noise. nnU-Net gets the weights as a folder of its own kind and the scan once per
input channel; "imported" is that folder after `vlm model import`, on the same files. Those three prepare the scan as
nnU-Net does; "vlm" is our own folder, which smooths the scan before it shrinks it, as in training, and MONAI gets what
that prepares. Mirroring is off everywhere. nnU-Net brings packages of its own: --nnunet-python names the interpreter of
the environment that has nnunetv2.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_words import architecture

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "examples" / "scans" / "Dataset101_HeadNeckCT" / "imagesTr" / "hn_019_0000.nii.gz"
OURS = ("vlm fast", "vlm accurate", "imported fast", "imported accurate")
SYSTEMS = (*OURS, "monai", "nnunet")
FULL = [(512, depth, classes) for classes in (2, 14, 60) for depth in (100, 300, 600)]
QUICK = [(160, 100, 2), (160, 100, 14)]
SLICE_MM = (
    2.0  # so that 100 slices are longer than a window: shorter scans are padded with air by us, not by the others
)


def main() -> None:
    """See the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--quick", action="store_true", help="small scans, minutes")
    parser.add_argument(
        "--cases", nargs="+", choices=[f"{depth}:{classes}" for _, depth, classes in FULL], metavar="SLICES:CLASSES",
        help="of the full run, these alone",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=SYSTEMS, metavar="SYSTEM", help=f"of {SYSTEMS}"
    )
    parser.add_argument("--nnunet-python", default=sys.executable, help="interpreter that can import nnunetv2")
    parser.add_argument("--memory-gb", type=float, help="more than that counts as out of memory; default: all there is")
    given = parser.parse_args()
    systems = [name for name in given.systems if name != "nnunet" or _has_nnunet(given.nnunet_python)]
    work = given.output / "benchmark-work"
    rows: list[dict[str, Any]] = []
    chosen = [case for case in FULL if not given.cases or f"{case[1]}:{case[2]}" in given.cases]
    for side, depth, classes in QUICK if given.quick else chosen:
        scan, model = work / f"scan_{side}_{depth}_0000.nii.gz", work / f"model_{classes}"
        make_scan(side, depth, scan)
        make_model(classes, model)
        for system in systems:
            kept = work / f"{system.replace(' ', '-')}_{side}_{depth}_{classes}_{given.device}.json"
            if not kept.exists():
                row = measure(system, scan, model, given.device, given.nnunet_python, given.memory_gb)
                kept.write_text(json.dumps({"side": side, "depth": depth, "classes": classes, **row}))
            rows.append(json.loads(kept.read_text()))
            print(json.dumps(rows[-1]), file=sys.stderr)
        agree(rows, work)
    asked = ("--quick",) if given.quick else ("--cases", *given.cases) if given.cases else ()
    write(rows, given.output, given.device, [*asked, "--systems", *systems])


def measure(
    system: str, scan: Path, model: Path, device: str, nnunet_python: str, memory_gb: float | None
) -> dict[str, Any]:
    """Seconds cold and warm, peak MB and the mask of one system on one scan; "failed" says what went wrong instead."""
    from eval.efficiency import measure as run

    python = nnunet_python if system == "nnunet" else sys.executable
    out = scan.parent / "masks" / f"{system.replace(' ', '-')}_{model.name}"
    limit = f"{memory_gb or _installed_gb():g}"

    def command(repeats: int) -> list[str]:
        if repeats == 1 and system in OURS:
            mode = "--" + system.split()[1]
            options = [mode, "--model", str(_model_of(system, model)), "--device", device, "--modality", "CT"]
            return [python, "-m", "vlm.cli", "segment", str(scan), "-o", str(out), *options]
        return [python, __file__, "--child", system, str(scan), str(model), str(out), device, str(repeats), limit]

    os.environ["PYTHONPATH"] = str(ROOT)
    warm = None if system == "nnunet" else run(command(2))  # also converts for OpenVINO, which is done once a model
    cold = run(command(1))
    warm = warm or cold
    failed = next((f"exit code {one.exit_code}" for one in (cold, warm) if one.exit_code), None)
    return {
        "system": system,
        "cold_seconds": None if failed else round(cold.wall_seconds, 2),
        "warm_seconds": None if failed else json.loads((out / "seconds.json").read_text())[-1],
        "peak_rss_mb": round(float(cold.rss_mb.max()), 1),
        "peak_gpu_mb": None if cold.gpu_mb is None or device == "cpu" else round(float(cold.gpu_mb.max()), 1),
        "mask": str(out / scan.name.replace("_0000", "")),
        "failed": "out of memory" if failed and (out / "out_of_memory").exists() else failed,
    }


def child(system: str, scan: Path, model: Path, out: Path, device: str, repeats: int, memory_gb: float) -> None:
    """What one measured process does: `repeats` times the same scan; the seconds of each go to seconds.json."""
    import resource

    if device == "cpu":  # CUDA reserves more addresses than it fills
        most = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    out.mkdir(parents=True, exist_ok=True)
    (out / "out_of_memory").unlink(missing_ok=True)
    mask = out / scan.name.replace("_0000", "")
    try:
        run = {"monai": with_monai, "nnunet": with_nnunet}.get(system, with_vlm)(system, model, device)
        seconds = []
        for _ in range(repeats):
            started = time.perf_counter()
            run(scan, mask)
            seconds.append(round(time.perf_counter() - started, 2))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error) or "alloc" in str(error):
            (out / "out_of_memory").touch()
        raise
    (out / "seconds.json").write_text(json.dumps(seconds))


def with_vlm(system: str, model: Path, device: str) -> Callable[[Path, Path], None]:
    """This project; fast takes OpenVINO where it is installed and pays, accurate is torch with the plan's step."""
    from seg_backbone.io import write_mask
    from seg_backbone.predict import Segmenter

    segmenter = Segmenter.load(_model_of(system, model), device, "auto")

    def run(scan: Path, mask: Path) -> None:
        write_mask(segmenter(scan, "CT", fast=system.endswith("fast")).mask, mask)

    return run


def with_monai(system: str, model: Path, device: str) -> Callable[[Path, Path], None]:
    """MONAI's sliding window on our preprocessed scan; all logits resampled to the scan at once, then the argmax."""
    import torch
    from monai.inferers import sliding_window_inference

    from seg_backbone.checkpoint import load_model
    from seg_backbone.geometry import from_canonical, to_canonical
    from seg_backbone.io import read_volume, write_mask
    from seg_backbone.preprocess import PAD, preprocess
    from seg_backbone.volume import Mask

    network, plan, _ = load_model(model)
    network.to(device)

    def run(scan: Path, mask: Path) -> None:
        volume = read_volume(scan, "CT")
        shape = to_canonical(volume.array, volume.grid)[1].shape
        image = torch.from_numpy(preprocess(volume, plan)[0])[None].to(device)
        with torch.inference_mode():
            logits = sliding_window_inference(image, plan.patch, 1, network, 1 - plan.step, mode="gaussian", cval=PAD)
            logits = torch.nn.functional.interpolate(logits, shape, mode="trilinear")
            ids = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        write_mask(Mask(from_canonical(ids, volume.grid), volume.grid), mask)

    return run


def with_nnunet(system: str, model: Path, device: str) -> Callable[[Path, Path], None]:
    """nnU-Net's predictor on a folder of its own kind, see `make_model`; mirroring off."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ.setdefault(name, str(model))
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=device != "cpu", device=torch.device(device), verbose=False
    )
    predictor.initialize_from_trained_model_folder(str(model / "nnunet"), (0,), "checkpoint_final.pth")
    channels = len(json.loads((model / "nnunet" / "dataset.json").read_text())["channel_names"])

    def run(scan: Path, mask: Path) -> None:
        files = [[str(scan)] * channels]
        predictor.predict_from_files_sequential(files, [str(mask).removesuffix(".nii.gz")], overwrite=True)

    return run


def make_scan(side: int, depth: int, path: Path) -> None:
    """(side, side, depth) voxels, int16: a real CT resized in plane, repeated along the body, with noise.

    CASE_0001, the second channel of a model as nnU-Net has it, is a link to it.
    """
    import numpy as np

    from seg_backbone.geometry import Grid, to_canonical
    from seg_backbone.io import read_volume, write_volume
    from seg_backbone.resample import resample_array
    from seg_backbone.volume import Volume

    if path.exists():
        return
    volume = read_volume(SOURCE, "CT")
    source, grid = to_canonical(volume.array, volume.grid)
    slices = max(2, round(source.shape[2] * grid.spacing_mm[2] / SLICE_MM))
    fine = resample_array(np.ascontiguousarray(source), (side, side, slices))
    noise = np.random.default_rng(0)
    array = np.empty((side, side, depth), dtype=np.int16, order="F")
    for k in range(depth):
        array[..., k] = np.rint(fine[..., k % slices] + noise.normal(0, 10, (side, side)))
    spacing = [*(grid.spacing_mm[:2] * source.shape[:2] / side), SLICE_MM, 1]
    write_volume(Volume(array, Grid(array.shape, np.diag(spacing)), "CT"), path)
    second = path.with_name(path.name.replace("_0000", "_0001"))
    second.unlink(missing_ok=True)
    second.symlink_to(path.name)


def make_model(classes: int, folder: Path) -> None:
    """The shipped model with a head for `classes` foreground classes, as our folder and, in nnunet/, as nnU-Net's."""
    import torch

    from seg_backbone.checkpoint import load_model, save_model
    from seg_backbone.nets import build_network
    from seg_backbone.nnunet import import_nnunet

    if (folder / "imported").exists():
        return
    network, plan, _ = load_model("default")
    known = list(plan.classes)
    names = (known + [f"class_{number}" for number in range(len(known) + 1, classes + 1)])[:classes]
    rows = [0, *(min(number, len(known)) for number in range(1, classes + 1))]
    state = network.state_dict()
    for key in [key for key in state if ".seg_layers." in key]:
        state[key] = state[key][rows].clone()
        if key.endswith(".bias"):
            state[key][len(known) + 1 :] -= 100.0  # the copies never win
    plan = plan.with_(
        name=f"benchmark_{classes}",
        classes=tuple(names),
        trained_on={"CT": tuple(names)},
        minimum_ml={},  # the others drop no pieces
        single=(),
    )
    channels = len(plan.ct_windows_hu)
    wider = build_network(plan.network, channels, classes + 1, plan.network_options).eval()
    wider.load_state_dict(state)
    save_model(wider, plan, folder)

    options = plan.network_options
    strides, kernels = [[step] * 3 for step in options["strides"]], [[3, 3, 3]] * len(options["strides"])
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "benchmark",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(plan.patch),
        "spacing": list(plan.spacing_mm),
        "normalization_schemes": ["CTNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": architecture(options["features"], options["blocks"], strides, kernels),
        "batch_dice": False,
    }
    # a window [low, high] mapped to [-1, 1], in the words of CTNormalization: clip, subtract, divide
    values = {
        str(number): {
            "percentile_00_5": low,
            "percentile_99_5": high,
            "mean": (low + high) / 2,
            "std": (high - low) / 2,
        }
        for number, (low, high) in enumerate(plan.ct_windows_hu)
    }
    plans = {
        "dataset_name": "Dataset999_Benchmark",
        "plans_name": "plans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": values,
        "configurations": {"3d_fullres": configuration},
    }
    dataset = {
        "channel_names": {str(number): "CT" for number in range(channels)},
        "labels": {"background": 0, **{name: number for number, name in enumerate(names, 1)}},
        "file_ending": ".nii.gz",
    }
    home = folder / "nnunet"
    (home / "fold_0").mkdir(parents=True, exist_ok=True)
    (home / "plans.json").write_text(json.dumps(plans))
    (home / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": wider.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, home / "fold_0" / "checkpoint_final.pth")
    import_nnunet(home, folder / "imported")


def agree(rows: list[dict[str, Any]], work: Path) -> None:
    """Adds to the rows of the last scan the Dice of all foreground together with MONAI's and nnU-Net's mask."""
    import numpy as np

    from seg_backbone.io import read_mask

    key = ("side", "depth", "classes")
    same = [row for row in rows if [row[k] for k in key] == [rows[-1][k] for k in key] and not row["failed"]]
    masks = {row["system"]: read_mask(row["mask"]).array for row in same}
    for row in same:
        ours = masks[row["system"]]
        for other in {"monai", "nnunet"} & masks.keys() - {row["system"]}:
            both = int(np.count_nonzero((ours == masks[other]) & (ours > 0)))
            size = int(np.count_nonzero(ours)) + int(np.count_nonzero(masks[other]))
            row[f"dice_to_{other}"] = round(2 * both / size, 4) if size else 1.0


def write(rows: list[dict[str, Any]], out: Path, device: str, options: list[str]) -> None:
    """benchmarks.json, benchmarks.md and benchmarks.png. options: those of the command that the note states."""
    from matplotlib.figure import Figure

    from eval.tables import Table, markdown
    from seg_backbone.io import replacing

    machine = f"{os.cpu_count()} cores of {platform.machine()}, {_installed_gb():.0f} GB RAM, device {device}"
    columns = ["cold_seconds", "warm_seconds", "peak_rss_mb", "peak_gpu_mb", "dice_to_monai", "dice_to_nnunet"]
    cells = [
        [f"{row['side']} x {row['side']} x {row['depth']}", str(row["classes"]), row["system"]]
        + [str(row["failed"]) if row["failed"] and n == 0 else _cell(row.get(name)) for n, name in enumerate(columns)]
        for row in rows
    ]
    headers = ["scan", "classes", "system", "cold s", "warm s", "RSS MB", "GPU MB", "Dice to MONAI", "Dice to nnU-Net"]
    command = shlex.join(["python", "benchmarks/segment.py", *options])
    notes = [f"Made by `{command}` on {machine}.", "See the head of that file for what is measured."]
    with replacing(out / "benchmarks.json") as temporary:
        temporary.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))
    with replacing(out / "benchmarks.md") as temporary:
        table = markdown([Table("Segmentation, same weights", headers, cells, notes)])
        temporary.write_text(
            f"# Benchmarks\n\n{table}\n![Seconds and memory by the number of slices](benchmarks.png)\n"
        )
    counts = sorted({row["classes"] for row in rows})
    panels = {"cold_seconds": "cold start to mask, s", "peak_rss_mb": "peak RSS, MB"}
    figure = Figure(figsize=(1 + 3 * len(counts), 6), layout="constrained")
    grid = figure.subplots(len(panels), len(counts), sharex=True, squeeze=False)
    for (name, label), line_of_axes in zip(panels.items(), grid, strict=True):
        for classes, axes in zip(counts, line_of_axes, strict=True):
            for system in dict.fromkeys(row["system"] for row in rows):
                mine = [row for row in rows if (row["system"], row["classes"]) == (system, classes)]
                mine = [row for row in mine if not row["failed"]]
                axes.plot([row["depth"] for row in mine], [row[name] for row in mine], marker="o", label=system)
            axes.set(title=f"{classes} classes", xlabel="slices", ylabel=label, yscale="log")
    grid[0][0].legend(fontsize="x-small")
    with replacing(out / "benchmarks.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _model_of(system: str, model: Path) -> Path:
    """The folder that one of OURS runs."""
    return model / "imported" if system.startswith("imported") else model


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _installed_gb() -> float:
    import psutil

    return psutil.virtual_memory().total / 2**30


def _has_nnunet(python: str) -> bool:
    """Whether an interpreter has nnunetv2; said on stderr where not."""
    command = [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('nnunetv2') is None)"]
    if subprocess.run(command).returncode == 0:
        return True
    print(f"note: {python} has no nnunetv2: left out; see --nnunet-python", file=sys.stderr)
    return False


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        system, scan, model, out, device, repeats, memory = sys.argv[2:]
        child(system, Path(scan), Path(model), Path(out), device, int(repeats), float(memory))
    else:
        main()
