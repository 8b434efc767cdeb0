"""Which instances the words of a question mean, where they say so beyond doubt; else the pointer is believed.

Enters a Reading whose fact is settled, leaves the probability that each instance is meant.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np

from seg_backbone.labels import is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import is_claim
from vlm.facts import FACTS
from vlm.grounding import EXCEPT, Mention, find_mentions, split_side
from vlm.heads.choose import match_option
from vlm.heads.measurement import joined
from vlm.heads.ranks import THINGS, chooses, of_two, parse_lesion_ranks, parse_rank, ranked
from vlm.heads.reading import SELECT, Reading, shared_name
from vlm.plain_words import plain_line, says
from vlm.scene import scene_classes

NAMED = 0.95  # how sure it is that an instance is meant that is called by its name, and that no other one is
OF_ALL_NAMED = ("presence", "count", "contents", "box", "total_volume", "multiplicity")
ON_A_SIDE = re.compile(  # "which organs lie on the right?"
    r" (?:which|what|name|list|all) .*(?:organs|structures|rois).* (?:on|in) (?:the )?(?:patient s )?"
    r"(?P<side>left|right) "
)
_A_LESION = r"(?:\w+ )?(?:lesion|tumou?r|nodule|mass|metasta\w+|node|cyst|deposit)s?"
NEAREST_LESION = re.compile(
    rf" (?:(?:nearest|closest|farthest|furthest) {_A_LESION}|{_A_LESION} (?:that |which )?(?:is |lies |located )?"
    r"(?:nearest|closest|farthest|furthest)) "
)
LARGEST = ("volume_ml", False, 1, 1)
_OR = re.compile(r" (?:than|or|with|vs\.?|versus) ")
NEAREST_OF = re.compile(r" (?:nearest|closest) (?P<those>.*)")


def meant(reading: Reading) -> np.ndarray:
    """(K,) probability of each instance; the pointer's where the words leave it open."""
    fact, instances, text = reading.fact, reading.scene.instances, reading.question.question
    labels = labels_of(reading)
    if fact == "contents" and says("holders", plain_line(text)) and (held := _holders(reading)) is not None:
        return _only(reading, held)
    if fact == "contents" and (reading.question.options or (ON_A_SIDE.search(plain_line(text)) and not labels)):
        side, options = ON_A_SIDE.search(plain_line(text)), reading.question.options
        there = [i for i in instances if not options or match_option(i.label, options)]
        return _only(reading, [i for i in there if side is None or i.side == side["side"]])
    if fact == "level":
        labels = [name for name in labels if not name.startswith("vertebra")] or labels
        subjects = [i for i in _lesions(reading) or instances if i.label in labels]
        return _only(reading, [_likeliest(reading, subjects)] if subjects else [])
    if fact == "same_side" and len(labels) != 2:
        return _only(reading, [i for i in instances if i.label in labels])
    if fact == "confined":
        said = find_mentions(text.rpartition(" in ")[0] or text, scene_classes(reading.scene)).classes
        lesions, ranks = [i for i in instances if is_lesion(i.label) and i.label in said], parse_lesion_ranks(text)
        return _only(reading, [i for rank in ranks for i in rank.of(lesions)] if ranks else lesions)
    if lesions := _lesions(reading):
        return _only(reading, lesions)
    rank = parse_rank(text, len(labels))
    if rank and not rank.asks:
        order = ranked(reading, rank)
        return _only(reading, order[rank.place - 1][1][:1] if len(order) >= rank.place else [])
    family = fact == "intensity" and is_family(labels, plain_line(text))
    if len(labels) > 1 and (joined(fact, text) or family):
        return _only(reading, [i for i in instances if i.label in labels])
    if fact == "nearer" or (fact == "contents" and labels and says("by_size", plain_line(text))):
        return _only(reading, [i for i in instances if i.label in labels])
    if fact == "most_affected":
        return _only(reading, [i for i in instances if is_lesion(i.label)])
    if not reading.mention.classes:
        everything = re.search(rf" (?P<any>{THINGS})s? ", plain_line(text))
        lesions = [i for i, p in zip(instances, reading.selection, strict=True) if is_lesion(i.label) and p >= SELECT]
        if everything and (fact in ("count", "contents", "box", "total_volume") or joined(fact, text) == "each"):
            left_out = EXCEPT.search(text)  # "how many organs, not counting vertebrae?"
            without = find_mentions(left_out["those"], scene_classes(reading.scene)).classes if left_out else ()
            some = sorted((i for i in instances if i.label not in without), key=lambda i: i.volume_ml)
            largest = {i.label: i for i in some}.values()
            return _only(reading, [i for i in largest if everything["any"] != "organ" or not is_lesion(i.label)])
        if lesions and not everything and fact in ("presence", "count", "box", "multiplicity"):
            return _only(reading, lesions)  # what is meant without a name is no organ
        return reading.selection
    named = [i for i in instances if i.label in labels]
    low = of_two(text)
    if (
        low is not None
        and len(labels) == 2
        and shared_name(tuple(labels))
        and (FACTS[fact].takes == "one" or fact == "box")
    ):
        return _only(reading, [(min if low else max)(named, key=lambda i: i.volume_ml)])
    two = FACTS[fact].takes == "pair" and len({split_side(label)[0] for label in labels}) == len(labels) == 2
    if (chooses(plain_line(text)) and not two) or not labels:
        return reading.selection
    if fact in OF_ALL_NAMED:  # where the pointer tells apart those of one name ("the thicker parotid") it is believed
        sure = {i.id: p for i, p in zip(instances, reading.selection, strict=True)}
        best: dict[str, float] = {}
        for i in named:
            base = split_side(i.label)[0]
            best[base] = max(best.get(base, 0.0), sure[i.id])
        return _only(reading, [i for i in named if sure[i.id] >= best[split_side(i.label)[0]] / 2])
    if FACTS[fact].takes == "one" and len(labels) == 1 and (len(named) == 1 or not is_lesion(labels[0])):
        return _only(reading, [_likeliest(reading, named)])
    if FACTS[fact].takes == "pair" and len(labels) > 2:
        return _only(reading, _to_the_nearest(reading, named))
    if FACTS[fact].takes == "pair" and len(labels) == 2:
        return _only(reading, [_likeliest(reading, [i for i in named if i.label == label]) for label in labels])
    return reading.selection


