"""Which questions of a file are about which scan: every line is checked once, and read again when its scan comes.

Of a million questions only the ids and the places of their lines are held, so memory does not grow with their texts.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from seg_backbone.errors import ConfigError, QuestionError
from vlm.schema import Question, locate_questions, question_at

# Opening a scan on a CPU takes as long as answering this many questions about it (6 s against 0.3 s measured on one
# core with the shipped model); only the balance of shards depends on it.
QUESTIONS_A_SCAN = 20


@dataclass(frozen=True)
class ScanQuestions:
    """The questions about one scan. image: as the first of them names it. starts: the byte where each line starts."""

    image: str
    ids: list[str] = field(default_factory=list)
    starts: array[int] = field(default_factory=lambda: array("Q"))

    def without(self, answered: Container[str]) -> ScanQuestions:
        """Those whose ids are not among the answered."""
        left = [(id, start) for id, start in zip(self.ids, self.starts, strict=True) if id not in answered]
        return replace(self, ids=[id for id, _ in left], starts=array("Q", [start for _, start in left]))


@dataclass(frozen=True)
class QuestionIndex:
    """The questions of a file, scan by scan in the order of their first question.

    faults: line number -> what is wrong, of the lines left out. part: as "1/4" where this is a shard.
    """

    path: Path
    scans: list[ScanQuestions]
    faults: dict[int, QuestionError]
    limit: int | None = None
    part: str | None = None

    def __len__(self) -> int:
        return sum(len(scan.ids) for scan in self.scans)

    def read(self, scan: ScanQuestions) -> Iterator[Question]:
        """The questions about a scan, from the file. Raises QuestionError where it is another file by now."""
        with self.path.open("rb") as file:
            for id, start in zip(scan.ids, scan.starts, strict=True):
                question = question_at(file, start)
                if question.id != id:
                    raise QuestionError(self.path, f"question {id!r}", f"{question.id!r}", "leave the file as it is")
                yield question

    def shard(self, number: int, count: int) -> QuestionIndex:
        """Part `number` (from 1) of `count`: whole scans, shared out by the work they make.

        The scan with the most work left goes to the shard that has the least (Graham's longest-processing-time rule),
        so every question is in exactly one shard and no shard has more than 4/3 of the best possible share. The parts
        depend on the file alone. Raises ConfigError for a number outside 1 to `count`.
        """
        if not 1 <= number <= count:
            raise ConfigError("--shard", "I/N with I from 1 to N", f"{number}/{count}", "count the shards from 1")
        loads = [(0, shard) for shard in range(1, count + 1)]
        mine = set()
        for place in sorted(range(len(self.scans)), key=lambda place: -len(self.scans[place].ids)):
            load, shard = heapq.heappop(loads)
            heapq.heappush(loads, (load + QUESTIONS_A_SCAN + len(self.scans[place].ids), shard))
            if shard == number:
                mine.add(place)
        return replace(self, scans=[self.scans[place] for place in sorted(mine)], part=f"{number}/{count}")


def index_questions(path: str | Path, skip_bad: bool = False, limit: int | None = None) -> QuestionIndex:
    """Check every line of a question file and note where each scan's questions are; with a limit the first ones only.

    skip_bad: leave faulty lines out. Without it the first is raised as QuestionError, with the number of the others.
    """
    path = Path(path)
    groups: dict[str, ScanQuestions] = {}
    faults: dict[int, QuestionError] = {}
    count = 0
    for number, start, question in locate_questions(path):
        if isinstance(question, QuestionError):
            faults[number] = question
        elif limit is None or count < limit:
            group = groups.get(question.image)
            if group is None:  # ./scan.nii.gz is scan.nii.gz
                group = groups.setdefault(str(Path(question.image)), ScanQuestions(question.image))
                groups[question.image] = group
            group.ids.append(question.id)
            group.starts.append(start)
            count += 1
    if faults and not skip_bad:
        first = next(iter(faults.values()))
        more = f" ({len(faults) - 1} more faulty lines)" if len(faults) > 1 else ""
        todo = f"{first.todo}{more}; `vlm data check` lists every fault, --skip-bad leaves them out"
        raise QuestionError(first.source, first.expected, first.found, todo)
    scans = list({id(group): group for group in groups.values()}.values())
    return QuestionIndex(path, scans, faults, limit)
