"""Read an option, several options, yes or no out of free text; the rules of all reading are in `eval.parse`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from eval.parse import NONE, declines, normalise, statements
from seg_backbone.labels import canonical

_canonical = lru_cache(maxsize=1 << 14)(canonical)
_LETTER = re.compile(
    r"^\W*([A-Z])\W*$"  # "B", "(B)."
    r"|^\s*[(\[]?([A-Z])(?:[).:\]](?=\s|$)|\s+[-:]\s)"  # "B. spleen", "B) spleen", "[B] spleen", "B - spleen"
    r"|\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\s+is|:)?\s*:?\s*[(\[]?([A-Z])(?![A-Za-z'])(?!\s+[a-z])"
    r"|^\s*(?:I\s+(?:choose|select|pick)|[Ii]t\s+is|[Ii]t's)\s+[(\[]?([A-Z])\W*$"
    r"|\(([A-Z])\)"  # "spleen (B)"
)
_SMALL_LETTER = re.compile(r"^\W*([a-z])\W*$|^\s*[(\[]?([a-z])[)\]](?=\s|$)")
_NUMBERED = re.compile(r"\b[Oo]ption\s+#?(\d)\b")
_OWN_LABEL = re.compile(r"^\s*\(?([A-Za-z]|\d)(?:[).:]\s+|\)\s*)(?=\S)")  # of an option that is spelled "B. spleen"
_SPELLINGS = (
    *(("magnetic resonance imaging", "mr"), ("magnetic resonance", "mr"), ("mri", "mr"), ("computed tomography", "ct")),
    *(("tumour", "tumor"), ("oesoph", "esoph"), ("oedema", "edema"), ("haem", "hem"), ("centre", "center")),
    *(("grey", "gray"), ("metre", "meter"), ("litre", "liter"), ("colour", "color")),
)
_YES = {
    "yes",
    "yeah",
    "yep",
    "y",
    "true",
    "positive",
    "present",
    "correct",
    "affirmative",
    "visible",
    "detected",
    "seen",
}
_NO = {"no", "nope", "n", "false", "negative", "absent", "none", "incorrect", "not", "never", "normal"}
_NO_DOUBT = re.compile(r"\b(?:no|without(?: any)?|beyond) doubt\b|\bnot only\b|\bno longer only\b", re.IGNORECASE)
_DENIES = re.compile(
    r"\b(?:no|not|none|nothing|never|without|absent|absence|negative|false|neither|cannot|free of|unremarkable|"
    r"excluded|ruled out|\w+n't)\b",
    re.IGNORECASE,
)
_AFFIRMS = re.compile(
    r"\b(?:there (?:is|are|was|were|appears?|seems?)|(?:is|are) there|"
    r"present|visible|seen|identified|detected|found|positive|noted|true|"
    r"evident|shows?|showing|demonstrates?|reveals?|contains?|has|have|observed|consistent with|i (?:can )?see)\b",
    re.IGNORECASE,
)
_DOUBTS = re.compile(r"\b(?:perhaps|maybe|possibly|unclear|uncertain|unsure|not sure|may be|might|could be)\b", re.I)
_NOT_THIS = re.compile(
    r"(?: not| no| without| excluding| except| rather than| instead of| unlike)(?: in| from| of| on)?$"
)
_ALL = re.compile(r"^\W*(?:all(?: of (?:the above|them|these|the options))?|every one|everything)\W*$", re.IGNORECASE)


def parse_choice(text: str, options: Sequence[str] | None) -> str | None:
    """The one option the text gives, as spelled in `options`; without options, "yes" or "no".

    In this order: the text is the option (British or American, a synonym of a structure's name, with or without the
    option's own letter); it is, begins with or names the option's letter ("B", "(B)", "B. spleen", "the answer is B");
    it affirms or denies where one option says yes and one says no; exactly one option stands in it as whole words and
    is not denied (an option inside a longer one that also stands there does not count), or one of two is denied.
    """
    return _parse_choice(text, tuple(options) if options else ("yes", "no"))


@lru_cache(maxsize=1 << 16)
def _parse_choice(text: str, options: tuple[str, ...]) -> str | None:
    for statement in statements(text):
        for read in (_the_option, _by_letter, _by_polarity, _by_line, _by_mention):
            if (option := read(statement, options)) is not None:
                return option
    return None


def parse_choices(text: str, options: Sequence[str] | None) -> list[str] | None:
    """All options the text names, in the order of `options`; "none" is the empty list.

    Letters ("A, C", "A and C", "A. liver; C. spleen") and lists in lines count too; a denied option does not. Without
    options: the parts between semicolons or lines, else commas.
    """
    if not options:
        return _parts(next(statements(text)))
    choices = _parse_choices(text, tuple(options))
    return None if choices is None else list(choices)


@lru_cache(maxsize=1 << 16)
def _parse_choices(text: str, options: tuple[str, ...]) -> tuple[str, ...] | None:
    for statement in statements(text):
        found = _by_letters(statement, options)
        if found is None and (whole := _the_option(statement, options)) is not None:
            found = {whole}
        if found is None:
            parts = [_the_option(part, options) or _by_letter(part, options) for part in _split(statement)]
            found = {part for part in parts if part is not None} if parts and None not in parts else None
        if found is None:
            affirmed, _ = _mentioned(statement, options)
            found = set(affirmed) if affirmed and not declines(statement) else None
        if found is None and _ALL.match(statement):
            found = set(options)
        if found is None and NONE.search(statement) and not declines(statement):
            found = set()
        if found is not None:
            return tuple(option for option in options if option in found)
    return None


@lru_cache(maxsize=1 << 16)
def fold(text: str) -> str:
    """`normalise`, American spelling, no plural s, short names of modalities: what two spellings of an option share."""
    text = normalise(text)
    for british, american in _SPELLINGS:
        text = text.replace(british, american)
    return " ".join(w[:-1] if len(w) > 3 and w.endswith("s") and not w.endswith("ss") else w for w in text.split())


@lru_cache(maxsize=4096)
def _names(options: tuple[str, ...]) -> dict[str, str]:
    """Every spelling by which an option is known as a whole -> the option; spellings that two share are left out."""
    names: dict[str, str] = {}
    for spell in (normalise, fold, lambda option: fold(_bare(option)), lambda option: fold(_canonical(_bare(option)))):
        level = [(spell(option), option) for option in options]
        for name, option in level:
            if name and name not in names and sum(name == other for other, _ in level) == 1:
                names[name] = option
    return names


def _bare(option: str) -> str:
    return _OWN_LABEL.sub("", option)


def _the_option(text: str, options: tuple[str, ...]) -> str | None:
    if text in options:
        return text
    names = _names(options)
    for name in (normalise(text), fold(text)):
        if name in names:
            return names[name]
    return names.get(fold(_canonical(_bare(text)))) if len(text) < 60 else None


def _by_letter(text: str, options: tuple[str, ...]) -> str | None:
    found = _LETTER.search(text) or _SMALL_LETTER.search(text)
    label = next((group for group in found.groups() if group), "").upper() if found else ""
    if not label and (numbered := _NUMBERED.search(text)):
        label = numbered[1]
    if not label:
        return None
    own = [match[1].upper() if (match := _OWN_LABEL.match(option)) else "" for option in options]
    if all(own):
        return options[own.index(label)] if label in own else None
    index = int(label) - 1 if label.isdigit() else ord(label) - ord("A")
    return options[index] if 0 <= index < len(options) else None


def _by_letters(text: str, options: tuple[str, ...]) -> set[str] | None:
    """The options of a text that is nothing but letters: "A, C", "A and C", "(A) (C)"."""
    letters = [one.strip("()[].") for one in re.split(r"[;,&/\s]+(?:and\s+)?", text.strip()) if one.strip("()[].")]
    if not letters or not all(re.fullmatch("[A-Z]", one) for one in letters):
        return None
    found = [_by_letter(one, options) for one in letters]
    return {one for one in found if one is not None} if None not in found else None


def _by_line(text: str, options: tuple[str, ...]) -> str | None:
    """The option that is a line of its own; None where several are."""
    found = {_the_option(line, options) for line in text.split("\n")} - {None} if "\n" in text else set()
    return found.pop() if len(found) == 1 else None


def _by_polarity(text: str, options: tuple[str, ...]) -> str | None:
    """For options of which one says yes and one says no: what the text says."""
    sides = _sides(options)
    says = _polarity(text) if sides else 0
    return options[sides.index(says)] if says else None


@lru_cache(maxsize=4096)
def _sides(options: tuple[str, ...]) -> list[int]:
    """1 for the option that says yes, -1 for the one that says no, else 0; empty unless there is one of each."""
    first = [(fold(_bare(option)).split() or [""])[0] for option in options]
    sides = [1 if word in _YES else -1 if word in _NO else 0 for word in first]
    return sides if sides.count(1) == sides.count(-1) == 1 else []


def _polarity(text: str) -> int:
    """1 where a text affirms, -1 where it denies, 0 where it does neither."""
    text = _NO_DOUBT.sub(" ", text.replace("’", "'"))
    first = next(iter(re.findall(r"\w+", text.lower())), "")
    if first in ("yes", "yeah", "yep", "true", "positive", "affirmative"):
        return 1
    if first in ("no", "nope", "false", "negative"):
        return -1
    stated = re.findall(r"\b(?:answer|response)\b[^.]{0,15}\b(yes|no)\b", text.lower())
    if stated:
        return 1 if stated[-1] == "yes" else -1
    if _DOUBTS.search(text) or declines(text):
        return 0
    if re.search(r"\byes\b", text, re.IGNORECASE) and not re.search(r"\bno\b", text, re.IGNORECASE):
        return 1
    return -1 if _DENIES.search(text) else 1 if _AFFIRMS.search(text) else 0


def _by_mention(text: str, options: tuple[str, ...]) -> str | None:
    if _sides(options) or declines(text) or _DOUBTS.search(text):
        return None
    affirmed, denied = _mentioned(text, options)
    if len(affirmed) == 1:
        return affirmed[0]
    rest = [option for option in options if option not in denied]
    return rest[0] if not affirmed and len(options) == 2 and len(denied) == 1 else None


def _mentioned(text: str, options: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(affirmed, denied) options in the text as whole words, each outside every longer option found there."""
    rest = f" {fold(text)} "
    affirmed: list[str] = []
    denied: list[str] = []
    for option in sorted(options, key=lambda one: -len(fold(_bare(one)))):
        words = f" {fold(_bare(option))} "
        if not words.strip():
            continue
        places = [m.start() for m in re.finditer(re.escape(words.rstrip()) + "(?= )", rest)]
        if places:
            (denied if all(_NOT_THIS.search(rest[:place]) for place in places) else affirmed).append(option)
            rest = rest.replace(words, " \0 ")
    return [one for one in options if one in affirmed], [one for one in options if one in denied]


def _split(text: str) -> list[str]:
    """Parts of a list: between semicolons or lines, else commas and "and"; bullets and numbers in front removed."""
    parts = re.split(r"[;\n]", text)
    if len(parts) == 1:
        parts = re.split(r",|\band\b|\|", text)
    parts = [re.sub(r"^\s*(?:[-•*+]|\d+[.)])\s+", "", part).strip().strip(".") for part in parts]
    return [part for part in parts if part]


def _parts(text: str) -> list[str] | None:
    parts = re.split(r"[;\n]", text)
    parts = re.split(",", text) if len(parts) == 1 else parts
    parts = [re.sub(r"^\s*(?:[-•*+]|\d+[.)])\s+", "", part).strip() for part in parts]
    parts = [part for part in parts if part]
    if len(parts) == 1 and re.fullmatch(r"\W*(?:none|nothing|no findings?)\W*", parts[0], re.IGNORECASE):
        return []
    return parts or None
