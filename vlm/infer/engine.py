"""Engine: load once, open a scan once, answer any number of questions about it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seg_backbone.errors import CheckpointError, QuestionError
from seg_backbone.intake import as_volume
from seg_backbone.io import read_mask
from seg_backbone.io.formats import is_dicom
from seg_backbone.lesions import Instances, find_instances
from seg_backbone.predict import Segmentation, Segmenter
from seg_backbone.volume import Mask, Volume, require_same_grid
from vlm.encoders import Encoder, build_encoder
from vlm.facts import FACTS
from vlm.heads import decode
from vlm.heads.choose import match_number, match_option
from vlm.heads.reading import Focus, Reading
from vlm.infer.comparisons import extents_compared, totals_compared
from vlm.infer.conversation import Conversation
from vlm.infer.mending import mend
from vlm.infer.rereading import reread
from vlm.infer.scope import not_understood, refusal, told_in_part, unclear, unmeasured
from vlm.infer.several import clauses_in, measures_in, ranks_in, statements_in, with_options
from vlm.model import CONFIG, Opened, VisionLanguageModel
from vlm.scene import Scene, build_scene
from vlm.schema import Answer, Question, check_type

SHIPPED = Path(__file__).parents[1] / "weights"
LONGEST_TEXT = 8000  # characters of a question and its options; one of 20000 takes minutes on a CPU


@dataclass(frozen=True, eq=False)
class Scan:
    """An opened scan.

    mask and instances: what answers are read from, the model's own or the one given. segmentation: the model's own.
    scene: what the language model was shown; opened: its cache of that.
    """

    volume: Volume
    mask: Mask
    instances: Instances
    segmentation: Segmentation
    scene: Scene
    opened: Opened
    given_mask: bool


class Engine:
    """A vision-language model, and the segmentation model and encoder it was trained with."""

    def __init__(self, model: VisionLanguageModel, segmenter: Segmenter, encoder: Encoder, version: str) -> None:
        self.model, self.segmenter, self.encoder, self.version = model, segmenter, encoder, version

    @staticmethod
    def load(name: str | Path = "default", device: str = "auto") -> Engine:
        """Load a model that ships by name, or a folder that `vlm train instruction` wrote. Raises CheckpointError."""
        folder = find_vlm(name)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = VisionLanguageModel.load(folder, device)
        segmenter = Segmenter.load(model.config.segmentation, device)
        encoder = build_encoder(model.config.encoder, segmenter, model.config.encoder_options)
        return Engine(model, segmenter, encoder, f"{model.config.name}@{segmenter.version}")

    def open(
        self,
        scan: str | Path | Volume | tuple[np.ndarray, np.ndarray],
        mask: str | Path | Mask | None = None,
        labels: dict[str, int] | None = None,
        modality: str | None = None,
        fast: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Scan:
        """Segment and encode a scan once. mask: answer from this label map, RTSTRUCT or DICOM-SEG instead; labels:
        class name -> id of a label map's file.

        Raises ScanError, GridError for a mask on another grid, LabelError for ids without a name.
        """
        volume = as_volume(scan, modality)
        given = None
        if mask is not None:
            if isinstance(mask, Mask):
                given = mask
            elif Path(mask).is_file() and is_dicom(Path(mask)):
                from vlm.data.structure_mask import read_structure_mask

                given = read_structure_mask(Path(mask), volume.grid)
            else:
                given = read_mask(mask, labels or self.segmenter.plan.labels)
            require_same_grid(volume, given)
        stages = self.encoder.shared_stages
        # with a given mask the network only serves the visual tokens
        fast = fast or given is not None
        segmentation = self.segmenter(volume, fast=fast, keep_stages=stages, progress=progress)
        used, instances, names = segmentation.mask, segmentation.instances, self.segmenter.plan.classes
        untrained = tuple(self.segmenter.untrained(volume.modality))
        if given is not None:
            used, instances, names, untrained = given, find_instances(given, volume), tuple(given.labels), ()
        features = segmentation.features if stages else self.encoder(volume)
        parts = (volume, instances, names, untrained, features, self.model.config.cells)
        scene = self.model.visible(build_scene(*parts))
        return Scan(volume, used, instances, segmentation, scene, self.model.open(scene), given is not None)

    def ask(
        self, scan: Scan, question: str | Question, type: str | None = None, options: tuple[str, ...] = ()
    ) -> Answer:
        """One answer with evidence. type: one of vlm.schema.TYPES, or None for the model to decide.

        Raises QuestionError for an unknown type or a text above LONGEST_TEXT characters. Everything else that cannot
        be answered is an abstention.
        """
        if isinstance(question, str):
            check_type(type, "question")
            question = Question("question", scan.volume.source, question, type, tuple(options))
        return self.reply(scan, question)[0]

    def reply(self, scan: Scan, question: Question, focus: Focus | None = None) -> tuple[Answer, Reading]:
        """The answer and how the question was read. focus: what a conversation knows about the question already."""
        length = len(question.question) + sum(map(len, question.options))
        if length > LONGEST_TEXT:
            found = f"{length} characters"
            raise QuestionError("question", f"at most {LONGEST_TEXT} characters with its options", found, "shorten it")
        started = time.perf_counter()
        given, question = question, with_options(replace(question, question=mend(question.question)))
        if statements := statements_in(question.options):
            return self._which_is_right(scan, question, statements, focus)
        if focus is None and (each := ranks_in(question)):
            return self._each(scan, each)
        if focus is None and (clauses := clauses_in(question)):
            return self._in_turn(scan, question, clauses)
        reading, off_topic = self.model.interpret(scan.scene, scan.opened, question, focus)
        if focus is None:
            reading, off_topic = reread(reading, off_topic, self.model.config.facts)
        if self.model.config.answers == "text":
            said = self.model.write(scan.scene, scan.opened, question)
            seconds = time.perf_counter() - started
            return Answer(question.id, question.type or "open", seconds=seconds, model=self.version, **said), reading
        kind = question.type if question.type not in (None, "open") else FACTS[reading.fact].kind
        reason = None if focus or re.search(r"\w", question.question) else "there is no question in it"
        reason = reason or refusal(scan.scene, reading.mention, reading.fact, off_topic, scan.given_mask)
        if focus is None:
            reason = reason or not_understood(reading) or unmeasured(reading) or unclear(reading)
        if reason:
            parts: dict[str, Any] = {
                "type": str(kind),
                "text": f"I cannot answer: {reason}.",
                "abstained": True,
                "reason": reason,
            }
            parts["confidence"] = off_topic if off_topic >= 0.5 else reading.fact_probability
        else:
            parts = {"type": str(kind)} | told_in_part(reading, _chosen(_told(reading), question), scan.given_mask)
        if question.options != given.options and (
            chosen := parts.get("choice") or "; ".join(parts.get("choices") or ())
        ):
            parts["text"] += f" Answer: {chosen}."
        seconds = time.perf_counter() - started
        return Answer(id=question.id, seconds=seconds, model=self.version, **parts), reading

    def _which_is_right(
        self, scan: Scan, question: Question, statements: tuple[str, ...], focus: Focus | None
    ) -> tuple[Answer, Reading]:
        """The first option whose statement is so, each judged as a yes/no question; an abstention where none is."""
        seconds = 0.0
        for option, statement in zip(question.options, statements, strict=True):
            answer, reading = self.reply(scan, replace(question, question=statement, options=(), type=None), focus)
            seconds += answer.seconds
            if answer.choice == "yes":
                text = f"{statement.rstrip('.')}. {re.sub('^Yes[:.,] ', '', answer.text)}"
                answer = replace(answer, type="classification", choice=option, text=text, seconds=seconds)
                return replace(answer, value=None, unit=None), reading
        reason = "none of the statements was found to be right"
        parts: dict[str, Any] = {"text": f"I cannot tell: {reason}.", "abstained": True, "reason": reason}
        return Answer(id=question.id, type="classification", seconds=seconds, model=self.version, **parts), reading

    def _each(self, scan: Scan, questions: tuple[Question, ...]) -> tuple[Answer, Reading]:
        """The answers to several questions as one, with the choices of all where each has one."""
        (first, reading), *others = (self.reply(scan, question) for question in questions)
        answers = [first, *(answer for answer, _ in others)]
        answer, choices = _as_one(answers, None), tuple(answer.choice for answer in answers if answer.choice)
        if len(choices) == len(answers) and questions[0].type is None:
            answer = replace(answer, type="multilabel", choice=None, choices=choices)
        return answer, reading

    def _in_turn(self, scan: Scan, question: Question, clauses: tuple[str, ...]) -> tuple[Answer, Reading]:
        """The answers to questions of which the later may lean on the earlier, as one; the reading is the first's."""
        first, reading = self.reply(scan, replace(question, question=clauses[0], type=None))
        if first.abstained:
            return first, reading
        talk = Conversation(self, scan)
        talk.turns.append(talk.turn(clauses[0], first, reading))
        return _as_one([first, *map(talk.ask, clauses[1:])], question), reading

    def stream(self, scan: Scan, question: str | Question) -> Iterator[str | Answer]:
        """The words of the answer's text one by one, then the Answer itself."""
        yield from self.ask(scan, question).stream()


