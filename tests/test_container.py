"""FLARE's container contract, without a container: `sh predict.sh` from one folder to another."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SARCOMA = ROOT / "examples" / "scans" / "Dataset102_SarcomaCT" / "imagesTr" / "sarc_001_0000.nii.gz"


@pytest.fixture
def predict(tmp_path):
    """Run the script in a folder of its own, as the image does: (exit code, names of the outputs, stderr)."""
    (tmp_path / "inputs").mkdir()

    def run(labels, *options):
        folders = {"INPUTS": str(tmp_path / "inputs"), "OUTPUTS": str(tmp_path / "outputs"), "LABELS": labels}
        environment = {**os.environ, **folders, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
        command = ["sh", str(ROOT / "predict.sh"), "--device", "cpu", "--runtime", "torch", *map(str, options)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        names = sorted(path.name for path in tmp_path.glob("outputs/*"))
        return done.returncode, names, done.stderr

    return run


def test_one_case_becomes_one_mask_on_its_own_grid(predict, tmp_path):
    (tmp_path / "inputs" / "case_0000.nii.gz").symlink_to(SARCOMA)
    report = tmp_path / "report.json"
    code, names, stderr = predict("flare23", "--report", report)
    assert (code, names) == (0, ["case.nii.gz"])
    mask, scan = nib.load(tmp_path / "outputs" / "case.nii.gz"), nib.load(SARCOMA)
    assert mask.shape == scan.shape
    np.testing.assert_allclose(mask.affine, scan.affine, atol=1e-4)
    assert set(np.unique(mask.dataobj)) <= {0, 10, 14}  # esophagus and lesion are what the model shares with FLARE23
    assert 14 in np.unique(mask.dataobj)
    entry = json.loads(report.read_text())[0]
    assert entry["labels"] == {"esophagus": 10, "tumour": 14}
    assert "mandible" in entry["dropped_classes"]
    assert {"liver", "kidney_left", "pancreas"} <= set(entry["undrawn_classes"]) and len(entry["undrawn_classes"]) == 12
    assert stderr.startswith("note: --labels flare23: this model never draws liver, kidney_right")


def test_a_lesion_is_1_and_a_broken_case_does_not_stop_the_rest(predict, tmp_path):
    (tmp_path / "inputs" / "broken_0000.nii.gz").write_bytes(b"no scan")
    (tmp_path / "inputs" / "fine_0000.nii.gz").symlink_to(SARCOMA)
    code, names, stderr = predict("flare24")
    assert (code, names) == (1, ["fine.nii.gz"])
    assert set(np.unique(nib.load(tmp_path / "outputs" / "fine.nii.gz").dataobj)) == {0, 1}
    assert stderr.count("\n") == 1 and "broken_0000.nii.gz" in stderr


def test_the_image_holds_what_the_script_needs():
    recipe = (ROOT / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert "cp /opt/flare-vlm/predict.sh ." in recipe and "WORKDIR /workspace" in recipe
    for needed in (
        "pyproject.toml",
        "constraints.txt",
        "predict.sh",
        "README.md",
        "LICENSE",
        "seg_backbone",
        "examples",
    ):
        assert (ROOT / needed).exists() and needed not in ignored
