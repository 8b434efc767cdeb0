"""configs/accelerate/fsdp.yaml with two processes of a CPU: every weight in pieces, the same training.

accelerate keeps FSDP from CPUs, torch does not; so the processes are told that they are those of GPUs and compute on the
CPU all the same. What runs is accelerate's and torch's own code of FSDP2, over gloo instead of NCCL.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from phantoms import tiny_models
from safetensors.torch import load_file

from seg_backbone.cases import DatasetEntry
from vlm.model import VisionLanguageModel
from vlm.train.config import StageConfig
from vlm.train.instruct import train_instruction

CONFIG = Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp.yaml"


@pytest.fixture
def config(phantoms_on_disk: Path, llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> StageConfig:
    monkeypatch.setattr("vlm.train.loop.INVENTED", 1)
    monkeypatch.setattr("vlm.train.loop.ASKED", 4)
    tiny_models(phantoms_on_disk, llm_folder)
    return StageConfig(
        data=phantoms_on_disk / "data",
        output=phantoms_on_disk / "run",
        split=phantoms_on_disk / "split.json",
        datasets=(DatasetEntry("Dataset001_Phantom"),),
        segmentation=str(phantoms_on_disk / "segmentation"),
        llm=str(llm_folder),
        start=phantoms_on_disk / "vlm",
        steps=3,
        pack=2,
        warmup=1,
        validate_every=1,
        calibration=None,
        device="cpu",
        threads=1,
    )


def launch(config: StageConfig, resume: bool = False) -> None:
    """Train in two processes, as `accelerate launch --config_file configs/accelerate/fsdp.yaml` does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launched(rank: int) -> None:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        told = yaml.safe_load(CONFIG.read_text())["fsdp_config"] | {"accelerate_use_fsdp": True}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
        os.environ.update({name.upper(): str(value) for name, value in told.items()})
        torch.distributed.init_process_group("gloo")
        PartialState._reset_state()
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
        train_instruction(config, resume)

    processes = [multiprocessing.get_context("fork").Process(target=launched, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]


def test_sharded_training_equals_one_process_that_gathers_two_packs(config: StageConfig, tmp_path: Path) -> None:
    if "openvino" in sys.modules:
        pytest.skip("a fork beside the threads of OpenVINO may hang; run this file alone")
    one = train_instruction(replace(config, output=tmp_path / "one", accumulate=2))
    launch(replace(config, output=tmp_path / "two"))
    two = tmp_path / "two" / "model"
    for name in ("heads.safetensors", "adapter.safetensors"):
        ours, theirs = load_file(two / name), load_file(one / name)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, atol=2e-3, rtol=0)
    VisionLanguageModel.load(two)
    launch(replace(config, output=tmp_path / "two", steps=4), resume=True)
    state = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4 and {weight.shape for weight in load_file(two / "heads.safetensors").values()}
