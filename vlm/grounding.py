"""Which classes do the words of a question name? A lexical look-up, used beside the language model, never instead.

The pointer head gets the result as a feature of each instance, so that an explicit "left parotid" weighs in; the scope
check uses it to say that a named organ is not one the checkpoint knows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from seg_backbone.labels import FALSE_FRIENDS, NO_SLIPS, OTHER_ANATOMY, WORDS, display

_SIDES = ("left", "right")
_SAID_SIDES = {r"rt?|dextr[aiou]\w*|dexter": "right", r"lt?|sinistr[aiou]\w*|sinister": "left"}  # "R parotid", Latin
SLIPPED = 6  # letters from which a word is recognised with one slip
_LESION_WORDS = WORDS["tumour"]


@dataclass(frozen=True)
class Mention:
    """classes: those among the given ones that the text names, in the order of their first words there.

    others: names of known anatomy that is not among them. lesions: the text names a lesion in general ("mass",
    "tumour"). places: the classes that lesions are asked about in: "tumours in the liver".
    """

    classes: tuple[str, ...]
    others: tuple[str, ...]
    lesions: bool
    places: tuple[str, ...] = ()


def find_mentions(text: str, classes: tuple[str, ...]) -> Mention:
    """Look for the given class names, their synonyms and plurals, with or without a side. Case does not matter.

    "left parotid" names parotid_left only, "parotid glands" both. A class that holds lesions (tumour) is also named by
    any word for a lesion. Words of SLIPPED letters or more may hold one slip of the fingers; "vocal cord" is another
    structure, not a cord. An empty text names nothing.
    """
    text = " " + re.sub(r"[^a-z0-9%]+", " ", text.lower()) + " "
    for said, meant in _SAID_SIDES.items():
        text = re.sub(rf"(?<!\d) (?:{said})(?= [a-z]| $)", f" {meant}", text)
    text = " ".join(_spelled(word, _vocabulary(classes)) for word in text.split(" "))
    friends = [w for w in FALSE_FRIENDS if w.replace(" ", "_") not in classes and _pattern(w).search(text)]
    for friend in friends:
        text = _pattern(friend).sub(" ", text)
    sides = {side for side in _SIDES if f" {side} " in text or f" {side}sided " in text}
    lesions = any(_pattern(word).search(text) for word in _LESION_WORDS)
    named, covered = dict[str, int](), set[str]()
    for name in classes:
        base, side = split_side(name)
        words = _words_of(name, base)
        hit = [word for word in words if _pattern(word).search(text)]
        covered |= {word for word in words}
        if (hit and (side is None or not sides or side in sides)) or (lesions and is_lesion(name) and not hit):
            named[name] = _first_place(text, hit or list(_LESION_WORDS), side)
    others = friends
    for word in OTHER_ANATOMY:
        plain, _ = split_side(word.replace(" ", "_"))
        plain = plain.replace("_", " ")
        known = any(f" {plain} " in f" {c} " or f" {c} " in f" {plain} " for c in covered)
        if not known and _pattern(plain).search(text):
            others.append(word)
    longest = [w for w in others if not any(w != o and w in o for o in others)]
    for name in WORDS:
        base, side = split_side(name)
        foreign = name not in classes and not is_lesion(name) and all(split_side(c)[0] != base for c in classes)
        this_side = side is None or not sides or side in sides
        if foreign and this_side and any(_pattern(word).search(text) for word in _words_of(name, base)):
            longest.append(display(name))
    classes = tuple(sorted(named, key=lambda name: named[name]))
    places = _places(text, classes) if lesions or any(map(is_lesion, classes)) else ()
    return Mention(classes, tuple(dict.fromkeys(longest)), lesions, places)


def _first_place(text: str, words: list[str], side: str | None) -> int:
    """Where a class is first named by one of `words`, with its side where the text gives that beside them."""
    found = [match.start() for word in words for match in _pattern(word).finditer(text)]
    if side:
        beside = [
            match.start()
            for word in words
            for pattern in (rf" {side}(?: ?sided)? {re.escape(word)}", rf" {re.escape(word)}\w* (?:on|of) the {side} ")
            for match in re.finditer(pattern, text)
        ]
        found = beside or found
    return min(found, default=len(text))


def _places(text: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The organs among `classes` whose names follow "in", "within" or "inside" directly."""
    found = []
    for name in classes:
        base, side = split_side(name)
        words = "|".join(re.escape(word) for word in _words_of(name, base))
        sided = f"(?:{side} |both )?" if side else ""
        if not is_lesion(name) and re.search(rf" (?:in|within|inside) (?:the )?{sided}(?:{words})(?:es|s)? ", text):
            found.append(name)
    return tuple(found)


