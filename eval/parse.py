"""Read a number, a count or boxes out of free text, for answers that carry nothing but `text`.

Each function returns None where the text does not say it clearly: unreadable is not the same as wrong. A text is read
as a person would: markup and reasoning aside, what stands behind "final answer:" before all that stands in front of it.
Options (one, several, yes or no) are read by `eval.options`.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from eval.units import UNITS, dimension, plain_unit

_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_ARTICLES = {"a", "an", "the"}
_BLANKS = str.maketrans(string.punctuation, " " * len(string.punctuation))

# What models wrap an answer in
_REASONING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>|^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_TAGS = re.compile(r"</?(?:answer|output|response|final|box|bbox)>|<\|[^|>]*\|>|</?s>", re.IGNORECASE)
_MATHS = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_SPECIAL = re.compile(r"[<*_`#\\^$]")
_MARKUP = re.compile(r"\*\*|__|`+|^\s*#+\s", re.MULTILINE)
_POWER = re.compile(r"\s*[x×·*]\s*10(?:\^|\*\*)?\{?([-−+]?\d+|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)\}?")
_FINAL = re.compile(
    r"\b(?:(?:final|correct|best|my)\s+(?:answer|choice|option)|answer|conclusion)\b[\s\"']*(?:is\b|:|=|would be\b)"
    r"[\s:\"']*",
    re.IGNORECASE,
)
_DECLINES = re.compile(
    r"\b(?:can\s?not|can't|could\s?not|couldn't|unable to|not able to|(?:impossible|not possible|difficult|hard) to)\s+"
    r"(?:\w+ly\s+)?(?:be\s+)?(?:\w+ly\s+)?(?:determined?|tell|told|answer(?:ed)?|assess(?:ed)?|say|said|provided?|"
    r"identif(?:y|ied)|see|measured?|evaluated?|view(?:ed)?|analy[sz]ed?|interpret(?:ed)?|give|given|count(?:ed)?|"
    r"make|made|assist|help|comment|estimated?|process(?:ed)?|access(?:ed)?|diagnosed?|ascertain(?:ed)?|judged?)\b"
    r"|\b(?:insufficient|not enough|lack of) (?:information|data|evidence|detail)|\bI(?: do not|don't| am not|'m not)"
    r" (?:know|sure|certain|have access)|\bI(?:'m| am) sorry\b|\bas an ai\b|\b(?:unanswerable|not answerable|"
    r"indeterminate|not applicable)\b|^\W*(?:n/?a|unknown|unsure|not sure|unclear|uncertain)\W*$"
    r"|\bno (?:image|scan|picture) (?:was |is |has been )?(?:provided|attached|given|available)\b",
    re.IGNORECASE,
)

# Numbers as people write them: 1,204.5 and 1.204,5 and 1 204 ml; 8.4 and 8,4; .5; 1.2e3. Not 3 in "3D", "T3", "3/5".
_NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|[1-9]\d{0,2}(?:\.\d{3})+,\d+|[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d+)?(?=\s?[a-zA-Zμ%])"
    r"|\d+(?:[.,]\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
)
_UNIT_WORDS = (
    r"%|per\s?cent(?:age)?|pct|hounsfield(?:\s+units?)?|hu|"
    r"(?:cubic|square|sq\.?|cu\.?)\s*(?:[cdm]?m|[a-z]{0,5}met(?:er|re)s?)|"
    r"(?:[cdm]?m|[a-z]{0,5}met(?:er|re)s?)\s+(?:cubed|squared)|[cdm]?m\s?(?:\^|\*\*)?\s?[23]|ccm|cc|[mcdμu]?l|"
    r"(?:milli|centi|deci|micro)?lit(?:er|re)s?|(?:milli|centi|deci|micro)?met(?:er|re)s?|microns?|[cdmμu]?m|"
    r"inch(?:es)?|years?|yrs?|y(?=/o|\.o|\b)|months?|mo|weeks?|wks?|days?"
)
_UNIT = rf"(?:{_UNIT_WORDS})(?![A-Za-z0-9])"
_GAP = r"\s*-?\s*"
# "84 x 61 mm" is one measurement with its long axis first; "80-90 mm" is a range; "84 ± 3 mm" is 84
_MEASURED = re.compile(
    rf"(?<![\w.,/])(?P<sign>[-+])?(?P<number>{_NUMBER})"
    rf"(?:(?:{_GAP}(?P<first>{_UNIT}))?"
    rf"(?:\s*(?:x|×|by|\*)\s*{_NUMBER}(?:\s*{_UNIT}(?=\s*(?:x|×|by)\b))?|\s*(?:±|\+/-|\+-)\s*{_NUMBER})+"
    rf"|(?:\s*{_UNIT})?\s*(?:-|to)\s*(?P<upper>{_NUMBER}))?"
    rf"(?:{_GAP}(?P<unit>{_UNIT}))?(?![A-Za-z0-9]|/\s?\d)",
    re.IGNORECASE,
)
_BETWEEN = re.compile(rf"\bbetween\s+({_NUMBER}\s*(?:{_UNIT})?)\s+and\s+(?={_NUMBER})", re.IGNORECASE)
# What a number may only name: "lesion 2", "slice 41", "1." before a listed item
_NAMES = re.compile(
    r"(?:\b(?:lesion|tumou?r|nodule|mass|cyst|segment|slice|image|series|level|grade|stage|instance|figure|phase|step|"
    r"case|scan|option|choice|question|zone|type|label|class|patient)\s*(?:#|no\.?|number)?\s*|#)$",
    re.IGNORECASE,
)
_LISTED = re.compile(r"(?:^|\n)\s*$")

_SMALL = {
    **{"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9},
    **{"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16},
    **{"seventeen": 17, "eighteen": 18, "nineteen": 19},
}
_TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
_WORD = "|".join(sorted([*_SMALL, *_TENS], key=len, reverse=True))
_SPELLED = re.compile(
    rf"\b(?=(?:{_WORD}|a hundred)\b)(?:(?P<hundreds>{_WORD}|a) hundred(?: and)?[ -]?)?(?P<tens>{'|'.join(_TENS)})?[ -]?"
    rf"(?P<ones>{'|'.join(sorted(_SMALL, key=len, reverse=True))})?(?: point (?P<decimals>(?:(?:{_WORD})\b ?)+))?\b",
    re.IGNORECASE,
)
_COUNTS = {"single": 1, "solitary": 1, "sole": 1, "once": 1, "couple": 2, "pair": 2, "twice": 2, "dozen": 12}
_COUNT_WORD = re.compile(r"\b(" + "|".join(_COUNTS) + r")\b", re.IGNORECASE)
_TOTAL = re.compile(
    r"\b(?:in total|altogether|overall|total(?: (?:number|count))?(?: of)?(?: [a-z]+){0,4}?(?: is| are|:)?)[:,]? "
    r"(?:there (?:is|are) |of )?(?P<after>\d+)\b(?!\.\d)|\b(?P<before>\d+)(?: [a-z]+){0,5} (?:in total|altogether)\b",
    re.IGNORECASE,
)
_VAGUE = re.compile(r"\b(?:more|greater|fewer|less|higher|lower) than\s*$|[<>]\s*$|\b\d+ or\s*$")
NONE = re.compile(r"\b(no|none|nothing|not any|without|neither|absent|absence of|free of|zero)\b", re.IGNORECASE)
_JSON = json.JSONDecoder()
_GROUP = re.compile(r"[\[(<{]([^\[\](){}<>]*)[\])>}]")
_PLAIN_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@lru_cache(maxsize=1 << 16)
def normalise(text: str) -> str:
    """Lower case without punctuation, articles and extra blanks.

    Source: SQuAD's `normalize_answer` (Rajpurkar et al., EMNLP 2016); punctuation inside a number ("2.5") is kept.
    """
    text = text.lower()
    if "." in text:
        text = _POINT.sub("\0", text)
    text = text.translate(_BLANKS).replace("\0", ".")
    return " ".join(word for word in text.split() if word not in _ARTICLES)


def plain(text: str) -> str:
    """The text without reasoning in tags, markup and special signs: "<think>…</think> **84 cm³**" -> "84 cm3"."""
    if text.isascii() and not _SPECIAL.search(text):
        return text.strip()
    text = _REASONING.sub(" ", text)
    text = _POWER.sub(lambda found: "e" + unicodedata.normalize("NFKC", found[1]), text)
    text = unicodedata.normalize("NFKC", text.replace("½", ".5").replace("≈", " "))
    text = _TAGS.sub(" ", text)
    while (unwrapped := _MATHS.sub(r"\1", text)) != text:
        text = unwrapped
    text = _MARKUP.sub("", text).replace("\\%", "%").replace("\\", " ").replace("$", " ")
    return re.sub("[−–—‐‑]", "-", text).replace("≤", "<").replace("≥", ">").strip()


def statements(text: str) -> Iterator[str]:
    """The parts of a text in the order in which to look for the answer: behind the last "answer:", then all of it."""
    text = plain(text)
    finals = [found.end() for found in _FINAL.finditer(text)]
    if finals and (tail := text[finals[-1] :].strip()):
        yield tail
    yield text


def declines(text: str) -> bool:
    """Whether the text says that it will not or cannot answer."""
    return _DECLINES.search(text.replace("’", "'")) is not None


def parse_number(text: str, unit: str | None = None) -> tuple[float, str | None] | None:
    """(value, its unit or None) of the first number that fits `unit`.

    A number with a unit of the wanted kind (mm for cm, ml for cm3) wins over a bare one; a number with a unit of
    another kind is passed over, and so, where there is another, is one that only names something ("lesion 2"). Of
    several extents ("84 x 61 mm") the first, of a range the middle. Numbers in words are read where there are no
    figures. Without `unit`: the first number.
    """
    for statement in statements(text):
        if not any(sign.isdigit() for sign in statement):
            statement = _SPELLED.sub(_in_figures, statement)
        found = list(_measured(statement))
        if unit is not None:
            fitting = [one for one in found if one[1] is not None and _same_kind(one[1], unit)]
            found = fitting or [one for one in found if one[1] is None]
        if found:
            value, name, _ = min(found, key=lambda one: one[2])
            return value, name
    return None


def parse_count(text: str) -> int | None:
    """The first whole number without a unit, in figures or words, or what stands as the total; "no", "none" are 0.

    None where the text gives a range, a bound ("more than 10") or nothing.
    """
    for statement in statements(text):
        if total := _TOTAL.search(statement):
            return int(total["after"] or total["before"])
        statement = _BETWEEN.sub(r"\1 - ", statement)
        ranked: list[tuple[bool, int, int]] = []
        for match in _MEASURED.finditer(statement):
            if match["unit"] or match["first"]:
                continue
            value = _value(match["number"])
            vague = match["upper"] or match["sign"] == "-" or _VAGUE.search(statement[: match.start()])
            if not vague and value.is_integer():
                ranked.append((_only_names(statement, match), match.start(), int(value)))
            elif vague:
                ranked.append((False, match.start(), -1))
        for match in _SPELLED.finditer(statement):
            if match[0].strip() and (spelled := _spelled(match)) is not None and spelled.is_integer():
                vague = _VAGUE.search(statement[: match.start()])
                ranked.append((False, match.start(), -1 if vague else int(spelled)))
        ranked += [(False, match.start(), _COUNTS[match[0].lower()]) for match in _COUNT_WORD.finditer(statement)]
        if ranked:
            count = min(ranked)[2]
            return count if count >= 0 else None
        if NONE.search(statement) and not declines(statement):
            return 0
    return None


def parse_boxes(text: str) -> list[Any] | None:
    """Boxes in a text as records for `Box.from_json`: JSON, or groups of 6 (3D) or 4 numbers (2D), or pairs of corners.

    "[10, 20, 5, 40, 52, 31]", "(10, 20, 5) to (40, 52, 31)". The empty list where the text says that there are none.
    """
    record = embedded(text)
    if isinstance(record, list) and all(isinstance(one, dict) or _is_box(one) for one in record):
        return record
    if isinstance(record, dict) and all(isinstance(one, list) for one in record.values()):  # label -> boxes
        return [
            {"bbox": box, "label": label}
            for label, boxes in record.items()
            for box in (boxes if boxes and isinstance(boxes[0], list) else [boxes])
            if box
        ]
    for statement in statements(text):
        groups = [[float(n) for n in _PLAIN_NUMBER.findall(group[1])] for group in _GROUP.finditer(statement)]
        boxes = [group for group in groups if len(group) in (4, 6)]
        corners = [group for group in groups if len(group) == 3]
        if not boxes and corners and len(corners) % 2 == 0:
            boxes = [low + high for low, high in zip(corners[::2], corners[1::2], strict=True)]
        if (
            not boxes
            and len(numbers := _PLAIN_NUMBER.findall(statement)) in (4, 6)
            and not re.search("[a-z]", statement)
        ):
            boxes = [[float(n) for n in numbers]]
        if boxes:
            return boxes
        if statement in ("[]", "{}") or (NONE.search(statement) and not declines(statement)):
            return []
    return None


def _is_box(record: Any) -> bool:
    return isinstance(record, list) and len(record) in (4, 6) and all(isinstance(n, int | float) for n in record)


def embedded(text: str) -> Any:
    """The JSON value that a text is or holds in a fence; None where there is none."""
    if "{" not in text and "[" not in text:
        return None
    fenced = re.search(r"```(?:json)?\s*(.*?)```", text, re.DOTALL)
    body = (fenced[1] if fenced else _REASONING.sub(" ", text)).strip()
    if body[:1] not in ("{", "["):
        return None
    try:
        value, _ = _JSON.raw_decode(body)
    except (ValueError, RecursionError):
        return None
    return value


def _measured(text: str) -> Iterator[tuple[float, str | None, bool]]:
    """(value, unit, whether it may only name something) of every number, ranges as their middle."""
    for match in _MEASURED.finditer(_BETWEEN.sub(r"\1 - ", text)):
        value = _value(match["number"]) * (-1 if match["sign"] == "-" else 1)
        if match["upper"]:
            value = (value + _value(match["upper"])) / 2
        elif text[: match.start()].rstrip().lower().endswith("minus"):
            value = -value
        unit = match["unit"] or match["first"]
        yield value, plain_unit(unit) if unit else None, unit is None and _only_names(text, match)


def _only_names(text: str, match: re.Match[str]) -> bool:
    before, after = text[: match.start()], text[match.end() :]
    return bool(_NAMES.search(before) or (_LISTED.search(before) and re.match(r"[.)]\s+\S", after)))


def _value(number: str) -> float:
    """A number as `_NUMBER` matches it; a single comma before other than three digits is a decimal one."""
    number = number.replace(" ", "")
    if re.fullmatch(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?([eE].*)?", number):
        number = number.replace(",", "")
    elif re.fullmatch(r"\d{1,3}(\.\d{3})+,\d+", number):
        number = number.replace(".", "")
    return float(number.replace(",", "."))


def _in_figures(match: re.Match[str]) -> str:
    value = _spelled(match)
    return match[0] if value is None else f" {value:g} "


def _spelled(match: re.Match[str]) -> float | None:
    """The number of a match of `_SPELLED`; None where it holds no word of a number."""
    if not (match["hundreds"] or match["tens"] or match["ones"]):
        return None
    words = {**_SMALL, **_TENS, "a": 1}
    value = float(sum(words[match[part].lower()] for part in ("tens", "ones") if match[part]))
    if match["hundreds"]:
        value += 100 * words[match["hundreds"].lower()]
    if match["decimals"]:
        value += float("0." + "".join(str(words[word.lower()]) for word in match["decimals"].split()))
    return value


def _same_kind(unit: str, wanted: str) -> bool:
    if plain_unit(unit) in UNITS:
        return dimension(unit) == dimension(wanted)
    return plain_unit(unit) == plain_unit(wanted)
