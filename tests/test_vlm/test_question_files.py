"""A question file with every fault: all are listed by line, and nothing runs before they are mended or left out."""

import json
import tracemalloc
from functools import partial

import pytest

from seg_backbone.errors import QuestionError
from vlm import schema
from vlm.infer.batch import Files, answer_here, run_batch
from vlm.infer.blind import BlindEngine
from vlm.infer.index import index_questions
from vlm.schema import read_questions, scan_questions

GOOD = {"id": "a", "image": "scan.nii.gz", "question": "How many?", "type": "counting", "answer": 2}
LINES = [
    (json.dumps(GOOD).encode(), None),
    (b"", None),
    (b'{"id": "b", "ima', "broken JSON"),
    (b'["b"]', "found list"),
    (json.dumps(GOOD).encode(), "'a' again (line 1)"),
    (json.dumps(GOOD | {"id": "b", "type": "guess"}).encode(), "'guess'"),
    (
        json.dumps({"ID": "b", "Image": "scan.nii.gz", "Question": "?"}).encode(),
        "no id, image, question among the keys",
    ),
    (json.dumps(GOOD | {"id": "c", "image": "lost.nii.gz"}).encode(), "no such file"),
    (json.dumps(GOOD | {"id": "d", "image": "x" * 300}).encode(), "no such file"),
    (json.dumps(GOOD | {"id": "b", "question": ["?"]}).encode(), "question as a string"),
    (json.dumps(GOOD | {"id": {"b": 1}}).encode(), "an id of letters"),
    (json.dumps(GOOD | {"id": "b", "options": "yes;no"}).encode(), "options as a list"),
    (json.dumps(GOOD | {"id": "b", "options": {"A": "yes"}}).encode(), "options as a list"),
    (json.dumps(GOOD | {"id": "b", "unit": 3}).encode(), "unit as a string"),
    (json.dumps(GOOD | {"id": "b", "question": None}).encode(), "no question"),
    ('{"id": "b", "image": "scan.nii.gz", "question": "Größe?"}'.encode("latin-1"), "byte 0xf6 at"),
    (b'{"id": "b", "image": "scan.nii.gz", "question": "\\ud83d"}', "half of a surrogate pair"),
    (b"[" * 100_000, "broken JSON"),
    (b'{"id": "b", "image": "scan.nii.gz", "question": "' + b"x" * 2000 + b'"}', "a line above"),
    ('{"id": "None", "image": "scan.nii.gz", "question": "Größe?\u2028"}'.encode(), None),
]
BAD = {number: expected for number, (_, expected) in enumerate(LINES, start=1) if expected}
FAULTY = [
    number for number, expected in BAD.items() if expected != "no such file" and number != 19
]  # 19 is short enough


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """The file with all faults, its scan beside it; a line may have 1 kB, but for the deep one."""
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(line for line, _ in LINES))
    (tmp_path / "scan.nii.gz").touch()
    return path


def test_every_fault_has_its_line(questions, tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "LONGEST_LINE", 1000)
    found = dict(scan_questions(questions, tmp_path))
    assert sorted(found) == [number for number in range(1, len(LINES) + 1) if number != 2], "blank lines are none"
    for number, question in found.items():
        if number not in BAD:
            assert not isinstance(question, QuestionError)
        elif number == 18:  # too long under this limit; below, as JSON
            assert "a line above" in str(question)
        else:
            assert str(question).startswith(f"{questions}:{number}: expected ") and BAD[number] in str(question)
            assert "\n" not in str(question)
    assert (found[1].id, found[20].id, found[20].question) == ("a", "None", "Größe?\u2028")


def test_nesting_too_deep_is_broken_json(questions, tmp_path):
    assert "broken JSON" in str(dict(scan_questions(questions, tmp_path))[18])


