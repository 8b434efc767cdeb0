"""Calibration: how sure should an answer be? Fitted on questions about validation scans, saved with the weights.

Enters a trained model and examples with reference masks; leaves the model's calibration: for each fact a curve from
the stated to the calibrated confidence (vlm.heads.reading.Calibration). Two methods: temperature scaling (Guo et al.,
ICML 2017), the one divisor of the confidence's log-odds that makes the answers' outcomes likeliest; and isotonic
regression (Zadrozny and Elkan, KDD 2002), the rising curve nearest to the outcomes, which needs more questions. What
is calibrated is the reading (fact and instances): the masks are right here, their own probability stays a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression, minimize_scalar
from scipy.special import log_expit, logit

from seg_backbone.errors import ConfigError
from vlm.data.wordings import Wordings
from vlm.facts import FACTS
from vlm.heads import decode
from vlm.heads.reading import ALL_FACTS, CLIP, Calibration
from vlm.model import VisionLanguageModel
from vlm.schema import Question
from vlm.train.examples import Example, questions_about

METHODS = ("temperature", "isotonic")
FEWEST = 15  # facts with fewer answers share the curve of all
QUESTIONS = 32  # about each scan
HOTTEST = 20.0


def calibrate(
    model: VisionLanguageModel,
    examples: Sequence[Example],
    wordings: Wordings,
    method: str = "temperature",
    seed: int = 0,
) -> dict[str, Any]:
    """Fit on held-out wordings about the examples and give `model` the result, in place of what it had.

    Returns {"answers", "nll_before", "nll_after"}: how many answers it was fitted on, and their mean negative
    log-likelihood. Without an answer there is no calibration. Raises ConfigError for an unknown method.
    """
    if method not in METHODS:
        raise ConfigError("calibration", f"one of {', '.join(METHODS)}, or null", repr(method), "choose one")
    model.calibration = Calibration()
    facts, confidence, right = outcomes(model, examples, wordings, seed)
    if not facts:
        return {"answers": 0}
    model.calibration = fit(facts, confidence, right, method)
    after = [model.calibration(fact, value) for fact, value in zip(facts, confidence, strict=True)]
    return {
        "answers": len(facts),
        "nll_before": round(_likelihood(confidence, right), 4),
        "nll_after": round(_likelihood(np.array(after), right), 4),
    }


@torch.inference_mode()
def outcomes(
    model: VisionLanguageModel, examples: Sequence[Example], wordings: Wordings, seed: int
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The fact that was read, the stated confidence and whether the answer was right, of every answer that was given.

    Right: the fact asked for, read off exactly the instances asked about, and the option or count of the reference
    where there is one. Abstentions, questions without a reference and facts of the scan itself are left out, but for
    the labels and counts of a table.
    """
    model.eval()
    random, rows = Random(f"{seed}/calibration"), []
    for example in examples:
        opened = model.open(example.scene)
        for question in questions_about(example, wordings, random, QUESTIONS, "heldout"):
            if question.answer is None:
                continue
            reading, _ = model.interpret(example.scene, opened, question)
            parts = decode(reading)
            of_table = reading.fact.startswith(("label:", "count:"))
            if not parts.get("abstained") and (FACTS[reading.fact].takes != "scan" or of_table):
                rows.append((reading.fact, parts["confidence"], is_right(question, reading.fact, parts)))
    facts, confidence, right = zip(*rows, strict=True) if rows else ((), (), ())
    return list(facts), np.array(confidence, dtype=float), np.array(right, dtype=bool)


def is_right(question: Question, fact: str, parts: dict[str, Any]) -> bool:
    """Whether the parts of an answer say what the reference of a generated question says."""
    if fact != question.extra["fact"]:
        return False
    if parts.get("choice", question.answer) != question.answer:
        return False
    if question.type == "counting" and parts["value"] != question.answer:
        return False
    return {item["instance"] for item in parts.get("evidence", ())} == set(question.extra["instances"])


def fit(facts: Sequence[str], confidence: np.ndarray, right: np.ndarray, method: str) -> Calibration:
    """The curve of every fact with at least FEWEST answers, and that of all answers together.

    facts, confidence (N,) in [0, 1] and right (N,) bool belong together, N > 0.
    """
    fit_one = temperature if method == "temperature" else isotonic
    curves: dict[str, Any] = {ALL_FACTS: fit_one(confidence, right)}
    for fact in sorted(set(facts)):
        chosen = np.array([one == fact for one in facts])
        if chosen.sum() >= FEWEST:
            curves[fact] = fit_one(confidence[chosen], right[chosen])
    return Calibration(curves)


def temperature(confidence: np.ndarray, right: np.ndarray) -> float:
    """The T of the greatest likelihood of p -> expit(logit(p) / T), within [1 / HOTTEST, HOTTEST]."""
    odds = logit(np.clip(confidence, CLIP, 1 - CLIP))
    signed, bound = np.where(right, odds, -odds), np.log(HOTTEST)
    best = minimize_scalar(lambda log_t: -log_expit(signed / np.exp(log_t)).mean(), bounds=(-bound, bound))
    return float(np.exp(best.x))


def isotonic(confidence: np.ndarray, right: np.ndarray) -> tuple[list[float], list[float]]:
    """The non-decreasing least-squares curve, at the confidences seen; flat beyond them."""
    knots, place = np.unique(confidence, return_inverse=True)
    weights = np.bincount(place)
    shares = np.bincount(place, weights=right) / weights
    return knots.tolist(), isotonic_regression(shares, weights=weights).x.tolist()


def _likelihood(confidence: np.ndarray, right: np.ndarray) -> float:
    stated = np.clip(confidence, CLIP, 1 - CLIP)
    return float(-np.log(np.where(right, stated, 1 - stated)).mean())
