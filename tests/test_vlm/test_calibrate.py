"""Calibration: the fit against scikit-learn and a known temperature, and what is stored and applied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from phantoms import tiny_models
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from seg_backbone.errors import CheckpointError, ConfigError
from vlm.data.wordings import read_wordings
from vlm.grounding import find_mentions
from vlm.heads.reading import Calibration, Reading
from vlm.model import VisionLanguageModel
from vlm.scene import Scene
from vlm.schema import Question
from vlm.train.calibrate import FEWEST, calibrate, fit, is_right, isotonic, temperature


def drawn(true_temperature: float, count: int = 20000) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and outcomes of a model whose log-odds are too large by a factor."""
    random = np.random.default_rng(0)
    odds = random.normal(1.0, 1.5, count)
    return expit(odds * true_temperature), random.random(count) < expit(odds)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_temperature_is_found(factor: float) -> None:
    confidence, right = drawn(factor)
    assert temperature(confidence, right) == pytest.approx(factor, rel=0.05)


def test_isotonic_agrees_with_scikit_learn() -> None:
    confidence, right = drawn(3.0, 500)
    confidence = confidence.round(2)  # ties
    expected = IsotonicRegression(out_of_bounds="clip").fit(confidence, right)
    calibration, asked = Calibration({"*": isotonic(confidence, right)}), np.linspace(0, 1, 50)
    assert [calibration("volume", p) for p in asked] == pytest.approx(expected.predict(asked).tolist())


def test_a_fact_with_few_answers_takes_the_curve_of_all() -> None:
    confidence, right = drawn(2.0, 200)
    facts = ["volume"] * (200 - FEWEST + 1) + ["side"] * (FEWEST - 1)
    calibration = fit(facts, confidence, right, "temperature")
    assert set(calibration.curves) == {"*", "volume"}
    assert calibration("side", 0.9) == pytest.approx(expit(logit(0.9) / calibration.curves["*"]))
    assert calibration("volume", 0.5) == pytest.approx(0.5)
    assert 0 <= calibration("volume", 0.0) < calibration("volume", 1.0) <= 1
    assert Calibration()("volume", 0.37) == 0.37


def test_the_masks_probability_stays_a_factor(scene: Scene) -> None:
    instance = replace(scene.instances[0], probability=0.8)
    selection = np.array([1.0] + [0.0] * (len(scene.instances) - 1))
    reading = Reading(Question("q", "s", "?"), scene, find_mentions("", ()), "volume", 0.9, selection)
    assert reading.confidence([instance]) == pytest.approx(0.9 * 0.8)
    cooler = replace(reading, calibration=Calibration({"volume": 2.0}))
    assert cooler.confidence([instance]) == pytest.approx(0.75 * 0.8)  # odds of 9 become odds of 3


def test_right_is_the_fact_the_instances_and_the_option() -> None:
    question = Question(
        "q", "s", "?", "classification", ("yes", "no"), None, "yes", {"fact": "presence", "instances": [2]}
    )
    parts = {"choice": "yes", "evidence": ({"instance": 2},)}
    assert is_right(question, "presence", parts) and not is_right(question, "side", parts)
    assert not is_right(question, "presence", parts | {"choice": "no"})
    assert not is_right(question, "presence", parts | {"evidence": ({"instance": 2}, {"instance": 1})})


def test_stored_with_the_weights_and_loaded_without(llm_folder: Path, tmp_path: Path) -> None:
    folder = tiny_models(tmp_path, llm_folder)
    model = VisionLanguageModel.load(folder)
    assert model.calibration == Calibration() and not (folder / "calibration.json").exists()
    model.calibration = Calibration({"*": 1.5, "volume": ([0.1, 0.9], [0.2, 0.6])})
    model.save(folder)
    assert VisionLanguageModel.load(folder).calibration("volume", 0.5) == pytest.approx(0.4)
    (folder / "calibration.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError):
        VisionLanguageModel.load(folder)
    model.calibration = Calibration()
    assert not (model.save(folder) / "calibration.json").exists(), "an old one must not outlive its weights"
    assert calibrate(model, [], read_wordings()) == {"answers": 0}
    with pytest.raises(ConfigError, match="isotonic"):
        calibrate(model, [], read_wordings(), "platt")
