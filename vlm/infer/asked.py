"""Which fact the words of a question ask for, where they say so beyond doubt; else the network's reading stands.

Enters a Reading, leaves the name of a fact. The rules stand in groups by what they are about; the first that applies
tells. The words themselves lie in vlm/phrases.yaml and, of what can be measured, in vlm/plain_words.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from seg_backbone.labels import display, is_lesion
from vlm.claims import claimed, counted, is_claim
from vlm.data.threshold import parse_within
from vlm.facts import FACTS, SAID
from vlm.grounding import Mention, find_mentions, is_finding, split_side
from vlm.heads.choose import unit_of
from vlm.heads.measurement import joined
from vlm.heads.places import NEARER, way_in
from vlm.heads.ranks import THINGS, compared_by, of_two, parse_lesion_ranks, parse_rank
from vlm.heads.reading import Reading
from vlm.infer.meant import NEAREST_LESION, ON_A_SIDE, is_family, labels_of
from vlm.plain_words import fact_in, is_bare, plain_line, says
from vlm.regions import region_in, regions_said
from vlm.scene import scene_classes

UNSURE = 0.6  # a router below this is set right by plain words
GUESSED = 0.35  # below this it is a guess
LONG_AND_THIN = 2.0  # times as far from top to bottom as on a slice
OFF_TOPIC = 0.5  # see vlm/infer/scope.py
MEASURED = tuple(name for name, fact in FACTS.items() if fact.kind == "measurement")
SINGLES = tuple(name for name in MEASURED if FACTS[name].takes == "one")
PAIRS = tuple(name for name in MEASURED if FACTS[name].takes == "pair")
OF_ONE_SAID = ("axis_ratio", "sphere_diameter", "longest_extent", "slice_range")
BY_UNIT = {"ml": "volume", "mm": "long_axis", "HU": "intensity"}  # unit of the options -> what is measured


@dataclass(frozen=True)
class _Asked:
    """A question as the rules see it. line: its plain words. labels: the classes of this scan that it names, but for
    places of lesions. fact: what the network read. sure: its probability. single: the measure of one structure that
    the words name. claim: it asks for a yes or a no.
    """

    reading: Reading
    text: str
    line: str
    labels: list[str]
    mention: Mention
    fact: str
    sure: float
    single: str | None
    claim: bool

    @property
    def lesions(self) -> bool:
        return any(map(is_lesion, self.labels)) or self.mention.lesions

    @property
    def ends(self) -> int:
        """How many things are named, all lesions being one."""
        return sum(not is_lesion(name) for name in self.labels) + any(map(is_lesion, self.labels))

    @property
    def two_absent(self) -> bool:
        """Whether two structures are named of which the scan lacks one at least."""
        return len(self.mention.classes) == 2 > len(self.labels) and not self.mention.places

    @property
    def named(self) -> bool:
        return bool(self.mention.classes or self.mention.others or self.mention.lesions)

    @property
    def sized(self) -> bool:
        return self.reading.threshold is not None

    @property
    def long_and_thin(self) -> bool:
        """Whether one organ is asked about that extends farther from top to bottom than on any slice."""
        named = [i for i in self.reading.scene.instances if self.labels == [i.label] and not is_lesion(i.label)]
        return bool(named) and named[0].craniocaudal_mm > LONG_AND_THIN * named[0].long_axis_mm

    def says(self, *names: str) -> bool:
        """Whether the words hold one of the phrases of phrases.yaml under one of the names."""
        return any(says(name, self.line) for name in names)


def asked_fact(reading: Reading, off_topic: float, allowed: tuple[str, ...]) -> str:
    """The fact that a question asks for. allowed: those that fit its declared type and unit; those of SAID are no more
    than that where they fit the type.
    """
    text = reading.question.question
    ask = _Asked(
        reading=reading,
        text=text,
        line=plain_line(text),
        labels=labels_of(reading),
        mention=reading.mention,
        fact=reading.fact,
        sure=reading.fact_probability,
        single=fact_in(text, SINGLES),
        claim=is_claim(text),
    )
    if by_options := _by_options(ask):
        return by_options
    wanted = next((fact for rule in _RULES if (fact := rule(ask))), ask.fact)
    if wanted == ask.fact:
        wanted = _in_doubt(ask, off_topic)
    kind = reading.question.type
    said = wanted in SAID and (kind in (None, "open") or FACTS[wanted].kind == kind)
    return wanted if wanted in allowed or said else ask.fact


def _by_options(ask: _Asked) -> str | None:
    """The measure that options which are numbers with a unit tell."""
    unit = unit_of(ask.reading.question.options)
    if unit is None or unit == FACTS[ask.fact].unit or len(ask.labels) > 1:
        return None
    return ask.single if ask.single and FACTS[ask.single].unit == unit else BY_UNIT.get(unit)


# Beyond doubt, whatever the network says ----------------------------------------------------------------------------


def _of_the_file(ask: _Asked) -> str | None:
    if not ask.named and ask.says("slices"):
        return "slices"
    if ask.ends == 1 and not ask.sized and (said := next((name for name in OF_ONE_SAID if ask.says(name)), None)):
        return said
    if ask.fact == "modality" and len(regions_said(ask.text)) > 1:
        return "region"  # "is this a head CT or an abdominal CT?"
    if ask.named or ask.says("asked"):
        return None
    return next((name for name in ("voxel_size", "field_of_view") if ask.says(name)), None)


def _counted_or_told(ask: _Asked) -> str | None:
    region = region_in(ask.text)
    things = ask.named or re.search(rf" (?:{THINGS})s? ", ask.line)
    if ask.says("how_many") and not ask.claim and things:
        return ask.fact if ask.fact.startswith("count") else "count"
    if ask.says("describe") and fact_in(ask.text, (*MEASURED, "side", "box")) is None:
        return "findings" if ask.mention.classes or region else ask.fact
    if ask.says("shows") and (region or ask.labels) and ask.fact in ("region", "contents", "presence"):
        return "findings"
    return None


def _held(ask: _Asked) -> str | None:
    """Which organs hold lesions."""
    if ask.lesions and ask.says("more_lesions") and not ask.claim:
        return "most_affected"  # "which has more lesions, the liver or the spleen?"
    if ask.lesions and ask.claim and " both " in ask.line and len(ask.mention.places) > 1 and not ask.sized:
        return "presence"
    if ask.lesions and ask.ends == 1 and ask.says("holders") and ask.reading.question.type in (None, "multilabel"):
        return "contents"
    if not (ask.lesions and ask.says("holder")) or ask.fact in ("count", "share", *MEASURED):
        return None
    options = " ".join(ask.reading.question.options) if ask.ends == 1 else ""
    among = ask.mention.places or find_mentions(options, scene_classes(ask.reading.scene)).classes
    return "most_affected" if among else None


def _placed(ask: _Asked) -> str | None:
    """How structures lie to each other."""
    if NEARER.search(ask.text.lower()) and ask.ends == 3 and not ask.says("how_far"):
        return "nearer"
    if ask.lesions and ask.claim and ask.says("confined") and any(not is_lesion(name) for name in ask.mention.classes):
        return "confined"
    if ask.ends == 2 and ask.claim and parse_within(ask.text):
        return "gap"
    if ask.ends == 2 and ask.says("bearing") and not ask.claim:
        return "bearing"
    if (len(ask.labels) == 2 or ask.lesions) and ask.claim and ask.says("same_side"):
        return "same_side"
    if ask.ends == 2 and not ask.claim and ask.says("how_far") and way_in(ask.text) and not _of_amounts(ask):
        return "offset"
    if ask.says("level") and not ask.claim:
        return "level"
    if ask.ends == 1 and (ask.says("beside") or (not ask.lesions and ask.says("touching"))):
        return "neighbours"
    if not ask.named and ON_A_SIDE.search(ask.line):
        return "contents"
    if ask.fact in PAIRS and ask.ends == 1 and ask.says("centroid") and fact_in(ask.text, PAIRS) is None:
        return "box"
    if ask.says("by_size") and not ask.lesions:
        return "contents"
    measured = FACTS[ask.fact].kind == "measurement" or fact_in(ask.text, MEASURED) or ask.says("of_density")
    if (ask.ends == 2 or ask.two_absent) and way_in(ask.text) and not (measured or ask.sized):
        return "position" if ask.claim or re.search(r" (?:which|what) ", ask.line) else ask.fact
    return None


def _of_amounts(ask: _Asked) -> bool:
    """Whether volumes or densities are compared: "how much higher is the attenuation of ...?"."""
    return ask.says("of_density", "of_size") or ask.fact in (
        "intensity_difference",
        "intensity_ratio",
        "volume_difference",
    )


def _compared(ask: _Asked) -> str | None:
    if (
        re.match(r" (?:is|are|does|do) ", ask.line)
        and ask.ends == 2
        and ask.fact.startswith("intensity")
        and not ask.sized
    ):
        return "denser"
    if ask.fact == "count" and ask.claim and ask.reading.question.type is None and counted(ask.text, 1) is not None:
        return "presence"  # "are there at least five?"
    measured = fact_in(ask.text, MEASURED)
    unsure = ask.fact in ("larger", "denser") or (ask.sure < UNSURE and measured is None)
    if (
        ask.lesions
        and ask.ends == 1
        and unsure
        and (" or " not in ask.line or ask.mention.lesions)
        and not (ask.claim or ask.says("holder"))
        and parse_lesion_ranks(ask.text)
    ):
        return "box"  # "which lesion is the densest?"
    relative = ask.says("ratio") or (ask.fact == "volume" and " relative to " in ask.line)
    of_size = (ask.says("of_size") or ask.fact == "volume" or measured is None) and not ask.says("of_density")
    if ask.ends == 2 and relative and of_size and ask.fact != "share":
        beside = any(is_finding(name) for name in map(display, ask.labels))  # oedema holds no tumour
        return "share" if ask.lesions and not beside and not parse_lesion_ranks(ask.text) else "volume_ratio"
    if ask.fact == "share" and ask.ends == 2 and not ask.lesions and " than " in ask.line:
        return "volume_difference"
    if ask.fact == "enlarged" and len(ask.labels) == 2 and of_two(ask.text) is not None:
        return "larger"  # "bigger kidney?"
    if ask.fact == "denser" and ask.says("compare") and not ask.says("of_density"):
        return "larger"
    which = ask.says("which_of_two") or (ask.claim and " than " in ask.line)
    if ask.fact in SINGLES and ask.ends == 2 and which and not ask.sized:
        return "denser" if ask.says("of_density") else "larger"
    return None


def _of_lesions(ask: _Asked) -> str | None:
    if not ask.lesions:
        return None
    if ask.ends == 1 and ask.says("t_category"):
        return "size_category"
    ranks = parse_lesion_ranks(ask.text)
    unsure = ask.sure < UNSURE or ask.fact in ("presence", "nearest", "box", "larger")
    if ask.claim and len(ranks) == 1 and ask.mention.places and unsure and not ask.sized and ask.says("inside"):
        return "confined"  # "is the largest lesion in the liver?"
    which = ask.says("in_which", "holder")
    said = claimed("side", ask.text, ask.mention) and not (ask.sized or " there " in ask.line)
    if said and ask.ends == 1 and len(ranks) == 1:
        return "side"  # "is the largest lesion on the right?"
    organs = {*ask.mention.places, *(name for name in ask.mention.classes if not is_lesion(name))}
    if len(organs) > 1 and " or " in ask.line and not ask.sized:
        if ask.says("burden"):
            return "most_affected"  # "is the tumour load larger in the liver or in the spleen?"
        if re.search(r" (?:in|within|inside) .* or ", ask.line) and not ask.says("does_it_hold"):
            return "nearest"  # "is the cyst in the left or in the right kidney?"
    if ask.ends == 1 and not ask.mention.places and ask.fact == "share":
        return "total_volume"  # "the tumour burden"
    if ask.says("burden") and not (which or ask.says("asked")):
        return "share" if (ask.mention.places or len(ask.labels) > 1) and not ask.says("in_ml") else "total_volume"
    if ask.fact == "nearest" and not which and NEAREST_LESION.search(ask.line):
        return "box"
    place = ask.fact in ("box", "presence", "most_affected") or (ask.fact == "side" and " side " not in ask.line)
    if which and place and ranks:
        return "nearest"  # "the lowest lesion lies in which bone?"
    if ask.mention.places and FACTS[ask.fact].kind == "classification" and ask.says("does_it_hold"):
        return "presence"
    return "presence" if ask.fact == "fatty" and " fat" not in ask.line else None  # "hepatic lesions"


def _measured(ask: _Asked) -> str | None:
    fact, line = ask.fact, ask.line
    diameter = fact == "diameter_3d" and " diameter" in line
    if ask.ends < 2 and ask.says("three_extents") and fact in MEASURED and not diameter:
        return "box"
    if (
        fact.startswith("intensity")
        and ask.single
        and not (ask.single.startswith("intensity") or ask.says("of_density"))
    ):
        return ask.single  # "mean nodule volume"
    of_each = fact_in(re.sub(r"\b(size|length|volume|diameter|height|width)s\b", r"\1", ask.text), SINGLES)
    if fact == "count" and of_each and joined(of_each, ask.text) == "each" and not ask.says("how_many"):
        return of_each  # "what are the sizes of all lesions?"
    if ask.says("measure_it") and fact_in(ask.text, MEASURED) is None and ask.ends == 1 and not ask.sized:
        return "long_axis" if ask.lesions else "volume"
    if fact == "multiplicity" and ask.claim and " any " in line and counted(ask.text, 1) is None:
        return "presence"
    if fact == "long_axis" and ask.says("end_to_end") and not ask.says("axial") and ask.long_and_thin:
        return "craniocaudal"
    if ask.claim and ask.says("depth"):
        return "presence"
    if fact == "surface_area" and not ask.says("surface"):
        return "long_axis"
    if fact in ("distance", "box") and ask.ends == 2 and (fact_in(ask.text, ("gap",)) or " surface " in line):
        return "gap"
    organs = [name for name in ask.labels if not is_lesion(name)]
    together = is_family(organs, line) or (organs and ask.says("including"))
    if fact == "volume" and together and not (ask.sized or joined(fact, ask.text) in ("mean", "each")):
        return "total_volume"
    if fact == "total_volume" and joined("volume", ask.text) == "mean":
        return "volume"
    length = fact_in(ask.text, ("short_axis", "diameter_3d", "long_axis"))
    return length if fact == "total_volume" and " volume" not in line else None


_RULES = (_of_the_file, _counted_or_told, _held, _placed, _compared, _of_lesions, _measured)


# Where the network's reading does not fit the words -----------------------------------------------------------------


def _in_doubt(ask: _Asked, off_topic: float) -> str:
    fact, text, line, labels, limit = ask.fact, ask.text, ask.line, ask.labels, ask.reading.threshold
    rank = parse_rank(text, len(labels))
    of_one = ask.claim and ask.ends == 1
    if limit and of_one and limit.unit == "HU" and not any(map(is_lesion, labels[1:])):
        return "intensity"
    if rank and rank.asks:
        return "denser" if rank.attribute == "intensity_mean" else "larger"
    if (fact == "diameter_3d" and not ask.says("in_3d")) or (
        fact == "anteroposterior" and not ask.says("front_to_back")
    ):
        return "long_axis"
    away = limit and ask.says("away") and fact not in MEASURED
    kinds = {split_side(name)[0] for name in labels}
    if ask.claim and (ask.ends == 2 or ask.two_absent or len(kinds) == 2) and (ask.says("touches") or away):
        return "gap"
    of_size = compared_by(text) != "volume_ml" or ask.says("of_size")
    if limit and not ask.claim and fact in ("denser", "larger") and re.search(rf" (?:{THINGS})s ", line):
        return "contents"  # "which organs are denser than 100 HU?"
    if fact == "denser" and of_size and not ask.says("of_density"):
        return "larger"
    if len(labels) == 2 and " minus " in line and fact not in ("volume_difference", "intensity_difference"):
        return "volume_difference" if re.search(r" (?:volume|size|ml|cc) ", line) else "intensity_difference"
    if fact == "modality" and claimed("region", text, ask.mention):
        stated = claimed("modality", text, ask.mention)
        return "region" if not stated or ask.reading.scene.modality in stated else fact
    if ask.says("same_size") and ask.claim and len(labels) == 2 and len({split_side(name)[0] for name in labels}) == 1:
        return "asymmetric"
    if (fact == "presence" or (fact == "box" and ask.says("asked"))) and len(labels) == 1 and _is_on_a_side(ask):
        return "side"
    if limit and of_one and (fact in ("presence", "larger", "volume_difference") or ask.sure < UNSURE):
        fits = ask.single and FACTS[ask.single].unit == limit.unit and len(labels) == 1
        return ask.single if ask.single and fits else "presence"
    if fact == "craniocaudal" and ask.single == "long_axis" and any(map(is_lesion, labels)):
        return "long_axis"  # "tumour length"
    pair = fact_in(text, PAIRS)
    several = len(labels) > 1 and not (ask.single and joined(ask.single, text))
    plain = pair if len(labels) == 2 and pair else None if several else ask.single
    if off_topic >= OFF_TOPIC or fact == "off_topic":
        about = bool(labels) or (is_bare(text) and bool(ask.reading.scene.instances))
        return plain if plain and about and not ask.says("time") else fact
    if ask.sure < UNSURE and fact in MEASURED and plain and plain != "long_axis":
        return plain
    return ask.single if ask.sure < GUESSED and ask.single and len(labels) == 1 else fact


def _is_on_a_side(ask: _Asked) -> bool:
    """Whether it is asked if a structure lies on a side: "Is the larynx in the midline?", not "Is there one on it?"."""
    sided = split_side(ask.labels[0])[1] is not None
    return not (sided or ask.mention.places or " there " in ask.line) and bool(claimed("side", ask.text, ask.mention))
