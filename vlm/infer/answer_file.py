"""The answers of a batch on disk: one JSON object a line, each flushed when it is known, so that a killed run loses at
most the one in hand; opening the file again keeps what was answered."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from seg_backbone.errors import ConfigError, QuestionError
from seg_backbone.io import replacing
from vlm.schema import Answer

START = b'{"id": "'  # of every line; a last line that a killed run left is a piece of one


class AnswerFile:
    """kept: the ids that were answered or abstained from before. counts: all lines of the file by state."""

    def __init__(self, file: BinaryIO, kept: set[str], counts: Counter[str]) -> None:
        self.file, self.kept, self.counts = file, kept, counts

    def write(self, answer: Answer) -> None:
        """Append one answer; after this it survives the end of the process."""
        self.file.write(json.dumps(answer.to_json()).encode() + b"\n")
        self.file.flush()
        self.counts[state(answer.unscored, answer.abstained)] += 1


def state(unscored: str | None, abstained: bool) -> str:
    """One of "answered", "abstained" and "unscored"."""
    return "unscored" if unscored else "abstained" if abstained else "answered"


@contextmanager
def answer_file(path: Path, resume: bool = True) -> Iterator[AnswerFile]:
    """Open a file of answers for more of them.

    What it holds already stays, but for the unscored, which are to be tried again, and for a torn last line. Without
    `resume` it starts empty. Raises QuestionError for a file that holds something else, ConfigError for one that cannot
    be written or that another run is writing.
    """
    if path.is_dir():
        raise ConfigError(path, "a JSONL file to write", "a folder", "name a file")
    kept: set[str] = set()
    counts: Counter[str] = Counter()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.open("ab")  # also makes the file, so that there is something to lock
    except OSError as error:
        found = error.strerror or str(error)
        raise ConfigError(path, "a file that can be written", found, "name another file") from None
    with before:
        _lock(before, path)
        with replacing(path) as temporary, temporary.open("wb") as copy:
            for row, line in _rows(path) if resume else ():
                if not row.get("unscored") and row["id"] not in kept:
                    kept.add(row["id"])
                    counts[state(None, row.get("abstained", False))] += 1
                    copy.write(line)
        with path.open("ab") as file:
            _lock(file, path)
            yield AnswerFile(file, kept, counts)


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every answer with its line; never more than a line in memory."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                if isinstance(row["id"], str) and "unscored" in row:
                    yield row, line if line.endswith(b"\n") else line + b"\n"
                    continue
            except (ValueError, KeyError, TypeError, RecursionError):
                if not line.endswith(b"\n") and line.startswith(START[: len(line)]):
                    return
            todo = "name another file, or pass --no-resume to start over"
            raise QuestionError(f"{path}:{number}", "an answer as JSON", "something else", todo)


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep other runs off the file until it is closed; a file system without locks gives none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        todo = "wait for it, or give this run a file of its own"
        raise ConfigError(path, "a file of one run", "another run that is writing it", todo) from None
    except OSError:
        pass
