"""Scores of classes of whole scans: parity with scikit-learn, figures by hand, and files that do not fit."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn
from typer.testing import CliRunner

from eval.classification import area_under_roc, average_precision, evaluate_classes, figures
from seg_backbone.errors import LabelError
from vlm.cli import app


def drawn(n, k, seed):
    """Truth, and probabilities with ties that know a little of it."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, k, n)
    scores = random.random((n, k)) + 0.5 * np.eye(k)[truth]
    return truth, np.round(scores / scores.sum(1, keepdims=True), 1 if seed % 2 else 4)


@pytest.mark.parametrize("seed", range(4))
def test_two_classes_as_in_scikit_learn(seed):
    truth, p = drawn(60, 2, seed)
    found = (p[:, 1] >= 0.5).astype(int)
    recall = sklearn.recall_score
    expected = {
        "accuracy": sklearn.accuracy_score(truth, found),
        "balanced_accuracy": sklearn.balanced_accuracy_score(truth, found),
        "macro_f1": sklearn.f1_score(truth, found, average="macro"),
        "auroc": sklearn.roc_auc_score(truth, p[:, 1]),
        "auprc": sklearn.average_precision_score(truth, p[:, 1]),
        "f1": sklearn.f1_score(truth, found),
        "sensitivity": recall(truth, found),
        "specificity": recall(truth, found, pos_label=0),
        "precision": sklearn.precision_score(truth, found),
    }
    assert figures(truth, p, found) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(4))
def test_several_classes_as_in_scikit_learn(seed):
    truth, p = drawn(60, 4, seed)
    found, onehot = p.argmax(1), np.eye(4)[truth]
    expected = {
        "accuracy": sklearn.accuracy_score(truth, found),
        "balanced_accuracy": sklearn.balanced_accuracy_score(truth, found),
        "macro_f1": sklearn.f1_score(truth, found, average="macro"),
        "auroc": sklearn.roc_auc_score(onehot, p, average="weighted"),
        "auprc": sklearn.average_precision_score(onehot, p, average="weighted"),
        "weighted_f1": sklearn.f1_score(truth, found, average="weighted"),
    }
    assert figures(truth, p, found) == pytest.approx(expected)


def test_by_hand():
    positive, score = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.8, 0.1])
    assert area_under_roc(positive, score) == pytest.approx((2 + 1.5) / 4)
    assert average_precision(positive, score) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert np.isnan(area_under_roc(np.ones(2, bool), np.ones(2)))
    assert np.isnan(average_precision(np.zeros(2, bool), np.ones(2)))
    one = figures(np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]))
    assert one["balanced_accuracy"] == one["specificity"] == 0.5
    assert np.isnan(one["auroc"]) and np.isnan(one["sensitivity"])
    absent = figures(np.array([0, 1, 1]), np.eye(3)[[0, 1, 2]], np.array([0, 1, 2]))  # of class 2 there is no case
    assert absent["balanced_accuracy"] == 0.75
    assert absent["auroc"] == pytest.approx((1 * 1 + 2 * 0.75) / 3)


LABELS = {"grade": {"0": "low", "1": "middle", "2": "high"}, "idh": {"0": "wild type", "1": "mutant"}}
RESULTS = 'identifier,probs,task\na,"[0.7, 0.2, 0.1]",grade\na,0.9,idh\nb,"[0.1, 0.2, 0.7]",grade\nb,0.2,idh\n'


def files(folder, reference="identifier,grade,idh\na,0,1\nb,1,\n", results=RESULTS):
    (folder / "dataset.json").write_text(json.dumps({"classification_labels": LABELS}))
    (folder / "cls_data.csv").write_text(reference)
    (folder / "results.csv").write_text(results)
    return folder / "results.csv", folder / "cls_data.csv"


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", "classification", *map(str, arguments)])


def test_the_command_writes_what_it_found(tmp_path):
    results, reference = files(tmp_path)
    done = run(results, "--reference", reference, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "grade, 2 cases" in done.output and "balanced accuracy | 0.500" in done.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    grade = metrics["tasks"]["grade"]
    assert (grade["cases"], grade["accuracy"]["value"]) == (2, 0.5)
    assert grade["confusion"] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert metrics["tasks"]["idh"]["cases"] == 1
    assert metrics["notes"] == ["idh: 1 results of cases whose class is not known are left out."]
    rows = (tmp_path / "out" / "per_case.csv").read_text().splitlines()
    assert rows[:3] == [
        "case,task,class,found,right,probability_of_class",
        "a,grade,low,low,1,0.7",
        "b,grade,middle,high,0,0.2",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"reference": "identifier,grade,idh\na,0,1\n"}, r"results.csv: expected cases of .*cls_data.csv, found b"),
        ({"reference": "identifier,grade,idh\na,0,1\nb,1,\nc,2,0\n"}, "found none for c; .*--allow-missing"),
        ({"reference": "identifier,grade,idh\na,5,1\n"}, r"a class of grade in line 2 .*found '5'"),
        ({"results": "identifier,probs,task\n"}, "none for a, b"),
    ],
)
def test_what_is_refused(tmp_path, change, words):
    results, reference = files(tmp_path, **change)
    with pytest.raises(LabelError, match=words) as caught:
        evaluate_classes(results, reference)
    assert "\n" not in str(caught.value)


def test_cases_without_a_result_may_be_left_out(tmp_path):
    results, reference = files(tmp_path, "identifier,grade,idh\na,0,1\nb,1,\nc,2,0\n")
    scored = evaluate_classes(results, reference, allow_missing=True, resamples=10)
    assert scored.tasks["grade"].cases == ["a", "b"]
    assert "1 cases of the reference have no result and are left out." in scored.notes
    with pytest.raises(LabelError, match="none in common"):
        evaluate_classes(*files(tmp_path, results="identifier,probs,task\n"), allow_missing=True)
    (tmp_path / "plain.json").write_text("{}")
    with pytest.raises(LabelError, match=r"plain.json: expected `classification_labels`, found none"):
        evaluate_classes(results, reference, tmp_path / "plain.json")
