"""Answer files scored against values worked out by hand or by scikit-learn."""

import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from eval.answers import evaluate_answers
from eval.baseline import BASELINE, majority_baseline
from eval.references import read_references
from seg_backbone.errors import ConfigError, QuestionError

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
        {"text": "hard to say"},
        {"unscored": "file is broken"},
        None,
    ]
    results = scored(questions, answers)
    own = results.metrics()["types"]["classification"]
    assert own["counts"] == {"n": 6, "answered": 2, "abstained": 1, "unreadable": 1, "unscored": 1, "missing": 1}
    assert own["headline"] == {"figure": "accuracy", "judged": 0.25, "answered": 0.5, "all": pytest.approx(1 / 6)}
    rows = results.rows()
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
    }


def test_counting(scored):
    questions = [{"type": "counting", "answer": n} for n in (3, 1, 0)]
    answers = [{"value": 3}, {"value": 5}, {"text": "No lesions."}]
    assert values(scored(questions, answers), "counting") == {
        "exact": pytest.approx(2 / 3),
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
    assert figures == {"token_f1": pytest.approx((1 + 2 / 4) / 2), "exact_match": 0.5}


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
    groups = scored(questions, [{"value": 1}, {"value": 2}, {"value": 1}]).metrics()["types"]["counting"]["by_group"]
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
    assert majority_baseline(references)[1]["value"] == 41


def test_columns_for_other_systems(scored, lines):
    train = lines("train.jsonl", TRAINING)
    other = lines("other.jsonl", [{"id": "q0", "choice": "no"}])
    question = {"type": "classification", "options": ["yes", "no"], "answer": "yes"}
    results = scored([question], [{"choice": "yes"}], compare={"text-only": other}, baseline_train=train)
    assert list(results.compared) == ["text-only", BASELINE]
    figures, outcomes = results.tables()
    assert figures.columns == ["type", "figure", "n", "model", "text-only", BASELINE]
    assert figures.rows[0] == ["classification", "accuracy", "1", "1.000", "0.000", "0.000"]
    assert len(outcomes.rows) == 3
    with pytest.raises(ConfigError):
        scored([question], [{"choice": "yes"}], compare={"model": other})


QUESTION = {"id": "q", "type": "counting", "answer": 1}


@pytest.mark.parametrize(
    ("questions", "answers", "message"),
    [
        ([QUESTION], [{"id": "q", "value": 1}, {"id": "q", "value": 2}], "answers.jsonl, line 2"),
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
    assert silent.metrics()["calibration"] == {} and len(silent.tables()) == 2


def test_a_confidence_that_is_the_share_of_right_answers_has_no_calibration_error(scored):
    questions = [{"type": "classification", "options": ["yes", "no"], "answer": "yes"}] * 10
    answers = [{"choice": "yes" if n < 8 else "no", "confidence": 0.8} for n in range(10)]
    calibration = scored(questions, answers).metrics()["calibration"]
    assert calibration["ece"] == pytest.approx(0, abs=1e-12) and calibration["bins"][0]["low"] == 0.7
