"""The model: packed and cached roads agree, weights survive a round trip, wrong folders are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import phantom, phantom_scene, tiny_llm
from safetensors.torch import load_file, save_file

from seg_backbone.errors import CheckpointError
from vlm.facts import NAMES, facts_of
from vlm.grounding import find_mentions
from vlm.model import SEES_FACTS, VisionLanguageModel, VlmConfig, route
from vlm.prompts import make_prompt
from vlm.regions import REGIONS
from vlm.scene import FACTS, Scene, scene_classes

QUESTIONS = ("How many tumours are there?", "Volume of the left parotid gland", "x")


@pytest.fixture
def model() -> VisionLanguageModel:
    llm, tokenizer = tiny_llm()
    config = VlmConfig(
        visual_channels=6, instance_channels=5, lora_rank=2, regression_scale={"fat_percent": (20.0, 5.0)}
    )
    return VisionLanguageModel(config, llm, tokenizer).eval()


def test_questions_packed_behind_a_scan_do_not_see_each_other(model: VisionLanguageModel, scene: Scene) -> None:
    segments = [model.prompt.question(text) for text in QUESTIONS]
    with torch.no_grad():
        scan, states, places = model.pack(scene, segments)
        for segment, place in zip(segments, places, strict=True):
            alone_scan, alone, _ = model.pack(scene, [segment])
            torch.testing.assert_close(states[place], alone, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(scan, alone_scan, atol=1e-4, rtol=1e-4)


def test_the_cached_road_equals_the_packed_one(model: VisionLanguageModel, scene: Scene) -> None:
    opened = model.open(scene)
    segments = [model.prompt.question(text) for text in QUESTIONS]
    with torch.no_grad():
        scan, states, places = model.pack(scene, segments)
        torch.testing.assert_close(opened.items, scan[-len(scene.instances) :], atol=1e-4, rtol=1e-4)
        for text, place in zip(QUESTIONS, places, strict=True):
            scores = model.read(scene, opened, text, (), find_mentions(text, scene_classes(scene)))
            torch.testing.assert_close(scores.state, states[place][-1], atol=1e-4, rtol=1e-4)
            again = model.read(scene, opened, text, (), find_mentions(text, scene_classes(scene)))
            assert torch.equal(again.selection, scores.selection), "the scan's cache must not change"


def test_option_likelihood_is_the_mean_log_probability(model: VisionLanguageModel, scene: Scene) -> None:
    opened = model.open(scene)
    mention = find_mentions("Which?", scene_classes(scene))
    scores = model.read(scene, opened, "Which?", (), mention)
    shares = model.option_likelihoods(scores, ("head", "leg"))
    question = model.prompt.question("Which?")
    means = []
    for option in ("head", "leg"):
        answer = model.prompt.answer(option)
        with torch.no_grad():
            _, states, _ = model.pack(scene, [question + answer])
            log_p = torch.log_softmax(model.llm.get_output_embeddings()(states[len(question) - 1 : -1]), dim=-1)
        means.append(log_p[torch.arange(len(answer)), torch.tensor(answer)].mean())
    expected = torch.softmax(torch.stack(means), dim=0)
    assert shares == pytest.approx(expected.tolist(), abs=1e-4)


def test_save_and_load(model: VisionLanguageModel, scene: Scene, llm_folder: Path, tmp_path: Path) -> None:
    object.__setattr__(model.config, "llm", str(llm_folder))
    model.add_adapter()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.eval()
    folder = model.save(tmp_path / "vlm")
    again = VisionLanguageModel.load(folder)
    ids = [model.prompt.question("How many?")]
    with torch.no_grad():
        before, after = model.pack(scene, ids)[1], again.pack(scene, ids)[1]
    torch.testing.assert_close(before, after, atol=2e-2, rtol=2e-2)
    assert again.regress(scene)["fat_percent"][0] <= again.regress(scene)["fat_percent"][2]


def test_weights_of_fewer_facts_still_serve(
    model: VisionLanguageModel, scene: Scene, llm_folder: Path, tmp_path: Path
) -> None:
    """An earlier version's weights saw no regions: they answer as before; weights of other sizes are refused."""
    object.__setattr__(model.config, "llm", str(llm_folder))
    file = model.save(tmp_path / "vlm") / "heads.safetensors"
    weights = load_file(file)
    for key in SEES_FACTS:
        weights[key] = weights[key][:, : -len(REGIONS)].contiguous()
    save_file(weights, file)
    again = VisionLanguageModel.load(tmp_path / "vlm")
    elsewhere = replace(scene, facts=np.concatenate([scene.facts[: -len(REGIONS)], np.ones(len(REGIONS))]).astype("f4"))
    nowhere = replace(scene, facts=np.where(np.arange(FACTS) < FACTS - len(REGIONS), scene.facts, 0).astype("f4"))
    torch.testing.assert_close(again.scan_tokens(elsewhere), again.scan_tokens(nowhere))
    torch.testing.assert_close(again.scan_tokens(nowhere), model.scan_tokens(nowhere), atol=2e-2, rtol=2e-2)
    assert again.regress(elsewhere) == again.regress(nowhere)
    weights[SEES_FACTS[0]] = weights[SEES_FACTS[0]][:, 1:].contiguous()
    save_file(weights, file)
    with pytest.raises(CheckpointError, match="train it anew") as caught:
        VisionLanguageModel.load(tmp_path / "vlm")
    assert "\n" not in str(caught.value)


def test_a_wrong_folder_is_refused(model: VisionLanguageModel, llm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="vlm.json"):
        VisionLanguageModel.load(tmp_path)
    object.__setattr__(model.config, "llm", str(llm_folder))
    folder = model.save(tmp_path / "vlm")
    config = json.loads((folder / "vlm.json").read_text()) | {"visual_channels": 7}
    (folder / "vlm.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="fit"):
        VisionLanguageModel.load(folder)


def test_a_declared_type_limits_the_facts() -> None:
    logits = torch.zeros(len(NAMES))
    logits[NAMES.index("count")] = 5.0
    logits[NAMES.index("volume")] = 3.0
    assert route(logits, NAMES, None)[0] == "count"
    assert route(logits, NAMES, "measurement")[0] == "volume" and "volume" in facts_of("regression")


def test_prompt_pieces_make_the_templates_text() -> None:
    _, tokenizer = tiny_llm()
    prompt = make_prompt(tokenizer)
    ids = [*prompt.before, *prompt.question("Is it?", ("yes", "no")), *prompt.answer("yes")]
    text = "".join(tokenizer.convert_ids_to_tokens(ids))
    assert text.startswith("<|system|>") and text.endswith("\nIs it?\nOptions: yes; no<|end|><|assistant|>yes<|end|>")


def test_a_scan_without_instances_is_read(model: VisionLanguageModel) -> None:
    volume, mask = phantom()
    mask.array[:] = 0
    scene = phantom_scene(volume, mask)
    scores = model.read(
        scene, model.open(scene), "Is there a tumour?", (), find_mentions("tumour", scene_classes(scene))
    )
    assert scores.selection.shape == (0,)
