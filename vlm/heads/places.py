"""Places: how structures lie to each other, which one is nearer, which ones touch.

Read off centroids and surfaces of the structures that the words of a question name; no network knows these facts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

import numpy as np

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import is_claim
from vlm.data.wordings import enumerate_things
from vlm.grounding import find_mentions
from vlm.heads.choose import match_option
from vlm.heads.reading import Reading, evidence, none_found
from vlm.scene import scene_classes
from vlm.wholes import pieces_of

WAYS = {  # how it is said -> (words, axis of RAS world, direction)
    "above": (r"above|superior(?:ly)?(?: to)?|higher|highest|cranial(?: to)?|cephalad|on top of|over", 2, 1),
    "below": (r"below|inferior(?:ly)?(?: to)?|lower|lowest|caudal(?: to)?|beneath|under(?:neath)?", 2, -1),
    "in front of": (r"in front of|anterior(?:ly)?(?: to)?|ventral(?: to)?|before", 1, 1),
    "behind": (r"behind|posterior(?:ly)?(?: to)?|dorsal(?: to)?|in back of", 1, -1),
    "to the left of": (r"(?:to the |on the )?left of|further left", 0, -1),
    "to the right of": (r"(?:to the |on the )?right of|further right", 0, 1),
}
_EXTENTS = {  # direction of the sides of a box -> the words for it
    "from left to right": r"transvers|lateral|left|width|wide|\bx\b|\blr\b",
    "from front to back": r"antero|\bap\b|front|depth|sagittal|\by\b",
    "from top to bottom": r"cranio|caudal|\bcc\b|\bsi\b|top|height|vertical|longitudinal|\bz\b",
}
_SIDE_SAID = {"left": "on the left", "right": "on the right", "midline": "in the midline"}
OUTSIDE = re.compile(r"\b(?:outside|elsewhere|other than|apart from|beyond|except)\b")
NEARER = re.compile(r"\b(?:closer|nearer|closest|nearest|farther|further|farthest|furthest)\b")
EQUAL_MM = 1e-3
LEAST_SAID_MM = 0.5
_FARTHER = re.compile(r"\b(?:farther|further|farthest|furthest)\b")
_TOWARDS = re.compile(rf"{NEARER.pattern}(?: away)? (?:to|from)\b")


def way_in(text: str) -> str | None:
    """The way in which a text says that something lies: a key of WAYS; None without one."""
    line = text.lower()
    return next((way for way, (words, _, _) in WAYS.items() if re.search(rf"\b(?:{words})\b", line)), None)


def opposite(way: str) -> str:
    """The key of WAYS along the same axis: "above" -> "below"."""
    _, axis, direction = WAYS[way]
    return next(name for name, (_, a, d) in WAYS.items() if a == axis and d == -direction)


def ahead_by(way: str, first: Instance, second: Instance) -> float:
    """How far, in mm, the centre of the first lies that way of the second's; negative where it lies the other way."""
    _, axis, direction = WAYS[way]
    return direction * (first.center_mm[axis] - second.center_mm[axis])


def _either(text: str) -> list[str]:
    """The two ways between which a text lets choose: "above or below"; none of a text that says one."""
    line = re.sub(r"\b(left|right) or (?:to the |on the )?(left|right) of\b", r"\1 of or \2 of", text.lower())
    said = [way for way, (words, _, _) in WAYS.items() if re.search(rf"\b(?:{words})\b", line)]
    opposite = len(said) == 2 and WAYS[said[0]][1] == WAYS[said[1]][1]
    return said if opposite and re.search(r"\bor\b|/|\bvs\b", line) else []


def decode(reading: Reading) -> dict[str, Any]:
    """choice (choices of neighbours) in the words of the options where there are any."""
    return _READ[reading.fact](reading)


def _position(reading: Reading) -> dict[str, Any]:
    """By the centroids: a claim is true or not, of "which is higher?" the one that is."""
    pair, text = reading.pair(), reading.question.question
    way = way_in(text)
    if pair is None:
        return none_found(reading)
    assert way is not None, "the words of a position tell the way"
    first, second = pair
    ahead, lead = ahead_by(way, first, second), "The"
    if _either(text):
        answer = way if ahead > 0 else opposite(way)
    elif is_claim(text):
        answer = "yes" if ahead > 0 else "no"
        lead = f"{answer.capitalize()}: the"
    else:
        first, second = (first, second) if ahead > 0 else (second, first)
        ahead, answer = abs(ahead), first.label
    where = way if ahead > 0 else opposite(way)
    said = f"{lead} centre of the {display(first.label)} is {abs(ahead):.0f} mm {where} "
    said += f"that of the {display(second.label)}."
    return _chosen(reading, answer, said, [first, second])


