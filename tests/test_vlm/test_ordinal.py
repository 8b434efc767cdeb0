"""Counts without a mask: the ordinal head against the formula, what it learns, and when it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from phantoms import tiny_llm
from scipy.special import expit

from seg_backbone.cases import CaseFiles
from vlm.data.threshold import parse_threshold
from vlm.facts import NAMES
from vlm.grounding import find_mentions, says
from vlm.heads import decode
from vlm.heads.ordinal import CumulativeLinks, which_count
from vlm.heads.reading import Calibration, Reading
from vlm.model import VisionLanguageModel, VlmConfig
from vlm.scene import Scene, scene_classes
from vlm.schema import Question
from vlm.train.calibrate import is_right
from vlm.train.examples import Example
from vlm.train.losses import pack_losses

METASTASES, POLYPS = "count:brain_metastases", "count:polyps"
COUNTED = {METASTASES: ("brain metastasis", "metastasis"), POLYPS: ("polyp",)}


@pytest.mark.parametrize("levels", [2, 3, 6])
def test_cumulative_links_are_those_of_the_formula(levels: int) -> None:
    torch.manual_seed(levels)
    head = CumulativeLinks(8, levels)
    torch.nn.init.normal_(head.thresholds)
    states = torch.randn(5, 8)
    with torch.no_grad():
        logs, score = head(states), head.score(states).numpy()
        first, *steps = head.thresholds.tolist()
    thresholds = first + np.concatenate([[0.0], np.cumsum(np.logaddexp(0.0, steps))])
    at_most = np.concatenate([expit(thresholds - score), np.ones((5, 1))], axis=1)
    np.testing.assert_allclose(logs.exp().numpy(), np.diff(at_most, prepend=0.0, axis=1), atol=1e-6)
    assert (np.diff(thresholds) > 0).all(), "the thresholds rise, so no probability is negative"


def test_no_loss_is_infinite_however_wrong_the_head_is() -> None:
    head = CumulativeLinks(4, 5)
    torch.nn.init.constant_(head.score[1].bias, 200.0)
    loss = torch.nn.functional.cross_entropy(head(torch.randn(3, 4)), torch.tensor([0, 2, 4]))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_it_learns_how_many(scene: Scene, llm_folder: Path, tmp_path: Path) -> None:
    """Scans whose visual features differ by how many there are: projector and head learn it, and it is saved."""
    known = {"facts": (*NAMES, POLYPS), "labels": {POLYPS: ("0", "1", "2")}, "counted": {POLYPS: ("polyp",)}}
    torch.manual_seed(0)
    model = VisionLanguageModel(
        VlmConfig(llm=str(llm_folder), visual_channels=6, instance_channels=5, **known), *tiny_llm()
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    files = CaseFiles("D", "c", "c", "CT", tmp_path, None, {}, ())
    examples = [
        (Example(replace(scene, visual=scene.visual + 1.5 * count), files, (), None), count) for count in range(3)
    ]
    question = Question("q", "s", "How many polyps are there?", "counting")
    for _ in range(40):
        for example, count in examples:
            asked = replace(question, answer=count, extra={"fact": POLYPS, "instances": []})
            losses = pack_losses(model, example, [asked], 0.0, Random(0))
            optimizer.zero_grad()
            (losses["labels"] + 0.1 * losses["router"]).backward()
            optimizer.step()
    again = VisionLanguageModel.load(model.save(tmp_path / "vlm"))
    for example, count in examples:
        reading, _ = again.interpret(example.scene, again.open(example.scene), replace(question, type=None))
        out = decode(reading)
        assert reading.fact == POLYPS and out["value"] == count, out
        assert sum(reading.label_shares.values()) == pytest.approx(1) and "evidence" not in out


@pytest.mark.parametrize(
    ("text", "fact", "expected"),
    [
        ("How many metastases are there?", "count", METASTASES),
        ("how many brain metastsis can you see", "count", METASTASES),
        ("Count the polyps", METASTASES, POLYPS),
        ("How many tumours are there?", METASTASES, "count"),
        ("How many are there?", POLYPS, "count"),
        ("Are there polyps?", "presence", "presence"),
    ],
)
def test_which_count_is_meant(scene: Scene, text: str, fact: str, expected: str) -> None:
    assert which_count(fact, text, scene, COUNTED) == expected


def test_a_class_of_the_mask_is_counted_there(scene: Scene) -> None:
    asked = ("count", "How many tumours are there?", scene)
    assert which_count(*asked, {"count:tumours": ("tumour",)}) == "count"
    blind = replace(scene, untrained=("tumour",))
    assert which_count("count", asked[1], blind, {"count:tumours": ("tumour",)}) == "count:tumours"
    liver = ("count", "How many liver tumours are there?", scene)
    assert which_count(*liver, {"count:tumours": ("liver tumour",)}) == "count:tumours", "the mask knows no liver"
    assert which_count("count", asked[1], scene, {"count:tumours": ("liver tumour",)}) == "count"


def read(scene: Scene, text: str, shares: tuple[float, ...], **how: Any) -> dict[str, Any]:
    mention = find_mentions(text, scene_classes(scene))
    told = {"label_shares": {str(n): share for n, share in enumerate(shares)}, "counted": COUNTED[METASTASES]}
    nothing = np.zeros(len(scene.instances))
    return decode(
        Reading(
            Question("q", "s", text), scene, mention, METASTASES, 0.9, nothing, parse_threshold(text), **told, **how
        )
    )


def test_the_answer_is_the_median_and_says_that_it_was_not_counted(scene: Scene) -> None:
    out = read(scene, "How many metastases are there?", (0.3, 0.15, 0.4, 0.15))
    assert out["value"] == 2 and out["confidence"] == pytest.approx(0.9 * 0.4) and "evidence" not in out
    assert out["text"] == "Brain metastases: 2, estimated from the scan as a whole and not counted on a mask."
    most = read(scene, "How many metastases are there?", (0.1, 0.2, 0.7))
    assert most["value"] == 2 and "2 or more" in most["text"]
    cooler = read(scene, "Metastases?", (0.0, 1.0), calibration=Calibration({METASTASES: 2.0}))
    assert cooler["value"] == 1 and cooler["confidence"] == pytest.approx(0.75)  # odds of 9 become odds of 3


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("How many metastases are larger than 1 cm?", "size"),
        ("How many metastases are in the liver?", "place"),
        ("How many metastases are in the left parotid gland?", "place"),
    ],
)
def test_a_part_of_the_count_is_not_known(scene: Scene, text: str, word: str) -> None:
    out = read(scene, text, (0.3, 0.7))
    assert out["abstained"] and word in out["reason"] and "value" not in out


def test_a_count_is_right_if_its_number_is() -> None:
    question = Question("q", "s", "?", "counting", answer=3, extra={"fact": POLYPS, "instances": []})
    assert is_right(question, POLYPS, {"value": 3}) and not is_right(question, POLYPS, {"value": 2})
    assert not is_right(question, "count", {"value": 3})


def test_what_a_text_says() -> None:
    assert says("Any POLYPS?", "polyp") and says("brain metastasis, please", "brain metastases")
    assert not says("polyphony", "polyp") and not says("", "polyp")
