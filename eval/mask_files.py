"""Which files are scored against which: folders of label maps into cases, and what their values mean."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.jsonl import read_jsonl
from eval.protocols import Protocol
from seg_backbone.errors import InputError, LabelError
from seg_backbone.io.formats import SUFFIXES, is_dicom
from seg_backbone.labels import canonical, read_labels


@dataclass(frozen=True)
class Case:
    """One scan's masks. prediction: None where there is none. annotated: the classes drawn in it, None for all."""

    name: str
    reference: Path
    prediction: Path | None
    annotated: frozenset[str] | None = None


@dataclass(frozen=True)
class Pairing:
    """The cases that a protocol scores, and the names of those that only one folder has."""

    cases: list[Case]
    missing: list[str]
    extra: list[str]


def pair_cases(
    pred_dir: str | Path,
    ref_dir: str | Path,
    rules: Protocol,
    allow_missing: bool = False,
    annotated: dict[str, list[str]] | None = None,
) -> Pairing:
    """Predictions and references of one name, by name; see `Protocol` for what becomes of the others.

    allow_missing: where the rules refuse a missing or an extra case although no script is the reason, a missing one
    scores 0 and an extra one is left out. Raises InputError: nothing to score, cases that the rules refuse, or
    synthetic ones.
    """
    predictions, references = mask_files(pred_dir), mask_files(ref_dir)
    require_real(ref_dir, references)
    missing = [case for case in references if case not in predictions]
    extra = [case for case in predictions if case not in references]
    if not references:
        raise InputError(ref_dir, "masks CASE.nii.gz", "none", "name the folder that holds them")
    if len(missing) == len(references):
        found = "not one of them" if predictions else "no mask at all"
        raise InputError(pred_dir, f"masks named as in {ref_dir}", found, "check the two folders")
    lenient = allow_missing and not rules.official
    refused = []
    if missing and rules.missing == "refuse" and not lenient:
        refused.append(f"no prediction for {some(missing)}")
    if extra and rules.extra == "refuse" and not lenient:
        refused.append(f"no reference for {some(extra)}")
    if refused:
        todo = "complete the folders, or remove what is extra"
        if not rules.official:
            todo += ", or pass --allow-missing"
        raise InputError(pred_dir, f"the cases of {ref_dir}", " and ".join(refused), todo)
    cases = [
        Case(
            name,
            reference,
            predictions.get(name),
            frozenset(map(canonical, annotated[name])) if annotated is not None and name in annotated else None,
        )
        for name, reference in references.items()
        if name in predictions or rules.missing != "skip"
    ]
    return Pairing(cases, missing, extra)


