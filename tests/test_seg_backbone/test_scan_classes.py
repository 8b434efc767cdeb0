"""The files of scan classes: what is read, what is written, what is refused in one line that names file and line."""

import json

import pytest

from seg_backbone.errors import LabelError
from seg_backbone.scan_classes import read_results, read_scan_classes, read_tasks, write_results

TASKS = {"grade": ("low", "middle", "high"), "idh": ("wild type", "mutant")}
GRADE = {"grade": TASKS["grade"]}


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_tasks_are_in_the_order_of_their_numbers(tmp_path):
    labels = {"grade": {"1": "middle", "0": "low", "2": "high"}, "idh": {"0": "wild type", "1": "mutant"}}
    path = written(tmp_path / "dataset.json", json.dumps({"labels": {}, "classification_labels": labels}))
    assert read_tasks(path) == TASKS
    assert read_tasks(written(path, json.dumps({"labels": {}}))) == {}


@pytest.mark.parametrize(
    "labels",
    [{"grade": {"0": "low"}}, {"grade": {"1": "low", "2": "high"}}, {"grade": {"0": "a", "1": "a"}}, ["grade"]],
)
def test_tasks_that_are_none(tmp_path, labels):
    path = written(tmp_path / "dataset.json", json.dumps({"classification_labels": labels}))
    with pytest.raises(LabelError, match=r"dataset.json: expected `classification_labels` as task -> number"):
        read_tasks(path)


@pytest.mark.parametrize(
    ("text", "tasks", "known"),
    [
        ("identifier,label\na,0\nb,2\n", GRADE, {"a": {"grade": 0}, "b": {"grade": 2}}),
        ("\ufeffidentifier, label\r\na, High\r\nb,\r\n", GRADE, {"a": {"grade": 2}, "b": {}}),
        ("age,grade,identifier\n40,1.0,a\n41,nan,b\n42,-1,c\n", GRADE, {"a": {"grade": 1}, "b": {}, "c": {}}),
        ("identifier,idh,grade\na,Mutant,\nb,,0\n", TASKS, {"a": {"idh": 1}, "b": {"grade": 0}}),
        (
            'identifier,label\na,"[1, 0]"\nb,"[-1, 1]"\nc,\n',
            TASKS,
            {"a": {"grade": 1, "idh": 0}, "b": {"idh": 1}, "c": {}},
        ),
    ],
)
def test_classes_by_number_name_column_or_list(tmp_path, text, tasks, known):
    assert read_scan_classes(written(tmp_path / "cls_data.csv", text), tasks) == known


@pytest.mark.parametrize(
    ("text", "tasks", "words"),
    [
        ("case,label\na,0\n", GRADE, "expected a column `identifier`, found the columns case, label"),
        ("", GRADE, "a column `identifier`, found an empty file"),
        ("identifier,age\na,40\n", GRADE, "a column for each task of dataset.json .grade., or `label`, found no grade"),
        ("identifier,label\na,0\nb,3\n", GRADE, "a class of grade in line 3 .0 low, 1 middle, 2 high., found '3'"),
        ("identifier,label\na,huge\n", GRADE, "line 2 .*found 'huge'"),
        ("identifier,label\na,0.5\n", GRADE, "found '0.5'"),
        ("identifier,label\na,inf\n", GRADE, "found 'inf'"),
        ("identifier,label\na,0\na,1\n", GRADE, "found a again"),
        ("identifier,label\n,0\n", GRADE, "`identifier` in line 2, found none"),
        ("identifier,label\na,1\n", TASKS, "a class for each of grade, idh in line 2, found '1'"),
    ],
)
def test_classes_that_do_not_fit(tmp_path, text, tasks, words):
    with pytest.raises(LabelError, match=words) as caught:
        read_scan_classes(written(tmp_path / "cls_data.csv", text), tasks)
    assert str(caught.value).startswith(str(tmp_path / "cls_data.csv"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_one_that_is_no_text(tmp_path):
    with pytest.raises(LabelError, match="no such file"):
        read_scan_classes(tmp_path / "cls_data.csv", GRADE)
    (tmp_path / "cls_data.csv").write_bytes(b"identifier,label\n\xff\xfe,1\n")
    with pytest.raises(LabelError, match="save it as UTF-8 csv"):
        read_scan_classes(tmp_path / "cls_data.csv", GRADE)


def test_results_of_one_task_are_flares(tmp_path):
    path = tmp_path / "results.csv"
    write_results(
        path, {"a": {"idh": {"wild type": 0.25, "mutant": 0.75}}, "b": {"idh": {"wild type": 1, "mutant": 0}}}
    )
    assert path.read_text() == "identifier,probs\na,0.75\nb,0\n"
    assert read_results(path, {"idh": TASKS["idh"]}) == {"a": {"idh": [0.25, 0.75]}, "b": {"idh": [1, 0]}}
    write_results(path, {"a": {"grade": {"low": 0.2, "middle": 0.5, "high": 0.3}}})
    assert path.read_text() == 'identifier,probs\na,"[0.2, 0.5, 0.3]"\n'
    assert read_results(path, GRADE) == {"a": {"grade": [0.2, 0.5, 0.3]}}


def test_results_of_several_tasks_have_a_line_each(tmp_path):
    found = {"a": {"grade": {"low": 0.2, "middle": 0.5, "high": 0.3}, "idh": {"wild type": 0.25, "mutant": 0.75}}}
    path = write_results(tmp_path / "results.csv", found)
    assert path.read_text() == 'identifier,probs,task\na,"[0.2, 0.5, 0.3]",grade\na,0.75,idh\n'
    assert read_results(path, TASKS) == {"a": {"grade": [0.2, 0.5, 0.3], "idh": [0.25, 0.75]}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("identifier,probs\na,0.5\n", "3 probabilities with the sum 1 in line 2"),
        ('identifier,probs\na,"[0.5, 0.4, 0.3]"\n', "sum 1"),
        ('identifier,probs\na,"[1.5, -0.5, 0]"\n', "sum 1"),
        ("identifier,probs\na,much\n", "found 'much'"),
        ("identifier,probs,task\na,0.5,age\n", "a column `task` with one of grade, found 'age' in line 2"),
        ('identifier,probs\na,"[1, 0, 0]"\na,"[1, 0, 0]"\n', "'a' again in line 3"),
    ],
)
def test_results_that_do_not_fit(tmp_path, text, words):
    with pytest.raises(LabelError, match=words):
        read_results(written(tmp_path / "results.csv", text), GRADE)
