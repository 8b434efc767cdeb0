"""Plain words for facts: "volume", "how far", "HU". What a conversation inherits, and what sets the router right."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import yaml

# Patterns over lower-case text in which everything but letters, digits and % is a space.
FACT_WORDS = {  # tried in this order
    "gap": r"gap|(?:narrowest|smallest|shortest|closest|least|minimal|minimum|min) (?:\w+ )?(?:spacing|space|distance"
    r"|clearance|separation|interval|room)|at (?:their|its|the) (?:closest|nearest)(?: points?)?|edge to edge"
    r"|surface to surface|(?:closest|nearest) (?:edges?|points?|surfaces?)|surface distance",
    "denser": r"denser(?= than )|which (?:one |of them |of the two |of these )?is (?:the )?denser(?: one)?",
    "distance": r"how (?:far|close|near)(?: apart| away)?|distance|far apart",
    "volume_difference": r"(?:by )?how much (?:larger|bigger|smaller|greater)|by how much"
    r"|difference(?: in (?:volume|size))?",
    "larger": r"(?:larger|bigger|smaller|greater)(?= than )|compare[ds]?|comparison"
    r"|which (?:one |of them |of the two |of these )?is (?:the )?(?:larger|bigger)(?: one)?",
    "count": r"how many(?! (?:ml|cc|millilit|mm|millimet))|number|count",
    "short_axis": r"short(?:est)? axis|minor axis|perpendicular diameter|how (?:thick|narrow)",
    "diameter_3d": r"how (?:long|big|large)(?=.* (?:in 3d|three dim\w*) )"
    r"|(?:largest |maximum |max )?(?:3d|three dimensional) diameter|diameter in 3d"
    r"|(?:largest|greatest|longest|maximum|maximal|max) (?:dimension|extent|extension)|in any direction",
    "craniocaudal": r"craniocaudal(?: extent| length| diameter)?|height|how tall",
    "anteroposterior": r"antero ?posterior(?: extent| length| diameter)?|ap (?:extent|length|diameter)|depth|how deep",
    "transverse": r"transverse(?: extent| length| diameter)|left to right extent|lateral extent"
    r"|width|how (?:wide|broad)",
    "surface_area": r"surface(?: area)?",
    "intensity_spread": r"(?:standard deviation|sd|std(?: dev)?|stdev|spread|heterogeneity)"
    r"(?: of (?:its |the )?(?:hu|intensity|density))?"
    r"|how heterogeneous",
    "slice": r"(?:which|what) slice|slice number|slice index",
    "volume": r"volume|how voluminous|how many (?:ml|cc|millilit(?:re|er)s)"
    r"|(?:how big|how large|size)(?=.* (?:ml|cc) )",
    "intensity": r"intensity|density|how (?:dense|bright)|attenuation|hounsfield(?: units?| value)?|hu",
    "long_axis": r"long(?:est)? axis|(?:longest |largest |axial |recist )*diameter|length|how (?:long|big|large)"
    r"|(?<!same )size|recist",
    "side": r"(?:which|what|whose) side|left or (?:on the )?right|right or (?:on the )?left|laterality"
    r"|(?<!left )(?<!right )side(?= $)",
    "box": r"where|location|position|coordinates|bounding box|show me|which (?:one |of them |of these )?is(?! it )",
    "presence": r"(?:is|are) there(?: any)?|any",
}
PRONOUNS = r"(?:this|that|the same) one|it|its|they|them|their|these|those|both|the two"
ARTICLES = {"the", "a", "an", "of", "for", "in", "on", "at"}  # all that may stay of an ellipsis without a fact
_FILLER = """what whats which how is are was were be does do has have you i me please tell give report state measure
measured exactly about know want can could would long much big so then also too now again here there scan image images
axial plane slice mean average total mm cm ml cc millimetres and s lie apart away between located"""
FILLER = ARTICLES | set(_FILLER.split())  # and of a question with one


def fact_in(text: str, among: tuple[str, ...] = tuple(FACT_WORDS)) -> str | None:
    """The fact that the words of a text name: the first of FACT_WORDS that is `among` some; None without one."""
    line = plain_line(text)
    words = ((name, FACT_WORDS[name]) for name in FACT_WORDS if name in among)
    return next((name for name, pattern in words if re.search(rf" (?:{pattern})(?= )", line)), None)


def says(name: str, line: str) -> bool:
    """Whether a plain line holds one of the phrases of phrases.yaml under a name."""
    return phrase_in(name, line) is not None


def phrase_in(name: str, line: str) -> str | None:
    """The first phrase of those under a name that a plain line holds; None without one."""
    found = _phrases()[name].search(line)
    return found[0].strip() if found else None


@lru_cache(maxsize=1)
def _phrases() -> dict[str, re.Pattern[str]]:
    table = yaml.safe_load(Path(__file__).with_name("phrases.yaml").read_text("utf-8"))
    return {name: re.compile(rf" (?:{'|'.join(some)})(?= )") for name, some in table.items()}


def is_bare(text: str) -> bool:
    """Whether a text is nothing but words for a fact, pronouns and filler: "How long is it?", "Longest diameter?"."""
    line, fact = plain_line(text), fact_in(text)
    for words in (FACT_WORDS[fact] if fact else "", PRONOUNS, r"longest|largest|biggest|greatest|maximum|max"):
        line = re.sub(rf" (?:{words})(?= )", "", line) if words else line
    return fact is not None and set(line.split()) <= FILLER


def plain_line(text: str) -> str:
    """Lower-case words, digits and % with a space around each."""
    return " " + re.sub(r"[^a-z0-9%]+", " ", text.lower()).strip() + " "