def _bearing(reading: Reading) -> dict[str, Any]:
    """The way in which the centre of one structure lies farthest from the other's, and how far along each axis."""
    pair = reading.pair()
    if pair is None:
        return none_found(reading)
    first, second = pair
    ways = {way: ahead for way in WAYS if (ahead := ahead_by(way, first, second)) > 0}
    far = sorted(ways, key=lambda way: -ways[way])
    listed = enumerate_things(f"{ways[way]:.0f} mm {way}" for way in far if ways[way] >= LEAST_SAID_MM) or "at"
    said = f"The centre of the {display(first.label)} lies {listed} that of the {display(second.label)}."
    options = reading.question.options
    if options:
        named = next(
            (o for way in far for o in options if re.search(rf"\b(?:{WAYS[way][0]}|{way})\b", o.lower())), None
        )
        return _chosen(reading, named or "", said, [*pair])
    return _chosen(reading, far[0] if far else "at the same place", said, [*pair])


def _same_side(reading: Reading) -> dict[str, Any]:
    """By the sides of their centres; in the midline is no side."""
    selected = reading.selected()
    several = selected if len(selected) > 2 else reading.pair()
    if several is None:
        return none_found(reading)
    sides = [i.side for i in several]
    so = len(set(sides)) == 1 and sides[0] != "midline"
    if re.search(r"\b(?:opposite|other|different|contralateral)\b", reading.question.question.lower()):
        so = set(sides) == {"left", "right"}
    answer = "yes" if so else "no"
    where = [f"the {display(i.label)} is {_SIDE_SAID[side]}" for i, side in zip(several, sides, strict=True)]
    if len(several) > 2:
        where = [f"{number} lie {_SIDE_SAID[side]}" for side, number in Counter(sides).items()]
    return _chosen(reading, answer, f"{answer.capitalize()}: {' and '.join(where)}.", [*several])


def _confined(reading: Reading) -> dict[str, Any]:
    """Whether the lesions meant lie in the organs named and nowhere else; asked about those outside, whether any do."""
    lesions = [i for i in reading.selected() if is_lesion(i.label)]
    if not lesions:
        return none_found(reading)
    organs = [name for name in (*reading.mention.places, *reading.mention.classes) if not is_lesion(name)]
    inside = reading.inside(lesions, organs)
    outside = [i for i in lesions if i not in inside]
    wanted = OUTSIDE.search(reading.question.question.lower()) is not None
    answer = "yes" if bool(outside) == wanted else "no"
    where = enumerate_things(f"the {display(name)}" for name in dict.fromkeys(organs))
    said = f"{answer.capitalize()}. Lesions in {where}: {len(inside)}, elsewhere: {len(outside)}."
    return _chosen(reading, answer, said, (outside if wanted else lesions) or lesions)


def _longest_extent(reading: Reading) -> dict[str, Any]:
    """By the box: from left to right, from front to back or from top to bottom."""
    instance = reading.one()
    if instance is None:
        return none_found(reading)
    sizes = dict(zip(_EXTENTS, instance.box.size_mm, strict=True))
    longest = max(sizes, key=lambda way: sizes[way])
    listed = enumerate_things(f"{size:.0f} mm {way}" for way, size in sizes.items())
    said = f"The {display(instance.label)} extends farthest {longest}: {listed}."
    options = reading.question.options
    choice = next((o for o in options if re.search(_EXTENTS[longest], o.lower())), None) if options else longest
    return {
        "text": said,
        "choice": choice,
        "evidence": evidence([instance]),
        "confidence": reading.confidence([instance]),
    }


