"""Fixtures of the vision-language tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from phantoms import LABELS, phantom, phantom_scene, tiny_llm, tiny_models

from seg_backbone.io import write_mask, write_volume
from seg_backbone.volume import Volume
from vlm.cli import main
from vlm.infer.engine import Engine
from vlm.scene import Scene


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny language model saved as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("llm")
    model, tokenizer = tiny_llm()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def scene() -> Scene:
    return phantom_scene(*phantom())


@pytest.fixture(scope="session")
def engine(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine with untrained models: its answers are arbitrary, its mechanics are not."""
    return Engine.load(tiny_models(tmp_path_factory.mktemp("models"), llm_folder), device="cpu")


@pytest.fixture(scope="session")
def phantom_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scan_0000.nii.gz, masks/scan.nii.gz and labels.json of the phantom."""
    folder = tmp_path_factory.mktemp("phantom")
    volume, mask = phantom()
    write_volume(volume, folder / "scan_0000.nii.gz")
    write_mask(mask, folder / "masks" / "scan.nii.gz")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    return folder


@pytest.fixture
def phantoms_on_disk(tmp_path: Path) -> Path:
    """Two phantoms to train on and one to validate on, as nnU-Net raw data, with more or less fat."""
    folder = tmp_path / "data" / "Dataset001_Phantom"
    for number in range(3):
        volume, mask = phantom()
        array = volume.array.copy()
        array[3 : 6 + 2 * number, 3:37][mask.array[3 : 6 + 2 * number, 3:37] == 0] = -100
        name = f"case_{number}"
        write_volume(Volume(array, volume.grid, "CT"), folder / "imagesTr" / f"{name}_0000.nii.gz")
        write_mask(mask, folder / "labelsTr" / f"{name}.nii.gz")
    labels = {"background": 0} | LABELS
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))
    (tmp_path / "split.json").write_text(json.dumps({"patients": {"validation": ["case_2"]}}))
    return tmp_path