def test_a_long_line_is_never_held_whole(tmp_path):
    path = tmp_path / "huge.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 27)  # 128 MiB of NUL in one line, sparse on disk
        file.seek(1 << 27)
        file.write(b"\n" + json.dumps(GOOD).encode())
    tracemalloc.start()
    (_, fault), (number, question) = scan_questions(path)
    assert tracemalloc.get_traced_memory()[1] < 3 * schema.LONGEST_LINE
    tracemalloc.stop()
    assert "a line above 16 MiB" in str(fault) and (number, question.id) == (2, "a")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_another_encoding_is_told(tmp_path, encoding):
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps(GOOD), encoding=encoding)
    with pytest.raises(QuestionError) as caught:
        list(read_questions(path))
    assert "UTF-16" in str(caught.value) if encoding == "utf-16" else str(caught.value).startswith(f"{path}:1")


def test_check_lists_every_fault(run, questions):
    code, stdout, _ = run("data", "check", questions)
    assert code == 2
    listed = [line.split(":")[1] for line in stdout.splitlines() if line.startswith(str(questions))]
    assert listed == [str(number) for number in BAD if number != 19]
    assert len(stdout.splitlines()) == len(listed)


def test_check_of_a_sound_file_and_of_its_references(run, tmp_path):
    path, scans = tmp_path / "q.jsonl", tmp_path / "scans"
    scans.mkdir()
    (scans / "scan.nii.gz").touch()
    path.write_text(json.dumps(GOOD))
    assert run("data", "check", path, "--scans", scans)[:2] == (0, "")
    assert run("data", "check", path)[0] == 2, "the scan is not beside the file"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {"id": "b", "answer": "many"}))
    code, stdout, _ = run("data", "check", path, "--scans", scans)
    assert code == 2 and stdout.startswith(f"{path}, line 2: expected a reference answer fit for counting")
    code, _, stderr = run("data", "check", tmp_path / "none.jsonl")
    assert code == 2 and "no such file" in stderr


def test_batch_stops_before_any_work(run, questions, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm.infer.engine.Engine.load", lambda *_: pytest.fail("the model was loaded"))
    out = tmp_path / "answers.jsonl"
    code, stdout, stderr = run("batch", questions, "-o", out)
    assert (code, stdout) == (2, "") and stderr.startswith(f"error: {questions}:3: expected ")
    assert f"{len(FAULTY) - 1} more faulty lines" in stderr and "--skip-bad" in stderr and stderr.count("\n") == 1
    assert not out.exists()


def test_batch_leaves_faulty_lines_out(run, questions, engine, tmp_path, monkeypatch, phantom_files):
    (tmp_path / "scan.nii.gz").write_bytes((phantom_files / "scan_0000.nii.gz").read_bytes())
    monkeypatch.setattr("vlm.infer.engine.Engine.load", lambda *_: engine)
    out = tmp_path / "answers.jsonl"
    code, stdout, stderr = run("batch", questions, "-o", out, "--skip-bad", "--json")
    assert code == 1, "two images are not there"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b", "None", "c", "d"]
    assert [row["id"] for row in rows if row["unscored"] and "no such file" in row["unscored"]] == ["c", "d"]
    assert json.loads(stdout)["left_out"] == FAULTY
    assert stderr.count("left out: ") == len(FAULTY) and f"left out: {questions}:7: " in stderr
    code, stdout, _ = run("batch", questions, "-o", out, "--skip-bad")
    assert "3 kept from before" in stdout and f"{len(FAULTY)} left out (line 3, 4, 5," in stdout


def test_a_text_only_baseline_needs_no_scans(tmp_path, monkeypatch):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(GOOD | {"image": "lost.nii.gz"}))
    blind = BlindEngine.__new__(BlindEngine)
    monkeypatch.setattr(blind, "ask", lambda question: schema.Answer(question.id, "open", "2"), raising=False)
    runner = partial(answer_here, lambda: blind, Files(tmp_path))
    assert run_batch(runner, index_questions(path), tmp_path / "answers.jsonl").answered == 1
