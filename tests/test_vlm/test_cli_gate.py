"""`vlm train gate` on files, and `vlm segment` with what it makes."""

import json

import pytest
import yaml
from phantoms import LABELS, phantom, tiny_models

from seg_backbone.io import write_mask, write_volume

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_gate_is_trained_and_used(run, llm_folder, tmp_path):
    tiny_models(tmp_path, llm_folder)
    volume, mask = phantom()
    folder = tmp_path / "raw" / "D1"
    for patient in ("p_0", "p_1"):
        scan = write_volume(volume, folder / "imagesTr" / f"{patient}_0000.nii.gz")
        write_mask(mask, folder / "labelsTr" / f"{patient}.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0} | LABELS, "channel_names": {"0": "CT"}})
    )
    (tmp_path / "split.json").write_text(json.dumps({"patients": {"validation": ["p_1"]}}))
    settings = {
        "model": str(tmp_path / "segmentation"),
        "data": str(tmp_path / "raw"),
        "output": str(tmp_path / "run"),
        "split": str(tmp_path / "split.json"),
        "datasets": [{"name": "D1"}],
        "gate": {"network_options": {"features": [4, 4, 4, 4]}},
        "batch": 2,
        "threads": 1,
    }
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump(settings))
    code, stdout, stderr = run("train", "gate", "--config", tmp_path / "gate.yaml", "--steps", 2)
    model = tmp_path / "run" / "model"
    assert code == 0 and stdout == f"{model}\n"
    assert json.loads(stderr.splitlines()[-1])["recall"] == 1.0
    common = ["segment", scan, "-o", tmp_path / "out", "--device", "cpu", "--json"]
    code, stdout, _ = run(*common, "--model", model, "--gate")
    assert code == 0 and json.loads(stdout)[0]["skipped"]["gate"] >= 0
    code, _, stderr = run(*common, "--model", tmp_path / "segmentation", "--gate")
    assert code == 2 and "--gate" in stderr and stderr.count("\n") == 1
    code, _, stderr = run("train", "gate", "--config", tmp_path / "gate.yaml", "-o", "/proc/none/run")
    assert code == 2 and stderr.startswith("error: /proc/none/run: expected a folder that can be written")
    (folder / "labelsTr" / "p_0.nii.gz").unlink()
    (folder / "labelsTr" / "x.nii.gz").write_bytes(b"")
    code, _, stderr = run("train", "gate", "--config", tmp_path / "gate.yaml")
    assert code == 2 and "p_0_0000.nii.gz: no mask" in stderr and "x.nii.gz: a mask without a scan" in stderr
    code, _, stderr = run("configure", folder, "-o", tmp_path / "plan.json")
    assert code == 2 and "p_0_0000.nii.gz: no mask" in stderr and not list(tmp_path.glob("plan*"))
    code, _, stderr = run("train", "gate", "--config", tmp_path / "missing.yaml")
    assert code == 2 and "missing.yaml" in stderr
