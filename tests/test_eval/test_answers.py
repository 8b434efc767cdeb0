"""Answer files scored against values worked out by hand or by scikit-learn."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from eval.answers import evaluate_answers
from eval.baseline import BASELINE, majority_baseline
from eval.references import read_references
from seg_backbone.errors import ConfigError, QuestionError

ROOT = Path(__file__).parents[2]
CUBE = {"min_mm": [0, 0, 0], "max_mm": [2, 2, 2]}
SHIFTED = {"min_mm": [1, 0, 0], "max_mm": [3, 2, 2]}  # IoU 1/3 with CUBE


@pytest.fixture
def lines(tmp_path):
    """lines(name, records) writes a JSON-lines file and returns its path."""

    def write(name, records):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


@pytest.fixture
def scored(lines):
    """scored(questions, answers) -> the metrics; a question may leave out id and image."""

    def run(questions, answers, **options):
        questions = [{"id": f"q{i}", "image": f"s{i}.nii.gz", "question": "?", **q} for i, q in enumerate(questions)]
        answers = [{"id": f"q{i}", **a} for i, a in enumerate(answers) if a is not None]
        options = {"resamples": 50, **options}
        return evaluate_answers(lines("answers.jsonl", answers), lines("questions.jsonl", questions), **options)

    return run


def values(results, kind):
    return {name: figure["value"] for name, figure in results.metrics()["types"][kind]["metrics"].items()}


def test_classification_agrees_with_scikit_learn(scored):
    rng = np.random.default_rng(0)
    truth, guess = rng.choice(["liver", "spleen", "pancreas"], (2, 60))
    options = ["liver", "spleen", "pancreas"]
    questions = [{"type": "classification", "options": options, "answer": str(one)} for one in truth]
    figures = values(scored(questions, [{"choice": str(one)} for one in guess]), "classification")
    assert figures["accuracy"] == pytest.approx(np.mean(truth == guess))
    assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, guess))
    assert figures["macro_f1"] == pytest.approx(f1_score(truth, guess, average="macro"))


def test_states_are_counted_apart_from_wrong(scored):
    """Right, wrong, abstained, unreadable, unscored, missing: 1 of 4 judged, 1 of 2 answered, 1 of all 6."""
    questions = [{"type": "classification", "options": ["yes", "no"], "answer": "yes"}] * 6
    answers = [
        {"choice": "yes"},
        {"choice": "no"},
        {"choice": "yes", "abstained": True, "reason": "outside the scan"},
        {"text": "mumble"},
        {"unscored": "file is broken"},
        None,
    ]
    results = scored(questions, answers)
    own = results.metrics()["types"]["classification"]
    assert own["counts"] == {"n": 6, "answered": 2, "abstained": 1, "unreadable": 1, "unscored": 1, "missing": 1}
    assert own["headline"] == {"figure": "accuracy", "judged": 0.25, "answered": 0.5, "all": pytest.approx(1 / 6)}
    rows = list(results.rows())
    assert [row["score"] for row in rows[:4]] == [1, 0, 0, 0]
    assert np.isnan([row["score"] for row in rows[4:]]).all()
    assert rows[4]["note"] == "file is broken"


def test_unanswerable_questions_stay_outside_the_figures(scored):
    questions = [{"type": "counting", "answer": 2}, {"type": "counting", "answer": None}]
    metrics = scored(questions, [{"value": 2}, {"abstained": True}]).metrics()
    assert metrics["types"]["counting"]["counts"]["n"] == 1
    assert (metrics["unanswerable"]["n"], metrics["unanswerable"]["abstained"]) == (1, 1)


def test_multilabel(scored):
    options = ["liver", "spleen", "pancreas"]
    questions = [
        {"type": "multilabel", "options": options, "answer": answer}
        for answer in (["liver", "spleen"], ["liver"], [], ["pancreas"])
    ]
    answers = [{"choices": ["liver"]}, {"text": "Liver."}, {"choices": []}, {"abstained": True}]
    assert values(scored(questions, answers), "multilabel") == {
        "f1": pytest.approx((2 / 3 + 1 + 1 + 0) / 4),
        "exact_match": 0.5,
        "micro_f1": pytest.approx(2 * 2 / (4 + 2)),  # 4 labels, 2 claimed, both right
        "macro_f1": pytest.approx((1 + 0 + 0) / 3),  # liver, spleen, pancreas
    }


def test_counting(scored):
    questions = [{"type": "counting", "answer": n} for n in (3, 1, 0)]
    answers = [{"value": 3}, {"value": 5}, {"text": "No lesions."}]
    assert values(scored(questions, answers), "counting") == {
        "exact": pytest.approx(2 / 3),
        "off_by_one": pytest.approx(2 / 3),
        "mae": pytest.approx(4 / 3),
    }


def test_measurement_converts_units(scored):
    questions = [{"type": "measurement", "unit": "mm", "answer": answer} for answer in (84.2, 50, 20, 10, 0)]
    answers = [
        {"value": 8.47, "unit": "cm"},  # 0.5 mm off
        {"value": 59, "unit": "mm"},  # 18 %
        {"text": "It is 3 cm."},  # 50 %
        {"value": 12, "unit": "ml"},  # not a length
        {"value": 0},
    ]
    results = scored(questions, answers)
    figures = values(results, "measurement")
    assert results.metrics()["types"]["measurement"]["counts"]["unreadable"] == 1
    assert figures["within_10pct"] == pytest.approx(2 / 5)
    assert figures["within_20pct"] == pytest.approx(3 / 5)
    assert figures["within_1mm"] == pytest.approx(2 / 5)
    assert figures["mae"] == pytest.approx((0.5 + 9 + 10 + 0) / 4)
    assert figures["median_ae"] == pytest.approx((0.5 + 9) / 2)
    assert figures["median_relative_error"] == pytest.approx(9 / 50)


def test_errors_in_several_units_are_never_averaged_together(scored):
    questions = [{"type": "measurement", "unit": unit, "answer": 10} for unit in ("cm", "ml")]
    own = scored(questions, [{"value": 10.05}, {"value": 12}]).metrics()["types"]["measurement"]
    assert "mae" not in own["metrics"]
    assert own["metrics"]["within_1mm"]["value"] == 1.0  # of the one length
    assert own["by_unit"]["ml"]["figures"]["mae"] == pytest.approx(2)


def test_detection(scored):
    """A third of overlap passes at 0.3 and not at 0.5; a healthy scan without boxes is right but adds no box."""
    questions = [{"type": "detection", "answer": answer} for answer in ([CUBE], [CUBE], [], [CUBE, SHIFTED])]
    answers = [{"boxes": [CUBE]}, {"boxes": [{**SHIFTED, "label": "tumour"}]}, {"boxes": []}, {"text": "none"}]
    figures = values(scored(questions, answers), "detection")
    assert figures["f1_iou50"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 3))
    assert figures["f1_iou30"] == pytest.approx(2 * 2 / (2 * 2 + 0 + 2))
    assert figures["f1_iou50_per_question"] == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_open(scored):
    questions = [{"type": "open", "answer": "The left lung."}, {"type": "open", "answer": "soft tissue mass"}]
    figures = values(scored(questions, [{"text": "left lung"}, {"text": "a mass"}]), "open")
    assert figures["token_f1"] == pytest.approx((1 + 2 / 4) / 2)
    assert (figures["exact_match"], figures["normalised_match"]) == (0, 0.5)


def test_type_follows_from_the_answer(lines):
    kinds = {
        "classification": {"options": ["a", "b"], "answer": "a"},
        "multilabel": {"options": ["a", "b"], "answer": ["a"]},
        "detection": {"answer": [CUBE]},
        "measurement": {"answer": 3, "unit": "mm"},
        "counting": {"answer": 3},
        "regression": {"answer": 3.5},
        "open": {"answer": "word"},
    }
    path = lines("q.jsonl", [{"id": kind, "image": "s", **question} for kind, question in kinds.items()])
    assert {reference.id: reference.type for reference in read_references(path)} == {kind: kind for kind in kinds}


def test_bootstrap_draws_patients_and_repeats_itself(scored):
    """Two patients, one all right and one all wrong: only 0, 0.5 and 1 can be drawn, however many questions each
    has."""
    questions = [{"type": "counting", "answer": 1, "patient": f"p{i % 2}"} for i in range(40)]
    answers = [{"value": 1 + i % 2} for i in range(40)]
    first, second = (scored(questions, answers, resamples=200, seed=3).metrics() for _ in range(2))
    assert first == second
    assert first["types"]["counting"]["metrics"]["exact"] == {"value": 0.5, "interval": (0.0, 1.0)}
    one = [{**question, "patient": "p"} for question in questions]
    assert scored(one, answers).metrics()["types"]["counting"]["metrics"]["exact"]["interval"] is None


def test_groups(scored):
    questions = [{"type": "counting", "answer": 1, "property": name} for name in ("a", "a", "b")]
    results = scored(questions, [{"value": 1}, {"value": 2}, {"value": 1}])
    groups = results.metrics()["types"]["counting"]["by"]["property"]
    assert {name: group["headline"]["judged"] for name, group in groups.items()} == {"a": 0.5, "b": 1.0}


TRAINING = [
    {"id": "t1", "type": "classification", "options": ["yes", "no"], "answer": "no"},
    {"id": "t2", "type": "classification", "options": ["yes", "no"], "answer": "no"},
    {"id": "t3", "type": "classification", "options": ["yes", "no"], "answer": "yes"},
    {"id": "t4", "type": "measurement", "unit": "cm", "property": "long_axis", "answer": 2},
    {"id": "t5", "type": "measurement", "unit": "mm", "property": "long_axis", "answer": 40},
    {"id": "t6", "type": "measurement", "unit": "mm", "property": "long_axis", "answer": 90},
    {"id": "t7", "type": "detection", "answer": [CUBE, SHIFTED]},
    {"id": "t8", "type": "multilabel", "answer": ["a", "b"]},
    {"id": "t9", "type": "multilabel", "answer": ["a"]},
    {"id": "t10", "type": "multilabel", "answer": []},
]


def test_majority_baseline(lines):
    training = read_references(lines("train.jsonl", TRAINING))
    questions = [
        {"id": "a", "type": "classification", "options": ["yes", "no"], "answer": "yes"},
        {"id": "b", "type": "measurement", "unit": "mm", "property": "long_axis", "answer": 41},
        {"id": "c", "type": "detection", "answer": [CUBE]},
        {"id": "d", "type": "multilabel", "answer": ["a"]},
        {"id": "e", "type": "counting", "answer": 2},
        {"id": "f", "type": "measurement", "unit": "ml", "answer": 3},
    ]
    references = read_references(lines("q.jsonl", questions))
    answers = {line["id"]: line for line in majority_baseline(references, training)}
    assert answers["a"]["choice"] == "no"
    assert (answers["b"]["value"], answers["b"]["unit"]) == (40, "mm")
    assert answers["c"]["boxes"] == [{"min_mm": [0.5, 0, 0], "max_mm": [2.5, 2, 2], "label": None}]
    assert answers["d"]["choices"] == ["a"]
    assert answers["e"]["abstained"]
    assert answers["f"]["abstained"]  # no volume was seen
    assert list(majority_baseline(references))[1]["value"] == 41


def test_columns_for_other_systems(scored, lines):
    train = lines("train.jsonl", TRAINING)
    other = lines("other.jsonl", [{"id": "q0", "choice": "no"}])
    question = {"type": "classification", "options": ["yes", "no"], "answer": "yes"}
    results = scored([question], [{"choice": "yes"}], compare={"text-only": other}, baseline_train=train)
    assert list(results.compared) == ["text-only", BASELINE]
    figures, outcomes, *_ = results.tables()
    assert figures.columns == ["type", "figure", "n", "model", "text-only", BASELINE]
    assert figures.rows[0] == ["classification", "accuracy", "1", "1.000", "0.000", "0.000"]
    assert len(outcomes.rows) == 3
    with pytest.raises(ConfigError):
        scored([question], [{"choice": "yes"}], compare={"model": other})


QUESTION = {"id": "q", "type": "counting", "answer": 1}


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([QUESTION], [{"id": "q", "value": 1}, {"id": "q", "value": 2}], "'q' in line 2 .first in line 1"),
        ([QUESTION, QUESTION], [{"id": "q"}], "questions.jsonl, line 2"),
        ([QUESTION], [{"value": 1}], "answers.jsonl, line 1"),
        ([QUESTION], [{"id": "other"}], "no common id"),
        ([QUESTION], [["q"]], "answers.jsonl, line 1"),
        ([{"id": "q", "question": "?"}], [{"id": "q"}], "questions with a reference"),
        ([{**QUESTION, "answer": "many"}], [{"id": "q"}], "questions.jsonl, line 1"),
        ([{**QUESTION, "type": "riddle"}], [{"id": "q"}], "riddle"),
        ([{**QUESTION, "type": "detection", "answer": [{"min_mm": [0]}]}], [{"id": "q"}], "line 1"),
        (
            [{**QUESTION, "type": "classification", "options": ["a"], "answer": "z"}],
            [{"id": "q"}],
            "none of the options",
        ),
    ],
)
def test_bad_lines_are_named(lines, questions, answers, message):
    with pytest.raises(QuestionError, match=message):
        evaluate_answers(lines("answers.jsonl", answers), lines("questions.jsonl", questions))


def test_broken_json_and_missing_file(lines, tmp_path):
    questions = lines("questions.jsonl", [QUESTION])
    broken = tmp_path / "answers.jsonl"
    broken.write_text('{"id": "q", "value": 1}\n\n{"id": ')
    with pytest.raises(QuestionError, match="line 3"):
        evaluate_answers(broken, questions)
    with pytest.raises(QuestionError, match="no such file"):
        evaluate_answers(tmp_path / "nothing.jsonl", questions)


def test_a_resumed_run_replaces_its_unscored_lines(scored):
    results = scored([QUESTION], [{"unscored": "out of memory", "id": "q"}, {"id": "q", "value": 1}])
    assert values(results, "counting")["exact"] == 1.0


def test_calibration_by_hand(scored):
    """Confidences 0.95, 0.92 (one right, one wrong), 0.3 (wrong), 0.35 (right): two bins of two answers each."""
    questions = [{"type": "counting", "answer": 1}] * 6 + [{"type": "measurement", "unit": "mm", "answer": 10}]
    answers = [{"value": v, "confidence": c} for v, c in ((1, 0.95), (2, 0.92), (5, 0.31), (1, 0.35))]
    answers += [{"value": 1}, {"abstained": True, "confidence": 0.99}, {"value": 10, "confidence": 1.0}]
    results = scored(questions, answers)
    own = results.metrics()["types"]["counting"]["calibration"]
    assert own["n"] == 4 and own["ece"] == pytest.approx(0.5 * abs(0.5 - 0.935) + 0.5 * abs(0.5 - 0.33))
    assert [(one["low"], one["high"], one["n"], one["score"]) for one in own["bins"]] == [
        (0.3, 0.4, 2, 0.5),
        (0.9, 1.0, 2, 0.5),
    ]
    everything = results.metrics()["calibration"]
    assert everything["n"] == 5 and everything["bins"][-1]["n"] == 3
    assert results.tables()[2].rows[0][:3] == ["model", "all", "5"]
    silent = scored(questions[:1], [{"value": 1, "confidence": "high"}])
    assert silent.metrics()["calibration"] == {}
    assert silent.metrics()["faults"]["broken"] == {"confidence is not a number": {"n": 1, "first": ["q0 (line 1)"]}}


def test_a_confidence_that_is_the_share_of_right_answers_has_no_calibration_error(scored):
    questions = [{"type": "classification", "options": ["yes", "no"], "answer": "yes"}] * 10
    answers = [{"choice": "yes" if n < 8 else "no", "confidence": 0.8} for n in range(10)]
    calibration = scored(questions, answers).metrics()["calibration"]
    assert calibration["ece"] == pytest.approx(0, abs=1e-12) and calibration["bins"][0]["low"] == 0.7


def test_faults_are_named_with_their_lines(scored):
    """NaN, boxes without corners, another dimension, a missing and an unknown id: told, and none of them is wrong."""
    questions = [{"type": "measurement", "unit": "mm", "answer": 5}] * 3 + [{"type": "detection", "answer": [CUBE]}] * 2
    answers = [{"value": float("nan")}, {"value": 5, "unit": "ml"}, {"value": 5, "confidence": 2}, {"boxes": [[1]]}]
    results = scored(questions, [*answers, {"id": "q99", "value": 1}])
    assert results.metrics()["faults"] == {
        "unknown_ids": ["q99 (line 5)"],
        "missing_ids": ["q4"],
        "broken": {
            "value is NaN": {"n": 1, "first": ["q0 (line 1)"]},
            "unit is ml, the question's mm": {"n": 1, "first": ["q1 (line 2)"]},
            "confidence is outside 0..1": {"n": 1, "first": ["q2 (line 3)"]},
            "boxes: not a box of finite numbers": {"n": 1, "first": ["q3 (line 4)"]},
        },
    }
    counts = results.metrics()["types"]["measurement"]["counts"]
    assert (counts["answered"], counts["unreadable"]) == (1, 2)
    faults = results.tables()[-1]
    assert faults.title == "Faults" and len(faults.rows) == 6


def test_strata(scored):
    questions = [
        {"type": "counting", "answer": 1, "region": region, "site": site}
        for region, site in (("chest", 1), ("chest", 2), ("neck", 1))
    ]
    results = scored(questions, [{"value": 1}, {"value": 2}, {"value": 1}], by=["site"])
    own = results.metrics()["types"]["counting"]["by"]
    assert {value: part["figures"]["exact"] for value, part in own["region"].items()} == {"chest": 0.5, "neck": 1.0}
    assert own["site"]["1"]["n"] == 2 and "modality" not in own
    assert own["region"]["chest"]["intervals"]["exact"] == (0.0, 1.0)
    titles = [table.title for table in results.tables()]
    assert "By region" in titles and "By site" in titles and "By source" not in titles
    assert next(results.rows())["region"] == "chest"
    with pytest.raises(ConfigError, match="--by"):
        scored(questions, [{"value": 1}], by=["hospital"])


def test_questions_about_synthetic_tumours_are_told_apart(scored):
    questions = [{"type": "counting", "answer": 1, "synthetic": True}, {"type": "counting", "answer": 1}]
    results = scored(questions, [{"value": 1}, {"value": 2}])
    by = results.metrics()["types"]["counting"]["by"]["synthetic"]
    assert {value: part["figures"]["exact"] for value, part in by.items()} == {"yes": 1.0, "": 0.0}
    tables = {table.title: table for table in results.tables()}
    assert [row[0] for row in tables["By synthetic"].rows] == ["yes", "–"]
    assert any(note.startswith("1 questions are about synthetic") for note in tables["Answers"].notes)
    assert "synthetic" not in scored(questions[1:], [{"value": 1}]).metrics()["types"]["counting"]["by"]


def test_a_text_that_declines_is_an_abstention(scored):
    questions = [{"type": kind, "answer": answer} for kind, answer in (("counting", 2), ("open", "mass"))]
    metrics = scored(questions, [{"text": "I cannot determine that."}, {"text": "I'm sorry, I can't help."}]).metrics()
    assert metrics["counts"]["abstained"] == 2


def test_flare_mllm_by_its_own_rules(scored):
    """As its script: boxes in the order written, above and not at the threshold, labels only for instances, questions
    without labels left out, errors of the readable."""
    line, half = {"bbox": [0, 0, 10, 1]}, {"bbox": [0, 0, 5, 1]}  # IoU exactly 0.5
    near, far = {"bbox": [1, 0, 11, 1]}, {"bbox": [3, 0, 13, 1]}  # IoU 9/11 and 7/13 with line
    questions = [
        {"type": "detection", "answer": [line]},
        {"type": "detection", "answer": [{**line, "label": "3"}]},
        {"type": "detection", "property": "instance detection chromosome", "answer": [{**line, "label": "3"}]},
        {"type": "multilabel", "answer": []},
        {"type": "multilabel", "answer": ["a", "b"]},
        {"type": "counting", "answer": 10},
        {"type": "counting", "answer": 10},
    ]
    answers = [
        {"boxes": [half]},
        {"boxes": [{**far, "label": "4"}, {**near, "label": "4"}]},
        {"boxes": [{**line, "label": "4"}]},
        {"choices": ["a"]},
        {"choices": ["a"]},
        {"value": 13},
        {"text": "many"},
    ]
    flare = scored(questions, answers).metrics()["flare_mllm"]
    figures = {task: {name: one["value"] for name, one in part["metrics"].items()} for task, part in flare.items()}
    assert figures == {
        "multi-label": {"f1_score": pytest.approx(2 / 3)},
        "counting": {"mean_absolute_error": 3.0},
        "detection": {"f1_score": pytest.approx(2 * 1 / (3 + 2))},
        "instance_detection": {"f1_score": 0.0, "f1_score_at_03": 0.0},
    }


def test_report_metric_of_a_users_own(scored, tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "def lengths(predicted, reference):\n    return [len(p) / len(r) for p, r in zip(predicted, reference)]\n"
    )
    questions = [{"type": "open", "answer": "abcd"}] * 2
    results = scored(
        questions, [{"text": "ab"}, {"abstained": True}], report_metrics={"green_score": f"{code}:lengths"}
    )
    assert values(results, "open")["green_score"] == 0.25
    assert results.metrics()["flare_mllm"]["report_generation"]["metrics"]["green_score"]["value"] == 0.25
    with pytest.raises(ConfigError, match="--report-metric"):
        scored(questions, [{"text": "ab"}], report_metrics={"green": f"{code}:missing"})
    code.write_text("def lengths(predicted, reference):\n    return [float('nan')]\n")
    with pytest.raises(ConfigError, match="not finite"):
        scored(questions, [{"text": "ab"}], report_metrics={"green": f"{code}:lengths"}).metrics()


def test_abstention_by_hand(scored):
    """Surest first right, wrong, right; one abstains: risks 0, 1/2, 1/3 at coverages of the answers of 1/3, 2/3, 1."""
    questions = [{"type": "counting", "answer": 1}] * 4
    answers = [{"value": 1, "confidence": 0.9}, {"value": 2, "confidence": 0.8}, {"value": 1, "confidence": 0.1}]
    own = scored(questions, [*answers, {"abstained": True}]).metrics()["types"]["counting"]["abstention"]
    assert (own["coverage"], own["risk"]) == (0.75, pytest.approx(1 / 3))
    assert own["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert [(one["coverage"], one["confidence"]) for one in own["curve"]] == [(0.25, 0.9), (0.5, 0.8), (0.75, 0.1)]
    assert [one["risk"] for one in own["curve"]] == pytest.approx([0, 1 / 2, 1 / 3])


def test_every_type_at_once_has_every_figure(tmp_path):
    """The generated answers of the benchmark, texts and fields mixed: nothing unread, every figure with an interval."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from answers import generate
    finally:
        sys.path.pop(0)
    pairs = list(generate(400, 10, None))
    for name, records in (("q", [q for q, _ in pairs]), ("a", [a for _, a in pairs if a is not None])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    metrics = evaluate_answers(tmp_path / "a.jsonl", tmp_path / "q.jsonl", resamples=20).metrics()
    assert metrics["counts"]["unreadable"] == 0 and metrics["faults"]["broken"] == {}
    for kind, own in metrics["types"].items():
        assert all(one["interval"] is not None for one in own["metrics"].values()), kind
        low, high = own["metrics"][own["headline"]["figure"]]["interval"]
        assert low <= own["headline"]["judged"] <= high
    json.dumps(metrics)
