"""Batches: every question in one line, whatever kills the run, breaks a scan or changes between two runs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import stub_engine
from phantoms import LABELS
from stub_engine import Stub

from seg_backbone.errors import ConfigError, QuestionError
from vlm.infer.answer_file import answer_file
from vlm.infer.batch import Files, answer_here, run_batch
from vlm.infer.engine import Engine
from vlm.infer.index import QUESTIONS_A_SCAN, index_questions
from vlm.schema import Answer

IMAGE = "scan_0000.nii.gz"


def questions_file(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": "How many tumours?", **row}) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_resumes_and_retries(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    rows = [{"id": str(n), "image": IMAGE} for n in range(3)] + [{"id": "lost", "image": "none.nii.gz"}]
    questions, answers = questions_file(tmp_path, rows), tmp_path / "new" / "answers.jsonl"
    runner = partial(answer_here, lambda: engine, Files(phantom_files))
    first = run_batch(runner, index_questions(questions, limit=2), answers)
    assert (first.answered + first.abstained, first.kept, first.unscored) == (2, 0, 0)
    kept = answers.read_text().splitlines()
    answers.write_text("\n".join(kept) + '\n{"id": "2", "ty')  # killed while writing
    told: list[tuple[int, int]] = []
    second = run_batch(runner, index_questions(questions), answers, progress=lambda *done: told.append(done))
    assert told == [(2, 4), (3, 4), (4, 4)]
    assert (second.answered + second.abstained, second.kept, second.unscored) == (1, 2, 1)
    rows = rows_of(answers)
    assert [row["id"] for row in rows] == ["0", "1", "2", "lost"]
    assert answers.read_text().splitlines()[:2] == kept, "what was answered is not answered again"
    assert "no such file" in rows[3]["unscored"]
    third = run_batch(runner, index_questions(questions), answers)
    assert (third.answered + third.abstained, third.kept, third.unscored) == (0, 3, 1), "the unscored is tried again"
    assert [row["id"] for row in rows_of(answers)] == ["0", "1", "2", "lost"]


def test_from_given_masks(engine: Engine, phantom_files: Path, tmp_path: Path) -> None:
    questions = questions_file(tmp_path, [{"id": "1", "image": IMAGE, "question": "Describe the findings"}])
    answers = tmp_path / "answers.jsonl"
    files = Files(phantom_files, phantom_files / "masks", LABELS)
    result = run_batch(partial(answer_here, lambda: engine, files), index_questions(questions), answers)
    assert result.unscored == 0 and rows_of(answers)[0]["model"].startswith("tiny@")


def test_each_scan_is_opened_once_and_the_next_is_read_meanwhile(tmp_path: Path) -> None:
    images = ["a", "./a", "b", "a", "c", "b", "a"]
    questions = questions_file(tmp_path, [{"id": str(n), "image": image} for n, image in enumerate(images)])
    stub = Stub(pause=0.1)
    stub.answer(questions, tmp_path / "answers.jsonl")
    assert [what for kind, what, _ in stub.diary if kind == "opened"] == ["a", "b", "c"]
    assert [row["id"] for row in rows_of(tmp_path / "answers.jsonl")] == ["0", "1", "3", "6", "2", "5", "4"]
    when = {(kind, what): at for kind, what, at in stub.diary}
    assert when["read", "b"] < when["asked", "0"] and when["read", "c"] < when["asked", "2"]


def test_a_broken_scan_or_question_leaves_the_others(tmp_path: Path) -> None:
    rows = [("1", "broken"), ("2", "broken"), ("3", "fine"), ("bad", "fine"), ("4", "fine")]
    questions = questions_file(tmp_path, [{"id": id, "image": image} for id, image in rows])
    result = Stub().answer(questions, tmp_path / "answers.jsonl")
    assert (result.answered, result.unscored) == (2, 3)
    found = {row["id"]: row["unscored"] for row in rows_of(tmp_path / "answers.jsonl")}
    assert found == {
        **dict.fromkeys("12", "MemoryError: no room"),
        "3": None,
        "bad": "ValueError: two lines",
        "4": None,
    }


def test_kill_9_loses_at_most_the_question_in_hand(tmp_path: Path) -> None:
    questions = questions_file(tmp_path, [{"id": f"{n}", "image": f"scan{n % 3}"} for n in range(900)])
    answers = tmp_path / "answers.jsonl"
    command = [sys.executable, stub_engine.__file__, questions, answers]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        asked = [next(process.stdout).strip() for _ in range(7)]
        os.kill(process.pid, signal.SIGKILL)
        asked += process.stdout.read().split()
    assert process.returncode == -signal.SIGKILL and len(asked) < 900
    written = [row["id"] for row in rows_of(answers)]
    assert asked[: len(written)] == written and len(asked) - len(written) <= 1
    with answers.open("a") as file:
        file.write('{"id": "8')  # had it been in the middle of a line
    stub = Stub()
    result = stub.answer(questions, answers)
    assert (result.kept, result.answered) == (len(written), 900 - len(written))
    again = {what for kind, what, _ in stub.diary if kind == "asked"}
    assert not again & set(written)
    assert sorted(row["id"] for row in rows_of(answers)) == sorted(str(n) for n in range(900))


@pytest.mark.parametrize("text", ["one\ntwo\n", "one", '{"id": 1}\n', '{"id": "1", "image": "a", "question": "?"}\n'])
def test_another_file_is_not_overwritten(tmp_path: Path, text: str) -> None:
    questions = questions_file(tmp_path, [{"id": "1", "image": "a"}])
    other = tmp_path / "notes.txt"
    other.write_text(text)
    with pytest.raises(QuestionError, match="--no-resume"):
        Stub().answer(questions, other)
    assert other.read_text() == text


def test_one_run_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    with answer_file(path) as out:
        out.write(Answer("1", "open", ""))
        with pytest.raises(ConfigError, match="another run"), answer_file(path):
            pass
        out.write(Answer("2", "open", ""))
    with answer_file(path) as out:
        assert out.kept == {"1", "2"}


def test_the_questions_are_not_held(tmp_path: Path) -> None:
    rows = [{"id": f"{n}", "image": f"{n % 50}", "question": "?" * 2000} for n in range(5000)]
    path = questions_file(tmp_path, rows)
    tracemalloc.start()
    index = index_questions(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 4
    assert [question.id for question in index.read(index.scans[7])] == [str(n) for n in range(7, 5000, 50)]


def test_a_question_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = questions_file(tmp_path, [{"id": "first", "image": "a"}, {"id": "second", "image": "b"}])
    index = index_questions(path)
    path.write_bytes(path.read_bytes().replace(b"second", b"SECOND"))
    with pytest.raises(QuestionError, match="question 'second', found 'SECOND'"):
        list(index.read(index.scans[1]))


def test_shards_share_out_whole_scans(tmp_path: Path) -> None:
    rng = random.Random(5)
    sizes = [1 + int(rng.paretovariate(0.8)) % 300 for _ in range(60)]
    rows = [{"id": f"{scan}-{n}", "image": str(scan)} for scan, size in enumerate(sizes) for n in range(size)]
    rng.shuffle(rows)
    index = index_questions(questions_file(tmp_path, rows))
    for count in (1, 2, 3, 7, 61):
        parts = [index.shard(number, count) for number in range(1, count + 1)]
        ids = Counter(id for part in parts for scan in part.scans for id in scan.ids)
        assert set(ids) == {row["id"] for row in rows} and set(ids.values()) == {1}
        images = Counter(scan.image for part in parts for scan in part.scans)
        assert set(images.values()) == {1}
        work = [len(part) + QUESTIONS_A_SCAN * len(part.scans) for part in parts]
        best = max(sum(work) / count, max(sizes) + QUESTIONS_A_SCAN)
        assert max(work) <= best * 4 / 3
        assert parts[0].part == f"1/{count}" and len(parts[0]) == sum(len(scan.ids) for scan in parts[0].scans)
    even = index_questions(questions_file(tmp_path, [{"id": str(n), "image": str(n // 5)} for n in range(40)]))
    assert [len(even.shard(number, 4)) for number in (1, 2, 3, 4)] == [10] * 4


@pytest.fixture
def batch(run, engine, phantom_files, tmp_path, monkeypatch):
    """Run `vlm batch` on tmp_path/questions.jsonl with the tiny engine."""
    monkeypatch.setattr("vlm.infer.engine.Engine.load", lambda *_: engine)
    monkeypatch.chdir(tmp_path)

    def call(*options):
        return run("batch", "questions.jsonl", "-o", "answers.jsonl", "--scans", phantom_files, *options)

    return call


def test_the_manifest_says_what_gave_the_answers(batch, tmp_path: Path) -> None:
    rows = [{"id": str(n), "image": IMAGE, "question": "How many livers?"} for n in range(2)]
    questions_file(tmp_path, [*rows, {"id": "lost", "image": "none"}])
    code, stdout, _ = batch("--json")
    summary = json.loads(stdout)
    assert code == 1 and (summary["unscored"], summary["kept"], summary["left_out"]) == (1, 0, [])
    manifest = json.loads((tmp_path / "answers.manifest.json").read_text())
    rows = rows_of(tmp_path / "answers.jsonl")
    abstained = sum(row["abstained"] for row in rows)
    assert manifest["answers"] == {"answered": 2 - abstained, "abstained": abstained, "unscored": 1}
    assert len(manifest["model"]["weights_sha256"]) == len(manifest["questions"]["sha256"]) == 64
    assert manifest["settings"] == {"masks": None, "labels": None, "fast": False}
    (first,) = manifest["runs"]
    assert first["command"].startswith("vlm batch questions.jsonl -o answers.jsonl --scans ")
    assert first["finished"] and first["seconds"] > 0 and first["unscored"] == 1
    assert first["machine"]["cores"] == os.cpu_count() and first["versions"]["torch"]


def test_other_weights_questions_or_settings_do_not_mix(batch, tmp_path: Path, monkeypatch) -> None:
    rows = [{"id": str(n), "image": IMAGE} for n in range(2)]
    path = questions_file(tmp_path, rows)
    assert batch()[0] == 0
    before = (tmp_path / "answers.jsonl").read_text()
    with path.open("a") as file:
        file.write(json.dumps({"id": "2", "image": IMAGE, "question": "How many?"}) + "\n")
    monkeypatch.setattr("vlm.infer.engine.Engine.load", lambda *_: pytest.fail("the model was loaded"))
    code, _, stderr = batch("--limit", 2)
    assert (code, stderr) == (0, ""), "a file that grew is the same file; and nothing is left to do"
    assert len(json.loads((tmp_path / "answers.manifest.json").read_text())["runs"]) == 2

    code, _, stderr = batch("--fast")
    assert code == 2 and "expected answers by fast true, found fast false in answers.manifest.json" in stderr
    questions_file(tmp_path, [{**rows[0], "question": "How long is it?"}, rows[1]])
    code, _, stderr = batch()
    assert code == 2 and "other questions in answers.manifest.json" in stderr and "--no-resume" in stderr
    questions_file(tmp_path, rows)
    monkeypatch.setattr("vlm.infer.batch.model_identity", lambda name: {"weights_sha256": "f" * 64})
    code, _, stderr = batch()
    assert code == 2 and "expected answers by weights_sha256 ffffffffffff, found" in stderr
    assert stderr.startswith("error: answers.jsonl: ") and stderr.count("\n") == 1
    assert (tmp_path / "answers.jsonl").read_text() == before
    (tmp_path / "answers.manifest.json").write_text("[]")
    assert "expected the manifest of a batch" in batch()[2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--shard", "3"], "expected I/N, such as 2/8"),
        (["--shard", "0/2"], "expected I/N with I from 1 to N"),
        (["--shard", "3/2"], "expected I/N with I from 1 to N"),
        (["--shard", "1/0"], "expected I/N with I from 1 to N"),
        (["-o", "questions.jsonl"], "found the questions"),
        (["-o", "folder"], "expected a JSONL file to write, found a folder"),
        (["-o", "questions.jsonl/answers.jsonl"], "expected a file that can be written"),
        (["--model", "nobody"], "models that ship"),
        (["--masks", "nowhere"], "expected a folder for --masks"),
    ],
)
def test_mistakes_in_the_call(batch, tmp_path: Path, options, says: str) -> None:
    path = questions_file(tmp_path, [{"id": "1", "image": IMAGE}])
    before = path.read_text()
    (tmp_path / "folder").mkdir()
    code, stdout, stderr = batch(*options)
    assert (code, stdout) == (2, "") and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert says in stderr and path.read_text() == before


def test_shards_and_the_whole_give_the_same_answers(batch, tmp_path: Path, phantom_files: Path) -> None:
    absolute = str(phantom_files / IMAGE)
    rows = [{"id": str(n), "image": (IMAGE, absolute)[n % 2], "type": "counting"} for n in range(6)]
    questions_file(tmp_path, rows)
    assert batch()[0] == 0
    found = []
    for part in ("1/2", "2/2"):
        assert batch("-o", "part.jsonl", "--shard", part, "--no-resume")[0] == 0
        found.append(rows_of(tmp_path / "part.jsonl"))
        assert len(found[-1]) == 3

    def sorted_rows(rows):
        return sorted(({**row, "seconds": 0} for row in rows), key=lambda row: row["id"])

    assert sorted_rows(found[0] + found[1]) == sorted_rows(rows_of(tmp_path / "answers.jsonl"))