def _lesions(reading: Reading) -> list[Instance]:
    """The lesions meant, and the organs beside them, where the words tell which: by name, place, side, size and rank.

    Empty where no lesion is named that the scan has, and where words choose that only the pointer understands ("the
    upper one").
    """
    fact, mention, text = reading.fact, reading.mention, reading.question.question
    there = [i for i in reading.scene.instances if is_lesion(i.label) and i.label in mention.classes]
    takes = FACTS[fact].takes
    if not there or takes == "scan":
        return []
    if takes == "pair" and fact != "gap" and len(kinds := _largest_of_each(reading, there)) == 2:
        return kinds  # "are the liver tumours larger than the kidney tumour?"
    if mention.places:
        there = reading.placed(there)
    if len(mention.sides) == 1 and fact != "side":
        there = [i for i in there if i.side in mention.sides]
    ranks = parse_lesion_ranks(text)
    beside = [i for i in reading.scene.instances if i.label in mention.classes and not is_lesion(i.label)]
    if nearest := _nearest_lesion(reading, there, [i for i in beside if i.label not in mention.places] or beside):
        return [*nearest, *(i for i in beside if takes == "pair")]
    organs = [i for i in reading.scene.instances if i.label in labels_of(reading) and not is_lesion(i.label)]
    if not organs and (
        fact == "share" or (takes == "pair" and len(ranks) < 2 and all(rank.number == 1 for rank in ranks))
    ):  # "the liver lesion against the liver", "% of the liver"
        organs = [i for i in reading.scene.instances if i.label in mention.places]
    if ranks:
        limit = (
            None if is_claim(text) else reading.threshold
        )  # "is the largest tumour above 5 cm?" is about the largest
        kept = [i for i in there if limit is None or limit.keeps(i)]
        there = list({i.id: i for rank in ranks for i in rank.of(kept)}.values())
    elif chooses(plain_line(text)):
        return []
    elif takes in ("one", "pair") and len(there) > 1 and fact not in ("gap", "share") and not joined(fact, text):
        sure = dict(zip((i.id for i in reading.scene.instances), reading.selection, strict=True))
        if len({i.id for i in there if sure[i.id] >= SELECT}) == 1:  # the pointer knows which
            return []
    elif fact in ("share", "total_volume") and organs:
        labels = {i.label for i in organs}
        inside = reading.inside(there, labels)
        there = inside if fact == "share" or inside else there
    if takes == "pair" and organs and there:
        ends = [_likeliest(reading, [i for i in organs if i.label == label]) for label in {i.label for i in organs}]
        # "is the cyst darker than the kidney?"
        family = len({split_side(end.label)[0] for end in ends}) == 1 < len(ends)
        if NEAREST_OF.search(plain_line(text)) or family:  # "from the nearest vertebra"
            ends = [min(ends, key=lambda end: min(reading.scene.relations.gap_mm(i, end) for i in there))]
        if fact == "gap":
            return [min(there, key=lambda i: reading.scene.relations.gap_mm(i, ends[0])), *ends]
        return [max(there, key=lambda i: i.volume_ml), *ends]
    if fact in ("count", "multiplicity", "nearest"):
        return there
    return [*there, *organs] if there or fact == "share" else []


def _largest_of_each(reading: Reading, lesions: list[Instance]) -> list[Instance]:
    """The largest lesion of each class named; none where other ranks, sizes, sides or an organ beside are named too."""
    mention, text = reading.mention, reading.question.question
    beside = any(not is_lesion(name) for name in labels_of(reading))
    text = re.sub(r"\b(?:larg|bigg|great|small)er\b", "", text)  # of "which is smaller, A or B?"
    ranks = parse_lesion_ranks(text)
    others = [rank for rank in ranks if (rank.attribute, rank.low, rank.first, rank.number) != LARGEST]
    if beside or mention.sides or reading.threshold or others or (not ranks and chooses(plain_line(text))):
        return []
    return list({i.label: i for i in sorted(lesions, key=lambda i: i.volume_ml)}.values())