def _as_one(answers: list[Answer], question: Question | None) -> Answer:
    """The sentences and the evidence of all answers; all else is that of the first that is no abstention, of the type
    that the question declares where one has it.
    """
    told = [answer for answer in answers if not answer.abstained] or answers
    first = next((answer for answer in told if question and answer.type == question.type), told[0])
    evidence = {item["instance"]: item for answer in answers for item in answer.evidence}
    return replace(
        first,
        id=answers[0].id,
        text=" ".join(answer.text for answer in answers),
        evidence=tuple(evidence.values()),
        confidence=min(answer.confidence for answer in answers),
        seconds=sum(answer.seconds for answer in answers),
    )


def _told(reading: Reading) -> dict[str, Any]:
    """The parts of an answer; of several measures those of the first, and the sentences of all."""
    if compared := extents_compared(reading) or totals_compared(reading):
        return compared
    parts, *more = (decode(replace(reading, fact=fact)) for fact in measures_in(reading))
    return parts | {"text": " ".join([parts["text"], *(other["text"] for other in more)])}


def _chosen(parts: dict[str, Any], question: Question) -> dict[str, Any]:
    """The parts of an answer, with the option that a number fits or that names what the boxes hold, where the question
    has options.
    """
    value, found = parts.get("value"), {box["label"] for box in parts.get("boxes") or ()}
    if len(found) == 1 and question.options and parts.get("choice") is None:
        return parts | {"choice": match_option(found.pop(), question.options)}
    if value is None or not question.options or parts.get("choice") is not None:
        return parts
    return parts | {"choice": match_number(float(value), parts.get("unit"), question.options)}


def find_vlm(name: str | Path) -> Path:
    """The folder of a vision-language model: as given, or of one that ships. Raises CheckpointError."""
    folder = Path(name) if (Path(name) / CONFIG).is_file() else SHIPPED / str(name)
    if not (folder / CONFIG).is_file():
        names = sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}"))
        raise CheckpointError(name, f"a model folder with {CONFIG}", "none", f"models that ship: {names}")
    return folder
