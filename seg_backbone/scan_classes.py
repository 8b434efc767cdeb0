"""Classes of whole scans, in the files of FLARE26's joint task: what is asked, what is known of a case, what was found.

dataset.json   `classification_labels`: task -> number -> name, {"malignancy": {"0": "benign", "1": "malignant"}}.
cls_data.csv   in the dataset's folder: `identifier` (the case) and a column a task with the number or the name of its
               class. A single task may stand under `label`, several as a list of numbers there ("[1, 0]"). An empty
               cell and -1 mean: not known.
results.csv    `identifier,probs`: of two classes the probability of the second one, else "[p0, p1, ...]". Of several
               tasks there is a line each, with a third column `task`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from seg_backbone.errors import LabelError
from seg_backbone.io.atomic import replacing

CLASS_FILE, RESULT_FILE = "cls_data.csv", "results.csv"
UNKNOWN = -1
NOT_KNOWN = ("", "-1", "-1.0", "nan", "na", "n/a", "none")

Tasks = dict[str, tuple[str, ...]]  # task -> names of its classes, in the order of their numbers
Probabilities = dict[str, dict[str, float]]  # task -> class -> probability; a task's sum to 1


def read_tasks(description: str | Path) -> Tasks:
    """The tasks of a dataset.json; none where it has no `classification_labels`. Raises LabelError."""
    try:
        stated = json.loads(Path(description).read_text(encoding="utf-8")).get("classification_labels") or {}
        tasks = {}
        for task, names in stated.items():
            numbers = sorted(int(number) for number in names)
            if numbers != list(range(len(numbers))) or len(set(names.values())) != len(names) or len(names) < 2:
                raise ValueError(f"of {task}: {names}")
            tasks[str(task)] = tuple(str(names[str(number)]) for number in numbers)
        return tasks
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        example = 'task -> number from 0 on -> name, at least two: {"malignancy": {"0": "benign", "1": "malignant"}}'
        raise LabelError(description, f"`classification_labels` as {example}", str(error), "correct it") from None


def read_scan_classes(
    path: str | Path, tasks: Mapping[str, Sequence[str]], tell: Callable[[LabelError], None] | None = None
) -> dict[str, dict[str, int]]:
    """Case -> task -> number of its class, of a cls_data.csv; what is not known is left out.

    Raises LabelError for a missing file or column, a case that comes up twice, and a class that a task does not have.
    tell: called with every faulty line, which is left out then; a missing file or column still raises.
    """
    known: dict[str, dict[str, int]] = {}
    for line, row in _rows(path, "scan classes, one case a line"):
        _require_columns(path, row, tasks)
        try:
            case = _cell(row, "identifier")
            if not case or case in known:
                found = "none" if not case else f"{case} again"
                raise LabelError(path, f"another `identifier` in line {line}", found, "give every case one line")
            cells = {task: text for task, text in _cells(path, line, row, tasks) if text.casefold() not in NOT_KNOWN}
            known[case] = {task: _number(path, line, task, tasks[task], text) for task, text in cells.items()}
        except LabelError as error:
            if tell is None:
                raise
            tell(error)
    return known


def _require_columns(path: str | Path, row: dict[str, str], tasks: Mapping[str, Sequence[str]]) -> None:
    """Raises LabelError for a csv that has a column neither for each task nor for all."""
    missing = [task for task in tasks if task not in row]
    if missing and "label" not in row:
        expected = f"a column for each task of dataset.json ({', '.join(tasks)}), or `label`"
        raise LabelError(
            path, expected, f"no {', '.join(missing)} among {', '.join(map(str, row))}", "name the columns so"
        )


def _cells(
    path: str | Path, line: int, row: dict[str, str], tasks: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """(task, what is written about it) of one line."""
    if set(tasks) <= set(row):
        yield from ((task, _cell(row, task)) for task in tasks)
        return
    text = _cell(row, "label")
    listed = [part.strip(" '\"") for part in text.strip("[]").split(",")] if text.startswith("[") else [text]
    if text.casefold() in NOT_KNOWN:
        listed = [""] * len(tasks)
    if len(listed) != len(tasks):
        expected = f"a class for each of {', '.join(tasks)} in line {line}"
        raise LabelError(path, expected, repr(text), 'write "[1, 0]", or a column a task')
    yield from zip(tasks, listed, strict=True)


def _number(path: str | Path, line: int, task: str, names: Sequence[str], text: str) -> int:
    """The number of a class by number or name."""
    try:
        number = float(text)  # programs write 1.0 for 1 where other cells are empty
        if number == int(number) and 0 <= number < len(names):
            return int(number)
    except (ValueError, OverflowError):
        folded = [name.casefold() for name in names]
        if text.casefold() in folded:
            return folded.index(text.casefold())
    classes = ", ".join(f"{number} {name}" for number, name in enumerate(names))
    expected = f"a class of {task} in line {line} ({classes})"
    raise LabelError(path, expected, repr(text), "correct it, or leave the cell empty where it is not known")


def write_results(path: str | Path, found: Mapping[str, Probabilities]) -> Path:
    """Write a results.csv. found: case -> what the model says of it, the same tasks for every case."""
    several = any(len(tasks) > 1 for tasks in found.values())
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["identifier", "probs", *(["task"] if several else [])])
        for case, tasks in found.items():
            for task, probabilities in tasks.items():
                numbers = [round(value, 6) for value in probabilities.values()]
                text = str(numbers[1]) if len(numbers) == 2 else str(numbers)
                writer.writerow([case, text, *([task] if several else [])])
    return Path(path)


def read_results(path: str | Path, tasks: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[float]]]:
    """Case -> task -> probability of each class, of a results.csv; `task` may be left out where there is one.

    Raises LabelError for a missing file or column, a line that comes up twice, a task that is not among `tasks`, and
    anything but as many probabilities as it has classes, from 0 to 1 and with the sum 1 (within 0.01).
    """
    found: dict[str, dict[str, list[float]]] = {}
    for line, row in _rows(path, "probabilities, `identifier,probs`"):
        case, task = _cell(row, "identifier"), _cell(row, "task") or (next(iter(tasks)) if len(tasks) == 1 else "")
        if task not in tasks:
            expected = f"a column `task` with one of {', '.join(tasks)}"
            raise LabelError(path, expected, f"{task!r} in line {line}", "correct it")
        if not case or task in found.setdefault(case, {}):
            raise LabelError(path, "one line a case and task", f"{case!r} again in line {line}", "drop one of them")
        found[case][task] = _probabilities(path, line, _cell(row, "probs"), tasks[task])
    return found


def _probabilities(path: str | Path, line: int, text: str, names: Sequence[str]) -> list[float]:
    """One probability a class; a single number is that of the second of two."""
    try:
        numbers = [float(part) for part in text.strip("[] ").replace(",", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and len(names) == 2:
        numbers = [1 - numbers[0], numbers[0]]
    whole = len(numbers) == len(names) and all(0 <= number <= 1 for number in numbers)
    if not whole or not math.isclose(sum(numbers), 1, abs_tol=0.01):
        expected = f"{len(names)} probabilities with the sum 1 in line {line} (or that of class 1 of two)"
        raise LabelError(path, expected, repr(text), "correct it")
    return numbers


def _rows(path: str | Path, content: str) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> cell) of a csv with a column `identifier`."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            if "identifier" not in columns:
                found = f"the columns {', '.join(columns)}" if columns else "an empty file"
                raise LabelError(path, "a column `identifier`", found, "name the column of the cases so")
            for row in reader:
                yield reader.line_num, row
    except FileNotFoundError:
        raise LabelError(path, f"a csv of {content}", "no such file", "check the path") from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise LabelError(path, f"a csv of {content}", str(error), "save it as UTF-8 csv") from None


def _cell(row: Mapping[str, str], column: str) -> str:
    """A cell without blanks around it; "" where the line has none."""
    return (row.get(column) or "").strip()