def _nearer(reading: Reading) -> dict[str, Any]:
    """By the shortest distance between surfaces. The third structure is the one that "closer to" stands before, or
    the one before it where two come after.
    """
    text = reading.question.question
    towards = _TOWARDS.search(text.lower())
    after = find_mentions(text[towards.end() :] if towards else "", scene_classes(reading.scene)).classes
    ends = _by_label(reading)
    if len(ends) == 3 and len(both := [label for label in after if label in ends]) == 2:
        after = tuple(label for label in ends if label not in both)  # "is it closer to the liver or to the spleen?"
    candidates = [end for label, end in ends.items() if not after or label != after[0]]
    if not after or after[0] not in ends or len(candidates) != 2:
        return none_found(reading)
    target = ends[after[0]]
    gaps, between = {end.id: _gap_mm(reading, end, target) for end in candidates}, "surfaces"
    if max(gaps.values()) - min(gaps.values()) < EQUAL_MM:  # both touch it
        gaps, between = {end.id: math.dist(end.center_mm, target.center_mm) for end in candidates}, "centres"
    wanted = (max if _FARTHER.search(text.lower()) else min)(candidates, key=lambda end: gaps[end.id])
    near, far = sorted(candidates, key=lambda end: gaps[end.id])
    said = f"The {display(near.label)} is nearer to the {display(target.label)}: {gaps[near.id]:.0f} mm against "
    said += f"{gaps[far.id]:.0f} mm for the {display(far.label)} (between {between})."
    answer = wanted.label
    if is_claim(text) and not re.search(r"\bor\b", text.lower()):
        answer = "yes" if wanted is candidates[0] else "no"
        said = f"{answer.capitalize()}. {said}"
    return _chosen(reading, answer, said, [near, far, target])


def _level(reading: Reading) -> dict[str, Any]:
    """The vertebra whose centre is nearest in height to that of the structure."""
    subject = reading.one()
    if subject is None:
        return none_found(reading)
    spine = [reading.whole(i) for i in reading.scene.instances if i.label.startswith("vertebra") and i.rank == 1]
    if not spine:
        reason = "no vertebra is known in this scan"
        return {"text": f"I cannot tell: {reason}.", "abstained": True, "reason": reason}
    heights = {i.id: i.box.min_mm[2] <= subject.center_mm[2] <= i.box.max_mm[2] for i in spine}
    level = min(spine, key=lambda i: abs(i.center_mm[2] - subject.center_mm[2]))
    where = "at the level of" if heights[level.id] else "nearest in height to"
    said = f"The centre of the {display(subject.label)} lies {where} the {display(level.label)}."
    return _chosen(reading, level.label, said, [subject, level])


def _neighbours(reading: Reading) -> dict[str, Any]:
    """The organs with a voxel beside one of the structure's."""
    subject = reading.one()
    if subject is None:
        return none_found(reading)
    reach = float(np.linalg.norm(reading.scene.grid.spacing_mm)) + 1e-3  # the centres of voxels that share a corner
    organs = {i.label: reading.whole(i) for i in reading.scene.instances if not is_lesion(i.label)}
    organs.pop(subject.label, None)
    gaps = {label: _gap_mm(reading, subject, organ) for label, organ in organs.items()}
    touching = sorted((label for label in gaps if gaps[label] <= reach), key=lambda label: -organs[label].volume_ml)
    options = reading.question.options
    touching = [label for label in touching if not options or match_option(label, options)]
    names = tuple((match_option(label, options) or "") if options else display(label) for label in touching)
    said = f"Beside the {display(subject.label)}: {enumerate_things(names)}." if names else "No structure touches it."
    used = [subject, *(organs[label] for label in touching)]
    return {"text": said, "choices": names, "evidence": evidence(used), "confidence": reading.confidence(used)}


def _by_label(reading: Reading) -> dict[str, Instance]:
    """The structures named, in the order of the words."""
    found = {i.label: reading.whole(i) for i in sorted(reading.scene.instances, key=lambda i: -i.rank)}
    return {label: found[label] for label in reading.mention.classes if label in found}


def _gap_mm(reading: Reading, first: Instance, second: Instance) -> float:
    gap_mm = reading.scene.relations.gap_mm
    return min(gap_mm(one, other) for one in pieces_of([first]) for other in pieces_of([second]))


def _chosen(reading: Reading, answer: str, said: str, used: list[Instance]) -> dict[str, Any]:
    options = reading.question.options
    choice = (match_option(answer, options) or match_option(used[0].side, options)) if options else answer
    if choice is None:
        return {"text": said, "abstained": True, "reason": f"the answer ({answer}) is none of the options"}
    return {"text": said, "choice": choice, "evidence": evidence(used), "confidence": reading.confidence(used)}


_READ = {
    "position": _position,
    "bearing": _bearing,
    "same_side": _same_side,
    "confined": _confined,
    "nearer": _nearer,
    "level": _level,
    "neighbours": _neighbours,
    "longest_extent": _longest_extent,
}
