"""Alignment and instruction on the sample scans with a tiny language model: learning, saving, exact resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from phantoms import SCANS, tiny_models
from safetensors.torch import load_file

from seg_backbone.cases import DatasetEntry
from seg_backbone.errors import ConfigError
from seg_backbone.predict import Segmenter
from vlm.data.wordings import read_wordings
from vlm.encoders.backbone import SegmentationEncoder
from vlm.facts import FACTS
from vlm.grounding import mentions_in
from vlm.model import VisionLanguageModel
from vlm.train.config import StageConfig
from vlm.train.examples import invent, load_examples, questions_about
from vlm.train.instruct import train_instruction
from vlm.train.loop import run_stage
from vlm.train.losses import POINTED

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StageConfig:
    folder = tmp_path_factory.mktemp("stages")
    tiny_models(folder, llm_folder)
    (folder / "split.json").write_text(json.dumps({"patients": {"validation": ["hn_019"]}}))
    return StageConfig(
        data=SCANS,
        output=folder / "run",
        split=folder / "split.json",
        datasets=(DatasetEntry("Dataset102_SarcomaCT", absent=("larynx",)), DatasetEntry("Dataset101_HeadNeckCT")),
        segmentation=str(folder / "segmentation"),
        llm=str(llm_folder),
        start=folder / "vlm",
        steps=6,
        pack=3,
        warmup=2,
        validate_every=6,
        checkpoint_minutes=0.0,
    )


def aligned(config: StageConfig) -> VisionLanguageModel:
    torch.manual_seed(1)
    assert config.start is not None
    return VisionLanguageModel.load(config.start)


def test_invented_scenes_are_consistent(config: StageConfig, tmp_path: Path) -> None:
    encoder = SegmentationEncoder(Segmenter.load(config.segmentation, "cpu"))
    every = tmp_path / "split.json"
    every.write_text(json.dumps({"patients": {}}))
    pool = load_examples(SCANS, config.datasets, every, "training", encoder, tmp_path, 4)
    assert {i.label for e in pool for i in e.scene.instances} >= {"tumour", "larynx", "parotid_left"}
    again = load_examples(SCANS, config.datasets, every, "training", encoder, tmp_path, 4)
    assert all((a.scene.visual == b.scene.visual).all() for a, b in zip(pool, again, strict=True)), "from the cache"
    wordings, counts = read_wordings(), set()
    asked = {q.extra["fact"] for e in pool for q in questions_about(e, wordings, Random(0), 60, "train")}
    for seed in range(30):
        random = Random(seed)
        example = invent(pool, wordings.extra_names, random)
        scene = example.scene
        assert [i.id for i in scene.instances] == list(range(1, len(scene.instances) + 1))
        assert len(scene.geometry) == len(scene.pooled) == len(scene.instances)
        for instance in scene.instances:
            same = [i for i in scene.instances if i.label == instance.label]
            assert instance.rank == 1 + sum(i.volume_ml > instance.volume_ml for i in same)
        counts.add(sum(i.label == "tumour" for i in scene.instances))
        for question in questions_about(example, wordings, random, 60, "train"):
            asked.add(question.extra["fact"])
            assert set(question.extra["instances"]) <= {i.id for i in scene.instances}
    assert {0, 1, 2, 3} <= counts
    assert asked == set(FACTS), "every fact is taught"


def test_resumed_equals_uninterrupted(config: StageConfig, tmp_path: Path) -> None:
    whole = run_stage(replace(config, output=tmp_path / "whole"), aligned(config))

    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 4:
            raise Stopped

    halved = replace(config, output=tmp_path / "halved")
    with pytest.raises(Stopped):
        run_stage(halved, aligned(config), progress=stop)
    resumed = run_stage(halved, aligned(config), resume=True)
    first, second = (load_file(folder / "heads.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_instruction_trains_the_adapter_and_learns(config: StageConfig, tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    settings = replace(
        config, output=tmp_path / "instruct", steps=50, learning_rate=5e-3, validate_every=50, invented=0.0
    )
    folder = train_instruction(settings, report=rows.append)
    *steps, last = rows
    assert steps[-1]["router"] < steps[0]["router"], "the router learns"
    assert set(steps[-1]["validation"]) == {"real router", "real selection", "invented router", "invented selection"}  # type: ignore[call-overload]
    adapter = load_file(folder / "adapter.safetensors")
    moved = [key for key, value in adapter.items() if "lora_B" in key and value.abs().sum() > 0]
    assert moved, "lora_B starts at zero and must have moved"
    again = VisionLanguageModel.load(folder)
    assert again.config.regression_scale is not None
    assert last["calibration"]["nll_after"] <= last["calibration"]["nll_before"]  # type: ignore[call-overload,index]
    assert again.calibration.curves["*"] > 0, "one temperature at least"  # type: ignore[operator]


def test_words_are_learnt_once_and_have_a_say(config: StageConfig, tmp_path: Path) -> None:
    settings = replace(
        config, output=tmp_path / "run", steps=1, lexical=240, validate_every=5, calibration=None, validation_cases=0
    )
    folder = run_stage(settings, aligned(config))
    model = VisionLanguageModel.load(folder)
    assert model.config.lexical and model.lexical is not None
    counting = model.config.facts.index("count")
    assert model.lexical(["How many tumours are there?"])[0].topk(3).indices.tolist().count(counting) == 1
    (settings.output / "log.jsonl").unlink()
    again = VisionLanguageModel.load(run_stage(replace(settings, lexical=1), aligned(config), resume=True))
    assert again.lexical is not None
    assert torch.equal(again.lexical.table.weight, model.lexical.table.weight), "what was learnt is taken"

    scene = load_examples(SCANS, config.datasets[:1], config.split, "training", *encoder_of(config, tmp_path))[0].scene
    opened, mention = model.open(scene), mentions_in("?", (), ())
    before = model.read(scene, opened, "How many?", (), mention).router
    with torch.no_grad():
        model.lexical.bias[counting] += 20
    after = model.read(scene, opened, "How many?", (), mention).router
    assert int(after.argmax()) == counting and not torch.equal(before, after)


def encoder_of(config: StageConfig, cache: Path) -> tuple[SegmentationEncoder, Path, int]:
    """The last arguments of load_examples."""
    return SegmentationEncoder(Segmenter.load(config.segmentation, "cpu")), cache, 1


def test_configuration_files(tmp_path: Path) -> None:
    for stage in ("alignment", "instruction"):
        config = StageConfig.read(REPOSITORY / "configs" / "vlm.yaml", stage, steps=3)
        assert config.steps == 3 and config.datasets[1].absent
    with pytest.raises(ConfigError, match="pixels"):
        bad = tmp_path / "bad.yaml"
        bad.write_text((REPOSITORY / "configs" / "vlm.yaml").read_text() + "pixels: 3\n")
        StageConfig.read(bad, "alignment")
    with pytest.raises(ConfigError, match="start"):
        train_instruction(replace(config, start=None))
    assert set(POINTED) >= {"count", "box", "volume", "presence"}
