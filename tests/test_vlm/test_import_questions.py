"""Public question sets, in their own formats, to the contract's rows: every row below was written for these tests."""

import csv
import json
import sys
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seg_backbone.errors import QuestionError
from vlm.data.import_questions import import_questions
from vlm.data.sources import FORMATS, describe, load_source
from vlm.data.sources.question_source import QuestionSource, choice, lettered, number, unit_in
from vlm.schema import read_questions

M3D = """Image Path,Question Type,Question,Choice A,Choice B,Choice C,Choice D,Answer,Answer Choice
ct/7/axial.npy,3,Which organ is enlarged?,Liver,Spleen,Kidney,Bladder,Spleen,B
ct/8/axial.npy,1,"Which plane, if any, is shown?",Axial,Coronal,Sagittal,Oblique,Axial,A
"""
M3D_YES_NO = """Image Path,Question,Answer,Question Type
ct/7/axial.npy,Is the spleen enlarged?,Yes,4
"""
RAD = """Task,Subtask,VolumeName,Question,Answer,QuestionType,AnswerChoice,Choice A,Choice B,Choice C,Choice D
3,1,test_7_a_1.nii.gz,How wide is the nodule?,2.5 cm,Open,-,-,-,-,-
3,1,test_7_a_1.nii.gz,How wide is the mass?,7-8 mm,Open,-,-,-,-,-
4,2,test_8_b_1.nii.gz,Is there a nodule?,No,Close,B,Yes,No,-,-
"""
TUMOUR_VQA = {
    "version": "x",
    "num_questions": 5,
    "questions": [
        {"qid": "q1", "image_id": "CASE_7", "question": "How many cysts has the left kidney?", "answer": "2",
         "mc_question": "How many? A: 1 B: 2 C: 3 D: 4", "correct_option": "B", "question_subtype": "lesion counting"},
        {"qid": "q2", "image_id": "CASE_7", "question": "What is the volume of the liver in cm^3?", "answer": 1501.5,
         "question_subtype": "organ volume measurement", "shape": "(9, 9, 9)"},
        {"qid": "q3", "image_id": "CASE_7", "question": "Mean HU of the spleen?", "answer": "51",
         "question_subtype": "organ HU measurement"},
        {"qid": "q4", "image_id": "CASE_8", "question": "Is there a cyst?", "answer": "No", "sex": None,
         "mc_question": "Is there a cyst? A: Yes B: No", "correct_option": "B",
         "question_subtype": "kidney cyst existence"},
        {"qid": "q5", "image_id": "CASE_8", "question": "Grade the spleen.", "answer": "Normal (not enlarged)",
         "mc_question": "Grade the spleen. A: Mild B: Severe C: Normal D: Moderate", "correct_option": "C",
         "question_subtype": "splenomegaly grading"},
    ],
}  # fmt: skip
RADFM = """img_root_dir,Figure_path,Question,Answer
figures,7.nii.gz,Which side? A:left B: right,B
figures,8.nii.gz,Where is the mass?,in the left kidney
"""
CT_RATE = [
    {"id": "long_1", "image": "train_12_a_2.nii.gz", "conversations": [
        {"from": "human", "value": "<image>\nWhat is in the lung?<long_answer>"},
        {"from": "gpt", "value": "A nodule."},
        {"from": "human", "value": "Is it large?<short_answer>"},
        {"from": "gpt", "value": "No."}]},
    {"id": "mc_1", "image": "valid_7_a_1.nii.gz", "conversations": [
        {"from": "human", "value": "<image>\nWhich side? (a) left (b) right (c) both<multiple_choice>"},
        {"from": "gpt", "value": "(b) right"}]},
    {"id": "chat_1", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi"}]},
]  # fmt: skip
FLARE = [
    {"TaskType": "Classification", "Modality": "US", "ImageName": ["7.png", "8.png"], "Split": "train",
     "Question": "Is there a nodule? A. no, B. yes", "Answer": "B"},
    {"TaskType": "Multi-label Classification", "Modality": "XR", "ImageName": "imagesTr/7.png", "Split": "train",
     "Question": "Which are there? A. mass B. effusion C. nodule", "Answer": "A; C"},
    {"TaskType": "Cell Counting", "Modality": "MI", "ImageName": "7.png", "Question": "How many?", "Answer": 12},
    {"TaskType": "Regression", "Modality": "XR", "ImageName": "7.png", "Question": "How deep?", "Answer": "3.25"},
    {"TaskType": "Detection", "Modality": "US", "ImageName": "7.png", "Question": "Where?",
     "Answer": [[1, 2, 30, 40]]},
    {"TaskType": "Report Generation", "Modality": "XR", "ImageName": "7.png", "Question": "Report.", "Answer": "Fine."},
    {"TaskType": "Classification", "Modality": "XR", "ImageName": "9.png", "Question": "Sick? A. no B. yes",
     "Answer": None},
]  # fmt: skip


def rows_of(run, folder, format_, path, *options):
    """Import through the command line and read the result back, strictly."""
    out = folder / "out" / "questions.jsonl"
    code, _, stderr = run("data", "import", format_, path, "-o", out, *options)
    assert code == 0, stderr
    list(read_questions(out))
    assert [path.name for path in out.parent.iterdir()] == [out.name], "no scratch stays"
    return [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]


def keep(row, *names):
    return tuple(row.get(name) for name in names)


def test_m3d(run, tmp_path):
    folder = tmp_path / "M3D-VQA"
    folder.mkdir()
    (folder / "M3D_VQA_test.csv").write_text(M3D)
    (folder / "M3D_VQA_yn_test.csv").write_text(M3D_YES_NO)
    first, second, third = rows_of(run, tmp_path, "m3d-vqa", folder)
    assert first == {
        "id": "m3d-vqa:M3D_VQA_test:1",
        "image": "ct/7/axial.npy",
        "question": "Which organ is enlarged?",
        "type": "classification",
        "options": ["Liver", "Spleen", "Kidney", "Bladder"],
        "answer": "Spleen",
        "source": "m3d-vqa",
        "property": "organ",
    }
    assert keep(second, "question", "answer", "property") == ("Which plane, if any, is shown?", "Axial", "plane")
    assert keep(third, "type", "options", "answer", "property") == (
        "classification", ["yes", "no"], "yes", "abnormality"
    )  # fmt: skip


def test_3d_rad(run, tmp_path):
    path = tmp_path / "3DRAD" / "test" / "Task3_Computation" / "Lung [nodule].csv"
    path.parent.mkdir(parents=True)
    path.write_text(RAD)
    rows = rows_of(run, tmp_path, "3d-rad", tmp_path / "3DRAD")
    assert [keep(row, "type", "answer", "unit") for row in rows] == [
        ("measurement", 2.5, "cm"),
        ("open", "7-8 mm", None),
        ("classification", "No", None),
    ]
    assert keep(rows[2], "options", "patient", "property") == (
        ["Yes", "No"], "test_8", "Task3_Computation/Lung [nodule]"
    )  # fmt: skip
    assert rows[0]["QuestionType"] == "Open", "other columns are passed through"


def test_deeptumorvqa(run, tmp_path):
    path = tmp_path / "DeepTumorVQA" / "benchmark" / "test_qa.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(TUMOUR_VQA))
    rows = rows_of(run, tmp_path, "deeptumorvqa", tmp_path / "DeepTumorVQA")
    assert [row["id"] for row in rows] == ["q1", "q2", "q3", "q4", "q5"]
    assert [keep(row, "type", "answer", "unit") for row in rows] == [
        ("counting", 2, None),
        ("measurement", 1501.5, "cm^3"),
        ("measurement", 51.0, "HU"),
        ("classification", "no", None),
        ("classification", "Normal", None),
    ]
    assert rows[0]["image"] == "benchmark/ct/CASE_7/ct.nii.gz" and rows[4]["options"][3] == "Moderate"
    assert keep(rows[4], "property", "correct_option") == ("splenomegaly grading", "C")
    assert rows[1]["shape"] == "(9, 9, 9)" and "sex" not in rows[3]


def test_deeptumorvqa_training_and_1_0(run, tmp_path):
    train, old = tmp_path / "train_qa.csv", tmp_path / "old.json"
    train.write_text("image_id,question,answer,question_subtype\nCASE_9,How wide in mm?,12.5,largest lesion diameter\n")
    old.write_text(json.dumps([{"image": "vol_7.nii.gz", "question": "Is there a cyst?", "answer": "No"}]))
    assert keep(rows_of(run, tmp_path, "deeptumorvqa", train)[0], "image", "answer", "unit") == (
        "CASE_9/ct.nii.gz", 12.5, "mm"
    )  # fmt: skip
    assert keep(rows_of(run, tmp_path, "deeptumorvqa", old)[0], "image", "answer") == ("vol_7.nii.gz", "no")


def test_radfm(run, tmp_path):
    path = tmp_path / "pmcvqa_train.csv"
    path.write_text(RADFM)
    first, second = rows_of(run, tmp_path, "radfm", path)
    assert keep(first, "image", "question", "options", "answer") == (
        "figures/7.nii.gz", "Which side?", ["left", "right"], "right"
    )  # fmt: skip
    assert keep(second, "type", "answer") == ("open", "in the left kidney")


def test_ct_rate(run, tmp_path):
    path = tmp_path / "train_vqa.json"
    path.write_text(json.dumps(CT_RATE))
    long, short, several = rows_of(run, tmp_path, "ct-rate-vqa", path)
    assert keep(long, "id", "image", "question", "answer", "property", "patient") == (
        "long_1-1", "train_12/train_12_a/train_12_a_2.nii.gz", "What is in the lung?", "A nodule.", "long_answer",
        "train_12",
    )  # fmt: skip
    assert keep(short, "id", "type", "answer") == ("long_1-2", "classification", "no")
    assert keep(several, "id", "question", "options", "answer") == (
        "mc_1", "Which side?", ["left", "right", "both"], "right"
    )  # fmt: skip
    _, stdout, _ = run("data", "import", "ct-rate-vqa", path, "-o", tmp_path / "q.jsonl", "--json")
    assert json.loads(stdout)["without_scan"] == 1


@pytest.mark.parametrize("wrapped", [None, "questions", "items"])
def test_flare_mllm(run, tmp_path, wrapped):
    path = tmp_path / "FLARE" / "training" / "Ultrasound" / "nodes" / "nodes_questions_train.json"
    (path.parent / "imagesTr").mkdir(parents=True)
    (path.parent / "imagesTr" / "7.png").touch()
    path.write_text(json.dumps({"about": {"data": "x"}, wrapped: FLARE} if wrapped else FLARE))
    rows = rows_of(run, tmp_path, "flare-mllm", tmp_path / "FLARE")
    image = "training/Ultrasound/nodes/imagesTr/7.png"
    assert [row["image"] for row in rows] == [image] * 6 + ["training/Ultrasound/nodes/9.png"]
    assert [keep(row, "type", "answer") for row in rows] == [
        ("classification", "yes"),
        ("multilabel", ["mass", "nodule"]),
        ("counting", 12),
        ("regression", 3.25),
        ("detection", None),
        ("open", "Fine."),
        ("classification", None),
    ]
    assert rows[0]["images"] == [image, "training/Ultrasound/nodes/8.png"]
    assert keep(rows[0], "question", "options", "property") == (
        "Is there a nodule?", ["no", "yes"], "classification nodes"
    )  # fmt: skip
    assert rows[4]["pixel_boxes"] == [[1, 2, 30, 40]] and "answer" not in rows[6]


def test_a_table_with_a_column_map(run, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(
        "Q;A;path\n".replace(";", ",") + 'How many?,2,a.nii.gz\n"Which\nside?",left,b.nii.gz\n', "utf-8-sig"
    )
    rows = rows_of(run, tmp_path, "table", path, "--columns", "question=Q,answer=A,image=path")
    assert [keep(row, "question", "answer", "type") for row in rows] == [
        ("How many?", 2, "counting"),
        ("Which\nside?", "left", "open"),
    ]
    code, _, stderr = run("data", "import", "table", path, "-o", tmp_path / "q", "--columns", "question=Q,answer=B")
    assert code == 2 and "answer=B" in stderr and not (tmp_path / "q").exists()
    code, _, stderr = run("data", "import", "table", path, "-o", tmp_path / "q")
    assert code == 2 and "a column for question" in stderr and "Q, A, path" in stderr
    for columns, says in (("query=Q", "roles among"), ("question", "ROLE=COLUMN")):
        code, _, stderr = run("data", "import", "table", path, "-o", tmp_path / "q", "--columns", columns)
        assert code == 2 and says in stderr and stderr.count("\n") == 1


def test_a_table_of_the_contract_comes_back_as_it_was(run, tmp_path):
    box = {"label": "tumour", "min_mm": [0, 0, 0], "max_mm": [9, 9, 9]}
    rows = [
        {"id": "1", "image": "a.nii.gz", "question": "How long?", "type": "measurement", "unit": "mm", "answer": 84.2},
        {"id": "2", "image": "a.nii.gz", "question": "Which?", "type": "multilabel", "options": ["a", "b"],
         "answer": ["b"]},
        {"id": "3", "image": "a.nii.gz", "question": "Where?", "type": "detection", "answer": [box]},
        {"id": "4", "image": "a.nii.gz", "question": "Größe?", "region": "head", "source": "us", "n": [1, {"z": 2}]},
        {"id": "5", "image": "a.nii.gz", "question": "Is there one?", "type": "classification", "options": ["x", "y"],
         "answer": "y", "2020": "2020-01-01"},
    ]  # fmt: skip
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert rows_of(run, tmp_path, "table", path) == [{"source": "table"} | row for row in rows]


def test_a_parquet_table(run, tmp_path):
    table = {"scan": ["a.nii", "b.nii"], "prompt": ["?", "!"], "answer": [None, 2.5], "options": [["x", "y"], None]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    rows = rows_of(run, tmp_path, "table", tmp_path / "t.parquet")
    assert keep(rows[0], "image", "options", "answer") == ("a.nii", ["x", "y"], None)
    assert keep(rows[1], "question", "type", "answer") == ("!", "regression", 2.5)
    pq.write_table(pa.table({"image": [{"bytes": b"x"}], "question": ["?"]}), tmp_path / "t.parquet")
    with pytest.raises(QuestionError, match="image as text, found dict"):
        import_questions(load_source("table"), tmp_path / "t.parquet", tmp_path / "q")


def test_types_that_change_late_in_a_large_file(tmp_path):
    """Arrow would infer one type a column from the first 10 MB and fail on the rest."""
    path, pad = tmp_path / "big.json", "x" * 5000
    rows = [{"image": "a.nii", "question": "?", "answer": "yes", "pad": pad} for _ in range(3000)]
    rows += [{"image": "a.nii", "question": "?", "answer": 3, "late": {"k": [1]}}, {"image": "a", "question": "?"}]
    path.write_text(json.dumps(rows))
    done = import_questions(load_source("table"), path, tmp_path / "q.jsonl")
    assert done.by_type == {"classification": 3000, "counting": 1, "any": 1}
    assert len({question.id for question in read_questions(tmp_path / "q.jsonl")}) == 3002


def test_faulty_rows_are_listed_or_stop_the_import(run, tmp_path):
    path, out = tmp_path / "bad.csv", tmp_path / "q.jsonl"
    header = ["id", "image", "question", "answer", "answer choice", "choice a", "choice b", "type"]
    rows = [
        ["1", "a.nii", "Which?", "left", "A", "left", "right", ""],
        ["2", "a.nii", "Which?", "left", "B", "left", "right", ""],
        ["3", "a.nii", "Which?", "", "D", "left", "right", ""],
        ["4", "a.nii", "Which?", "neither", "", "left", "right", ""],
        ["5", "", "How many?", "2", "", "", "", ""],
        ["6", "a.nii", "", "2", "", "", "", ""],
        ["1", "a.nii", "How many?", "2", "", "", "", ""],
        ["8", "a.nii", "How many?", "two", "", "", "", "counting"],
        ["9", "a.nii", "How many?", "2", "", "", "", "guess"],
        ["10", "a.nii", "How many?", "2", "", "", "", "Counting"],
        ["11", "a.nii", "Where?", "[{torn", "", "", "", "detection"],
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    code, _, stderr = run("data", "import", "table", path, "-o", out)
    assert code == 2 and stderr.startswith(f"fault: {path}:3: expected one answer, found 'right' by its letter")
    assert f"error: {path}: expected rows without faults, found 9 with, told above" in stderr
    assert not out.exists() and stderr.count("\n") == 10
    code, stdout, stderr = run("data", "import", "table", path, "-o", out, "--skip-bad", "--json")
    assert code == 0 and [question.id for question in read_questions(out)] == ["1", "10"]
    assert json.loads(stdout)["left_out"] == 9
    told = [line.split(": expected ")[1] for line in stderr.splitlines() if line.startswith("left out: ")]
    lines = [line.split(":")[2] for line in stderr.splitlines() if line.startswith("left out: ")]
    assert lines == ["3", "4", "5", "6", "7", "8", "9", "10", "12"]
    for line, says in zip(
        told,
        ["one answer", "an answer among", "an answer among", "id, image and question", "id, image and question",
         "ids that differ", "a number for counting", "a type among", "a list for detection"],
        strict=True,
    ):  # fmt: skip
        assert line.startswith(says)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "a header line"),
        ("a.csv", b"image,question\n", "no rows"),
        ("a.csv", b"image,image\nx,y\n", "names that differ"),
        ("a.csv", b"image,question\nx,\xe9\n", "UTF-8 text"),
        ("a.csv", b"imag\xe9,question\nx,y\n", "UTF-8 text"),
        ("a.csv", b"image,question\nx,y\nx,y,z\n", "a.csv:3: expected 2 cells, as in the header, found 3"),
        ("a.csv", b"image,question\nx,y\nx\n", "a.csv:3: expected 2 cells, as in the header, found 1"),
        ("a.csv", b'image,question\nx,"y\nx,y\n', "a.csv:2: expected a row of cells, found unexpected end of data up"),
        ("a.jsonl", b'{"image": "x", "question": "\xe9"}\n', "UTF-8 text"),
        ("a.jsonl", b'{"image": "x", "question": "?"}\n{"image"\n', "a.jsonl:2: expected a JSON object"),
        ("a.jsonl", b"[1]\n", "found list"),
        ("a.json", b'[{"image": "x", "question": "?"}, ', "record 2: expected rows that can be read"),
        ("a.json", b'["x"]', "record 1: expected a JSON object, found str"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b"", "rows that can be read"),
        ("a.xlsx", b"x", ".csv, .tsv, .json"),
        ("a.parquet", b"x", "rows that can be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(run, tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    code, stdout, stderr = run("data", "import", "table", tmp_path / name, "-o", tmp_path / "q.jsonl")
    assert (code, stdout) == (2, "") and says in stderr, stderr
    assert stderr.startswith(f"error: {tmp_path / name}") and stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


ODD = """image;question;answer
a.nii;"Which; side?";links;;
b.nii;Größe?;2;;
"""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_spreadsheets_of_other_countries(run, tmp_path, encoding):
    """Semicolons, a byte order mark, columns left empty at the end, another encoding, a suffix in capitals."""
    path = tmp_path / "MINE.CSV"
    path.write_text(ODD, encoding)
    rows = rows_of(run, tmp_path, "table", tmp_path, *(("--encoding", encoding) if encoding == "cp1252" else ()))
    assert [keep(row, "image", "question", "answer") for row in rows] == [
        ("a.nii", "Which; side?", "links"),
        ("b.nii", "Größe?", 2),
    ]
    assert rows[0]["id"] == "table:MINE:1"


def test_a_file_in_another_encoding_loses_no_row_silently(run, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("image,question\na.nii,Size?\nb.nii,Größe?\nc.nii,Side?\n", "latin-1")
    code, _, stderr = run("data", "import", "table", path, "-o", tmp_path / "q.jsonl", "--skip-bad")
    assert code == 0 and f"left out: {path}:3: expected UTF-8 text, found byte 0xf6" in stderr
    assert "--encoding" in stderr
    assert [question.image for question in read_questions(tmp_path / "q.jsonl")] == ["a.nii", "c.nii"]


def test_what_comes_before_a_torn_end_is_usable(run, tmp_path):
    row = '{"image": "x", "question": "?"}'
    (tmp_path / "a.json").write_text(f"[{row}, {row}, " + '{"image": "x", "que')
    code, _, stderr = run("data", "import", "table", tmp_path / "a.json", "-o", tmp_path / "q.jsonl", "--skip-bad")
    assert code == 0 and "a.json, record 3: expected rows that can be read" in stderr
    assert len(list(read_questions(tmp_path / "q.jsonl"))) == 2


@pytest.mark.parametrize("other", ['{"n": NaN}', '{"image": "a", "question": "Gr\xf6\xdfe?"}'])
def test_an_array_that_cannot_be_streamed(run, tmp_path, other):
    row = '{"image": "x", "question": "?"}'
    (tmp_path / "a.json").write_text(f'{{"data": [{row}, {other}, {row}]}}', "latin-1")
    code, _, stderr = run("data", "import", "table", tmp_path / "a.json", "-o", tmp_path / "q.jsonl", "--skip-bad")
    assert code == 0 and len(list(read_questions(tmp_path / "q.jsonl"))) == 2, stderr
    assert stderr.count("left out: ") == 1 and "a.json, record 2: " in stderr


def test_one_bad_file_of_several(run, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.csv").write_text("image,question\nx,y\n")
    (folder / "b.csv").write_text("picture,question\nx,y\nx,y\n")
    (folder / "c.parquet").write_bytes(b"torn")
    code, _, stderr = run("data", "import", "table", folder, "-o", tmp_path / "q.jsonl", "--skip-bad")
    assert code == 0 and len(list(read_questions(tmp_path / "q.jsonl"))) == 1
    assert stderr.count("left out: ") == 2 and f"left out: {folder / 'b.csv'}: expected a column for image" in stderr
    code, _, stderr = run("data", "import", "table", folder / "b.csv", "-o", tmp_path / "r.jsonl", "--skip-bad")
    assert code == 2 and "a row without faults" in stderr and not (tmp_path / "r.jsonl").exists()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_a_line_without_end_is_one_fault(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("vlm.data.sources.records.LONGEST_LINE", 200_000)
    rows = [{"image": "a", "question": "?"}, {"image": "b", "question": "x" * 500_000}, {"image": "c", "question": "?"}]
    path, told = tmp_path / f"a{suffix}", []
    if suffix == ".csv":
        path.write_text("image,question\n" + "".join(f"{row['image']},{row['question']}\n" for row in rows))
    else:
        lines = [json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]")
    import_questions(load_source("table"), path, tmp_path / "q.jsonl", skip_bad=True, tell=told.append)
    kept = [question.image for question in read_questions(tmp_path / "q.jsonl")]
    assert kept == (["a", "c"] if suffix != ".json" else ["a"]), "after an endless record an array is lost"
    assert len(told) == 1 and "a record above" in str(told[0])
    assert ("record 2" if suffix == ".json" else ":3:" if suffix == ".csv" else ":2:") in str(told[0])


def test_several_images_a_question(run, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"image": ["a.nii", "b.nii"], "question": "Which is newer?", "answer": "the second"}))
    (row,) = rows_of(run, tmp_path, "table", path)
    assert keep(row, "image", "images", "answer") == ("a.nii", ["a.nii", "b.nii"], "the second")


def test_flare_mllm_takes_the_file_with_answers(run, tmp_path):
    folder = tmp_path / "validation-public" / "Ultrasound" / "nodes"
    folder.mkdir(parents=True)
    (folder / "nodes_questions_val.json").write_text(json.dumps([FLARE[0] | {"Answer": None}]))
    answered = FLARE[1] | {"Answer": ["A", "C"]}
    (folder / "nodes_questions_val_withGT.json").write_text(json.dumps([FLARE[0], answered]))
    first, second = rows_of(run, tmp_path, "flare-mllm", tmp_path / "validation-public")
    assert (first["answer"], second["answer"]) == ("yes", ["mass", "nodule"])


def test_pmc_vqa_has_its_choices_marked(run, tmp_path):
    path = tmp_path / "test.csv"
    path.write_text(
        "Figure_path,Question,Answer,Choice A,Choice B,Answer_label\n"
        "7.jpg,Which side?, B:right , A:left , B:right ,B\n8.jpg,Which?,A. fumigatus,A. fumigatus,E. coli,A\n"
    )
    first, second = rows_of(run, tmp_path, "radfm", path)
    assert keep(first, "options", "answer") == (["left", "right"], "right")
    assert keep(second, "options", "answer") == (["A. fumigatus", "E. coli"], "A. fumigatus")


def test_what_a_column_may_hold(tmp_path):
    base, out = {"image": ["a.nii"], "question": ["?"]}, tmp_path / "q.jsonl"
    pq.write_table(pa.table(base | {"taken": [datetime(2020, 1, 2)]}), tmp_path / "t.parquet")
    import_questions(load_source("table"), tmp_path / "t.parquet", out)
    assert json.loads(out.read_text())["taken"] == "2020-01-02T00:00:00"
    pq.write_table(pa.table(base | {"mask": [b"x"]}), tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text('{"image": "a.nii", "question": "?", "answer": "\\ud83d"}')
    for name in ("t.parquet", "t.jsonl"):
        with pytest.raises(QuestionError, match="values that JSON can hold"):
            import_questions(load_source("table"), tmp_path / name, out)
    assert json.loads(out.read_text())["taken"], "what was there stays"


def test_json_lines_in_a_json_file(run, tmp_path):
    path = tmp_path / "lines.json"
    path.write_text('{"image": "a", "question": "?"}\n{"image": "b", "question": "?\u2028"}\n', encoding="utf-8")
    assert [row["image"] for row in rows_of(run, tmp_path, "table", path)] == ["a", "b"]


def test_mistakes_in_the_call(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        (("nothing", tmp_path), "one of table, m3d-vqa"),
        (("table", tmp_path / "none"), "no such file"),
        (("3d-rad", tmp_path / "empty"), "files like *.csv"),
        (("table", tmp_path / "empty", "--copy"), "--copy"),
        (("kits", tmp_path / "empty", "--columns", "image=x"), "--columns"),
        (("kits", tmp_path / "empty", "--encoding", "cp1252"), "--encoding"),
        (("table", tmp_path / "empty", "--encoding", "none-such"), "--encoding"),
    ):
        code, _, stderr = run("data", "import", *arguments, "-o", tmp_path / "q.jsonl")
        assert code == 2 and says in stderr and stderr.count("\n") == 1
    assert run("data", "import", "table", tmp_path)[0] == 2, "-o is missing"


def test_the_list_names_every_format(run):
    code, stdout, _ = run("data", "import", "--list")
    assert code == 0 and [line.split()[0] for line in stdout.splitlines()] == list(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_tells_its_licence_and_citation(name):
    source = load_source(name)
    module = FORMATS[name].split(":")[0]
    text = sys.modules[f"vlm.data.sources.{module}"].__doc__ or ""
    assert "Licence" in text and ("Cite" in text or name == "table") and "\n    " in text
    assert source.name == name
    assert describe(name)[0] == ("questions" if isinstance(source, QuestionSource) else "scans")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which side? A. left, B. right", ("Which side?", ("left", "right"))),
        ("Which? (a) left (b) right (c)both", ("Which?", ("left", "right", "both"))),
        ("Pick one. Choices: A: 1.5 B: 2", ("Pick one.", ("1.5", "2"))),
        ("Grade A. or what? A) yes B) no", ("Grade A. or what?", ("yes", "no"))),
        ("Is it type B. or C. ?", ("Is it type B. or C. ?", ())),
        ("Is it an E. coli?", ("Is it an E. coli?", ())),
        ("", ("", ())),
    ],
)
def test_options_in_a_question(text, expected):
    assert lettered(text) == expected


@pytest.mark.parametrize(
    ("letter", "answer", "expected"),
    [
        ("B", "", "A lesion"),
        ("(b)", "a lesion.", "A lesion"),
        ("", "A lesion", "A lesion"),
        ("", "b", "A lesion"),
        ("", "(b) A lesion", "A lesion"),
        ("", "B. something of it", "A lesion"),
        ("A", "Liver (whole)", "Liver"),
        ("A", "A lesion", None),
        ("", "(a) A lesion", None),
        ("", "a cyst", None),
        ("", "d", None),
        ("3", "", None),
    ],
)
def test_the_option_that_is_meant(letter, answer, expected):
    options = ("Liver", "A lesion", "Neither")
    if expected is None:
        with pytest.raises(QuestionError):
            choice("row", options, letter, answer)
    else:
        assert choice("row", options, letter, answer)["answer"] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 cm", {"type": "measurement", "answer": 2.0, "unit": "cm"}),
        ("12.5cm³.", {"type": "measurement", "answer": 12.5, "unit": "cm³"}),
        ("-90 HU", {"type": "measurement", "answer": -90.0, "unit": "HU"}),
        ("3", {"type": "counting", "answer": 3}),
        ("1e-05", {"type": "regression", "answer": 1e-05}),
        ("7-8 mm", None),
        ("2 cm and 3 cm", None),
        ("1,234", None),
        ("", None),
    ],
)
def test_numbers(text, expected):
    assert number(text) == expected


def test_the_unit_a_question_asks_for():
    assert [unit_in(q) for q in ("How long in mm?", "Volume (cm^3)?", "In min?", "Mean of HU?")] == [
        "mm", "cm^3", None, "HU"
    ]  # fmt: skip
