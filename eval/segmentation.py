"""Folders of label maps against a reference folder: DSC, NSD and more per case and class, by a named protocol.

`protocols.py` has the rules, `mask_files.py` finds the cases and the meaning of their values, `mask_scores.py` scores
one case with the measures of `overlap.py` and `lesionwise.py`, `mask_results.py` sums the cases up. A class that a case
does not annotate, a missing file and a class that neither side has are states, not numbers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from eval.mask_files import Case, Pairing, pair_cases, prediction_labels, reference_labels, some
from eval.mask_results import MaskResults
from eval.mask_scores import CaseScores, Rules, score_case
from eval.mask_store import Store
from eval.protocols import PROTOCOLS
from seg_backbone.errors import ConfigError, InputError
from seg_backbone.labels import canonical


def evaluate_masks(
    pred_dir: str | Path,
    ref_dir: str | Path,
    protocol: str = "corrected",
    labels: dict[str, int] | None = None,
    *,
    pred_labels: dict[str, int] | None = None,
    annotated: dict[str, list[str]] | None = None,
    patients: dict[str, str] | None = None,
    tolerances_mm: dict[str, float] | None = None,
    allow_missing: bool = False,
    jobs: int = 1,
    keep_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> MaskResults:
    """Score every label map of `pred_dir` against the one of that name in `ref_dir`; any format that can be read.

    labels: reference class -> id; None for the protocol's own or a dataset.json in or beside `ref_dir`.
    pred_labels: the prediction's class -> id; None for PRED_DIR/labels.json, else the same as `labels`. Classes are
    matched by canonical name: one the prediction does not know counts as empty there (noted), one the reference does
    not know is ignored. The flare protocols fix the ids, so labels that say otherwise raise.
    annotated: case -> classes drawn in it; a case not listed has them all (noted). tolerances_mm: class -> NSD
    tolerance in place of the protocol's. allow_missing: score missing cases 0 and leave extra ones out. These three go
    with the protocol `corrected` only. patients: case -> patient, for intervals; a case not listed is a patient.
    jobs: processes that share the cases. keep_dir: a folder for the scores of single cases while the run lasts; what it
    holds of the same files and rules is not scored again. progress: called with (cases done, cases).

    Raises ConfigError (unknown protocol, an option that it has no place for), LabelError, GridError, ScanError,
    InputError (no case, or cases that the protocol refuses; where several cannot be scored, all by name).
    """
    if protocol not in PROTOCOLS:
        raise ConfigError("--protocol", f"one of {', '.join(PROTOCOLS)}", repr(protocol), "name one of them")
    official = PROTOCOLS[protocol].official
    for option, given in (
        ("--manifest", annotated),
        ("--tolerances", tolerances_mm),
        ("--allow-missing", allow_missing),
    ):
        if official and given not in (None, False):
            raise ConfigError(option, "protocol corrected", f"protocol {protocol}", "leave it out: its rules are fixed")
    ref_labels = reference_labels(PROTOCOLS[protocol], labels, ref_dir)
    rules = Rules(
        PROTOCOLS[protocol],
        ref_labels,
        prediction_labels(PROTOCOLS[protocol], pred_labels, ref_labels, pred_dir),
        {canonical(name): float(value) for name, value in (tolerances_mm or {}).items()},
    )
    if unknown := [name for name in rules.tolerances_mm if name not in ref_labels]:
        raise ConfigError("--tolerances", f"some of the classes {some(ref_labels)}", some(unknown), "correct the names")
    pairing = pair_cases(pred_dir, ref_dir, rules.protocol, allow_missing, annotated)

    results: list[CaseScores] = []
    refused: list[InputError] = []
    store = Store(Path(keep_dir), rules) if keep_dir is not None else None
    for done, result in enumerate(_score_all(pairing.cases, rules, jobs, store), 1):
        if isinstance(result, InputError):
            refused.append(result)
        else:
            results.append(result)
        if progress is not None:
            progress(done, len(pairing.cases))
    if len(refused) == 1:
        raise refused[0]
    if refused:
        found = f"{len(refused)} of {len(pairing.cases)} that cannot: {some(map(str, refused), separator='; ')}"
        raise InputError(pred_dir, "cases that can be scored", found, "mend or leave out these")
    if store is not None:
        store.clear(pairing.cases)
    return MaskResults(
        rules,
        [score for result in results for score in result.scores],
        len(results),
        pairing.missing,
        [*_notes(pairing, rules, annotated), *_remarks(results)],
        str(pred_dir),
        str(ref_dir),
        patients or {},
        seed=seed,
        resamples=resamples,
    )


def _score_all(cases: list[Case], rules: Rules, jobs: int, store: Store | None) -> Iterator[CaseScores | InputError]:
    """The scores of every case, in order."""
    score = partial(_score_one, rules=rules, store=store)
    jobs = min(jobs, len(cases))
    if jobs == 1:
        yield from map(score, cases)
        return
    # spawned, because a fork of a process with threads may hang; Ctrl-C is for the one that started them
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))
    try:
        yield from pool.map(score, cases)
    except BrokenProcessPool:
        found = f"a process that was killed with {jobs} cases at once"
        raise ConfigError("--jobs", "enough memory", found, "pass a smaller --jobs") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _score_one(case: Case, rules: Rules, store: Store | None) -> CaseScores | InputError:
    result = store.read(case) if store is not None else None
    if result is not None:
        return result
    scored = score_case(case, rules)
    if store is not None and isinstance(scored, CaseScores):
        store.write(case, scored)
    return scored


def _notes(pairing: Pairing, rules: Rules, annotated: dict[str, list[str]] | None) -> list[str]:
    protocol, notes = rules.protocol, []
    if pairing.missing:
        how = "scored 0 for each annotated class"
        if protocol.missing == "skip":
            how = "left out, as the official script does"
        notes.append(f"{len(pairing.missing)} reference cases have no prediction ({how}): {some(pairing.missing)}.")
    if pairing.extra:
        how = " (as the official script does)" if protocol.official else ""
        notes.append(
            f"{len(pairing.extra)} predictions have no reference and were left out{how}: {some(pairing.extra)}."
        )
    unknown = [name for name in rules.ref_labels if name not in rules.pred_labels]
    if unknown:
        notes.append(f"The prediction's labels lack these classes, which count as empty: {some(unknown)}.")
    if annotated is not None:
        unlisted = [case.name for case in pairing.cases if case.annotated is None]
        if unlisted:
            notes.append(f"No classes in the manifest, taken as fully annotated: {some(unlisted)}.")
    return notes


def _remarks(results: list[CaseScores]) -> list[str]:
    """What was passed over in some cases, one sentence a kind."""
    where: dict[str, list[str]] = {}
    for result in results:
        for what, case in result.remarks:
            where.setdefault(what, []).append(case)
    return [f"{what}: {some(cases)}." for what, cases in where.items()]
