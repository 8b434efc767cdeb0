"""Answer files of other systems: the same answers in every form that they come in."""

import json

import pytest

from eval.answer_file import read_answer_file
from seg_backbone.errors import QuestionError

TEXTS = {"1": 'Yes, "surely".', "2": "84 mm,\nlong", "3": "ünklar"}


def texts(path, **options):
    return {str(answer["id"]): answer.get("text") for _, answer in read_answer_file(path, **options)}


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.csv", "id,text"),
        ("a.csv", "UID,Prediction"),
        ("a.tsv", "question_id\tModel Output"),
        ("a.csv", "qid,response"),
    ],
)
def test_tables(tmp_path, name, header):
    import csv

    path = tmp_path / name
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        separator = "\t" if name.endswith("tsv") else ","
        file.write(header + "\n")
        csv.writer(file, delimiter=separator).writerows(TEXTS.items())
    assert texts(path) == TEXTS
    places = [place for place, _ in read_answer_file(path)]
    assert places == ["line 2", "line 3", "line 5"]  # a row may take two lines


@pytest.mark.parametrize(
    "content",
    [
        TEXTS,
        [{"uid": key, "prediction": text} for key, text in TEXTS.items()],
        {"predictions": [{"id": key, "text": text} for key, text in TEXTS.items()]},
        {key: {"text": text} for key, text in TEXTS.items()},
    ],
)
def test_json(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    assert texts(path) == TEXTS


def test_json_lines_with_other_names(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"uid": 1, "unscored": "broken"}, {"uid": 1, "response": "yes", "answer": "the reference"}]
    path.write_text("\n".join(map(json.dumps, records)))
    assert [answer.get("text") for _, answer in read_answer_file(path)] == [None, "yes"]


def test_only_the_lines_wanted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"id": "é1", "text": "x"}\n{"id": 1, "text": "x"}\n{"id":12,"text":"x"}\n{"id": "1", "text": "y"}\n'
    )
    assert [answer["text"] for _, answer in read_answer_file(path, holding={"1"})] == ["x", "y"]
    assert [answer["id"] for _, answer in read_answer_file(path, holding={"é1", "12"})] == ["é1", 12]


def test_columns_may_be_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,nr,text,said\nx,1,no,yes\n")
    assert texts(path, id_column="nr", text_column="said") == {"1": "yes"}
    with pytest.raises(QuestionError, match="column 'spoken'.*columns id, nr, text, said"):
        texts(path, text_column="spoken")


def test_structured_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,value,unit,boxes,abstained,confidence\na,8.4,cm,,false,0.5\nb,,,"[[1,2,3,4,5,6]]",1,nan\n')
    (_, first), (_, second) = read_answer_file(path)
    assert (first["value"], first["unit"], first["abstained"], first["confidence"]) == (8.4, "cm", False, 0.5)
    assert second["boxes"] == [[1, 2, 3, 4, 5, 6]] and second["abstained"] and second["value"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "number,words\n1,yes\n", "column for the id.*columns number, words"),
        ("a.csv", "id,words\n1,yes\n", "column for the text.*columns id, words"),
        ("a.csv", "id,text\n1,yes, surely\n", "line 2.*3 cells for 2 columns"),
        ("a.csv", 'id,text\n1,"yes\n', "line 2|line 3"),
        ("a.csv", "id,id\n1,2\n", "names that differ"),
        ("a.csv", "id,text\n,yes\n", "line 2.*an id"),
        ("a.csv", b"id,text\n1,\xff\n", "UTF-8"),
        ("a.json", "{", "broken JSON"),
        ("a.json", "3", "list of answers"),
        ("a.json", "[3]", "record 1"),
        ("a.jsonl", '{"id": "1"}\n{"text": "no"}', "line 2.*column for the id"),
        ("a.jsonl", '{"id": true}', "line 1.*an id"),
        ("a.txt", "yes", "'.txt'"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(QuestionError, match=message):
        list(read_answer_file(path))
    with pytest.raises(QuestionError, match="no such file"):
        list(read_answer_file(tmp_path / "nothing.csv"))
