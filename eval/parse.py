"""Read a number, a count or an option out of free text, for answers that carry nothing but `text`.

Each function returns None where the text does not say it clearly: unreadable is not the same as wrong.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from eval.units import UNITS, dimension, plain_unit

_ARTICLES = {"a", "an", "the"}
_BLANKS = str.maketrans(string.punctuation, " " * len(string.punctuation))
_NUMBER = r"(?<![\w.,])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?"
_UNIT = r"%|hu\b|cm\s?\^?[3³]|mm\s?\^?[3³]|(?:" + "|".join(sorted(UNITS, key=len, reverse=True)) + r")s?\b"
# "84 x 61 mm" is one measurement with its long axis first
_MEASURED = re.compile(rf"(?P<number>{_NUMBER})(?:\s*[x×]\s*\d+(?:\.\d+)?)*\s*-?\s*(?P<unit>{_UNIT})?", re.IGNORECASE)
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_LETTER = re.compile(
    r"^\W*([A-Z])\W*$"  # "B", "(B)."
    r"|^\s*\(?([A-Z])[).:](?=\s|$)"  # "B. spleen"
    r"|\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is|:)?\s*:?\s*\(?([A-Z])\b"  # "the answer is B"
)
_NONE = re.compile(r"\b(no|none|nothing|not any|without|neither)\b", re.IGNORECASE)


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and extra blanks.

    Source: SQuAD's `normalize_answer` (Rajpurkar et al., EMNLP 2016); punctuation inside a number ("2.5") is kept.
    """
    text = re.sub(r"(?<=\d)\.(?=\d)", "\0", text.lower())
    text = text.translate(_BLANKS).replace("\0", ".")
    return " ".join(word for word in text.split() if word not in _ARTICLES)


def parse_number(text: str, unit: str | None = None) -> tuple[float, str | None] | None:
    """(value, its unit or None) of the first number that fits `unit`.

    A number with a unit of the wanted kind (mm for cm, ml for cm3) wins over a bare one; a number with a unit of
    another kind is passed over. Thousands are separated by commas, decimals by a point. Without `unit`: the first
    number.
    """
    found = [(float(m["number"].replace(",", "")), m["unit"]) for m in _MEASURED.finditer(text)]
    found = [(value, plain_unit(name) if name else None) for value, name in found]
    if unit is None:
        return found[0] if found else None
    fitting = [one for one in found if one[1] is not None and _same_kind(one[1], unit)]
    bare = [one for one in found if one[1] is None]
    return next(iter(fitting + bare), None)


def parse_count(text: str) -> int | None:
    """The first whole number without a unit, in figures or in words up to twelve; "no", "none", "without" are 0."""
    candidates = []
    for match in _MEASURED.finditer(text):
        value = float(match["number"].replace(",", ""))
        if match["unit"] is None and value.is_integer() and value >= 0:
            candidates.append((match.start(), int(value)))
    for match in re.finditer(r"\b(" + "|".join(_WORDS) + r")\b", text.lower()):
        candidates.append((match.start(), _WORDS.index(match[1])))
    if candidates:
        return min(candidates)[1]
    return 0 if _NONE.search(text) else None


def parse_choice(text: str, options: Sequence[str] | None) -> str | None:
    """The one option the text gives, as spelled in `options`; without options, "yes" or "no".

    In this order: the text is the option; it is or begins with the option's letter ("B", "(B)", "B. spleen", "the
    answer is B"); its first word is yes or no and so is an option; exactly one option stands in it as whole words (an
    option inside a longer one that also stands there does not count).
    """
    options = list(options) if options else ["yes", "no"]
    plain = normalise(text)
    by_name = {normalise(option): option for option in options}
    if plain in by_name:
        return by_name[plain]
    letter = _letter(text, len(options))
    if letter is not None:
        return options[letter]
    first = plain.split(" ")[0]
    if first in ("yes", "no") and first in by_name:
        return by_name[first]
    mentioned = _mentioned(plain, options)
    return mentioned[0] if len(mentioned) == 1 else None


def parse_choices(text: str, options: Sequence[str] | None) -> list[str] | None:
    """All options the text names, in the order of `options`; "none" is the empty list.

    Letters alone ("A, C") count too. Without options: the parts between semicolons or commas.
    """
    if not options:
        return [part.strip() for part in re.split(r"[;,]", text) if part.strip()] or None
    letters = re.split(r"[;,\s]+(?:and\s+)?", text.strip().rstrip("."))
    if all(re.fullmatch(r"\(?[A-Z]\)?", one) for one in letters):
        indices = {ord(one.strip("()")) - ord("A") for one in letters}
        if max(indices) < len(options):
            return [options[i] for i in sorted(indices)]
    mentioned = _mentioned(normalise(text), options)
    return mentioned if mentioned or _NONE.search(text) else None


def _same_kind(unit: str, wanted: str) -> bool:
    if dimension(unit) is not None:
        return dimension(unit) == dimension(wanted)
    return unit == plain_unit(wanted)


def _letter(text: str, count: int) -> int | None:
    match = _LETTER.search(text)
    if match is None:
        return None
    index = ord(next(group for group in match.groups() if group)) - ord("A")
    return index if index < count else None


def _mentioned(plain: str, options: Sequence[str]) -> list[str]:
    """Options that stand in the normalised text as whole words, each outside every longer option found there."""
    rest, found = f" {plain} ", []
    for option in sorted(options, key=lambda one: -len(normalise(one))):
        words = f" {normalise(option)} "
        if words.strip() and words in rest:
            found.append(option)
            rest = rest.replace(words, " \0 ")
    return [option for option in options if option in found]
