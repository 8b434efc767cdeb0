"""The answers of a system that has seen no scan: the commonest option or the median number of the training questions.

Any figure worth reporting stands clear of this one, computed by the same scorer on the same questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eval.references import NUMERIC, Reference
from eval.units import convert

BASELINE = "majority/median"


def majority_baseline(
    references: Sequence[Reference], training: Sequence[Reference] | None = None
) -> Iterator[dict[str, Any]]:
    """One answer line (as in an answers file) a question, from training questions of its type and group.

    Classification: the commonest training answer among the question's options. Multilabel: the options in at least
    half of the training answers. Counting: the median, rounded; measurement and regression: the median in the
    question's unit. Detection: one box, the median of each corner coordinate in world mm, with the commonest label.
    Open: the commonest answer. A group unseen in training takes the questions of its type; a type unseen abstains.
    training: None takes `references` themselves, which flatters the baseline. Ties go to the first in the alphabet.
    """
    training = references if training is None else training
    table: dict[tuple[str, str | None], list[Reference]] = {}
    for one in training:
        if one.answer is not None:
            table.setdefault((one.type, one.group), []).append(one)
            table.setdefault((one.type, None), []).append(one)
    known: dict[tuple[Any, ...], dict[str, Any]] = {}
    for reference in references:
        alike = (reference.type, reference.group, reference.options, reference.unit)
        if alike not in known:
            seen = table.get((reference.type, reference.group)) or table.get((reference.type, None), [])
            abstains = {"abstained": True, "reason": f"no training question of type {reference.type}"}
            known[alike] = _answer(reference, seen) or abstains
        yield {"id": reference.id, "type": reference.type, **known[alike]}


def _answer(reference: Reference, seen: list[Reference]) -> dict[str, Any] | None:
    if reference.type == "classification":
        allowed = [one.answer for one in seen if reference.options is None or one.answer in reference.options]
        return {"choice": _commonest(allowed)} if allowed else None
    if reference.type == "multilabel" and seen:
        counts = Counter(option for one in seen for option in set(one.answer))
        usual = sorted(option for option, count in counts.items() if 2 * count >= len(seen))
        return {"choices": [one for one in usual if reference.options is None or one in reference.options]}
    if reference.type in NUMERIC:
        numbers = [convert(one.answer, one.unit, reference.unit) for one in seen]
        known = [number for number in numbers if number is not None]
        if not known:
            return None
        median = float(np.median(known))
        return {"value": round(median) if reference.type == "counting" else median, "unit": reference.unit}
    if reference.type == "detection" and seen:
        boxes = [box for one in seen for box in one.answer]
        if not boxes:
            return {"boxes": []}
        corners = {
            key: np.median([getattr(box, key) for box in boxes], axis=0).tolist() for key in ("min_mm", "max_mm")
        }
        labels = [box.label for box in boxes if box.label is not None]
        return {"boxes": [{**corners, "label": _commonest(labels) if labels else None}]}
    return {"text": _commonest([one.answer for one in seen])} if seen else None


def _commonest(values: list[str]) -> str:
    return min(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))[0]