def compared_kinds(reading: Reading) -> Mention | None:
    """What is mentioned where kinds are compared of which one has several classes: "is the tumour bigger than the
    cyst?" is about the class of the largest of each, "is the cyst darker than the kidney?" about the kidney next to it;
    None for another question.
    """
    mention, gap_mm = reading.mention, reading.scene.relations.gap_mm
    halves = _OR.split(reading.question.question.lower())
    if FACTS[reading.fact].takes != "pair" or len(halves) != 2 or len(mention.classes) < 3:
        return None
    kinds = [find_mentions(half, mention.classes).classes for half in halves]
    some = [[i for i in reading.scene.instances if i.label in kind] for kind in kinds]
    if not all(some) or set(kinds[0]) & set(kinds[1]) or {*kinds[0], *kinds[1]} != set(mention.classes):
        return None
    ends = [max(kind, key=lambda i: i.volume_ml) for kind in some]
    if sum(is_lesion(end.label) for end in ends) == 1:
        lesion, organs = (ends[0], some[1]) if is_lesion(ends[0].label) else (ends[1], some[0])
        ends[ends[0] is lesion] = min(organs, key=lambda i: gap_mm(lesion, i))
    elif not all(is_lesion(end.label) for end in ends):
        return None
    return replace(mention, classes=tuple(end.label for end in ends))


def _holders(reading: Reading) -> list[Instance] | None:
    """The structures that lesions of the kind named lie in; None where no lesion is named."""
    lesions = [i for i in reading.scene.instances if is_lesion(i.label) and i.label in reading.mention.classes]
    named = bool(lesions) or reading.mention.lesions
    return reading.homes(lesions) if named else None


def _nearest_lesion(reading: Reading, lesions: list[Instance], organs: list[Instance]) -> list[Instance]:
    """Of several lesions the one nearest to, or farthest from, the one organ beside which it is named: "the lesion
    nearest to the spleen"; none where the words choose no such one.
    """
    said = NEAREST_LESION.search(plain_line(reading.question.question))
    if said is None or len({i.label for i in organs}) != 1 or not lesions:
        return []
    gaps = {i.id: min(reading.scene.relations.gap_mm(i, organ) for organ in organs) for i in lesions}
    return [(max if "far" in said[0] else min)(lesions, key=lambda i: gaps[i.id])]


def _to_the_nearest(reading: Reading, named: list[Instance]) -> list[Instance]:
    """A structure and the nearest of a family: "from the spleen to the nearest vertebra"; of a gap between two families
    the ends that are nearest; none without such words.
    """
    said = NEAREST_OF.search(plain_line(reading.question.question))
    family = find_mentions(said["those"], scene_classes(reading.scene)).classes if said else ()
    others = [i for i in named if i.label not in family]
    gap_mm, kinds = reading.scene.relations.gap_mm, {split_side(i.label)[0]: None for i in named}
    if reading.fact == "gap" and not family and len(kinds) == 2:  # "do the parotids touch the mandible?"
        first, second = ([i for i in named if split_side(i.label)[0] == kind] for kind in kinds)
        return list(min(itertools.product(first, second), key=lambda pair: gap_mm(*pair)))
    if len({i.label for i in others}) != 1 or len(others) == len(named):
        return []
    one = _likeliest(reading, others)
    return [one, min((i for i in named if i.label in family), key=lambda i: gap_mm(one, i))]


def is_family(labels: list[str], line: str) -> bool:
    """Whether structures of one name are asked about together: "the left lung" in lobes, "the kidneys"; not a single
    one of a pair whose side is not told, nor one that the words choose.
    """
    pair = len({split_side(name)[0] for name in labels}) == 1
    plural = re.search(r" (?:both|two|[a-z]{3,}s) ", line) is not None
    return bool(shared_name(tuple(labels))) and (plural or not pair) and not chooses(line)


def labels_of(reading: Reading) -> list[str]:
    """The classes in this scan that the question names, but for the places of lesions."""
    mention = reading.mention
    there = {instance.label for instance in reading.scene.instances}
    return [name for name in mention.classes if name in there and name not in mention.places]


def _only(reading: Reading, chosen: list[Instance]) -> np.ndarray:
    """The selection of some instances and no other; one that the pointer is surer of stays as sure."""
    ids = {instance.id for instance in chosen}
    meant = np.array([instance.id in ids for instance in reading.scene.instances], dtype=bool)
    return np.where(meant, np.maximum(reading.selection, NAMED), np.minimum(reading.selection, 1 - NAMED))


def _likeliest(reading: Reading, pieces: list[Instance]) -> Instance:
    """Of an organ in pieces, and of lesions that the pointer does not tell apart, the largest."""
    sure = dict(zip((i.id for i in reading.scene.instances), reading.selection, strict=True))
    meant = [i for i in pieces if sure[i.id] >= SELECT]
    return meant[0] if len(meant) == 1 and is_lesion(pieces[0].label) else max(pieces, key=lambda i: i.volume_ml)
