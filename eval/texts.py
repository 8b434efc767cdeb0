"""Open answers against reference texts: equality, shared words, ROUGE, BLEU, and any report metric of a user's own.

ROUGE and BLEU are computed here and not by the packages that define them, because both are needed question by question
for intervals over patients and for a million texts; tests hold them equal to rouge-score and sacreBLEU.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from eval.parse import normalise
from seg_backbone.errors import ConfigError

ORDER = 4  # longest n-gram of BLEU
COLUMNS = ("token_f1", "exact_match", "normalised_match", "rouge1", "rouge2", "rougeL")
MANY = 20_000  # different texts
ReportMetric = Callable[[Sequence[str], Sequence[str]], Sequence[float]]

_ROUGE_WORD = re.compile("[a-z0-9]+")
# mteval-v13a: punctuation apart, but not inside numbers
_13A = ((re.compile(r"([\{-\~\[-\` -\&\(-\+\:-\@\/])"), r" \1 "), (re.compile(r"([^0-9])([\.,])"), r"\1 \2 "),
        (re.compile(r"([\.,])([^0-9])"), r" \1 \2"), (re.compile(r"([0-9])(-)"), r"\1 \2 "))  # fmt: skip


def compare_texts(pairs: Sequence[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """(n, len(COLUMNS)) `text_scores` and (n, 2 + 2 * ORDER) `bleu_counts` of (predicted, reference) texts.

    Equal pairs are compared once, and MANY or more by several processes.
    """
    place = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    different, jobs = list(place), len(os.sched_getaffinity(0))
    if len(different) < MANY or jobs == 1:
        rows = list(map(_compared, different))
    else:
        # spawned, because a fork of a process with threads may hang; Ctrl-C is for the one that started them
        with ProcessPoolExecutor(
            min(jobs, 8), get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
        ) as pool:
            rows = list(pool.map(_compared, different, chunksize=2000))
    table = np.array(rows, dtype=float).reshape(-1, len(COLUMNS) + 2 + 2 * ORDER)[[place[pair] for pair in pairs]]
    return table[:, : len(COLUMNS)], table[:, len(COLUMNS) :]


def _compared(pair: tuple[str, str]) -> tuple[float, ...]:
    return (*text_scores(*pair), *bleu_counts(*pair))


def text_scores(predicted: str, reference: str) -> tuple[float, ...]:
    """The figures of COLUMNS for one pair, each 0..1.

    token_f1: F1 of shared words after `normalise`; normalised_match: equal after it. Both as in SQuAD (Rajpurkar et
    al., EMNLP 2016, section 6.1). exact_match: equal as written, blanks at the ends aside. rouge1, rouge2, rougeL: F1
    of shared words, of shared pairs, of the longest common subsequence (Lin, ROUGE, 2004), words as rouge-score has
    them without stemming. Two texts without a word have 1 in the first three, 0 in ROUGE.
    """
    given, truth = normalise(predicted).split(), normalise(reference).split()
    total = len(given) + len(truth)
    token_f1 = 2 * _shared(given, truth) / total if total else 1.0
    a, b = _ROUGE_WORD.findall(predicted.lower()), _ROUGE_WORD.findall(reference.lower())
    ones, twos = _shared(a, b), _shared(_grams(a, 2), _grams(b, 2))
    rouge1 = 2 * ones / max(1, len(a) + len(b))
    rouge2 = 2 * twos / max(1, len(a) + len(b) - 2) if a and b else 0.0
    rouge_l = 2 * _common_subsequence(a, b) / max(1, len(a) + len(b))
    exact = float(predicted.strip() == reference.strip())
    return token_f1, exact, float(given == truth), rouge1, rouge2, rouge_l


def bleu_counts(predicted: str, reference: str) -> list[int]:
    """Length of the prediction and of the reference in words, then for n = 1..4 the n-grams shared and the
    prediction's."""
    given, truth = _words(predicted), _words(reference)
    counts = [len(given), len(truth)]
    shared = 1
    for n in range(1, ORDER + 1):
        shared = shared and _shared(_grams(given, n), _grams(truth, n))  # none of n words, none of n + 1
        counts += [shared, max(0, len(given) - n + 1)]
    return counts


def bleu(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU, 0..100, of (2 + 2 * ORDER, b) sums of `bleu_counts` -> (b,); NaN without a reference word.

    Source: Papineni et al., ACL 2002; words (13a) and the smoothing of orders without a match (each halves) as in
    sacreBLEU (Post, WMT 2018), its default.
    """
    given, truth = sums[0], sums[1]
    shared, total = sums[2::2], sums[3::2]
    misses = np.cumsum((shared == 0) & (total > 0), axis=0)
    smoothed = np.where(shared > 0, shared, 0.5**misses)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(total > 0, smoothed / total, 0.0)
        brevity = np.where(given > truth, 1.0, np.exp(1 - truth / given))
        value = 100 * brevity * np.exp(np.log(precision).mean(axis=0))
    value = np.where((given == 0) | (shared.sum(axis=0) == 0), 0.0, value)
    return np.where(truth > 0, value, np.nan)


def load_report_metric(place: str) -> ReportMetric:
    """A user's function of (predicted texts, reference texts) -> one score each, from "FILE.py:FUNCTION" or
    "MODULE:FUNCTION": the way to GREEN, RadGraph or a judge, which need a model of their own.

    Raises ConfigError where there is no such function.
    """
    source, _, name = place.rpartition(":")
    try:
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, str(Path.cwd()))
            try:
                module = importlib.import_module(source)
            finally:
                sys.path.pop(0)
        function = getattr(module, name)
    except (ImportError, OSError, AttributeError, ValueError) as error:
        todo = "write FILE.py:FUNCTION or MODULE:FUNCTION"
        raise ConfigError("--report-metric", "a function", f"{place!r} ({error})", todo) from None
    return function


def report_scores(function: ReportMetric, name: str, predicted: Sequence[str], reference: Sequence[str]) -> np.ndarray:
    """(n,) scores of a user's metric. Raises ConfigError where it does not give one finite number a pair."""
    scores = np.asarray(function(list(predicted), list(reference)), dtype=float)
    if scores.shape != (len(predicted),) or not np.isfinite(scores).all():
        found = (
            f"an array of shape {scores.shape}" if scores.shape != (len(predicted),) else "numbers that are not finite"
        )
        raise ConfigError(f"--report-metric {name}", f"{len(predicted)} finite numbers", found, "correct the function")
    return scores


@lru_cache(maxsize=1 << 14)
def _words(text: str) -> list[str]:
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in text:
        for code, sign in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
            text = text.replace(code, sign)
    text = f" {text} "
    for pattern, parts in _13A:
        text = pattern.sub(parts, text)
    return text.split()


def _grams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _shared(first: Iterable[Hashable], second: Iterable[Hashable]) -> int:
    """How many of `first` can be paired with an equal one of `second`."""
    left: dict[Hashable, int] = {}
    for one in second:
        left[one] = left.get(one, 0) + 1
    shared = 0
    for one in first:
        if left.get(one):
            left[one] -= 1
            shared += 1
    return shared


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one bit a word of `first`.

    Source: Hyyrö, Bit-parallel LCS-length computation revisited, AWOCA 2004.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(first)) - 1
    row = every
    for word in second:
        hit = row & places.get(word, 0)
        row = (row + hit | row - hit) & every
    return len(first) - row.bit_count()
