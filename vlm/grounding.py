"""Which structures do the words of a question name? A lexical look-up, used beside the language model, never instead.

The pointer head gets the result as a feature of each instance, so that an explicit "left parotid" weighs in; the scope
check uses it to say that a named organ is not one the checkpoint knows.

The words lie in seg_backbone/labels.py (the classes of the checkpoint) and names.yaml (all other anatomy). They are
looked up as phrases, the longest first: a "vocal cord" is then no cord, and the "mandibular canal" no mandible.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from seg_backbone.labels import WORDS, display, is_lesion

SLIPPED = 6  # letters from which a word is recognised with one slip
LESION = "tumour"  # the structure that every word for a lesion in general names
NODE = "lymph node"  # a finding that may hold another one
_ANY_LESION = ("lesion", "lesions", "focal lesion", "focal lesions", "finding", "findings", "abnormality")
_SIDES = ("left", "right")
_LATIN_SIDES = {r"dextr(?:a|ae|i|um|us)|dexter": "right", r"sinistr(?:a|ae|i|um|us)|sinister": "left"}
_SHORT_SIDES = {"l": "left", "lt": "left", "r": "right", "rt": "right"}
# Between a side and the structure it belongs to: "left-sided parotid", "left or right parotid"; "parotid on the left".
_HAND = r"(?:(?:sided?|handed|hand) )*"
_TO_NEXT = re.compile(rf"{_HAND}(?:(?:,|and|or|vs|versus|to|from|than|with|against) (?:the )?(?:left|right) {_HAND})?")
_TO_LAST = re.compile(
    r"(?:(?:on|of|in|at|to|the|lying|located|situated|seen|found|side|left|right|,|and|or|vs|versus) )*"
)
_INSIDE = re.compile(r"(?<![a-z])(?:in|within|inside) (?:(?:the|both|left|right) )*$")
_HOLDS = re.compile(  # between an organ and its lesion: "the spleen contains a", "the kidneys, any"
    r", (?:(?:is|are) there )?(?:any|an?|how many|number of) (?:focal |visible |other )?"
    r"|(?:that |which |do?es |do |also |still |really )*(?:contains?|containing|holds?|have|has|having|harbou?rs?|"
    r"harbou?ring|shows?|bears?|carr(?:y|ies)|hosts?|with|without|free (?:of|from)|clear of|(?:is |are )?(?:affected|"
    r"involved|invaded|occupied) by)(?: (?!compared|than|with|and|or|from|to|of|in)[a-z]+){0,3} "
)
# "does" is "des" in a normal text, as oedema is edema
_DOES = re.compile(r"(?:there )?(?:do?es|do|did|can|has|have) (?:(?:the|both|left|right) )*")
_HOLD = re.compile(r"(?:contain|hold|have|harbou?r|show|bear|carry|host|exhibit|got)\b")
EXCEPT = re.compile(
    r"\b(?:excluding|except(?: for)?|other than|apart from|aside from|besides|(?:not|without) (?:counting|including)"
    r"|without (?:the|its|their)"
    r"|but not|ignoring|disregarding|leaving out)\b(?P<those>.*)",
    re.IGNORECASE,
)
_EXAMPLE = re.compile(  # within a question
    r"\((?:like|such as|e\.?\s?g\.?|for (?:example|instance)|as in)\b[^)]*\)"
    r"|^\W*(?:just )?(?:like|as in|similar to|for (?:example|instance)|e\.g\.)\s[^,:;?]*[,:;?]",
    re.IGNORECASE,
)
_OF = re.compile(r"([a-z]+) of (?:(?:the|both|left|right) )*$")
_LIES_IN = re.compile(  # between a lesion and its organ
    r"(?:(?:burden|load|disease|deposits?|volume) )?(?:of|in|on|at|within|inside|from) (?:(?:the|both|left|right) )*"
    r"|(?:burden|load) , "
)
_PREPOSITIONS = "in|within|inside|of|on|at|to|from|by|near|below|beneath|under|before|behind|between|beside|around|with"
_ENDINGS = (  # plural, singular
    ("s", ""), ("es", ""), ("ies", "y"), ("ae", "a"), ("i", "us"), ("a", "um"), ("ia", "ion"), ("es", "is"),
    ("ices", "ix"), ("ices", "ex"), ("nges", "nx"), ("ides", "is"), ("mata", "ma"), ("ora", "ur"), ("ina", "en"),
)  # fmt: skip
_KINDS = re.compile(r"[a-z]+(sarcoma|carcinoma|blastoma)(?:s|ta)?")  # liposarcoma is a sarcoma
_HEADS = ("gland", "bone", "cord", "artery", "vein", "nerve", "muscle", "lobe", "cartilage")  # "gland, parotid"
_END = ""  # the key under which a trie holds what a phrase names

Trie = dict[str, Any]  # word -> trie of what may follow it


@dataclass(frozen=True)
class Mention:
    """classes: those among the given ones that the text names, in the order of their first words there.

    others: names of known anatomy that is not among them. lesions: the text names a lesion in general ("mass",
    "tumour"). places: the classes that lesions are asked about in: "tumours in the liver", "liver tumours". elsewhere:
    the same among `others`. sides: those that lesions are asked about on: "tumours on the left".
    """

    classes: tuple[str, ...]
    others: tuple[str, ...]
    lesions: bool
    places: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    sides: tuple[str, ...] = ()


class _Hit(NamedTuple):
    """A phrase, words [start, end) of a text, and what it may name. place: only as the place of a lesion."""

    start: int
    end: int
    names: tuple[str, ...]
    place: bool = False


class _Side(NamedTuple):
    """A side in a text: the number of its word, and of the hit that it belongs to, None for all of them."""

    at: int
    side: str
    hit: int | None


class _Known(NamedTuple):
    """What is looked up where the classes are given.

    members: structure -> (class, side) pairs. trie: the phrases of the classes' own names. compounds: (organ, finding)
    -> the structure of a class like "liver_lesion". vocabulary: every word, for slips.
    """

    members: dict[str, list[tuple[str, str | None]]]
    trie: Trie
    compounds: dict[tuple[str, str], str]
    vocabulary: frozenset[str]


def find_mentions(text: str, classes: tuple[str, ...]) -> Mention:
    """Look for the given class names, their synonyms and plurals, with or without a side. Case does not matter.

    "left parotid" names parotid_left only, "parotid glands" both. A class that holds lesions (tumour) is also named by
    any word for a lesion. Words of SLIPPED letters or more may hold one slip of the fingers. A part ("the ramus of the
    mandible") or a finding ("a fracture of the mandible") is another structure, not the one it belongs to; of a "liver
    tumour" the liver is only the place. An empty text names nothing.
    """
    known = _known(classes)
    text = _without_example(text)
    if exception := EXCEPT.search(text):
        return _without(find_mentions(text[: exception.start()], classes), find_mentions(exception["those"], classes))
    words = _words(text, known.vocabulary)
    hits = _with_places(_with_parts(_hits(words, known), words, known), words, known)
    hits = [hit for n, hit in enumerate(hits) if not _is_general(n, hits, known)]
    sides = _sides(words, hits)
    named: dict[str, tuple[int, int]] = {}  # class -> where it is first named, and with which side
    places, others, elsewhere = set[str](), list[str](), list[str]()
    for number, hit in enumerate(hits):
        members = _members(hit, known)
        said = [side for side in sides if side.hit in (number, None)]
        inside = hit.place or _INSIDE.search(_gap(words, 0, hit.start)) or _holds(number, hits, words)
        for name, side in members:
            at = [(hit.start if s.hit == number else s.at, s.at) for s in said if s.side == side]
            if side is None or not said or at:
                places |= {name} if inside and not is_lesion(name) else set()
                if not hit.place:
                    first = min(at, default=(hit.start, 0))
                    named[name] = min(named.get(name, first), first)
        if not members and LESION not in hit.names:
            others.append(hit.names[0])
            elsewhere += [hit.names[0]] if inside or _holds_lesion(number, hits, words) else []
        sides_of = {side for _, side in members}
        if members and None not in sides_of and not hit.place:  # of a pair the other one, which is no class
            others += [f"{s.side} {hit.names[0]}" for s in said if s.side not in sides_of]
    lesion_hits = {n for n, hit in enumerate(hits) if _names_lesions(hit, known)}
    only = lesion_hits if len(lesion_hits) == len(hits) else set()
    lesion_sides = (  # "tumour, right?" is no side
        s.side for s in sides if words[s.at - 1] != "," and (s.hit in lesion_hits or (s.hit is None and only))
    )
    general = [hit.start for hit in hits if LESION in hit.names]
    any_kind = any(_gap(words, hit.start, hit.end).strip() in _ANY_LESION for hit in hits if LESION in hit.names)
    for name in classes:
        kind = set(re.split(r"[^a-z]+", name.lower()))
        if general and is_lesion(name) and "node" not in kind and (any_kind or "cyst" not in kind):
            named.setdefault(name, (general[0], 0))
    of_lesions = bool(general) or any(map(is_lesion, named))
    own = {organ for (organ, _), label in known.compounds.items() if label.replace(" ", "_") in map(str.lower, named)}
    others = [other for other in others if other not in own]  # of "bone_metastasis" the bone
    elsewhere = [other for other in elsewhere if other not in own]
    direct = {split_side(name)[0] for name in classes}
    for hit in hits:  # and so the bones that a mask has
        if hit.names[0] in own and hit.names[0] not in direct and hit.names[0] in _table()["wholes"]:
            of_hit = {name for name, _ in _members(hit, known)}
            places, named = places - of_hit, {name: at for name, at in named.items() if name not in of_hit}
    return Mention(
        classes=tuple(sorted(named, key=named.__getitem__)),
        others=tuple(dict.fromkeys(others)),
        lesions=bool(general),
        places=tuple(name for name in classes if name in places and of_lesions),
        elsewhere=tuple(dict.fromkeys(elsewhere)) if of_lesions else (),
        sides=tuple(dict.fromkeys(lesion_sides)),
    )


def mentions_in(text: str, options: tuple[str, ...], classes: tuple[str, ...]) -> Mention:
    """The mentions of a question; those of its options too where its words name no class and no other anatomy."""
    mention = find_mentions(text, classes)
    if options and not mention.classes and not mention.others:
        return find_mentions("; ".join((text, *options)), classes)
    return mention


def says(text: str, name: str) -> bool:
    """Whether a text holds a name, in the singular or plural, or with one slip of the fingers in a long word."""
    first, _, last = _normal(name).rpartition(" ")
    trie: Trie = {}
    for form in _forms(last):
        _add(trie, f"{first} {form}", name)
    words = _words(text, _long(name))
    return bool(last) and any(next(_found(trie, words, start), None) for start in range(len(words)))


def is_finding(name: str) -> bool:
    """True for an entry of `Mention.others` that is found in organs, as a cyst is, and is none itself."""
    return name in _table()["findings"]


def split_side(name: str) -> tuple[str, str | None]:
    """`parotid_left` -> ("parotid", "left"); a name without a side comes back whole with None."""
    base, _, last = name.rpartition("_")
    if base and last in _SIDES:
        return base, last
    first, _, rest = name.partition("_")
    return (rest, first) if rest and first in _SIDES else (name, None)


def words_for(name: str) -> tuple[str, ...]:
    """Every way to write a class, or an entry of `Mention.others`, without its side."""
    label = display(split_side(name)[0])
    return (label, *(word for structure in _structures(_normal(label)) for word in (structure, *_names()[structure])))


# A text in words and phrases ----------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """Lower-case words without accents, possessives and the articles after a preposition; punctuation as commas."""
    text = unicodedata.normalize("NFKD", text.replace("œ", "oe").replace("Œ", "Oe"))
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z]{2})|(?<=[a-z]{4})(?=[LR]\b)", " ", text)  # SpinalCord, ParotidL
    text = re.sub(r"['’](?:s\b)?", "", text.lower())
    text = re.sub(r"\b([lr]t?)\.(?= [a-z])", r"\1", text)  # lt. parotid
    text = re.sub(r"\s[-–—]+\s|[^a-z0-9%\s_–-]", " , ", text)
    text = " " + " ".join(re.findall(r"[a-z0-9%]+|,", text)) + " "
    text = re.sub(rf" ({_PREPOSITIONS}) (?:the|a|an|his|her|their|my|your|this|that|each)(?= )", r" \1", text)
    along = r" left to right(?= (?:extent|dimension|diameter|width|size|span|measurement|axis|direction|,))"
    text = re.sub(rf"{along}|(?<= from) left to right(?= )", "", text)
    text = re.sub(r" left(?= (?:between|over|out) )", "", text)  # "how much room is left between"
    return re.sub(r" (?:patient|person)(?= (?:left|right) )", "", text).strip()


def _normal(text: str) -> str:
    """A plain text in American spelling, but for Latin endings: oedema -> edema, costae."""
    return re.sub(r"[ao]e(?=[a-z])", "e", _plain(text))


def _words(text: str, vocabulary: frozenset[str]) -> list[str]:
    """The words that are looked up: sides in English where they are told from litres and the like, slips mended."""
    text = f" {_normal(text)} "
    for short, meant in {**_table()["short"], **_LATIN_SIDES}.items():
        text = re.sub(rf" (?:{short})(?= )", f" {meant}", text)
    text = re.sub(r" (left|right)(?=[a-z]{4})", r" \1 ", text)  # leftparotid, rightsided
    if pair := re.search(r" (lt?|rt?) (,|or|and|vs|versus) (lt?|rt?)(?= )", text):  # "L or R"
        first, between, second = pair.groups()
        both = f" {_SHORT_SIDES[first]} {between} {_SHORT_SIDES[second]}"
        text = text[: pair.start()] + both + text[pair.end() :]
    return [_spelled(word, vocabulary) for word in text.split()]


def _hits(words: list[str], known: _Known) -> list[_Hit]:
    """The longest phrases from left to right. The words of those that mean nothing in the body become commas."""
    hits, n = [], 0
    while n < len(words):
        nothing: tuple[int, tuple[str, ...]] = (n, ())
        own, common = (max(_found(trie, words, n), default=nothing) for trie in (known.trie, _trie()))
        end, names = own if own[0] >= common[0] else common
        if names and names[0] in _table()["friends"]:
            words[n:end] = "," * (end - n)
        elif names:
            hits.append(_Hit(n, end, names))
        n = max(end, n + 1)
    return hits


def _found(trie: Trie, words: list[str], start: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(end, structures) of every phrase of a trie that begins with a word of the text; it may hold a side."""
    ahead = [(trie, start)]
    while ahead:
        node, n = ahead.pop()
        if _END in node:
            yield n, tuple(node[_END])
        if n < len(words):
            ahead += [(node[form], n + 1) for form in _forms(words[n]) if form in node]
            if words[n] in _SIDES and n > start and _END not in node:
                ahead.append((node, n + 1))


@lru_cache(maxsize=4096)
def _forms(word: str) -> tuple[str, ...]:
    """A word and what it may be the plural of; of a kind of sarcoma also "sarcoma"."""
    kind = _KINDS.fullmatch(word)
    cut = ((word[: -len(many)] + one, len(word) - len(many)) for many, one in _ENDINGS if word.endswith(many))
    return tuple(dict.fromkeys((word, *(form for form, kept in cut if kept > 1), *(kind.groups() if kind else ()))))


def _gap(words: Sequence[str], start: int, end: int | None = None) -> str:
    """Words [start, end) with a space after each."""
    return "".join(f"{word} " for word in words[start:end])


# What the phrases stand for -----------------------------------------------------------------------------------------


def _members(hit: _Hit, known: _Known) -> list[tuple[str, str | None]]:
    """The classes, with their sides, that a phrase may name."""
    return [pair for name in hit.names for pair in known.members.get(name, ())]


def _with_parts(hits: list[_Hit], words: list[str], known: _Known) -> list[_Hit]:
    """The hits, where only a part of a class is spoken of ("the ramus of the mandible") the part instead."""
    behind, ahead = set(_table()["parts"]), set(_table()["parts"] + _table()["parts_of"])
    found: list[_Hit] = []
    for hit in hits:
        if found and hit.start < found[-1].end:
            continue
        if _members(hit, known) and not _is_finding(hit):
            name, of = hit.names[0], _OF.search(_gap(words, 0, hit.start))
            lymph = words[hit.end : hit.end + 1] == ["lymph"]
            tail = _gap(words, hit.end, hit.end + 1 + lymph).strip()
            if of and ahead & set(_forms(of[1])):
                start = hit.start - len(of[0].split())
                found = [h for h in found if h.end <= start]
                hit = _Hit(start, hit.end, (f"{of[1]} of the {name}",))
            elif tail and behind & set(_forms(tail)):
                hit = _Hit(hit.start, hit.end + 1 + lymph, (f"{_gap(words, hit.start, hit.end)}{tail}",))
        found.append(hit)
    return found


def _with_places(hits: list[_Hit], words: list[str], known: _Known) -> list[_Hit]:
    """The hits, with those organs as places only that say where a finding is: "renal cyst", "fracture of the jaw".

    Where a class is such a finding of such an organ ("kidney_cyst") the finding means that class.
    """
    found = list(hits)
    for n in range(len(found) - 1):
        first, second = found[n], found[n + 1]
        organic = not _is_finding(first) or first.names == (NODE,)  # "lymph node metastases"
        adjacent = first.end == second.start and _is_finding(second) and organic
        between = _gap(words, first.end, second.start)
        after = _is_finding(first) and not _is_finding(second) and _LIES_IN.fullmatch(between)
        if not (adjacent or after):
            continue
        here, there = (n, n + 1) if adjacent else (n + 1, n)
        organ, finding = found[here], found[there]
        general = _gap(words, finding.start, finding.end).strip() in _ANY_LESION
        finds = sorted({f for _, f in known.compounds}) if general else list(finding.names)
        own = [known.compounds[o, f] for o in organ.names for f in finds if (o, f) in known.compounds]
        if own:
            found[there] = finding._replace(names=tuple(own))
        site = _gap(words, organ.start, organ.end).strip() in _table()["sites"]
        if own or site or LESION not in finding.names or (adjacent and _members(organ, known)):
            found[here] = organ._replace(place=True)
    return [hit for hit in found if not hit.place or _members(hit, known)]


def _names_lesions(hit: _Hit, known: _Known) -> bool:
    return LESION in hit.names or any(is_lesion(name) for name, _ in _members(hit, known))


def _holds_lesion(number: int, hits: list[_Hit], words: list[str]) -> bool:
    """Whether a hit stands beside a lesion as its place: "liver tumour", "a tumour of the liver"."""
    hit = hits[number]
    lesions = [hit for hit in hits[max(0, number - 1) : number + 2] if LESION in hit.names]
    return any(lesion.start == hit.end or _LIES_IN.fullmatch(_gap(words, lesion.end, hit.start)) for lesion in lesions)


def _holds(number: int, hits: list[_Hit], words: list[str]) -> bool:
    """Whether a hit is said to hold the finding after it: "does the spleen contain a lesion?"."""
    before = _gap(words, hits[number - 1].end, hits[number].start) if number else ""
    if number and _is_finding(hits[number - 1]) and _DOES.fullmatch(before):  # "how many lesions does the liver hold?"
        return _HOLD.match(_gap(words, hits[number].end)) is not None
    if number + 1 == len(hits) or _is_finding(hits[number]) or not _is_finding(hits[number + 1]):
        return False
    return _HOLDS.fullmatch(_gap(words, hits[number].end, hits[number + 1].start)) is not None


def _is_general(number: int, hits: list[_Hit], known: _Known) -> bool:
    """Whether a hit beside another only says what that is: the "vertebra" of "L4 vertebra"."""
    hit, own = hits[number], set(_members(hits[number], known))
    beside = (other for other in hits if hit.start == other.end or hit.end == other.start)
    return any(set(_members(other, known)) and set(_members(other, known)) < own for other in beside)


def _without_example(text: str) -> str:
    """A text but for an example in it: "(like liver minus spleen)"; as it is where nothing would be left."""
    rest = _EXAMPLE.sub(" ", text)
    return rest if len(rest.split()) > 2 else text


def _without(mention: Mention, those: Mention) -> Mention:
    """A mention but for what another one names; of one that names nothing else lesions."""
    kept = tuple(name for name in mention.classes if name not in those.classes)
    return replace(mention, classes=kept)


def _is_finding(hit: _Hit) -> bool:
    return any(name == LESION or name in _table()["findings"] for name in hit.names)


def _sides(words: list[str], hits: list[_Hit]) -> list[_Side]:
    """The sides in a text, each with the hit beside it; letters ("L") count only directly beside one."""
    inside = {n: k for k, hit in enumerate(hits) for n in range(hit.start, hit.end)}
    found = []
    for n, word in enumerate(words):
        side = word if word in _SIDES else _SHORT_SIDES.get(word)
        if side is None or n in inside:
            found += [_Side(n, side, inside[n])] if side == word else []
            continue
        after = next((k for k, hit in enumerate(hits) if hit.start > n), None)
        last = max((k for k, hit in enumerate(hits) if hit.end <= n), default=None)
        to_next = None if after is None else _gap(words, n + 1, hits[after].start)
        to_last = None if last is None else _gap(words, hits[last].end, n)
        if to_next is not None and _TO_NEXT.fullmatch(to_next) and (word in _SIDES or not to_next):
            found.append(_Side(n, side, after))
        elif to_last is not None and _TO_LAST.fullmatch(to_last) and (word in _SIDES or to_last in ("", ", ", "on ")):
            found.append(_Side(n, side, last))
        elif word in _SIDES:
            found.append(_Side(n, side, None))
    return found


# The tables ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    """The content of names.yaml."""
    table: dict[str, Any] = yaml.load(Path(__file__).with_name("names.yaml").read_text("utf-8"), yaml.CSafeLoader)
    return table


@lru_cache(maxsize=1)
def _names() -> dict[str, tuple[str, ...]]:
    """Structure -> the other words for it."""
    names: dict[str, tuple[str, ...]] = {}
    for words in WORDS.values():
        plain = [re.sub(r"(?:on the )?\b(?:left|right)\b", "", word).strip() for word in words]
        names[plain[0]] = tuple(dict.fromkeys(plain[1:]))
    for section in ("anatomy", "findings", "lesions"):
        names |= {name: tuple(words) for name, words in _table()[section].items()}
    names |= {name: () for name in _table()["families"]}
    names[LESION] += tuple(_table()["kinds"])
    return names


@lru_cache(maxsize=2)
def _trie(kinds: bool = False) -> Trie:
    """The phrases of every structure and those that mean nothing. kinds: with lesions that few sets tell apart."""
    trie: Trie = {}
    for name, words in _names().items():
        if kinds or name not in _table()["lesions"]:
            for phrase in (name, *words):
                _add(trie, phrase, name)
    for phrase in _table()["friends"]:
        _add(trie, phrase, phrase)
    return trie


def _add(trie: Trie, phrase: str, name: str) -> None:
    """Let a phrase name a structure; of two words A B also AB, "B of A", and "B A" where B is a gland, a bone, ..."""
    words = _normal(phrase).split()
    orders = [words]
    if len(words) == 2:
        first, second = words
        orders += [[second, "of", first], [first + second]] if min(len(first), len(second)) > 2 else []
        orders += [[second, first]] if second in _HEADS else []
    for order in orders:
        node = trie
        for word in order:
            node = node.setdefault(word, {})
        node.setdefault(_END, {})[name] = None


def _structures(label: str) -> tuple[str, ...]:
    """The structures that a normal text names as a whole; () for one that is not known."""
    words = label.split()
    return next((names for end, names in _found(_trie(kinds=True), words, 0) if end == len(words)), ()) if words else ()


@lru_cache(maxsize=256)
def _known(classes: tuple[str, ...]) -> _Known:
    members: dict[str, list[tuple[str, str | None]]] = {}
    trie: Trie = {}
    compounds: dict[tuple[str, str], str] = {}
    for name in classes:
        base, side = split_side(name)
        words = _normal(base.replace("_", " ")).split()
        side = side or next((word for word in words if word in _SIDES), None)  # rib_left_1
        words = [word for word in words if word not in _SIDES]
        label, unnumbered = " ".join(words), " ".join(word for word in words if not re.search(r"\d", word))
        structures = {label, *_structures(label), *_structures(unnumbered)}
        for structure in structures:
            members.setdefault(structure, []).append((name, side))
        for phrase in {label, *(word for word in words if re.fullmatch(r"[a-z]+\d+", word))}:  # L1
            _add(trie, phrase, label)
        for structure in structures & set(_table()["lesions"]):
            for phrase in (structure, *_names()[structure]):
                _add(trie, phrase, structure)
        for n in range(1, len(words)):
            organ, finding = " ".join(words[:n]), " ".join(words[n:])
            for second in _structures(finding):
                if second == LESION or second in _table()["findings"]:
                    compounds |= {(first, second): label for first in (organ, *_structures(organ))}
                if second in _table()["findings"]:  # "a cyst" names every class of cysts
                    members.setdefault(second, []).append((name, side))
    for whole, parts in _table()["wholes"].items():
        members.setdefault(whole, [pair for part in parts for pair in members.get(part, ())])
    for family, (structure, numbers) in _table()["families"].items():
        members[family] = [pair for pair in members.get(structure, ()) if re.search(rf"_{numbers}$", pair[0].lower())]
    own = _long(" ".join(classes).replace("_", " "))
    return _Known(members, trie, compounds, _vocabulary() if own <= _vocabulary() else _vocabulary() | own)


@lru_cache(maxsize=1)
def _vocabulary() -> frozenset[str]:
    """Every word of every structure that a slip is looked for in."""
    return _long(" ".join(word for name, words in _names().items() for word in (name, *words)))


@lru_cache(maxsize=1)
def _ordinary() -> frozenset[str]:
    """English words one slip away from an anatomical one."""
    return frozenset(map(_normal, _table()["no_slips"]))


def _long(text: str) -> frozenset[str]:
    """The words of a text, long ones also in the plural."""
    words = re.findall("[a-z]+", _normal(text))
    return frozenset(words) | {word + many for word in words if len(word) >= SLIPPED for many in ("s", "es")}


@lru_cache(maxsize=4096)
def _spelled(word: str, vocabulary: frozenset[str]) -> str:
    """The word of the vocabulary that a word of the text must mean, else the word. The first letter is never wrong."""
    if len(word) < SLIPPED - 1 or not (vocabulary.isdisjoint(_forms(word)) and _ordinary().isdisjoint(_forms(word))):
        return word
    return min((known for known in _alike(word[0], len(word), vocabulary) if one_slip(word, known)), default=word)


@lru_cache(maxsize=1024)
def _alike(letter: str, length: int, vocabulary: frozenset[str]) -> tuple[str, ...]:
    """The long words of a vocabulary that begin with a letter and have a length, give or take one."""
    long = (word for word in vocabulary if len(word) >= SLIPPED and word[0] == letter)
    return tuple(word for word in long if abs(len(word) - length) < 2)


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
