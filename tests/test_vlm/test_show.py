"""What `--save` and /save leave on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from phantoms import LABELS

from seg_backbone.errors import ConfigError
from seg_backbone.io import read_mask
from vlm.cli.show import save_answer, write_json
from vlm.infer.engine import Engine


def test_an_answer_is_saved_with_its_mask(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    scan = engine.open(phantom_files / "scan_0000.nii.gz", phantom_files / "masks" / "scan.nii.gz", LABELS)
    answer = engine.ask(scan, "How many tumours are there?", "counting")
    save_answer(scan, answer, tmp_path / "new" / "folder")
    files = {path.name: path for path in (tmp_path / "new" / "folder").iterdir()}
    assert sorted(files) == ["answer.json", "labels.json", "mask.nii.gz", "overlay.png"]
    assert json.loads(files["answer.json"].read_text()) == json.loads(json.dumps(answer.to_json()))
    assert json.loads(files["labels.json"].read_text()) == LABELS
    np.testing.assert_array_equal(read_mask(files["mask.nii.gz"]).array, scan.mask.array)
    with pytest.raises(ConfigError, match="a folder to write to"):
        save_answer(scan, answer, files["answer.json"])


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    write_json([1], tmp_path / "a.json")
    with pytest.raises(TypeError):
        write_json([object()], tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"] and (
        tmp_path / "a.json"
    ).read_text() == "[\n 1\n]\n"
