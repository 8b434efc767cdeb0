"""A batch on a Ray of two workers: the answers of one machine, in any order, though a worker is killed."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest
from phantoms import tiny_models

from seg_backbone.errors import ConfigError
from vlm.infer.batch import Files, Loader, answer_here, run_batch
from vlm.infer.distributed import answer_on_ray, share
from vlm.infer.index import index_questions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ray():
    """A local Ray with room for two workers."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=80 << 20
    )
    yield ray
    ray.shutdown()


def kill_a_worker(done: int, _: int) -> None:
    """The first worker process found, once, when the first answer has come."""
    if done and not kill_a_worker.killed:
        workers = [p for p in psutil.Process().children(recursive=True) if p.name().startswith("ray::MapWorker")]
        assert len(workers) == 2
        os.kill(workers[0].pid, signal.SIGKILL)
        kill_a_worker.killed = True


def test_the_answers_of_one_machine_though_a_worker_is_killed(ray, llm_folder, phantom_files, tmp_path: Path) -> None:
    load = Loader(tiny_models(tmp_path, llm_folder), "cpu")
    scans = [phantom_files / "scan_0000.nii.gz", *(tmp_path / f"scan{n}.nii.gz" for n in range(5))]
    for scan in scans[1:]:
        scan.symlink_to(scans[0])
    asked = ["How many tumours?", "How long is the largest tumour?", "Where are they?"]
    rows = [{"id": f"{s}-{q}", "image": str(s), "question": q} for q in asked for s in (*scans, tmp_path / "none")]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    index = index_questions(tmp_path / "questions.jsonl")
    found = []
    kill_a_worker.killed = False
    for name, runner, progress in [
        ("here", partial(answer_here, load, Files(tmp_path)), None),
        ("ray", partial(answer_on_ray, load, Files(tmp_path), 1), kill_a_worker),
    ]:
        result = run_batch(runner, index, tmp_path / name, progress=progress)
        assert (result.answered + result.abstained, result.unscored) == (18, 3)
        answers = [json.loads(line) | {"seconds": None} for line in (tmp_path / name).read_text().splitlines()]
        found.append(sorted(answers, key=lambda answer: answer["id"]))
    assert kill_a_worker.killed
    assert [answer["id"] for answer in found[0]] == sorted(row["id"] for row in rows)
    assert found[0] == found[1]


def test_what_a_worker_takes_of_a_cluster() -> None:
    assert share({"CPU": 10.0}, 4, "auto") == (2, {"num_cpus": 4})
    assert share({"CPU": 2.0}, 4, "auto") == (1, {"num_cpus": 2})
    assert share({"CPU": 10.0, "GPU": 4.0}, 4, "auto") == (4, {"num_gpus": 1, "num_cpus": 2})
    assert share({"CPU": 10.0, "GPU": 4.0}, 5, "cpu") == (2, {"num_cpus": 5})


def test_without_ray_it_is_told_what_to_install(monkeypatch, phantom_files, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    (tmp_path / "q.jsonl").write_text(json.dumps({"id": "1", "image": "scan", "question": "?"}))
    index = index_questions(tmp_path / "q.jsonl")
    with pytest.raises(ConfigError, match=r"pip install 'flare-vlm\[ray\]'"):
        list(answer_on_ray(Loader(), Files(tmp_path), 1, index, index.scans))