def mentions_in(text: str, options: tuple[str, ...], classes: tuple[str, ...]) -> Mention:
    """The mentions of a question; those of its options too where its words name no class and no other anatomy."""
    mention = find_mentions(text, classes)
    if options and not mention.classes and not mention.others:
        return find_mentions("; ".join((text, *options)), classes)
    return mention


def split_side(name: str) -> tuple[str, str | None]:
    """`parotid_left` -> ("parotid", "left"); a name without a side comes back whole with None."""
    base, _, last = name.rpartition("_")
    if base and last in _SIDES:
        return base, last
    first, _, rest = name.partition("_")
    return (rest, first) if rest and first in _SIDES else (name, None)


def is_lesion(name: str) -> bool:
    """True for a class whose name says lesion: tumour, lesion, metastasis, cyst, ..."""
    words = set(name.lower().replace("_", " ").split())
    return bool(words & {"tumour", "tumor", "lesion", "mass", "metastasis", "cancer", "gtv", "cyst", "nodule"})


def _words_of(name: str, base: str) -> tuple[str, ...]:
    """The ways to write a class without its side."""
    spellings = [display(base), *WORDS.get(name, ())]
    plain = {re.sub(r"\s+", " ", re.sub(r"\b(left|right|on the)\b", " ", w)).strip() for w in spellings}
    return tuple(sorted(word for word in plain if len(word) > 2))


def one_slip(first: str, second: str) -> bool:
    """Whether two words differ by one letter left out, added or exchanged, or by two neighbours swapped."""
    start = _shared(first, second)
    first, second = first[start:], second[start:]
    end = _shared(first[::-1], second[::-1])
    first, second = first[: len(first) - end], second[: len(second) - end]
    return max(len(first), len(second)) <= 1 or (len(first) == 2 and first == second[::-1])


def _shared(first: str, second: str) -> int:
    """How many letters two words begin with in common."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(first), len(second)))


@lru_cache(maxsize=4096)
def _spelled(word: str, vocabulary: frozenset[str]) -> str:
    """The word of the vocabulary that a word of the text must mean, else the word. The first letter is never wrong."""
    if len(word) < SLIPPED - 1 or word in vocabulary or word in NO_SLIPS:
        return word
    return min((known for known in vocabulary if known[0] == word[0] and one_slip(word, known)), default=word)


@lru_cache(maxsize=256)
def _vocabulary(classes: tuple[str, ...]) -> frozenset[str]:
    """Every word, singular and plural, that a slip is looked for in; short words stand for themselves."""
    names = [*OTHER_ANATOMY, *(word for name in (*classes, *WORDS) for word in _words_of(name, split_side(name)[0]))]
    words = {word for name in names for word in re.findall("[a-z]+", name.lower())}
    return frozenset(form for word in words if len(word) >= SLIPPED for form in (word, word + "s", word + "es"))


@lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    """The word as whole words, plural allowed (mass -> masses, tumour -> tumours, gland -> glands)."""
    return re.compile(rf" {re.escape(word)}(?:es|s)? ")
