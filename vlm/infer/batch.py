"""Questions in, answers out, one JSON object a line, each written as soon as it is known; a second run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seg_backbone.errors import InputError, QuestionError
from seg_backbone.io import SUFFIXES, case_name, replacing
from vlm.infer.blind import BlindEngine
from vlm.infer.engine import Engine
from vlm.schema import Answer, Question, scan_questions


@dataclass(frozen=True)
class BatchResult:
    """How many questions were answered now, were answered before, and failed now; the lines of the file left out."""

    answered: int
    kept: int
    unscored: int
    left_out: tuple[int, ...] = ()


def run_batch(
    engine: Engine | BlindEngine,
    questions: Path,
    answers: Path,
    scans: Path | None = None,
    masks: Path | None = None,
    labels: dict[str, int] | None = None,
    limit: int | None = None,
    resume: bool = True,
    fast: bool = False,
    progress: Callable[[int, int], None] | None = None,
    skip_bad: bool = False,
) -> BatchResult:
    """Answer the questions of a JSONL file, scan by scan, each scan opened once.

    scans: folder that `image` is relative to (default: the question file's). masks: folder of CASE.nii.gz (or another
    format) to answer from instead of predicted masks; labels: their class name -> id. A question that fails is written
    with `unscored` set and tried again by the next run; answered ones are kept. skip_bad: leave faulty lines out, see
    good_questions. Raises QuestionError for a file that does not fit.
    """
    todo, faults = good_questions(questions, skip_bad)
    todo = todo[:limit]
    done = _finished(answers) if resume else {}
    kept = [q for q in todo if q.id in done]
    groups: dict[str, list[Question]] = {}
    for question in todo:
        if question.id not in done:
            groups.setdefault(question.image, []).append(question)
    _rewrite(answers, list(done.values()))
    root = scans or questions.parent
    count = failed = 0
    with answers.open("a", encoding="utf-8") as out:
        for image, asked in groups.items():
            scan: Any = None
            fault = None
            if isinstance(engine, Engine):
                try:
                    mask = _mask_of(root / image, masks) if masks else None
                    scan = engine.open(root / image, mask, labels, fast=fast)
                except (InputError, OSError) as error:
                    fault = str(error)
            for question in asked:
                if fault is None:
                    answer = engine.ask(scan, question) if isinstance(engine, Engine) else engine.ask(question)
                else:
                    answer = Answer(question.id, question.type or "open", "", unscored=fault)
                    failed += 1
                out.write(json.dumps(answer.to_json()) + "\n")
                out.flush()
                count += 1
                if progress:
                    progress(len(kept) + count, len(todo))
    return BatchResult(count - failed, len(kept), failed, tuple(faults))


def good_questions(path: Path, skip_bad: bool = False) -> tuple[list[Question], dict[int, QuestionError]]:
    """The questions of a file, and line number -> fault of the lines that hold none.

    Without `skip_bad` there are no faults: the first one is raised as QuestionError, with the number of the others.
    """
    good, faults = [], {}
    for number, question in scan_questions(path):
        if isinstance(question, QuestionError):
            faults[number] = question
        else:
            good.append(question)
    if faults and not skip_bad:
        first = next(iter(faults.values()))
        more = f" ({len(faults) - 1} more faulty lines)" if len(faults) > 1 else ""
        todo = f"{first.todo}{more}; `vlm data check` lists every fault, --skip-bad leaves them out"
        raise QuestionError(first.source, first.expected, first.found, todo)
    return good, faults


def _mask_of(scan: Path, masks: Path) -> Path:
    """CASE.nii.gz, or the same name in another format where that is the one that is there."""
    named = [masks / f"{case_name(scan)}{suffix}" for suffix in SUFFIXES]
    return next((path for path in named if path.is_file()), named[0])


def _finished(path: Path) -> dict[str, dict[str, Any]]:
    """Answers already there, by id, without the unscored; a torn last line (a killed run) is dropped."""
    if not path.is_file():
        return {}
    found = {}
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not row.get("unscored"):
                found[row["id"]] = row
        except (ValueError, KeyError, TypeError, AttributeError):
            if number < len(lines):
                todo = "name another file, or pass --no-resume to start over"
                raise QuestionError(f"{path}:{number}", "an answer as JSON", "something else", todo) from None
    return found


def _rewrite(path: Path, rows: list[dict[str, Any]]) -> None:
    """Leave just these rows in the file, atomically."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
