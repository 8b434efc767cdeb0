"""What a model may be made of: adapters, 4-bit weights, perceiver, hidden tokens, answers as text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from phantoms import LABELS, features_of, phantom, phantom_scene, tiny_llm, tiny_models
from torch import nn

from seg_backbone.errors import CheckpointError, ConfigError
from seg_backbone.lesions import find_instances
from seg_backbone.volume import Mask
from vlm import llm as llm_module
from vlm.infer.engine import Engine
from vlm.llm import load_llm
from vlm.model import VisionLanguageModel, VlmConfig
from vlm.resampler import Perceiver, Resampler
from vlm.scene import Scene, build_scene
from vlm.schema import Question


def build(llm_folder: Path, **options: Any) -> VisionLanguageModel:
    config = VlmConfig(llm=str(llm_folder), visual_channels=6, instance_channels=5, **options)
    return VisionLanguageModel(config, *tiny_llm()).eval()


def states(model: VisionLanguageModel, scene: Scene) -> torch.Tensor:
    with torch.no_grad():
        return model.pack(model.visible(scene), [model.prompt.question("How many?")])[1]


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ({"lora_rank": 3, "lora_targets": ["q_proj"]}, {"lora_A", "lora_B"}),
        ({"lora_rank": 2, "dora": True}, {"lora_A", "lora_B", "lora_magnitude_vector"}),
        ({"lora_rank": 4, "rslora": True, "lora_alpha": 8}, {"lora_A", "lora_B"}),
    ],
)
def test_adapters(options: dict[str, Any], kinds: set[str], llm_folder: Path, scene: Scene, tmp_path: Path) -> None:
    model = build(llm_folder, **options)
    model.add_adapter()
    trained = {name: p for name, p in model.llm.named_parameters() if "lora_" in name}
    assert {part for name in trained for part in name.split(".") if part.startswith("lora_")} == kinds
    assert all(p.shape[0] == options["lora_rank"] for name, p in trained.items() if "lora_A" in name)
    if "lora_targets" in options:
        assert all("q_proj" in name for name in trained)
    layer = next(module for module in model.llm.modules() if isinstance(getattr(module, "scaling", None), dict))
    rank, alpha = options["lora_rank"], model.config.lora_alpha
    assert layer.scaling["default"] == pytest.approx(alpha / (rank**0.5 if options.get("rslora") else rank))
    for name, parameter in trained.items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    again = VisionLanguageModel.load(model.eval().save(tmp_path / "vlm"))
    assert again.config == model.config
    torch.testing.assert_close(states(again, scene), states(model, scene), atol=2e-2, rtol=2e-2)


def test_layers_that_the_language_model_lacks(llm_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora_targets.*no_such_proj") as caught:
        build(llm_folder, lora_targets=("no_such_proj",)).add_adapter()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"quantize": "int2"}, "quantize"),
        ({"answers": "song"}, "answers"),
        ({"cells": (2, 2)}, "cells"),
        ({"perceiver": {"heads": 5}}, "perceiver"),
        ({"instances": False}, "answers: text"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        VlmConfig(**options)


def test_another_language_model_is_refused_by_its_size(llm_folder: Path, tmp_path: Path) -> None:
    folder = build(llm_folder).save(tmp_path / "vlm")
    state = json.loads((folder / "vlm.json").read_text())
    wide, tokenizer = tiny_llm(hidden_size=48)
    wide.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    (folder / "vlm.json").write_text(json.dumps(state | {"llm": str(tmp_path / "wide")}))
    with pytest.raises(CheckpointError, match=r"width 32, .*wide has 48") as caught:
        VisionLanguageModel.load(folder)
    assert "\n" not in str(caught.value)


def test_four_bit_weights_learn_through_an_adapter(llm_folder: Path, scene: Scene, tmp_path: Path) -> None:
    """On a CPU: layers are NF4, states near those of whole weights, and LoRA gets gradients."""
    pytest.importorskip("bitsandbytes")
    four, tokenizer = load_llm(str(llm_folder), quantize="nf4")
    assert {type(m).__name__ for n, m in four.named_modules() if n.endswith("q_proj")} == {"Linear4bit"}
    config = VlmConfig(llm=str(llm_folder), visual_channels=6, instance_channels=5, quantize="nf4")
    model, whole = VisionLanguageModel(config, four, tokenizer), build(llm_folder)
    whole.load_state_dict({n: p for n, p in model.state_dict().items() if not n.startswith("llm.")}, strict=False)
    near, right = states(model.eval(), scene), states(whole, scene)
    assert nn.functional.cosine_similarity(near, right).min() > 0.95
    model.add_adapter()
    model.pack(scene, [model.prompt.question("How many?")])[1].square().sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
    assert grads and all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    again = VisionLanguageModel.load(model.eval().save(tmp_path / "vlm"))
    assert again.config.quantize == "nf4"
    torch.testing.assert_close(states(again, scene), states(model, scene), atol=2e-2, rtol=2e-2)


def test_without_bitsandbytes_four_bit_weights_are_refused(llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"bitsandbytes.*pip install"):
        load_llm(str(llm_folder), quantize="nf4")


def test_a_resampler_gives_so_many_tokens_of_any_number_of_cells() -> None:
    torch.manual_seed(0)
    resampler = Resampler(12, 32, Perceiver(tokens=5, layers=2, heads=2, width=16))
    cells = torch.randn(40, 12)
    tokens = resampler(cells)
    assert tokens.shape == (5, 32) == resampler(cells[:3]).shape
    torch.testing.assert_close(
        resampler(cells.flip(0)), tokens, atol=1e-5, rtol=1e-4, msg="cells are a set with places"
    )
    assert not torch.allclose(resampler(cells + 0.5), tokens, atol=1e-4)


def test_the_number_of_visual_tokens_is_chosen(llm_folder: Path, tmp_path: Path) -> None:
    volume, mask = phantom()
    instances = find_instances(mask, volume)

    def tokens(**options: Any) -> int:
        model = build(llm_folder, **options)
        scene = build_scene(volume, instances, tuple(LABELS), (), features_of(volume.grid), model.config.cells)
        again = VisionLanguageModel.load(model.save(tmp_path / "vlm"))
        torch.testing.assert_close(again.scan_tokens(scene), model.scan_tokens(scene), atol=2e-2, rtol=2e-2)
        return len(model.scan_tokens(scene)) - len(model.prompt.before) - 1 - len(instances)

    assert tokens() == 12
    assert tokens(cells=(3, 2, 4)) == 24
    assert tokens(cells=(4, 4, 4), perceiver={"tokens": 7, "heads": 2, "width": 16}) == 7


def test_hidden_tokens_change_nothing(llm_folder: Path, scene: Scene) -> None:
    """The ablation: what is hidden has no say, what is shown has."""
    other = replace(scene, visual=scene.visual + 1)
    sighted, blind = build(llm_folder), build(llm_folder, visual=False)
    assert not torch.allclose(states(sighted, scene), states(sighted, other), atol=1e-5)
    assert torch.equal(states(blind, scene), states(blind, other))
    assert blind.regress(blind.visible(scene)) == {}
    one_moved = replace(scene, geometry=scene.geometry + 1)
    deaf = build(llm_folder, instances=False, answers="text")
    assert not torch.allclose(states(sighted, scene), states(sighted, one_moved), atol=1e-5)
    assert torch.equal(states(deaf, scene), states(deaf, one_moved))


def test_answers_in_words_of_its_own(llm_folder: Path, phantom_files: Path, tmp_path: Path) -> None:
    """`write` takes the likeliest token at each step, as the whole sequence read anew says too; options are scored."""
    folder = tiny_models(tmp_path, llm_folder)
    config = json.loads((folder / "vlm.json").read_text())
    (folder / "vlm.json").write_text(json.dumps(config | {"answers": "text"}))
    engine = Engine.load(folder, device="cpu")
    scan = engine.open(phantom_files / "scan_0000.nii.gz")
    answer = engine.ask(scan, "How many tumours are there?", "counting")
    assert (answer.type, answer.value, answer.abstained) == ("counting", None, False)
    model, question = engine.model, Question("q", "scan", "How many tumours are there?")
    ids, written = model.prompt.question(question.question), list[int]()
    with torch.no_grad():
        for _ in range(6):  # the whole sequence read anew for every token
            states = model.pack(scan.scene, [ids + written])[1]
            written.append(int(model.llm.get_output_embeddings()(states[-1]).argmax()))
    said = model.write(scan.scene, scan.opened, question, most=6)["text"]
    end = model.prompt.answer("")[0]
    written = written[: written.index(end)] if end in written else written
    assert said == model.tokenizer.decode(written, skip_special_tokens=True).strip()
    chosen = engine.ask(scan, "Which?", "classification", ("head", "leg"))
    assert chosen.choice == chosen.text and chosen.choice in ("head", "leg") and 0.5 <= chosen.confidence <= 1


def test_a_mask_of_many_structures_is_shown_whole(llm_folder: Path) -> None:
    volume, mask = phantom()
    ids = np.zeros(mask.array.shape, dtype=np.uint8)
    names = {f"structure {n}": n for n in range(1, 101)}
    for n in names.values():
        ids[4 * ((n - 1) % 10), 4 * ((n - 1) // 10), 5] = n
    scene = phantom_scene(volume, Mask(ids, mask.grid, names))
    assert len(scene.instances) == 100
    model = build(llm_folder)
    assert len(model.open(scene).items) == 100
