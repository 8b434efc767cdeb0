"""Targets of whole scans from a table: numbers with an interval, and fixed sets of labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from phantoms import tiny_llm, tiny_models
from torch import nn

from seg_backbone.cases import CaseFiles, list_cases
from seg_backbone.errors import ConfigError
from vlm.data.targets import Targets, Told, read_targets
from vlm.facts import FACTS, NAMES, facts_of, target_name
from vlm.grounding import Mention
from vlm.heads import decode
from vlm.heads.reading import Reading
from vlm.infer.engine import Engine
from vlm.model import VisionLanguageModel, VlmConfig
from vlm.scene import Scene
from vlm.schema import Answer, Question, read_questions
from vlm.train.examples import Example
from vlm.train.losses import pack_losses

AGE, PHASE, POLYPS = "value:age:years", "label:phase", "count:polyps"
TABLE = "case,age,phase,polyps\ncase_0,61,venous,2\ncase_1,72.5,arterial,0.0\ncase_2,,venous,\n"
ASKED = {
    "age": {"unit": "years", "train": ["How old is the patient?"], "heldout": ["What is the age of the patient?"]},
    "phase": {"train": ["In which phase was this taken?", "Phase?"], "heldout": ["Which contrast phase is it?"]},
    "polyps": {"count": "polyp", "train": ["How many polyps are there?"], "heldout": ["Count the polyps."]},
}


def written(folder: Path, rows: str = TABLE, **told: object) -> Path:
    (folder / "clinical.csv").write_text(rows)
    (folder / "targets.yaml").write_text(json.dumps({"table": "clinical.csv", "targets": ASKED} | told))
    return folder / "targets.yaml"


def test_a_column_of_numbers_is_a_value_another_one_labels(phantoms_on_disk: Path) -> None:
    targets = read_targets(written(phantoms_on_disk))
    assert list(targets.targets) == [AGE, PHASE, POLYPS] and targets.counted == {POLYPS: ("polyp",)}
    assert targets.labels == {PHASE: ("arterial", "venous"), POLYPS: ("0", "1", "2")}
    cases = {case.case: targets.of(case) for case in list_cases(phantoms_on_disk / "data", "Dataset001_Phantom")}
    phase = Told("venous", ("arterial", "venous"))
    assert cases["case_0"] == {AGE: Told(61.0, ()), PHASE: phase, POLYPS: Told("2", ())}
    assert cases["case_1"][POLYPS] == Told("0", ())
    assert set(cases["case_2"]) == {PHASE}, "an empty cell is unknown"
    assert read_targets(None) == Targets()


def test_facts_say_of_themselves_what_they_are() -> None:
    assert (FACTS[AGE].kind, FACTS[AGE].unit, FACTS[AGE].takes) == ("regression", "years", "scan")
    assert (FACTS[PHASE].kind, FACTS[PHASE].unit) == ("classification", None)
    assert (FACTS[POLYPS].kind, FACTS[POLYPS].takes) == ("counting", "scan")
    assert AGE not in FACTS and "no fact" not in FACTS
    with pytest.raises(KeyError):
        FACTS["no fact"]
    assert AGE in facts_of("regression", "years", (*NAMES, AGE)) and PHASE not in facts_of("regression", None, (PHASE,))
    assert target_name("value:dose_level:Gy") == "Dose level"


@pytest.mark.parametrize(
    ("table", "told", "word"),
    [
        (TABLE, {"table": "none.csv"}, "none.csv"),
        (TABLE, {"targets": {"weight": ASKED["age"]}}, "weight"),
        (TABLE, {"targets": {"age": {"train": ["Age?"]}}}, "heldout"),
        (TABLE, {"targets": {"age": {"train": ["Age?"], "heldout": ["Age?"]}}}, "heldout"),
        (TABLE.replace("case,", "scan,"), {}, "case or patient"),
        (TABLE.replace("phase", "phase 1"), {"targets": {"phase 1": ASKED["phase"]}}, "rename"),
        ("case,age,phase\ncase_0,60,venous\ncase_1,60,arterial\n", {}, "different values"),
        ("", {}, "case or patient"),
        (TABLE.replace("0.0", "0.5"), {}, "whole numbers from 0 to 50 in polyps"),
        (TABLE.replace("0.0", "51"), {}, "whole numbers from 0 to 50 in polyps"),
        (TABLE.replace("0.0", "few"), {}, "whole numbers from 0 to 50 in polyps"),
        (TABLE, {"targets": {"polyps": ASKED["polyps"] | {"count": ["cyst"]}}}, "name what is counted"),
    ],
)
def test_faults_are_named(tmp_path: Path, table: str, told: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        read_targets(written(tmp_path, table, **told))
    assert "\n" not in str(caught.value)


def reading(scene: Scene, fact: str, options: tuple[str, ...] = (), **how: object) -> Reading:
    selection = np.zeros(len(scene.instances))
    return Reading(Question("q", "s", "?", options=options), scene, Mention((), (), False), fact, 0.9, selection, **how)  # type: ignore[arg-type]


def test_heads_say_label_and_value(scene: Scene) -> None:
    shares = {"arterial": 0.2, "venous": 0.5, "delayed": 0.3}
    out = decode(reading(scene, PHASE, label_shares=shares))
    assert out["choice"] == "venous" and out["text"] == "Phase: venous." and out["confidence"] == pytest.approx(0.45)
    limited = decode(reading(scene, PHASE, ("Arterial", "Delayed"), label_shares=shares))
    assert limited["choice"] == "Delayed" and limited["confidence"] == pytest.approx(0.9 * 0.6)
    assert decode(reading(scene, PHASE, ("cat", "dog"), label_shares=shares))["abstained"]
    value = decode(reading(scene, AGE, quantiles=(-3.0, 61.234, 70.0)))
    assert (value["value"], value["unit"], value["interval"]) == (61.23, "years", (-3.0, 70.0))
    assert value["text"] == "Age: about 61.23 years (80 % interval -3 to 70 years)."
    assert decode(reading(scene, AGE))["abstained"], "a checkpoint that did not learn it"


def test_from_table_to_answer(
    phantoms_on_disk: Path, llm_folder: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    folder = phantoms_on_disk
    tiny_models(folder, llm_folder)
    targets, dataset = written(folder), folder / "data" / "Dataset001_Phantom"
    code, _, err = run("data", "questions", dataset, "-o", folder / "q.jsonl", "--targets", targets, "--per-case", 99)
    assert code == 0, err
    asked = [q for q in read_questions(folder / "q.jsonl") if ":" in q.extra["fact"]]
    assert {(q.extra["patient"], q.answer) for q in asked} == {
        ("case_0", 61.0),
        ("case_0", "venous"),
        ("case_0", 2),
        ("case_1", 72.5),
        ("case_1", "arterial"),
        ("case_1", 0),
        ("case_2", "venous"),
    }
    assert all(q.extra["source"] == "table" for q in asked)
    options = {"regression": set(), "counting": set(), "classification": {"arterial", "venous"}}
    assert all(set(q.options) == options[q.type] for q in asked)
    config = {
        "data": str(folder / "data"),
        "split": str(folder / "split.json"),
        "segmentation": str(folder / "segmentation"),
        "llm": str(llm_folder),
        "datasets": [{"name": "Dataset001_Phantom"}],
        "targets": str(targets),
        "alignment": {"output": str(folder / "run"), "pack": 8, "steps": 8, "invented": 0, "warmup": 1},
        "threads": 1,
    }
    (folder / "vlm.yaml").write_text(json.dumps(config))
    code, out, err = run("train", "alignment", "--config", folder / "vlm.yaml")
    assert code == 0, err
    engine = Engine.load(out.strip(), "cpu")
    assert engine.model.config.facts == (*NAMES, AGE, PHASE, POLYPS)
    assert engine.model.config.regression_scale is not None
    assert engine.model.config.regression_scale[AGE] == pytest.approx((66.75, 5.75))
    scan = engine.open(dataset / "imagesTr" / "case_2_0000.nii.gz")
    bias = engine.model.router.layers[-1].bias

    def ask(fact: str, text: str, kind: str | None = None) -> Answer:
        nn.init.zeros_(bias)
        bias.data[engine.model.config.facts.index(fact)] = 99.0
        return engine.ask(scan, text, kind)

    age = ask(AGE, "How old is the patient?", "regression")
    assert age.interval and not age.abstained, age.text
    phase = ask(PHASE, "Which phase is it?", "classification")
    assert phase.choice in ("arterial", "venous") and not phase.abstained, phase.text
    for fact in (POLYPS, "count"):  # whichever count the router reads, the words say which one is meant
        polyps = ask(fact, "How many polyps are there?")
        assert polyps.type == "counting" and polyps.value in (0, 1, 2) and not polyps.abstained
        assert polyps.evidence == () and "not counted on a mask" in polyps.text and 0 < polyps.confidence < 1
        unknown = ask(fact, "How many cysts are there?")
        assert unknown.abstained and unknown.value is None and "cyst" in (unknown.reason or "")
        assert "mask" not in ask(fact, "How many tumours are there?").text


def test_the_label_head_learns(scene: Scene, llm_folder: Path, tmp_path: Path) -> None:
    """Two scans that differ in their visual features have two labels: head and projector learn to tell them apart."""
    known = {PHASE: ("arterial", "venous")}
    config = VlmConfig(llm=str(llm_folder), visual_channels=6, instance_channels=5, facts=(*NAMES, PHASE), labels=known)
    torch.manual_seed(0)
    model = VisionLanguageModel(config, *tiny_llm())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    files = CaseFiles("D", "c", "c", "CT", tmp_path, None, {}, ())
    examples = [
        (Example(replace(scene, visual=scene.visual + shift), files, (), None), label)
        for shift, label in ((0.0, "arterial"), (2.0, "venous"))
    ]
    question = Question("q", "s", "In which phase was this taken?", "classification", known[PHASE])
    for _ in range(15):
        for example, label in examples:
            asked = replace(question, answer=label, extra={"fact": PHASE, "instances": []})
            losses = pack_losses(model, example, [asked], 0.0, Random(0))
            optimizer.zero_grad()
            losses["labels"].backward()
            optimizer.step()
    again = VisionLanguageModel.load(model.save(tmp_path / "vlm"))
    for example, label in examples:
        scores = again.read(example.scene, again.open(example.scene), question.question, (), Mention((), (), False))
        shares = again.label_shares(PHASE, scores)
        assert max(shares, key=lambda name: shares[name]) == label and sum(shares.values()) == pytest.approx(1)
    assert again.label_shares("count", scores) == {}
