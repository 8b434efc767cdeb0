"""Reading: what the network made of one question about one scene, before any value is computed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import expit, logit

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.data.threshold import Threshold
from vlm.facts import FACTS
from vlm.grounding import Mention, find_mentions, split_side
from vlm.scene import Scene
from vlm.schema import Question
from vlm.wholes import pieces_of, whole

FURTHER = re.compile(r"\b(second|third|fourth|fifth|2nd|3rd|4th|5th|other|another|next)\b")
SELECT = 0.5  # pointer probability from which an instance is selected
ALL_FACTS = "*"  # the calibration of facts that have none of their own
A_PIECE = re.compile(r"\b(?:pieces?|parts?|fragments?|components?|portions?)\b")
_TISSUES = re.compile(
    r"bone|bony|osseous|soft tissue|skin|muscle|node|body|whole body|chest|abdom\w+|pelvi\w+|thora\w+"
)
CLIP = 1e-4  # confidences are this far from 0 and 1 before their log-odds are taken


@dataclass(frozen=True)
class Calibration:
    """How sure an answer is, from how sure the model says to be; see vlm/train/calibrate.py.

    curves: fact, or ALL_FACTS -> a temperature, the divisor of the log-odds, or the (stated, calibrated) points of a
    rising curve. Without a curve a confidence stays as it is.
    """

    curves: dict[str, float | tuple[list[float], list[float]]] = field(default_factory=dict)

    def __call__(self, fact: str, confidence: float) -> float:
        """The calibrated confidence, in [0, 1]."""
        curve = self.curves.get(fact, self.curves.get(ALL_FACTS))
        if curve is None:
            return confidence
        if isinstance(curve, int | float):
            return float(expit(logit(np.clip(confidence, CLIP, 1 - CLIP)) / curve))
        return float(np.interp(confidence, *curve))


@dataclass(frozen=True)
class Focus:
    """What a conversation knows about a question before it is read. fact: one of vlm.facts.NAMES. instances: ids of
    those meant, () where the scan has none of them. lacking: then their name, in the singular.
    """

    fact: str
    instances: tuple[int, ...]
    lacking: str | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """fact and its probability; selection (K,) pointer probability of each of the scene's instances.

    quantiles: (0.1, 0.5, 0.9) quantiles of a regressed value, in the fact's unit, or None. score_options: the options'
    probabilities by the language model's likelihood, computed only when a head asks. lacking: the name of what is
    asked about, where a conversation knows that the scan has none. calibration: of the confidence. label_shares: the
    probability of each label of a fixed set, where the fact is one of those. counted: the names of what is counted,
    where the fact is a count of a table. limit: what a yes/no question compares a measured value with.
    """

    question: Question
    scene: Scene
    mention: Mention
    fact: str
    fact_probability: float
    selection: np.ndarray
    threshold: Threshold | None = None
    quantiles: tuple[float, float, float] | None = None
    score_options: Callable[[tuple[str, ...]], np.ndarray] = field(default=lambda options: np.zeros(len(options)))
    lacking: str | None = None
    calibration: Calibration = field(default_factory=Calibration)
    label_shares: dict[str, float] = field(default_factory=dict)
    counted: tuple[str, ...] = ()
    limit: Threshold | None = None

    def selected(self) -> list[Instance]:
        """The instances meant, most probable first, that meet a size threshold in words."""
        return [i for i in self.meant() if self.threshold is None or self.threshold.keeps(i)]

    def meant(self) -> list[Instance]:
        """The same whatever their size, after a place ("in the liver") and a side ("tumours on the left") in words."""
        order = np.argsort(-self.selection, kind="stable")
        chosen = [self.scene.instances[n] for n in order if self.selection[n] >= SELECT]
        if (
            self.mention.places
            and FACTS[self.fact].takes != "pair"
            and self.fact not in ("share", "contents", "confined")
        ):
            chosen = self.placed([i for i in chosen if is_lesion(i.label)])
        if self.sided:
            chosen = [i for i in chosen if i.side in self.mention.sides or not is_lesion(i.label)]
        return chosen

    def placed(self, lesions: list[Instance]) -> list[Instance]:
        """Those that lie in one of the places named: "in the liver"."""
        return self.inside(lesions, self.mention.places)

    def inside(self, lesions: Iterable[Instance], labels: Collection[str]) -> list[Instance]:
        """Those that lie in a structure of one of the classes."""
        return [i for i in lesions if (home := self.home(i)) and home.label in labels]

    def whole(self, instance: Instance) -> Instance:
        """An organ with all its pieces, unless the question is about a piece; a lesion as it is."""
        if is_lesion(instance.label) or A_PIECE.search(self.question.question.lower()):
            return instance
        return whole([i for i in self.scene.instances if i.label == instance.label])

    def structures(self) -> list[Instance]:
        """The same as `selected`, an organ with all its pieces."""
        return list({i.id: i for i in map(self.whole, sorted(self.selected(), key=lambda i: i.rank))}.values())

    @property
    def sided(self) -> bool:
        """Whether lesions of one side are asked about."""
        return len(self.mention.sides) == 1 and FACTS[self.fact].takes != "pair" and self.fact != "side"

    def one(self) -> Instance | None:
        """The single structure meant, with all its pieces: the largest of those selected; failing that the likeliest
        above SELECT / 2.

        Failing that too, the only instance whose class the question names, unless it asks for another than the first.
        """
        instance = self._one()
        return None if instance is None else self.whole(instance)

    def _one(self) -> Instance | None:
        chosen = self.selected()
        if chosen:
            return max(chosen, key=lambda i: i.volume_ml)
        filtered = self.threshold is not None or bool(self.mention.places) or self.sided
        if len(self.selection) and not filtered and self.selection.max() >= SELECT / 2:
            return self.scene.instances[int(self.selection.argmax())]
        named = [i for i in self.scene.instances if i.label in self.mention.classes]
        if len(named) == 1 and not (self.lacking or filtered or FURTHER.search(self.question.question.lower())):
            return named[0]
        return None

    def pair(self) -> tuple[Instance, Instance] | None:
        """The two structures meant, with all their pieces, in the order in which the question names them; None where
        they are not clear.

        The two likeliest above SELECT / 2; failing that, the only instances of the two classes that the question names.
        """
        order = np.argsort(-self.selection, kind="stable")[:2]
        two = [self.scene.instances[n] for n in order if self.selection[n] >= SELECT / 2]
        if len(two) < 2 and not self.lacking:
            two = [i for i in self.scene.instances if i.label in self.mention.classes]
        if len(two) != 2:
            return None
        named = {label: place for place, label in enumerate(self.mention.classes)}
        first, second = sorted(two, key=lambda i: (named.get(i.label, len(named)), i.rank))
        return (first, second) if first.label == second.label else (self.whole(first), self.whole(second))

    def home(self, lesion: Instance) -> Instance | None:
        """The structure that a lesion lies in, see Relations; of those that its name does not rule out."""
        organs = (i for i in self.scene.instances if not is_lesion(i.label) and may_hold(i.label, lesion.label))
        return self.scene.relations.home(lesion, organs)

    def homes(self, lesions: list[Instance]) -> list[Instance]:
        """The structures that lesions lie in, one a lesion; those that lie in none are left out."""
        return [home for lesion in lesions if (home := self.home(lesion))]

    def confidence(self, instances: list[Instance]) -> float:
        """Probability that fact, selection and masks are all right, taken as independent.

        The selection counts with its least certain instance; fact and selection are calibrated together; the masks
        count with the mean foreground probability.
        """
        certainty = float(np.maximum(self.selection, 1 - self.selection).min(initial=1.0))
        found = [i.probability for i in instances if i.probability is not None]
        read = self.calibration(self.fact, self.fact_probability * certainty)
        return read * (float(np.mean(found)) if found else 1.0)

    def thing(self) -> str:
        """What the question is about, in words: "left parotid gland", "tumour", or "structure"."""
        if self.lacking:
            return self.lacking
        names = tuple(name for name in self.mention.classes if name not in self.mention.places) or self.mention.classes
        if self.sided and len(names) == 1 and is_lesion(names[0]):
            return f"{self.mention.sides[0]}-sided {display(names[0])}"
        if len(names) == 1:
            return display(names[0])
        if names and len({display(n).replace("left ", "").replace("right ", "") for n in names}) == 1:
            return display(names[0]).replace("left ", "").replace("right ", "")
        return "lesion" if self.mention.lesions or any(map(is_lesion, names)) else shared_name(names) or "structure"


@lru_cache(maxsize=4096)
def may_hold(organ: str, lesions: str) -> bool:
    """Whether lesions of a class may lie in an organ: a "pancreas_tumour" in no liver; a "tumour" in any."""
    named = re.sub(r"(?: lymph)? [^ ]+$", "", split_side(lesions)[0].replace("_", " "))
    if _TISSUES.fullmatch(named) or not find_mentions(named, ()).others:
        return True
    return organ in find_mentions(named, (organ,)).classes


def shared_name(names: tuple[str, ...]) -> str:
    """The words that names of a family begin with, but for sides and levels: those of "rib_left_7" and "rib_right_8"
    are "rib", of "vertebrae_L1" and "vertebrae_T12" "vertebra"; "" for names of no family.
    """
    words = [re.sub(r"\b(?:left|right|[CTLS]\d+) ", "", display(name)).split() for name in names]
    shared = (same[0] for same in zip(*words, strict=False) if len(set(same)) == 1)
    return " ".join(itertools.takewhile(lambda word: not word.isdigit(), shared)) if len(names) > 1 else ""


def evidence(instances: list[Instance]) -> tuple[dict[str, Any], ...]:
    """The evidence of an answer: one entry an instance, in mm."""
    return tuple(instance.to_json() for instance in pieces_of(instances))


def a_or_an(thing: str) -> str:
    """A thing with its article: "a tumour", "an esophagus"."""
    return f"{'an' if re.match('[aeio]|u[^rtv]', thing) else 'a'} {thing}"


def shown(value: float) -> str:
    """A number for a sentence: whole from 10, one digit from 1, else two that count."""
    size = abs(value)
    return f"{value:.0f}" if size >= 10 else f"{value:.1f}" if size >= 1 else f"{value:.2g}"


def none_found(reading: Reading) -> dict[str, Any]:
    """An abstention: what is asked for is not in the mask, or belongs to two structures of which one is named."""
    found = {i.label for i in reading.scene.instances if i.label in reading.mention.classes}
    reason = f"no {reading.thing()} was found in this scan"
    text = f"No {reading.thing()} was found in this scan, so there is nothing to measure."
    if reading.lacking or reading.threshold or reading.sided or reading.mention.places:
        pass
    elif not reading.mention.classes:
        reason = "it is not clear which structure is meant"
        text = f"I cannot answer: {reason}."
    elif FACTS[reading.fact].takes == "pair" or reading.fact == "share":
        named = sorted({display(label) for label in found})
        lacking = [name for name in reading.mention.classes if name not in found]
        if len(named) == 1 and not lacking:
            reason = f"the question needs two structures, and only the {named[0]} is clear"
            text = f"I cannot tell which two structures are meant: only the {named[0]} is clear."
        elif lacking:
            listed = " and no ".join(map(display, lacking))
            reason = f"no {listed} was found in this scan"
            text = f"No {listed} was found in this scan, so there is nothing to compare."
        else:
            reason = f"it is not clear which two of them are meant: {', '.join(named)}"
            text = f"I cannot answer: {reason}."
    return {"text": text, "abstained": True, "reason": reason, "confidence": reading.confidence([])}
