"""An engine without models that keeps a diary; as a script it answers a file: stub_engine.py QUESTIONS ANSWERS."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from vlm.infer.batch import BatchResult, Files, answer_here, run_batch
from vlm.infer.index import index_questions
from vlm.schema import Answer


class Stub:
    """Reads nothing and knows nothing. pause: seconds for a scan to be read and a question to be answered.

    diary: (what was done, image or id, when). Images named broken... and questions named bad... fail.
    """

    segmenter = SimpleNamespace(plan=SimpleNamespace(labels={}))

    def __init__(self, pause: float = 0.0, loud: bool = False) -> None:
        self.pause, self.loud = pause, loud
        self.diary: list[tuple[str, str, float]] = []

    def read(self, image):
        self.diary.append(("read", image, time.monotonic()))
        time.sleep(self.pause)
        if image.startswith("broken"):
            raise MemoryError("no room")
        return image, None

    def open(self, volume, mask, fast):
        self.diary.append(("opened", volume, time.monotonic()))
        return volume

    def ask(self, scan, question):
        if self.loud:
            print(question.id, flush=True)
        time.sleep(self.pause)
        self.diary.append(("asked", question.id, time.monotonic()))
        if question.id.startswith("bad"):
            raise ValueError("two\nlines")
        return Answer(question.id, "open", scan)

    def answer(self, questions: Path, answers: Path) -> BatchResult:
        """A batch of its own."""
        runner = partial(answer_here, lambda: self, StubFiles(Path()))
        return run_batch(runner, index_questions(questions), answers)


class StubFiles(Files):
    """Files that the stub reads."""

    def for_model(self, engine):
        return SimpleNamespace(read=engine.read, fast=False)


if __name__ == "__main__":
    Stub(pause=0.01, loud=True).answer(Path(sys.argv[1]), Path(sys.argv[2]))
