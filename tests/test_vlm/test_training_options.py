"""What the language stages can do beside their recipe, on phantoms with a tiny language model."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from phantoms import tiny_models
from safetensors.torch import load_file

from seg_backbone.cases import DatasetEntry
from seg_backbone.errors import ConfigError
from seg_backbone.predict import Segmenter
from vlm.data.wordings import read_wordings
from vlm.encoders.backbone import SegmentationEncoder
from vlm.facts import NAMES
from vlm.model import VisionLanguageModel
from vlm.schema import Question
from vlm.train.align import train_alignment
from vlm.train.config import StageConfig
from vlm.train.examples import Example, load_examples, questions_about
from vlm.train.instruct import train_instruction
from vlm.train.loop import draw
from vlm.train.losses import in_words, pack_losses

DATASET = "Dataset001_Phantom"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def short_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.train.loop.INVENTED", 1)
    monkeypatch.setattr("vlm.train.loop.ASKED", 4)


@pytest.fixture
def config(phantoms_on_disk: Path, llm_folder: Path) -> StageConfig:
    tiny_models(phantoms_on_disk, llm_folder)
    return StageConfig(
        data=phantoms_on_disk / "data",
        output=phantoms_on_disk / "run",
        split=phantoms_on_disk / "split.json",
        datasets=(DatasetEntry(DATASET),),
        segmentation=str(phantoms_on_disk / "segmentation"),
        llm=str(llm_folder),
        start=phantoms_on_disk / "vlm",
        steps=2,
        pack=2,
        warmup=1,
        validate_every=2,
        calibration=None,
        device="cpu",
        threads=1,
    )


@pytest.fixture
def examples(config: StageConfig) -> list[Example]:
    encoder = SegmentationEncoder(Segmenter.load(config.segmentation, "cpu"))
    return load_examples(config.data, config.datasets, config.split, "training", encoder, config.output, 9)


def rows_of(folder: Path, name: str = "log.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses_of(model: VisionLanguageModel, example: Example) -> dict[str, torch.Tensor]:
    questions = questions_about(example, read_wordings(), Random(0), 8, "train")
    torch.manual_seed(0)  # of dropout
    return pack_losses(model, example, questions, 0.3, Random(0))


def test_model_settings_reach_the_weights(config: StageConfig, tmp_path: Path) -> None:
    tokens = {"cells": [3, 3, 3], "perceiver": {"tokens": 4, "heads": 2, "width": 16}}
    adapter = {"lora_rank": 3, "dora": True, "lora_targets": ["q_proj", "v_proj"]}
    aligned = train_alignment(replace(config, start=None, output=tmp_path / "aligned", model=tokens | adapter))
    assert load_file(aligned / "heads.safetensors")["projector.visual.latents"].shape == (4, 16)
    assert not (aligned / "adapter.safetensors").exists()
    more = {"lora_rank": 5, "rslora": True}  # an adapter of another size on the same aligned weights
    tuned = replace(config, start=aligned, output=tmp_path / "tuned", model=tokens | adapter | more)
    folder = train_instruction(tuned)
    ranks = {w.shape[0] for name, w in load_file(folder / "adapter.safetensors").items() if "lora_A" in name}
    assert ranks == {5}
    again = VisionLanguageModel.load(folder).config
    assert (again.lora_rank, again.dora, again.rslora, again.cells) == (5, True, True, (3, 3, 3))
    with pytest.raises(ConfigError, match=r"cells.*\(3, 3, 3\).*align anew"):
        train_instruction(replace(tuned, model={"cells": [2, 2, 2]}))
    with pytest.raises(ConfigError, match="lora_rank"):
        train_instruction(replace(tuned, start=folder, model={"lora_rank": 4}))


def test_activation_checkpointing_changes_no_gradient(config: StageConfig, examples: list[Example]) -> None:
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        model = VisionLanguageModel.load(str(config.start)).train()
        torch.manual_seed(0)
        model.add_adapter()
        if checkpointing:
            model.llm.gradient_checkpointing_enable({"use_reentrant": False})
        sum(losses_of(model, examples[0]).values()).backward()  # type: ignore[union-attr]
        return [p.grad for p in model.parameters() if p.grad is not None]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_bf16_learns_nearly_what_fp32_learns(config: StageConfig, examples: list[Example]) -> None:
    whole, half = (VisionLanguageModel.load(str(config.start), precision=name).eval() for name in ("fp32", "bf16"))
    assert {p.dtype for p in half.llm.parameters()} == {torch.bfloat16}
    assert {p.dtype for n, p in half.named_parameters() if not n.startswith("llm.")} == {torch.float32}
    ours, theirs = losses_of(half, examples[0]), losses_of(whole, examples[0])
    assert set(ours) == {"router", "pointer", "answer", "regression"}
    for name, value in theirs.items():
        assert float(ours[name]) == pytest.approx(float(value), rel=0.05)


def test_it_stops_early_and_keeps_the_best(config: StageConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter((0.5, 0.8, 0.7, 0.6))
    seen: list[dict[str, torch.Tensor]] = []

    def validate(model: VisionLanguageModel, *given: Any) -> tuple[dict[str, float], list[dict[str, Any]]]:
        seen.append({n: p.detach().half() for n, p in model.named_parameters() if not n.startswith("llm.")})
        return {"real router": next(scores)}, []

    monkeypatch.setattr("vlm.train.loop.validate", validate)
    settings = replace(config, steps=20, validate_every=1, patience=2)
    folder = train_instruction(settings)
    assert len(seen) == 4, "two validations without a better one"
    saved = load_file(folder / "heads.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in seen[1].items())
    assert any(not torch.equal(seen[1][name], weight) for name, weight in seen[3].items())
    before = (folder / "heads.safetensors").read_bytes()
    train_instruction(settings, resume=True)  # goes no further, and still knows the best
    assert len(seen) == 4 and (folder / "heads.safetensors").read_bytes() == before


def test_samples_and_the_log_are_shown_as_it_learns(config: StageConfig) -> None:
    rows: list[dict[str, Any]] = []
    settings = replace(config, tensorboard=True, samples=2)
    train_instruction(settings, report=rows.append)
    (samples,) = [row["samples"] for row in rows if "samples" in row]
    assert samples and set(samples[0]) == {"scan", "question", "reference", "answer"}
    assert rows_of(config.output, "samples.jsonl") == [{"step": 2} | one for one in samples]
    assert list((config.output / "tensorboard").iterdir())
    train_instruction(settings)
    assert len(rows_of(config.output, "samples.jsonl")) == len(samples), "a fresh run starts over"
    assert [row["step"] for row in rows_of(config.output)] == [2]


def test_weights_of_datasets_are_the_shares_of_scenes(config: StageConfig, examples: list[Example]) -> None:
    others = [replace(e, files=replace(e.files, dataset="Other")) for e in examples[:1]]
    settings = replace(
        config, datasets=(DatasetEntry(DATASET, weight=1.0), DatasetEntry("Other", weight=3.0)), invented=0
    )
    pool, random = [*examples, *others], Random(0)
    drawn = Counter(draw(settings, NAMES, pool, read_wordings(), random)[0].files.dataset for _ in range(200))
    assert 130 < drawn["Other"] < 170
    _, questions = draw(settings, ("count",), pool, read_wordings(), random)
    assert {q.extra["fact"] for q in questions} == {"count"}, "what the model's router does not know is not asked"


def test_a_model_that_writes_learns_words_only(config: StageConfig, examples: list[Example]) -> None:
    for hidden in ({}, {"visual": False}, {"instances": False}, {"visual": False, "instances": False}):
        folder = train_alignment(replace(config, start=None, model={"answers": "text"} | hidden))
        model = VisionLanguageModel.load(folder)
        assert set(losses_of(model, examples[0])) == {"answer"}
        assert {"real words", "invented words"} == set(rows_of(config.output)[-1]["validation"])


def test_three_commands_from_a_question_file(
    config: StageConfig, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """A set of questions that people answered, no mask: import, train, ask."""
    scans = config.data / DATASET / "imagesTr"
    header = "Image Path,Question,Choice A,Choice B,Choice C,Choice D,Answer,Answer Choice,Question Type"
    rows = [
        f"case_{n}_0000.nii.gz,What is shown?,head,leg,chest,belly,{('head', 'leg')[n]},{'AB'[n]},3" for n in (0, 1)
    ]
    (scans / "vqa.csv").write_text("\n".join((header, *rows)) + "\n")
    code, _, err = run("data", "import", "m3d-vqa", scans / "vqa.csv", "-o", scans / "q.jsonl")
    assert code == 0, err
    table = {
        "segmentation": config.segmentation,
        "llm": config.llm,
        "model": {"answers": "text"},
        "questions": [{"file": str(scans / "q.jsonl"), "validation": str(scans / "q.jsonl")}],
        "alignment": {"output": str(tmp_path / "aligned"), "steps": 2, "warmup": 1, "threads": 1},
    }
    (tmp_path / "vlm.yaml").write_text(json.dumps(table))
    code, out, err = run("train", "alignment", "--config", tmp_path / "vlm.yaml")
    assert code == 0, err
    assert set(rows_of(tmp_path / "aligned")[-1]["validation"]) == {"real words"}
    found = len(list((tmp_path / "features").iterdir()))
    assert run("train", "alignment", "--config", tmp_path / "vlm.yaml")[0] == 0
    assert len(list((tmp_path / "features").iterdir())) == found == 2, "each scan is looked at once"
    asked = (scans / "case_2_0000.nii.gz", "What is shown?", "--options", "head;leg")
    code, out, err = run("ask", *asked, "--type", "classification", "--model", out.strip(), "--json")
    assert code == 0 and json.loads(out)["choice"] in ("head", "leg"), err
    (tmp_path / "vlm.yaml").write_text(json.dumps(table | {"model": {}}))
    code, _, err = run("train", "alignment", "--config", tmp_path / "vlm.yaml")
    assert code == 2 and "answers: text" in err


@pytest.mark.parametrize(
    ("answer", "unit", "text"),
    [
        (None, None, None),
        ("yes", None, "yes"),
        (3, None, "3"),
        (42.123, "mm", "42.1 mm"),
        (0.8, None, "0.8"),
        (["larynx", "tumour"], None, "larynx; tumour"),
        ([], None, "none"),
        ([{"label": "x", "min_mm": [-1.2, 0, 3], "max_mm": [4, 5.6, 7]}], None, "[-1, 0, 3, 4, 6, 7]"),
    ],
)
def test_references_in_words(answer: Any, unit: str | None, text: str | None) -> None:
    assert in_words(Question("q", "scan", "?", unit=unit, answer=answer)) == text


def test_two_processes_train_what_one_does_that_gathers_two_packs(config: StageConfig, tmp_path: Path) -> None:
    if "openvino" in sys.modules:
        pytest.skip("a fork beside the threads of OpenVINO may hang; run this file alone")
    one = train_instruction(replace(config, output=tmp_path / "one", accumulate=2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launched(rank: int) -> None:  # as `accelerate launch` does
        PartialState._reset_state()
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"})
        train_instruction(replace(config, output=tmp_path / "two"))

    processes = [multiprocessing.get_context("fork").Process(target=launched, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    for name in ("heads.safetensors", "adapter.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in (tmp_path / "two" / "model", one))
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, atol=2e-3, rtol=0)
    assert len(rows_of(tmp_path / "two")) == 1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"steps": 0}, "steps"),
        ({"invented": 1.5}, "invented"),
        ({"model": {"answers": "song"}}, "answers"),
        ({"datasets": (DatasetEntry(DATASET, weight=0.0),)}, "datasets"),
        ({"patience": -1}, "patience"),
    ],
)
def test_settings_that_do_not_fit(config: StageConfig, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        replace(config, **changes)


def test_what_is_missing_is_said(config: StageConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="training cases"):
        (tmp_path / "split.json").write_text(json.dumps({"patients": {"v": ["case_0", "case_1", "case_2"]}}))
        train_instruction(replace(config, split=tmp_path / "split.json"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="CUDA"):
            train_instruction(replace(config, device="cuda"))
    bad = tmp_path / "vlm.yaml"
    bad.write_text((REPOSITORY / "configs" / "vlm.yaml").read_text() + "model: {rank: 8}\n")
    with pytest.raises(ConfigError, match="rank"):
        StageConfig.read(bad, "alignment")
