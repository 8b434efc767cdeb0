"""The question-only baseline: what can be answered from the words alone, and questions left out until it cannot.

Enters questions with answers; leaves, for each kind with few possible answers, how often a naive Bayes classifier of
the words guesses right questions about patients that it did not learn from, beside what chance would. Where that is
above LIMIT times chance, the questions that it guesses most surely are left out, and it learns anew from the rest: the
adversarial filter of Le Bras et al. (ICML 2020), with a word model.

Of a multilabel question each option is a guess of its own, yes or no. Numbers with a unit are not judged: their guess
is a median, and no answer can be left out for being common.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix

from vlm.schema import Question

KINDS = ("classification", "multilabel", "counting")
LIMIT = 1.3  # times chance
FOLDS = 5
FEWEST = 20  # guesses of a kind, below which it is not judged
ROUNDS = 30
SHARE = 0.5  # of what is too many, left out in one round


@dataclass(frozen=True)
class Baseline:
    """Of one kind. guesses: how many there were (options, for multilabel). chance: the share right of a guess among
    the possible answers alike; right: of the words' guess. left_out: guesses that were left out to come there.
    """

    guesses: int
    chance: float
    right: float
    left_out: int = 0


@dataclass(frozen=True)
class _Item:
    """One guess. number: of the question. option: of a multilabel one. among: the possible answers."""

    number: int
    option: str | None
    words: tuple[str, ...]
    answer: str
    among: tuple[str, ...]
    fold: int


def question_only(questions: Sequence[Question]) -> dict[str, Baseline]:
    """Kind -> baseline, for every kind with FEWEST guesses or more about patients of two folds or more."""
    found = {}
    for kind, items in _items(questions).items():
        if len(items) >= FEWEST and len({item.fold for item in items}) > 1:
            found[kind] = _baseline(items, _guess(items)[0])
    return found


def rebalance(questions: Sequence[Question]) -> tuple[list[Question], dict[str, Baseline]]:
    """The questions that are left, in order, and the baselines of their kinds (see the top of this file).

    A multilabel question loses options, and goes where fewer than two are left. Kinds that are not judged stay whole.
    """
    gone, baselines = set[tuple[int, str | None]](), {}
    for kind, items in _items(questions).items():
        if len(items) < FEWEST or len({item.fold for item in items}) < 2:
            continue
        left = items
        for _ in range(ROUNDS):
            right, sure = _guess(left)
            now = _baseline(left, right)
            surplus = int(np.ceil((right.sum() - LIMIT * now.chance * len(left)) / max(1e-9, 1 - LIMIT * now.chance)))
            if surplus <= 0 or len(left) - surplus < FEWEST:
                break
            order = np.argsort(-np.where(right, sure, -np.inf), kind="stable")
            out = set(order[: max(1, int(SHARE * surplus))].tolist())
            left = [item for place, item in enumerate(left) if place not in out]
        gone |= {(i.number, i.option) for i in items} - {(i.number, i.option) for i in left}
        baselines[kind] = replace(_baseline(left, _guess(left)[0]), left_out=len(items) - len(left))
    kept = (_without(question, number, gone) for number, question in enumerate(questions))
    return [question for question in kept if question is not None], baselines


def _items(questions: Sequence[Question]) -> dict[str, list[_Item]]:
    """The guesses of each kind."""
    counts = {str(q.answer) for q in questions if q.type == "counting" and q.answer is not None}
    found: dict[str, list[_Item]] = {}
    for number, question in enumerate(questions):
        if question.type not in KINDS or question.answer is None:
            continue
        words = tuple(sorted(set(re.findall(r"[a-z0-9]+", question.question.lower()))))
        fold = zlib.crc32(str(question.extra.get("patient", question.image)).encode()) % FOLDS
        items = found.setdefault(question.type, [])
        if question.type == "multilabel":
            for option in question.options:
                answer = "yes" if option in question.answer else "no"
                items.append(_Item(number, option, (*words, f"option {option.lower()}"), answer, ("yes", "no"), fold))
            continue
        among = tuple(option.lower() for option in question.options) or tuple(sorted(counts))
        if question.type == "counting" or len(among) > 1:
            items.append(_Item(number, None, words, str(question.answer).lower(), among, fold))
    return found


def _guess(items: Sequence[_Item]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) whether each guess is right, and (N,) by how much the log-odds speak for it; learnt from the other folds.

    Multinomial naive Bayes with Laplace smoothing over the words of a question.
    """
    vocabulary = {word: n for n, word in enumerate(sorted({word for item in items for word in item.words}))}
    answers = {answer: n for n, answer in enumerate(sorted({a for item in items for a in (item.answer, *item.among)}))}
    rows = np.repeat(np.arange(len(items)), [len(item.words) for item in items])
    columns = np.array([vocabulary[word] for item in items for word in item.words], dtype=int)
    seen = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(items), len(vocabulary)))
    truth = np.array([answers[item.answer] for item in items])
    possible = np.zeros((len(items), len(answers)), dtype=bool)
    for row, item in enumerate(items):
        possible[row, [answers[answer] for answer in item.among]] = True
    folds = np.array([item.fold for item in items])
    right, sure = np.zeros(len(items), dtype=bool), np.zeros(len(items))
    for fold in np.unique(folds):
        there, learnt = folds == fold, folds != fold
        hot = csr_matrix((np.ones(learnt.sum()), (truth[learnt], np.flatnonzero(learnt))), (len(answers), len(items)))
        counts = (hot @ seen).toarray() + 1.0
        words = np.log(counts / counts.sum(axis=1, keepdims=True))
        # how often an answer is right where it is possible, so that rare options are not guessed rarely
        prior = np.bincount(truth[learnt], minlength=len(answers)) + 1.0
        prior = np.log(prior / (possible[learnt].sum(axis=0) + 2.0))
        scores = np.where(possible[there], seen[there] @ words.T + prior, -np.inf)
        best = scores.argmax(axis=1)
        own = scores[np.arange(len(best)), best]
        scores[np.arange(len(best)), best] = -np.inf
        second = scores.max(axis=1, initial=-np.inf)
        right[there] = best == truth[there]
        sure[there] = np.where(np.isfinite(second), own - second, 0.0)
    return right, sure


def _baseline(items: Sequence[_Item], right: np.ndarray) -> Baseline:
    chance = float(np.mean([1 / len(item.among) for item in items]))
    return Baseline(len(items), round(chance, 3), round(float(right.mean()), 3))


def _without(question: Question, number: int, gone: set[tuple[int, str | None]]) -> Question | None:
    """A question without what is left out of it; None where that is all, or leaves no choice."""
    if question.type != "multilabel":
        return None if (number, None) in gone else question
    options = tuple(option for option in question.options if (number, option) not in gone)
    if options == question.options:
        return question
    answer = [option for option in question.answer if option in options]
    return replace(question, options=options, answer=answer) if len(options) > 1 else None
