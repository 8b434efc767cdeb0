"""The benchmark of segmenting: its scans and models are what it says, its systems agree, its tables tell failures."""

import json

import numpy as np
import pytest
import segment as benchmark
import torch

from seg_backbone.checkpoint import load_model
from seg_backbone.io import read_mask, read_volume


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A scan of 128 x 128 x 48 voxels and a model of 10 classes."""
    folder = tmp_path_factory.mktemp("benchmark")
    benchmark.make_scan(128, 48, folder / "scan_0000.nii.gz")
    benchmark.make_model(10, folder / "model")
    return folder


def test_the_scan(files):
    scan, source = read_volume(files / "scan_0000.nii.gz", "CT"), read_volume(benchmark.SOURCE, "CT")
    assert scan.array.shape == (128, 128, 48) and scan.array.dtype == np.int16 and scan.grid.orientation == "RAS"
    assert scan.grid.spacing_mm[0] * 128 == pytest.approx(source.grid.spacing_mm[0] * source.array.shape[0], rel=1e-4)
    assert scan.array.mean() == pytest.approx(source.array[:, :, :38].mean(), abs=50)
    assert (read_volume(files / "scan_0001.nii.gz", "CT").array == scan.array).all()


def test_the_copies_never_win(files):
    network, plan, _ = load_model(files / "model")
    shipped, known, _ = load_model("default")
    assert plan.classes == (*known.classes, "class_9", "class_10")
    window = torch.randn(1, 2, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network(window).argmax(1), shipped(window).argmax(1))


def test_the_folder_for_nnunet(files):
    home = files / "model" / "nnunet"
    plans, dataset = (json.loads((home / name).read_text()) for name in ("plans.json", "dataset.json"))
    assert len(dataset["labels"]) == 11
    values = plans["foreground_intensity_properties_per_channel"]["0"]
    assert (values["percentile_00_5"], values["percentile_99_5"]) == (-160, 240)
    for hu, scaled in ((-160, -1), (40, 0), (240, 1)):
        assert (hu - values["mean"]) / values["std"] == scaled
    checkpoint = torch.load(home / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["init_args"] == {"configuration": "3d_fullres"}


def test_the_systems_agree(files):
    scan = files / "scan_0000.nii.gz"
    for system, make in (("vlm accurate", benchmark.with_vlm), ("monai", benchmark.with_monai)):
        make(system, files / "model", "cpu")(scan, files / f"{system}.nii.gz")
    rows = [
        {"side": 128, "depth": 48, "classes": 10, "system": name, "failed": None, "mask": str(files / f"{name}.nii.gz")}
        for name in ("vlm accurate", "monai")
    ]
    assert read_mask(rows[0]["mask"]).array.any()
    benchmark.agree(rows, files)
    assert rows[0]["dice_to_monai"] > 0.98  # windows lie alike here, the Gaussians half a voxel apart
    assert "dice_to_nnunet" not in rows[0]


def test_tables_tell_failures(tmp_path):
    common = {"side": 512, "classes": 60, "warm_seconds": 1.0, "peak_rss_mb": 900.0, "peak_gpu_mb": None}
    fine = [{**common, "depth": d, "system": "vlm fast", "cold_seconds": d / 10, "failed": None} for d in (100, 300)]
    failed = {**common, "depth": 300, "system": "monai", "cold_seconds": None, "failed": "out of memory"}
    benchmark.write([*fine, failed], tmp_path, "cpu", ["--systems", "vlm fast", "monai"])
    text = (tmp_path / "benchmarks.md").read_text()
    assert "`python benchmarks/segment.py --systems 'vlm fast' monai`" in text
    assert "| 512 x 512 x 300 | 60 | vlm fast | 30 | 1 | 900 |" in text
    assert "| 512 x 512 x 300 | 60 | monai | out of memory |" in text
    assert len(json.loads((tmp_path / "benchmarks.json").read_text())["rows"]) == 3
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")
