"""Mending: slips of the fingers in the words of a question, and numbers in words beside a unit.

Enters the text of a question, leaves the text that is read. The names of structures are mended by vlm/grounding.py.
"""

from __future__ import annotations

import re
from functools import lru_cache

from vlm.data.threshold import UNITS
from vlm.grounding import one_slip

_LONG = """which where volume length height width diameter distance density attenuation largest smallest biggest longest
shortest between together average maximum minimum measure measurement larger smaller bigger longer shorter located
location bounding craniocaudal transverse surface percentage difference structure extent intensity hounsfield"""
_DIGITS = "one two three four five six seven eight nine"
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_OTHERS = {"half a": "0.5", "one and a half": "1.5", "a hundred": "100", "one hundred": "100", "two hundred": "200"}
WORDS = _LONG.split()
RIGHT = {"were", "large", "extend", "measured", "locate", "wide", "lengths", *(word + "s" for word in WORDS)}
WRONG = {"wich": "which", "whcih": "which", "whihc": "which", "waht": "what", "thier": "their", "biger": "bigger"}
SHORTEST = 5  # letters from which a word is recognised with one slip
NUMBERS = _OTHERS | {word: str(n) for n, word in enumerate(f"{_DIGITS} {_TEENS}".split(), start=1)}
for _n, _ten in enumerate(_TENS.split(), start=2):
    NUMBERS[_ten] = f"{_n}0"
    NUMBERS |= {f"{_ten}{sign}{one}": f"{_n}{k}" for k, one in enumerate(_DIGITS.split(), start=1) for sign in "- "}
_BEFORE_UNIT = re.compile(
    rf"\b({'|'.join(sorted(NUMBERS, key=len, reverse=True))})[ -](?=(?:{'|'.join(UNITS)})\b)", re.IGNORECASE
)


def mend(text: str) -> str:
    """The text with "50 millimetres" for "fifty millimetres" and "volume" for "voulme"; as it is where all is right."""
    text = _BEFORE_UNIT.sub(lambda match: f"{NUMBERS[match[1].lower()]} ", text)
    return re.sub(r"\b[A-Za-z][a-z]{3,}\b", lambda match: _spelled(match[0].lower()) or match[0], text)


@lru_cache(maxsize=4096)
def _spelled(word: str) -> str | None:
    """What a word must mean that is spelled wrongly; None for one that is right or not known."""
    if word in WORDS or word in RIGHT or word in WRONG or len(word) < SHORTEST:
        return WRONG.get(word)
    return next((right for right in WORDS if right[0] == word[0] and one_slip(word, right)), None)
