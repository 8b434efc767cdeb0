"""Ranks: "the largest organ", "the second longest structure", "the two largest tumours".

Enters a question's text, leaves what is compared and how; code then sorts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from seg_backbone.labels import is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import is_claim
from vlm.grounding import find_mentions, is_finding
from vlm.heads.choose import match_option
from vlm.heads.reading import Reading

_DENSITY = r"(?:mean )?(?:hu|density|attenuation|intensity|signal)"
_MOST = {  # field of an instance -> the words for most and for least of it
    "volume_ml": (
        r"(?:largest|highest|greatest|most) volume|largest|biggest|greatest|bulkiest|most (?:voluminous|size?able)",
        r"(?:smallest|lowest|least) volume|smallest(?: volume)?|tiniest|littlest|least (?:voluminous|size?able)"
        r"|most diminutive",
    ),
    "diameter_3d_mm": (r"longest", r"shortest"),
    "craniocaudal_mm": (r"tallest", r"flattest"),
    "transverse_mm": (r"widest|broadest", r"narrowest"),
    "intensity_mean": (
        rf"densest|brightest(?: {_DENSITY})?|most dense|(?:highest|greatest) {_DENSITY}",
        rf"darkest(?: {_DENSITY})?|least dense|(?:lowest|smallest) {_DENSITY}",
    ),
}
_NOT_A_PLACE = rf"(?! (?:{_DENSITY}|mean|average|volume|values?|voxels?|number|burden|points?|share|percentage))"
_FARTHEST = {  # axis of RAS world -> the words for the one farthest along it and for the one farthest back
    "x": (
        r"rightmost|right most|most right|farthest (?:to the )?right",
        r"leftmost|left most|most left|farthest (?:to the )?left",
    ),
    "y": (
        r"foremost|frontmost|anterior most|most (?:anterior|ventral|frontal)(?:ly)?",
        r"rearmost|hindmost|backmost|posterior most|most (?:posterior|dorsal)(?:ly)?",
    ),
    "z": (
        rf"uppermost|top ?most|highest{_NOT_A_PLACE}|superior most|most (?:superior|cranial|cephalad|rostral)(?:ly)?",
        rf"lowest{_NOT_A_PLACE}|lowermost|bottom ?most|inferior most|most (?:inferior|caudal)(?:ly)?",
    ),
}
_OF_TWO = (  # words for the larger and for the smaller of two structures
    r"larger|bigger|greater|bulkier|more (?:voluminous|size?able|bulky)",
    r"smaller|littler|tinier|lesser|less (?:voluminous|size?able|bulky)|more diminutive",
)
_RANKED = _MOST | _FARTHEST
_OF_LESIONS = _RANKED | {  # of lesions "the bigger one" too
    "volume_ml": tuple(f"{most}|(?:{more})(?! than)" for most, more in zip(_MOST["volume_ml"], _OF_TWO, strict=True))
}
FARTHEST_SAID = {"x": ("left", "right"), "y": ("to the back", "to the front"), "z": ("down", "up")}  # farthest ...
_MORE = {  # field of an instance -> the words for more or less of it, tried in this order
    "craniocaudal_mm": r"taller|tallest|cranio-?caudal(?:ly)?|top to bottom|head to foot|in height",
    "transverse_mm": r"wider|broader|narrower|widest|broadest|narrowest|left to right|in width",
    "anteroposterior_mm": r"deeper|deepest|front to back|antero-?posterior(?:ly)?|in depth",
    "short_axis_mm": r"thicker|thinner|thickest|thinnest",
    "diameter_3d_mm": r"longer|shorter|longest|shortest",
}
SHOWN = {  # field -> what it is called, and its unit
    "volume_ml": ("volume", "ml"),
    "long_axis_mm": ("long axis", "mm"),
    "short_axis_mm": ("short axis", "mm"),
    "anteroposterior_mm": ("extent from front to back", "mm"),
    "diameter_3d_mm": ("3D diameter", "mm"),
    "craniocaudal_mm": ("extent from top to bottom", "mm"),
    "transverse_mm": ("extent from left to right", "mm"),
    "intensity_mean": ("mean attenuation", "HU"),
}
FOLLOWING = re.compile(r"\b(?:of (?:the following|these|those|them)|the following|options?|choices?)\b")
NUMBERS = {"two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4, "five": 5, "5": 5}
PLACES = {"second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4, "fifth": 5, "5th": 5}
_CHOOSES = re.compile(  # words that choose among several of one name; "larger than" chooses by size, which code does
    rf" (?:largest|biggest|greatest|smallest|tiniest|longest|densest|other|another|next|first|last|main|dominant|upper"
    rf"|lower|(?:more|less|most|least) (?:voluminous|size?able|bulky|dense|diminutive)|{'|'.join(PLACES)}"
    rf"|(?:{'|'.join(_OF_TWO)}|denser)(?! than))(?= )"
)
THINGS = r"organ|oar|structure|thing|object|segment|label|roi|contour|region of interest"
_ANY = rf"\b(?P<any>(?:{THINGS})s?)\b"
_BETWEEN = r"(?:(?:[a-z]+(?:ed|ible|ical)|single|known|shown|drawn) )*"
_ASKS = re.compile(r"\b(?:which|what|whats|name|identify|tell me|show|find|give)\b")
_ENDS = re.compile(r"\s*(?:$|(?:of|in|on|among|here|by|visible|seen|overall|one)\b)")
_INDEX = "main|dominant|"
_SIMPLY = re.compile(r"(?:which|whats?)(?: (?:is|s))?(?: the)? ")
_MEASURED = re.compile(
    r"\b(?:diameters?|ax[ie]s|size|extents?|lengths?|dimensions?|widths?|heights?|volumes?|slices?|sections?|measures?|"
    r"measurements?|parts?|distances?|points?|lines?|areas?|portions?)\b"
)
_PROPERTY = re.compile(  # something about the structure is asked for
    r"\b(?:where|side|slice|how|volume|diameter|axis|size|hu|density|attenuation|length|height|width|surface|area|box|far|"
    r"location|distance|extent|position|centre|center|coordinates)\b"
)


def superlatives() -> str:
    """A pattern of the words for most or for least of something."""
    return "|".join(words for directions in _RANKED.values() for words in directions)


@dataclass(frozen=True)
class Rank:
    """attribute: field of an instance, or axis. low: little of it is asked for. place: 1 for the first. organs: lesions
    do not count. asks: the structure itself is asked for ("which is the largest?"), not something about it.
    """

    attribute: str
    low: bool
    place: int
    organs: bool
    asks: bool


def parse_rank(text: str, named: int = 0) -> Rank | None:
    """The rank among structures that a text asks about; None without one.

    named: how many structures it names; from two on ("which of the liver and the spleen is largest?") the words "organ"
    or "structure" are not needed.
    """
    line = re.sub(r"[^a-z0-9]+", " ", text.lower().replace("'s", "")).strip()
    for attribute, directions in _RANKED.items():
        for low, words in enumerate(directions):
            match = re.search(rf"\b(?:(?P<place>{'|'.join(PLACES)}) )?(?:{words})\b", line)
            if match is None:
                continue
            before, after = line[: match.start()], line[match.end() :]
            asked = _ASKS.search(before)
            thing = re.match(rf" {_BETWEEN}{_ANY}", after)
            if thing:
                after = after[thing.end() :]
            elif _ENDS.match(after):
                thing = re.search(_ANY, before if asked else after) if asked or not before.strip() else None
                thing = thing or re.match(rf" (?:of|among) (?:all )?(?:the |these |those )?{_BETWEEN}{_ANY}", after)
                thing = thing or (FOLLOWING.search(line) if asked else None)
            family = (
                len(after.split()) == 1 and _SIMPLY.fullmatch(before) is not None
            )  # "what is the largest vertebra?"
            if thing or (asked and named > 1 and (_ENDS.match(after) or family)):
                claim = named == 1 and re.match(r"(?:is|are|was|were) ", before) is not None and is_claim(text)
                asks = not _PROPERTY.search(before + re.sub(r"^ (?:in|by) (?:size|volume)\b", "", after)) and bool(
                    asked or claim or not before.strip(" the")
                )
                organs = thing is not None and thing[0].strip().split()[-1].startswith("organ")
                return Rank(attribute, bool(low), PLACES.get(match["place"], 1), organs, asks)
    return None


@dataclass(frozen=True)
class LesionRank:
    """attribute, low: as in Rank. first: the place of the first that is meant, 1 for the top one. number: how many."""

    attribute: str
    low: bool
    first: int
    number: int

    def of(self, lesions: list[Instance]) -> list[Instance]:
        """Those meant; fewer, or none, where there are not as many."""
        measures = ((i, _value(i, self.attribute)) for i in lesions)
        order = sorted(((i, m) for i, m in measures if m is not None), key=lambda pair: pair[1] * (-1, 1)[self.low])
        return [i for i, _ in order[self.first - 1 : self.first - 1 + self.number]]


def parse_lesion_ranks(text: str) -> list[LesionRank]:
    """The ranks among lesions that a text which names lesions asks about, in its order: "the second largest liver
    tumour", "the largest and the smallest lesion"; none for "the largest diameter of the lesion".
    """
    line = " ".join(re.findall(r"[a-z0-9]+", text.lower().replace("'s", "")))
    found = [
        (match.start(), rank)
        for attribute, directions in _OF_LESIONS.items()
        for low, words in enumerate(directions)
        for match in re.finditer(rf"\b(?:{_INDEX if (attribute, low) == ('volume_ml', 0) else ''}{words})\b", line)
        if (rank := _lesion_rank(line, match, attribute, bool(low)))
    ]
    return [rank for _, rank in sorted(found, key=lambda pair: pair[0])]


def _lesion_rank(line: str, match: re.Match[str], attribute: str, low: bool) -> LesionRank | None:
    before, after = line[: match.start()].split(), line[match.end() :].split()
    ahead = range(len(after[:6]))
    behind = next((n for n in ahead if any(_names_lesion(" ".join(after[n : n + many])) for many in (1, 2))), None)
    if behind is None and (after[:1] not in ([], ["and"]) or not _ASKS.search(line)):
        return None
    between = after[: behind or 0]
    if _MEASURED.search(" ".join(between)):
        return None
    number = next((NUMBERS[word] for word in (*before[-1:], *between[:1]) if word in NUMBERS), 1)
    place = PLACES.get(before[-1], 1) if before else 1
    place = 2 if before[-1:] == ["next"] or before[-2:] == ["next", "to"] else place
    return LesionRank("long_axis_mm" if attribute == "diameter_3d_mm" else attribute, low, place, number)


def _names_lesion(words: str) -> bool:
    mention = find_mentions(words, ())
    return mention.lesions or any(map(is_finding, mention.others))


def compared_by(text: str) -> str:
    """The field of an instance by which the larger of two is told ("which is longer?"), by default volume_ml."""
    return next((field for field, words in _MORE.items() if re.search(rf"\b(?:{words})\b", text.lower())), "volume_ml")


def ranked(reading: Reading, rank: Rank) -> list[tuple[float, list[Instance]]]:
    """(measure, pieces) of every structure that may be meant, in the order of the rank; pieces largest first.

    Those that the question or its options name, where they are two or more; else all, or all but lesions. The volume
    of a structure is that of its pieces together, else its largest piece is measured.
    """
    named = set(reading.mention.classes) - set(reading.mention.places)
    named |= {i.label for i in reading.scene.instances if match_option(i.label, reading.question.options)}
    shown = [i for i in reading.scene.instances if not (rank.organs and is_lesion(i.label))]
    among = [i for i in shown if i.label in named]
    pieces: dict[str, list[Instance]] = {}
    for instance in sorted(among if len({i.label for i in among}) > 1 else shown, key=lambda i: -i.volume_ml):
        pieces.setdefault(instance.label, []).append(instance)
    measured = [(value, some) for some in pieces.values() if (value := _measure(some, rank.attribute)) is not None]
    return sorted(measured, key=lambda pair: pair[0] if rank.low else -pair[0])


def of_two(text: str) -> bool | None:
    """Which of a left and a right structure is meant: True for the smaller ("the less voluminous parotid"), False
    for the larger; None where the words choose neither, or something else ("its largest diameter", "larger than").
    """
    line = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    found = set()
    for low, words in enumerate(zip(_OF_TWO, _MOST["volume_ml"], strict=True)):
        for match in re.finditer(rf"\b(?:{'|'.join(words)})\b(?! than)", line):
            after = line[match.end() :].split()
            if after and not _MEASURED.search(" ".join(after[:2])):
                found.add(bool(low))
    return found.pop() if len(found) == 1 else None


def chooses(line: str) -> bool:
    """Whether a plain line chooses among several of one name: "the upper tumour", "the bulkier parotid"."""
    ahead = (line[match.end() :].split()[:2] for match in _CHOOSES.finditer(line))
    return any(not _MEASURED.search(" ".join(words)) for words in ahead)  # not "the smallest distance"


def _measure(pieces: list[Instance], attribute: str) -> float | None:
    if attribute == "volume_ml":
        return sum(piece.volume_ml for piece in pieces)
    return _value(pieces[0], attribute)


def _value(instance: Instance, attribute: str) -> float | None:
    value: float | None = (
        instance.center_mm["xyz".index(attribute)] if attribute in _FARTHEST else getattr(instance, attribute)
    )
    return value