def mask_files(folder: str | Path) -> dict[str, Path]:
    """Case name -> label map of every NIfTI, NRRD, MetaImage, DICOM zip or DICOM folder in a folder, sorted by name.

    Single DICOM files are passed over: they are segmentation objects beside the masks. Raises InputError: no folder, a
    name twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise InputError(folder, "a folder of masks", found, "check the path")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")
        if path.name.startswith(".") or not (is_dicom(path) if path.is_dir() else suffix):
            continue
        case = path.name[: len(path.name) - len(suffix)]
        if case in files:
            raise InputError(folder, "one mask a case", f"{files[case].name} and {path.name}", "remove one of them")
        files[case] = path
    return dict(sorted(files.items()))


def reference_labels(rules: Protocol, labels: dict[str, int] | None, ref_dir: str | Path) -> dict[str, int]:
    """Class -> id in the references: the protocol's own, those given, else of a dataset.json in or beside `ref_dir`.

    Raises LabelError: ids that the protocol fixes otherwise, no labels anywhere, or none but background.
    """
    if labels is not None:
        labels = {canonical(name): value for name, value in labels.items() if value != 0}
    if rules.labels is not None:
        _require_fixed(rules, labels or {}, "--labels")
        return rules.labels
    if labels is None:
        files = [place / "dataset.json" for place in (Path(ref_dir), Path(ref_dir).resolve().parent)]
        found = next((path for path in files if path.is_file()), None)
        if found is None:
            raise LabelError(ref_dir, "a dataset.json in or beside it", "none", "pass --labels FILE")
        labels = read_labels(found)
    if not labels:
        raise LabelError("--labels", "at least one class", "none but background", "name the classes to score")
    return labels


def prediction_labels(
    rules: Protocol, given: dict[str, int] | None, ref_labels: dict[str, int], pred_dir: str | Path
) -> dict[str, int]:
    """Class -> id in the predictions: those given, of PRED_DIR/labels.json, else those of the references.

    Raises LabelError: ids that the protocol fixes otherwise, or not one class of the references.
    """
    if given is None and (Path(pred_dir) / "labels.json").is_file():
        given = read_labels(Path(pred_dir) / "labels.json")
    if given is None:
        return ref_labels
    given = {canonical(name): value for name, value in given.items() if value != 0}
    if rules.labels is not None:
        _require_fixed(rules, given, str(Path(pred_dir) / "labels.json"))
        return rules.labels
    if not set(given) & set(ref_labels):
        expected = f"one of the classes {some(ref_labels)}"
        raise LabelError(pred_dir, expected, some(given) or "none", "check --labels and --pred-labels")
    return given


def read_annotated(manifest: str | Path, ref_dir: str | Path) -> dict[str, list[str]]:
    """Case -> classes drawn in it, from a manifest.jsonl with `case`, `annotated` and optional `dataset` on each line.

    Where one case name occurs in several datasets, the lines count whose dataset is a folder on the path of `ref_dir`.
    Names come back canonical; a line whose `annotated` is not a list says nothing and is passed over.
    Raises QuestionError (broken line) or InputError (no case, two answers for a case).
    """
    table: dict[str, list[str]] = {}
    for number, line in _own_lines(manifest, ref_dir):
        where = f"{manifest}, line {number}"
        if not isinstance(line.get("case"), str):
            raise InputError(where, "a case name", json.dumps(line)[:80], "complete the line")
        if not isinstance(line.get("annotated"), list):
            continue
        classes = sorted({canonical(str(name)) for name in line["annotated"]})
        if table.setdefault(line["case"], classes) != classes:
            raise InputError(
                where, "one list a case", f"a second one for {line['case']}", "give each dataset its manifest"
            )
    return table


def read_patients(manifest: str | Path, ref_dir: str | Path) -> dict[str, str]:
    """Case -> patient, of the lines of a manifest.jsonl that name both; lines are chosen as in `read_annotated`."""
    lines = [line for _, line in _own_lines(manifest, ref_dir)]
    return {str(line["case"]): str(line["patient"]) for line in lines if line.get("case") and line.get("patient")}


def find_manifest(ref_dir: str | Path) -> Path | None:
    """The manifest.jsonl in `ref_dir`, beside it, or beside the dataset folder that holds it."""
    folder = Path(ref_dir).resolve()
    candidates = (place / "manifest.jsonl" for place in (folder, *folder.parents[:2]))
    return next((path for path in candidates if path.is_file()), None)


def require_real(ref_dir: str | Path, cases: Collection[str]) -> None:
    """Raises InputError where a reference case holds synthetic tumours: they are to train on, not to be measured by.

    It does where `"synthetic": true` stands in a dataset.json in or beside the folder, or in the line of the case in
    the manifest that `find_manifest` finds (of a dataset that is a folder on the path of `ref_dir`).
    """
    marked = set()
    for place in (Path(ref_dir), Path(ref_dir).resolve().parent):
        try:
            data = json.loads((place / "dataset.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        marked |= set(cases) if isinstance(data, dict) and data.get("synthetic") else set()
    if manifest := find_manifest(ref_dir):
        parts = Path(ref_dir).resolve().parts
        with suppress(InputError):  # who needs the manifest is told of its faults
            marked |= {
                str(line.get("case"))
                for _, line in read_jsonl(manifest)
                if line.get("synthetic") and line.get("dataset") in parts
            }
    if found := sorted(marked & set(cases)):
        raise InputError(ref_dir, "real scans", f"synthetic tumours in {some(found)}", "leave these cases out")


def _own_lines(manifest: str | Path, ref_dir: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, line) of the lines whose dataset is a folder on the path of `ref_dir`; all where there is none."""
    parts = Path(ref_dir).resolve().parts
    lines = list(read_jsonl(manifest))
    return [(number, line) for number, line in lines if line.get("dataset") in parts] or lines


def some(names: Iterable[str], most: int = 12, separator: str = ", ") -> str:
    """The names in a sentence: all, or the first and how many more."""
    names = list(names)
    return separator.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _require_fixed(rules: Protocol, labels: dict[str, int], source: str) -> None:
    fixed = rules.labels or {}
    wrong = [f"{name} = {value}" for name, value in labels.items() if name in fixed and fixed[name] != value]
    if wrong:
        todo = f"segment with --labels {rules.name}, or use protocol corrected"
        raise LabelError(source, f"the ids that {rules.name} fixes", some(wrong), todo)
