"""Rereading: what the words of a question say beyond doubt sets right what the network made of it.

Enters a Reading, leaves one whose fact, instances and size are those that the words name: a structure that is called by
its name is meant whatever the pointer thinks of a class it never saw, "the largest organ" is found by sorting, and "is
its short axis above 5 cm?" compares that. What the words leave open stays as the network read it.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from seg_backbone.labels import is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import claimed, counted, is_claim
from vlm.data.threshold import Threshold
from vlm.facts import FACTS, SAID, facts_of
from vlm.grounding import split_side
from vlm.heads.choose import match_option
from vlm.heads.measurement import joined
from vlm.heads.places import NEARER, way_in
from vlm.heads.ranks import PLACES, compared_by, of_two, parse_lesion_ranks, parse_rank, ranked
from vlm.heads.reading import SELECT, Reading, shared_name
from vlm.infer.plain_words import fact_in, is_bare, plain_line, says
from vlm.regions import region_in

NAMED = 0.95  # how sure it is that an instance is meant that is called by its name, and that no other one is
RULED = 0.9  # how sure a fact is that the words name
UNSURE = 0.6  # a router below this is set right by plain words
OFF_TOPIC = 0.5  # see vlm/infer/scope.py
OF_ALL_NAMED = ("presence", "count", "contents", "box", "total_volume", "multiplicity")
MEASURED = tuple(name for name, fact in FACTS.items() if fact.kind == "measurement")
SINGLES = tuple(name for name in MEASURED if FACTS[name].takes == "one")
_CHOOSES = re.compile(  # words that choose among several of one name; "larger than" chooses by size, which code does
    r" (?:(?:largest|biggest|greatest|smallest|tiniest|longest|densest|other|another|next|first|last|main|dominant"
    r"|bulkier|littler|tinier|lesser|(?:more|less|most|least) (?:voluminous|sizea?ble|bulky|dense|diminutive)"
    rf"|upper|lower|{'|'.join(PLACES)})|(?:larger|bigger|smaller)(?! than)) "
)
_IN_3D = re.compile(
    r"3-? ?d|three|dimension|direction|plane|spa[ct]|feret|chord|point|oblique|calip|orient|far|distan|line|extrem"
    r"|remote|tilt|rod|multi|restrict|whichever|voxel|overall|true"
)
TOUCHES = re.compile(r" (?:touch\w*|abut\w*|adjacent|contiguous|in contact|border(?:s|ing)?|adjoin\w*) ")
_AWAY = re.compile(r" (?:from|apart|away|within|between) ")
_ASKED = re.compile(r" (?:is|are|was|were|does|do|lies|can|would) ")
_SIZE = re.compile(r" (?:bulkier|bulky|bigger|larger|smaller|sizes?|volumes?) ")
_DENSITY = re.compile(
    r" (?:\w*dens\w*|hu|attenuat\w*|b[ri]+ght\w*|dark\w*|light\w*|whit\w*|gr[ae]y|intens\w*|signals?"
    r"|hounsfield|ct (?:numbers?|values?)|\w*lucent|\w*opaque|contrast) "
)
_SAME_SIZE = re.compile(r" (?:same|equal\w*|similar|alike|symmetr\w*|different|unequal) ")
_TIME = re.compile(r" how long (?:has|have|had|did|will|would|until|ago|before|after|to live|since) ")


def reread(reading: Reading, off_topic: float, known: tuple[str, ...]) -> tuple[Reading, float]:
    """The reading and the probability that the question is not about the scan, both set right.

    known: the facts that the checkpoint tells apart; of them those that fit the declared type and unit may be read.
    """
    question = reading.question
    fact = _fact(reading, off_topic, facts_of(question.type, question.unit, known))
    if fact != reading.fact:
        reading, off_topic = replace(reading, fact=fact, fact_probability=max(reading.fact_probability, RULED)), 0.0
    limit = reading.threshold
    if limit and limit.attribute == "long_axis_mm" and not any(map(is_lesion, reading.mention.classes)):
        field = compared_by(question.question)  # "is the cord longer than 15 cm?"
        if field != "volume_ml":
            reading = replace(reading, threshold=replace(limit, attribute=field))
    unit = FACTS[reading.fact].unit
    if (
        reading.threshold
        and reading.fact in MEASURED
        and unit == reading.threshold.unit
        and is_claim(question.question)
    ):
        reading = replace(reading, limit=reading.threshold, threshold=None)
    elif reading.fact == "gap" and is_claim(question.question) and TOUCHES.search(plain_line(question.question)):
        diagonal = float(np.linalg.norm(reading.scene.grid.spacing_mm))  # between the centres of neighbouring voxels
        reading = replace(reading, limit=Threshold("gap", "<=", diagonal, "mm"))
    return replace(reading, selection=_selection(reading)), off_topic


# The fact -----------------------------------------------------------------------------------------------------------


def _fact(reading: Reading, off_topic: float, allowed: tuple[str, ...]) -> str:
    text, fact = reading.question.question, reading.fact
    line, labels = plain_line(text), _labels(reading)
    rank = parse_rank(text, len(labels))
    singles, pairs = (
        fact_in(text, tuple(name for name in MEASURED if FACTS[name].takes == takes)) for takes in ("one", "pair")
    )
    plain = pairs if len(labels) == 2 and pairs else singles if len(labels) < 2 else None
    away = reading.threshold and _AWAY.search(line) and fact not in MEASURED
    wanted = _plainly(reading, line, labels) or fact
    sized = reading.threshold is not None and is_claim(text) and _ends(labels) == 1
    if wanted != fact:
        pass
    elif sized and reading.threshold and reading.threshold.unit == "HU" and not any(map(is_lesion, labels[1:])):
        wanted = "intensity"
    elif rank and rank.asks:
        wanted = "denser" if rank.attribute == "intensity_mean" else "larger"
    elif (fact == "diameter_3d" and not _IN_3D.search(line)) or (
        fact == "anteroposterior" and not says("front_to_back", line)
    ):
        wanted = "long_axis"
    elif is_claim(text) and _ends(labels) == 2 and (TOUCHES.search(line) or away):
        wanted = "gap"
    elif fact == "denser" and (compared_by(text) != "volume_ml" or _SIZE.search(line)) and not _DENSITY.search(line):
        wanted = "larger"
    elif len(labels) == 2 and " minus " in line and fact not in ("volume_difference", "intensity_difference"):
        wanted = "volume_difference" if re.search(r" (?:volume|size|ml|cc) ", line) else "intensity_difference"
    elif fact == "modality" and claimed("region", text, reading.mention):
        stated = claimed("modality", text, reading.mention)
        wanted = "region" if not stated or reading.scene.modality in stated else fact
    elif (
        _SAME_SIZE.search(line) and is_claim(text) and len(labels) == 2 and len({split_side(n)[0] for n in labels}) == 1
    ):
        wanted = "asymmetric"
    elif (fact == "presence" or (fact == "box" and _ASKED.match(line))) and len(labels) == 1 and _is_on_a_side(reading):
        wanted = "side"
    elif sized and (fact in ("presence", "larger", "volume_difference") or reading.fact_probability < UNSURE):
        fits = singles and reading.threshold and FACTS[singles].unit == reading.threshold.unit and len(labels) == 1
        wanted = singles if singles and fits else "presence"
    elif off_topic >= OFF_TOPIC:
        about = bool(labels) or (is_bare(text) and bool(reading.scene.instances))
        wanted = plain if plain and about and not _TIME.search(line) else fact
    elif reading.fact_probability < UNSURE and fact in MEASURED and plain and plain != "long_axis":
        wanted = plain
    kind = reading.question.type
    said = wanted in SAID and (kind in (None, "open") or FACTS[wanted].kind == kind)
    return wanted if wanted in allowed or said else fact


def _ends(labels: list[str]) -> int:
    """How many things are named, all lesions being one."""
    return sum(not is_lesion(name) for name in labels) + any(map(is_lesion, labels))


def _is_family(labels: list[str], line: str) -> bool:
    """Whether structures of one name are asked about together: "the left lung" in lobes, "the kidneys"; not a single
    one of a pair whose side is not told, nor one that the words choose.
    """
    pair = len({split_side(name)[0] for name in labels}) == 1
    plural = re.search(r" (?:both|two|[a-z]{3,}s) ", line) is not None
    return bool(shared_name(tuple(labels))) and (plural or not pair) and not _CHOOSES.search(line)


def _plainly(reading: Reading, line: str, labels: list[str]) -> str | None:
    """The fact that some words ask for whatever the network says, most of them of facts that it does not know."""
    text, mention, fact = reading.question.question, reading.mention, reading.fact
    lesions = any(map(is_lesion, labels)) or mention.lesions
    ends = _ends(labels)
    claim, named = is_claim(text), bool(mention.classes or mention.others or mention.lesions)
    if not named and says("slices", line):
        return "slices"
    if not named and not _ASKED.match(line):
        if says("voxel_size", line):
            return "voxel_size"
        if says("field_of_view", line):
            return "field_of_view"
    if says("how_many", line) and not claim and (named or re.search(r" (?:organ|structure)s? ", line)):
        return None if fact.startswith("count") else "count"
    if says("describe", line) and fact_in(text, MEASURED) is None and fact_in(text, ("side", "box")) is None:
        return "findings" if mention.classes or region_in(text) else None
    if says("shows", line) and (region_in(text) or labels) and fact in ("region", "contents", "presence"):
        return "findings"
    if lesions and mention.places and says("holder", line) and fact not in ("count", "share", *MEASURED):
        return "most_affected"
    if NEARER.search(text.lower()) and ends == 3:
        return "nearer"
    if ends == 1 and (says("beside", line) or (not lesions and says("touching", line))):
        return "neighbours"
    if says("by_size", line) and not lesions:
        return "contents"
    if (
        ends == 2
        and way_in(text)
        and FACTS[fact].kind != "measurement"
        and not (fact_in(text, MEASURED) or _DENSITY.search(line) or reading.threshold)
    ):
        return "position" if claim or re.search(r" (?:which|what) ", line) else None
    by_size = _SIZE.search(line) is not None or fact == "volume"
    if re.match(r" (?:is|are|does|do) ", line) and ends == 2 and fact.startswith("intensity") and not reading.threshold:
        return "denser"
    if fact == "count" and claim and reading.question.type is None and counted(text, 1) is not None:
        return "presence"  # "are there at least five?"
    unsure = fact in ("larger", "denser") or (reading.fact_probability < UNSURE and fact_in(text, MEASURED) is None)
    unsure = unsure and not says("holder", line)
    if lesions and ends == 1 and unsure and not claim and parse_lesion_ranks(text):
        return "box"  # "which lesion is the densest?"
    relative = says("ratio", line) or (fact == "volume" and " relative to " in line)
    if ends == 2 and relative and by_size and not _DENSITY.search(line) and fact != "share":
        return "share" if lesions and not parse_lesion_ranks(text) else "volume_ratio"
    if ends == 1 and says("three_extents", line) and fact in MEASURED and fact != "diameter_3d":
        return "box"
    if lesions and ends == 1 and not mention.places and fact == "share":  # "the tumour burden"
        return "total_volume"
    if lesions and fact == "fatty" and " fat" not in line:  # "hepatic lesions"
        return "presence"
    if fact == "multiplicity" and claim and re.search(r" any ", line) and counted(text, 1) is None:
        return "presence"
    if fact == "surface_area" and not says("surface", line):
        return "long_axis"
    if fact in ("distance", "box") and ends == 2 and fact_in(text, ("gap",)):
        return "gap"
    organs = [name for name in labels if not is_lesion(name)]
    family = _is_family(organs, line)
    together = family or (organs and says("including", line))
    if fact == "volume" and together and not (reading.threshold or joined(fact, text) == "mean"):
        return "total_volume"
    if fact == "total_volume" and joined("volume", text) == "mean":
        return "volume"
    if (
        fact == "total_volume"
        and (single := fact_in(text, ("short_axis", "diameter_3d", "long_axis")))
        and " volume" not in line
    ):
        return single
    return None


def _is_on_a_side(reading: Reading) -> bool:
    """Whether it is asked if a structure lies on a side: "Is the larynx in the midline?", not "Is there one on it?"."""
    text = reading.question.question
    name = _labels(reading)[0]
    return (
        split_side(name)[1] is None
        and bool(claimed("side", text, reading.mention))
        and " there " not in plain_line(text)
    )


# The instances ------------------------------------------------------------------------------------------------------


def _selection(reading: Reading) -> np.ndarray:
    """(K,) probability of each instance; the pointer's where the words leave it open."""
    fact, instances, text = reading.fact, reading.scene.instances, reading.question.question
    labels = _labels(reading)
    if fact == "contents" and reading.question.options:
        return _only(reading, [i for i in instances if match_option(i.label, reading.question.options)])
    if lesions := _lesions(reading):
        return _only(reading, lesions)
    rank = parse_rank(text, len(labels))
    if rank and not rank.asks:
        order = ranked(reading, rank)
        return _only(reading, order[rank.place - 1][1][:1] if len(order) >= rank.place else [])
    family = fact == "intensity" and _is_family(labels, plain_line(text))
    if len(labels) > 1 and (joined(fact, text) or family):
        return _only(reading, [i for i in instances if i.label in labels])
    if fact == "nearer" or (fact == "contents" and labels and says("by_size", plain_line(text))):
        return _only(reading, [i for i in instances if i.label in labels])
    if fact == "most_affected":
        return _only(reading, [i for i in instances if is_lesion(i.label)])
    if not reading.mention.classes:
        everything = re.search(r" (organ|structure|thing)s? ", plain_line(text))
        lesions = [i for i, p in zip(instances, reading.selection, strict=True) if is_lesion(i.label) and p >= SELECT]
        if everything and fact in ("count", "contents", "box", "total_volume"):
            largest = {i.label: i for i in sorted(instances, key=lambda i: i.volume_ml)}.values()
            return _only(reading, [i for i in largest if everything[1] != "organ" or not is_lesion(i.label)])
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
    if _CHOOSES.search(plain_line(text)) or not labels:
        return reading.selection
    if fact in OF_ALL_NAMED:  # where the pointer tells them apart ("the bulkier parotid") it is believed
        sure = {i.id: p for i, p in zip(instances, reading.selection, strict=True)}
        best = max(sure[i.id] for i in named)
        return _only(reading, [i for i in named if sure[i.id] >= best / 2])
    if FACTS[fact].takes == "one" and len(labels) == 1 and (len(named) == 1 or not is_lesion(labels[0])):
        return _only(reading, [_likeliest(reading, named)])
    if FACTS[fact].takes == "pair" and len(labels) > 2:
        return _only(reading, [])
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
    if mention.places:
        there = reading.placed(there)
    if len(mention.sides) == 1 and fact != "side":
        there = [i for i in there if i.side in mention.sides]
    ranks = parse_lesion_ranks(text)
    organs = [i for i in reading.scene.instances if i.label in _labels(reading) and not is_lesion(i.label)]
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
    elif _CHOOSES.search(plain_line(text)):
        return []
    elif takes in ("one", "pair") and len(there) > 1 and fact not in ("gap", "share") and not joined(fact, text):
        sure = dict(zip((i.id for i in reading.scene.instances), reading.selection, strict=True))
        if len({i.id for i in there if sure[i.id] >= SELECT}) == 1:  # the pointer knows which
            return []
    elif fact in ("share", "total_volume") and organs:
        labels = {i.label for i in organs}
        inside = [i for i in there if (home := reading.home(i)) and home.label in labels]
        there = inside if fact == "share" or inside else there
    if takes == "pair" and organs and there:
        ends = [_likeliest(reading, [i for i in organs if i.label == label]) for label in {i.label for i in organs}]
        if fact == "gap":
            return [min(there, key=lambda i: reading.scene.relations.gap_mm(i, ends[0])), *ends]
        return [max(there, key=lambda i: i.volume_ml), *ends]
    if fact in ("count", "multiplicity"):
        return there
    return [*there, *organs] if there or fact == "share" else []


def _labels(reading: Reading) -> list[str]:
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
    """Of an organ in pieces the largest, of lesions the one that the pointer prefers."""
    if not is_lesion(pieces[0].label):
        return max(pieces, key=lambda i: i.volume_ml)
    sure = dict(zip((i.id for i in reading.scene.instances), reading.selection, strict=True))
    return max(pieces, key=lambda i: float(sure[i.id]))
