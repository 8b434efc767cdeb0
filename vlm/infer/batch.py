"""Questions in, answers out, one JSON object a line, each written as soon as it is known; a second run goes on.

A *runner* answers the questions that are left, in any order: `answer_here` on this machine, `answer_on_ray`
(`distributed.py`) on a cluster. What is kept, written and counted is the same for both.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from seg_backbone.errors import InputError
from seg_backbone.io import SUFFIXES, case_name, read_mask, read_volume
from seg_backbone.volume import Mask, Volume
from vlm.infer.answer_file import answer_file, state
from vlm.infer.blind import BlindEngine
from vlm.infer.engine import Engine, find_vlm
from vlm.infer.index import QuestionIndex, ScanQuestions
from vlm.infer.manifest import Manifest, model_identity
from vlm.llm import DEFAULT_LLM
from vlm.schema import Answer, Question

Runner = Callable[[QuestionIndex, list[ScanQuestions]], Iterator[Answer]]
Inputs = tuple[Volume, Mask | None]
SAVE_SECONDS = 30.0  # between two states of the manifest


@dataclass(frozen=True)
class Files:
    """Where the scans of a question file are, and what to answer from.

    scans: folder that `image` is relative to. masks: folder of CASE.nii.gz (or another format) to answer from instead
    of predicted masks; labels: their class name -> id. fast: fewer overlapping windows.
    """

    scans: Path
    masks: Path | None = None
    labels: dict[str, int] | None = None
    fast: bool = False

    def read(self, image: str) -> Inputs:
        """The scan and its mask. Raises InputError or OSError."""
        volume = read_volume(self.scans / image)
        return volume, read_mask(self._mask(self.scans / image), self.labels) if self.masks else None

    def absolute(self) -> Files:
        """The same from any working directory."""
        return replace(self, scans=self.scans.absolute(), masks=self.masks and self.masks.absolute())

    def for_model(self, engine: Engine) -> Files:
        """With the names of the model's own classes where the masks came without any."""
        return replace(self, labels=self.labels or engine.segmenter.plan.labels)

    def _mask(self, scan: Path) -> Path:
        """CASE.nii.gz, or the same name in another format where that is the one that is there."""
        assert self.masks is not None
        named = [self.masks / f"{case_name(scan)}{suffix}" for suffix in SUFFIXES]
        return next((path for path in named if path.is_file()), named[0])


@dataclass(frozen=True)
class Loader:
    """Which engine answers, told in words so that it can be sent to another machine. blind: without the scans."""

    model: str | Path = "default"
    device: str = "auto"
    blind: bool = False

    def __call__(self) -> Engine | BlindEngine:
        """Load it. Raises CheckpointError."""
        return BlindEngine() if self.blind else Engine.load(self.model, self.device)

    def absolute(self) -> Loader:
        """The same from any working directory."""
        return self if self.blind else replace(self, model=find_vlm(self.model).absolute())

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, for a manifest; loads nothing. Raises CheckpointError."""
        return {"name": f"{DEFAULT_LLM} (no image)"} if self.blind else model_identity(self.model)


@dataclass(frozen=True)
class BatchResult:
    """How many questions were answered, abstained from and failed now; kept: had an answer before.

    left_out: the lines of the question file that hold no question.
    """

    answered: int
    abstained: int
    unscored: int
    kept: int
    left_out: tuple[int, ...] = ()


def run_batch(
    runner: Runner,
    questions: QuestionIndex,
    answers: Path,
    resume: bool = True,
    manifest: Manifest | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BatchResult:
    """Answer what the file of answers does not answer yet.

    A question that fails is written with `unscored` set and tried again by the next run. manifest: kept beside the
    answers, and checked first. progress: called with (questions done, all). Raises ConfigError for answers that other
    weights, questions or settings gave, see Manifest, and what answer_file raises.
    """
    if manifest:
        manifest.check(resume)
    now: Counter[str] = Counter()
    with answer_file(answers, resume) as out:
        left = [scan.without(out.kept) for scan in questions.scans]
        left = [scan for scan in left if scan.ids]
        total, kept = len(questions), len(questions) - sum(len(scan.ids) for scan in left)
        finished, saved = False, time.monotonic()
        if manifest:
            manifest.save(out.counts, now)
        if progress:
            progress(kept, total)
        try:
            for done, answer in enumerate(runner(questions, left) if left else (), start=kept + 1):
                out.write(answer)
                now[state(answer.unscored, answer.abstained)] += 1
                if progress:
                    progress(done, total)
                if manifest and time.monotonic() - saved > SAVE_SECONDS:
                    manifest.save(out.counts, now)
                    saved = time.monotonic()
            finished = True
        finally:
            if manifest:
                manifest.save(out.counts, now, finished)
    return BatchResult(now["answered"], now["abstained"], now["unscored"], kept, tuple(questions.faults))


def answer_here(
    load: Callable[[], Engine | BlindEngine], files: Files, index: QuestionIndex, scans: list[ScanQuestions]
) -> Iterator[Answer]:
    """Answer on this machine, scan by scan; a thread reads the next scan while questions about one are answered."""
    engine = load()
    if isinstance(engine, BlindEngine):
        for scan in scans:
            yield from answer_each(engine.ask, index.read(scan))
        return
    files = files.for_model(engine)
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(files.read, scans[0].image)
        for number, scan in enumerate(scans):
            reading = ahead
            wait([reading])
            if number + 1 < len(scans):
                ahead = reader.submit(files.read, scans[number + 1].image)
            yield from answer_scan(engine, reading.result, index.read(scan), files.fast)


def answer_scan(
    engine: Engine, read: Callable[[], Inputs], questions: Iterable[Question], fast: bool = False
) -> Iterator[Answer]:
    """Open a scan once and answer its questions. A scan that cannot be opened leaves every one of them unscored."""
    try:
        scan = engine.open(*read(), fast=fast)
    except Exception as error:  # whatever is wrong with one scan, the others are still answered
        fault = _one_line(error)
        for question in questions:
            yield unscored(question, fault)
    else:
        yield from answer_each(partial(engine.ask, scan), questions)


def answer_each(ask: Callable[[Question], Answer], questions: Iterable[Question]) -> Iterator[Answer]:
    """One answer a question; an error makes it an unscored one."""
    for question in questions:
        try:
            answer = ask(question)
        except Exception as error:
            answer = unscored(question, _one_line(error))
        yield answer


def unscored(question: Question, fault: str) -> Answer:
    """What is written for a question that failed."""
    return Answer(question.id, question.type or "open", "", unscored=fault)


def _one_line(error: Exception) -> str:
    """A user's mistake in its own words; anything else with the name of the exception."""
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError | OSError) and text else f"{type(error).__name__}: {text}"
