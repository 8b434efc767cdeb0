"""Conversation: questions that lean on earlier ones ("and its volume?") made whole, then asked.

Enters a line of text and the turns before it, leaves a full question with its fact and its instances, or a question
back, or nothing: then the line is asked alone. Rules and lists of words, not the language model: what "it" stands for
must be the same every time. A line is a follow-up only if every word of it is understood; the rules, in order:

1. The fact is the one its words name (FACT_WORDS), a comparison with a size, or else that of the turn before.
2. "from", "to", "than", "with" and the like split a distance or comparison into a subject and a target.
3. A subject that names a structure and a fact is a whole question: asked alone. Without a fact, "and the brainstem?",
   the fact is inherited. "This tumour" means the one of the turn before.
4. Ranks, sides and "other" ("the left one", "the second largest") choose among the instances of the turn before where
   it had several, else among all of their class; left and right classes of one name are one family.
5. A pronoun, or nothing at all ("which side?"), means the subject of the turn before.
6. A fact of one instance with several to choose from is asked back; the reply "the largest" then goes on with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.data.threshold import Threshold, parse_threshold
from vlm.data.wordings import enumerate_things
from vlm.facts import FACTS, UNITS, asked_unit
from vlm.grounding import Mention, find_mentions, split_side, words_for
from vlm.heads.reading import Focus, Reading
from vlm.infer.asked import BY_UNIT
from vlm.infer.scope import LESION
from vlm.infer.turns import MOST_NAMED, ORDINALS, Turn, in_full, name_in, spoken_of
from vlm.plain_words import ARTICLES, FACT_WORDS, FILLER, PRONOUNS
from vlm.scene import Scene, scene_classes
from vlm.schema import Answer, Question

if TYPE_CHECKING:  # which asks a conversation about what leans on an earlier clause
    from vlm.infer.engine import Engine, Scan

# The words, as patterns over lower-case text in which everything but letters, digits and % is a space; those for facts,
# pronouns and filler lie in plain_words.py.
LEAD = (
    r"^(?:(?:and|but|also|now|then|so|ok|okay|what about|how about|what of|tell me about|thanks|thank you|great"
    r"|(?:(?:do )?the )?same(?: thing| question)?(?: again)? (?:for|with|of)|repeat (?:that|it) for|likewise for) )+"
)
AGAIN = (  # the last answer in another unit
    r"^(?:(?:please )?(?:convert|express|give|say|show|report|tell me|what is|whats|what s|how much is)(?: me)?"
    r"(?: it| that| this| the answer| the result)?(?: as)? )?(?:in|into|to)(?: the)? "
)
HOW_SURE = (
    r"how (?:sure|certain|confident)(?: are you| is (?:it|that|this))?(?: (?:of|about) (?:it|that|this))?"
    r"|are you (?:sure|certain)|(?:what is )?(?:your|the|its) confidence(?: of (?:it|that|this))?"
)
HOLDER = r"(?:in )?which (?:one|organ|structure|bone|kidney|lung|lobe|vertebra)(?: is it(?: in)?)?"
THIS = r"(?:this|that|the same|said)"
OTHER = r"(?:the )?other(?: one| side)?"
ONE = r"ones?"
SIDES = r"(?:on the |of the |to the )?(?P<side>left|right)(?: sided| hand)?(?: side)?"
RANKS = {  # place by volume, largest first; -1 is the last
    2: r"(?:second|2nd)(?: (?:largest|biggest))?",
    3: r"(?:third|3rd)(?: (?:largest|biggest))?",
    4: r"(?:fourth|4th)(?: (?:largest|biggest))?",
    5: r"(?:fifth|5th)(?: (?:largest|biggest))?",
    1: r"largest|biggest|greatest|(?:larger|bigger)(?= one| of )|(?:large|big)(?= one)|first",
    -1: r"smallest|tiniest|smaller(?= one| of )|(?:small|tiny)(?= one)|last",
}
BEFORE_TARGET = dict.fromkeys(("distance", "gap"), r"from|to|and") | dict.fromkeys(
    ("larger", "denser", "volume_difference"), r"than|with|to|against|and"
)
SIZES = (
    r"\d[\d ]*(?:mm|cm|ml|cc|l)[23]?|(?:no |not )?(?:larger|bigger|greater|smaller|longer|shorter|more|less)(?: than)?"
    r"|over|under|above|below|exceeding|at least|at most|or"
)


# The full question that a fact asks, in the words of vlm/data/wordings.yaml. Facts not named here are never inherited.
ASK = {
    "presence": "Is {things} visible in this scan?",
    "count": "How many of these structures are visible - {things}?",
    "side": "Which side is {things} on?",
    "larger": "Which is larger, {things} or {target}?",
    "box": "Where is {things}?",
    "long_axis": "What is the long axis of {things}?",
    "short_axis": "What is the short axis of {things}?",
    "diameter_3d": "What is the largest 3D diameter of {things}?",
    "craniocaudal": "What is the craniocaudal extent of {things}?",
    "volume": "What is the volume of {things}?",
    "intensity": "What is the mean intensity of {things}?",
    "distance": "What is the distance between {things} and {target}?",
    "gap": "What is the shortest distance between {things} and {target}?",
    "denser": "Which is denser, {things} or {target}?",
    "volume_difference": "How much larger is {things} than {target}?",
    "anteroposterior": "What is the anteroposterior extent of {things}?",
    "transverse": "What is the left-to-right extent of {things}?",
    "surface_area": "What is the surface area of {things}?",
    "intensity_spread": "What is the standard deviation of the intensity of {things}?",
    "slice": "On which slice is {things} largest?",
    "enlarged": "Is {things} enlarged?",
    "nearest": "Which organ is {things} in or next to?",
    "composition": "Is {things} cystic or solid?",
    "size_category": "What is the T category of {things} by size?",
    "measurable": "Is {things} measurable by RECIST?",
}
ASK_SIZED = {
    "presence": "Is {things} {size}?",
    "count": "Of {things}, how many are {size}?",
    "box": "Where is {things} {size}?",
}
COMPARED = {">": "larger than", ">=": "at least", "<": "smaller than", "<=": "at most"}

COMPARISONS = ("larger", "denser")
OF_SEVERAL = ("presence", "count", "box")  # facts of any number of instances; the others are of one, or of a pair
PAIRS = tuple(fact for fact in ASK if FACTS[fact].takes == "pair")


@dataclass(frozen=True)
class FollowUp:
    """A follow-up understood. text: the full question. The other fields are those of its Turn.

    lacking: the name of what it asks about and the scan lacks. unclear: why it must be asked back; then `text` asks and
    `subject` are those to choose from.
    """

    text: str
    fact: str
    subject: tuple[Instance, ...]
    target: tuple[Instance, ...]
    names: tuple[str, ...]
    lacking: str | None = None
    unclear: str | None = None


class Conversation:
    """Questions about one scan, each understood in the light of those before."""

    def __init__(self, engine: Engine, scan: Scan) -> None:
        self.engine, self.scan = engine, scan
        self.turns: list[Turn] = []

    def ask(self, text: str) -> Answer:
        """The answer to a question or follow-up, kept as a turn.

        A follow-up that may mean several things gives an abstention whose text asks back.
        """
        turn = self._again(text)
        if turn is None:
            several = len(spoken_of(text, self.turns)) > 1  # "compare the two" after two questions of one each
            follow = None if several else resolve(text, self.turns, self.scan.scene)
            turn = self._reply(text, follow) if follow else self._alone(text)
        self.turns.append(turn)
        return turn.answer

    def stream(self, text: str) -> Iterator[str | Answer]:
        """The words of the answer's text one by one, then the Answer itself."""
        yield from self.ask(text).stream()

    def reset(self) -> None:
        """Forget every turn."""
        self.turns.clear()

    def _again(self, text: str) -> Turn | None:
        """The last answer again: how sure it is, or in another unit; None for another question."""
        line = re.sub(LEAD, "", re.sub(r"[^a-z0-9^]+", " ", text.lower()).strip() + " ").strip()
        if not self.turns:
            return None
        last = self.turns[-1]
        if re.fullmatch(HOW_SURE, line):
            said = f"The confidence of that answer is {last.answer.confidence:.2f}."
            if last.answer.abstained:
                said = f"That was not answered: {last.answer.reason}."
            answer = replace(last.answer, type="open", text=said, value=None, unit=None, choice=None, choices=None)
            return replace(last, question=text, asked=text, answer=replace(answer, boxes=None, interval=None))
        lesion = len(last.subject) == 1 and is_lesion(last.subject[0].label)
        if lesion and last.fact in OF_SEVERAL and re.fullmatch(HOLDER, line):
            asked = _full("nearest", [name_in(self.scan.scene, last.subject[0])], [], None)
            answer, _ = self.engine.reply(self.scan, self._question(asked), Focus("nearest", (last.subject[0].id,)))
            return replace(last, question=text, asked=asked, answer=answer, fact="nearest")
        unit = asked_unit(re.sub(AGAIN, "in ", line)) if re.match(AGAIN, line) and len(line.split()) < 9 else None
        if unit and FACTS[last.fact].kind == "measurement" and not last.answer.abstained:
            ids = tuple(i.id for i in (*last.subject, *last.target))
            fact, base = last.fact, UNITS[unit][0]
            question = replace(self._question(last.asked), unit=unit)
            if fact == "volume_difference" and unit == "%":
                question = self._question(f"{last.asked} In per cent.")
            elif FACTS[fact].takes == "one" and base != FACTS[fact].unit and base in BY_UNIT:
                fact, names = BY_UNIT[base], [name_in(self.scan.scene, i) for i in last.subject]
                question = replace(self._question(_full(fact, names, [], None)), unit=unit)  # "and in ml?"
            answer, _ = self.engine.reply(self.scan, question, Focus(fact, ids))
            return replace(last, question=text, asked=question.question, answer=answer, fact=fact)
        return None

    def _alone(self, text: str) -> Turn:
        asked = in_full(text, self.turns, self.scan.scene)
        if asked != text:
            return replace(self._alone_in_full(asked), question=text)
        return self._alone_in_full(text)

    def _alone_in_full(self, text: str) -> Turn:
        answer, reading = self.engine.reply(self.scan, self._question(text))
        before = next((turn.subject for turn in reversed(self.turns) if turn.names), ())
        if len(before) == 1 and FACTS[reading.fact].takes == "one" and _is_unnamed(reading.mention, text):
            focus = Focus(reading.fact, (before[0].id,))  # "is it cystic?"
            answer, reading = self.engine.reply(self.scan, self._question(text), focus)
        return self.turn(text, answer, reading)

    def turn(self, text: str, answer: Answer, reading: Reading) -> Turn:
        """What a question that leans on none was about."""
        subject, mention = _in_evidence(answer, self.scan.scene), reading.mention
        if answer.abstained and not subject:
            about = mention.places or mention.classes
            subject = tuple(i for i in self.scan.scene.instances if i.label in about)
            subject = subject if len(subject) <= MOST_NAMED else ()
        named = [instance.label for instance in subject] or [*mention.classes, *mention.others]
        named = named or ([LESION] if mention.lesions else [])
        target: tuple[Instance, ...] = ()
        if reading.fact in COMPARISONS:
            subject, target = subject[:1], subject[1:]  # the larger of the two is what the talk is about
        return Turn(text, text, answer, reading.fact, subject, target, tuple(dict.fromkeys(named)))

    def _reply(self, text: str, follow: FollowUp) -> Turn:
        turn = Turn(text, follow.text, Answer("", "", ""), follow.fact, follow.subject, follow.target, follow.names)
        if follow.unclear:
            kind, version = FACTS[follow.fact].kind, self.engine.version
            answer = Answer("question", kind, follow.text, abstained=True, reason=follow.unclear, model=version)
            return replace(turn, answer=answer)
        ids = () if follow.lacking else tuple(i.id for i in (*follow.subject, *follow.target))
        answer, _ = self.engine.reply(self.scan, self._question(follow.text), Focus(follow.fact, ids, follow.lacking))
        if follow.fact == "larger" and not answer.abstained:
            answer = _named_apart(answer, self.scan.scene)
        if follow.fact in COMPARISONS and len(ends := _in_evidence(answer, self.scan.scene)) == 2:
            return replace(turn, answer=answer, subject=ends[:1], target=ends[1:])  # the larger is talked of next
        return replace(turn, answer=answer)

    def _question(self, text: str) -> Question:
        return Question("question", self.scan.volume.source, text)


def _is_unnamed(mention: Mention, text: str) -> bool:
    """Whether a text speaks of "it" and names nothing."""
    named = mention.classes or mention.others or mention.lesions
    return not named and re.search(r"\b(?:it|its|this one|that one)\b", text.lower()) is not None


def resolve(text: str, turns: list[Turn], scene: Scene) -> FollowUp | None:
    """What a line means after `turns`; None where it is a question of its own or not understood."""
    before = next((turn for turn in reversed(turns) if turn.names), None)
    if before is None:
        return None
    said, classes = _parse(text, before), scene_classes(scene)
    mention, to = (find_mentions(phrase.text, classes) for phrase in (said.subject, said.target))
    this = bool(_bases(find_mentions(said.subject.this, classes).classes) & _bases(before.names))
    known = (*mention.classes, *mention.others)
    if not (_understood(said.subject, known, said.fact) and _understood(said.target, (*to.classes, *to.others), None)):
        return None
    if this:
        mention = Mention((), (), False)
    named = bool(mention.classes or mention.others)
    chosen, targeted = named or said.subject.chooses, bool(said.target.text.strip())
    if (named and said.fact) or not (said.fact or chosen or targeted):
        return None

    fact = said.fact or before.fact
    if said.fact is None and (fact not in ASK or (fact in ("count", "presence") and said.subject.one)):
        fact = "box"
    subject, target = _meant(said.subject, mention, before, scene), () if said.fact else before.target
    if fact == "count" and len(subject) == 1 and not (chosen or said.subject.pronoun):
        subject = _family(before, scene)  # "how many are there?"
    if fact in PAIRS:
        end, of_end = said.target, to
        if targeted:
            target = _meant(end, to, before if end.pronoun else replace(before, subject=subject), scene)
        elif said.fact is None and (fact in COMPARISONS or not _bases(known) <= _bases(before.names)):
            end, of_end, subject, target = said.subject, mention, before.subject, subject  # "and the brainstem?"
        elif said.fact:
            both = (*subject, *before.target) if before.target and not chosen else _family(before, scene)
            pair = subject if len(subject) > 1 else both
            if len(pair) < 2:
                return None
            subject, target = (pair[:1], pair[1:]) if len(pair) == 2 else (pair, pair)
        elif not target:  # the distance of two ends, neither of them the subject: the one of another name stays
            stays = tuple(i for i in before.subject if not _bases([i.label]) & _bases(known))
            if not named or len(stays) != 1:
                return None
            subject, target = stays, subject
        if subject and not target:
            return FollowUp(text, fact, subject, (), before.names, _lacking(end, of_end, before, classes))

    names = tuple(dict.fromkeys(i.label for i in subject)) or known or before.names
    if not subject:
        name = _lacking(said.subject, mention, before, classes)
        return FollowUp(_full(fact, [name], [], said.threshold), fact, (), (), names, name)
    if fact not in OF_SEVERAL:
        subject, target = _main(subject), _main(target)
        if len(subject) > 1:
            return _ask_back(fact, subject, target, scene)
        if fact in PAIRS and (len(target) != 1 or target == subject):
            return _ask_back(fact, target, subject, scene)
    ours, theirs = ([name_in(scene, i) for i in some] for some in (subject, target))
    return FollowUp(_full(fact, ours, theirs, said.threshold), fact, subject, target, names)


# Parsing a line -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Phrase:
    """A subject or a target as said. text: all of it. rest: the words that no rule took.

    this: what follows "this" or "that". one: "the left one" or a rank, so one instance. chooses: says which of several.
    """

    text: str
    rest: str
    this: str
    pronoun: bool
    one: bool
    other: bool
    side: str | None
    rank: int | None

    @property
    def chooses(self) -> bool:
        return self.other or self.side is not None or self.rank is not None


@dataclass(frozen=True)
class _Said:
    """A line in parts. fact: the one its words name."""

    fact: str | None
    subject: _Phrase
    target: _Phrase
    threshold: Threshold | None


def _parse(text: str, before: Turn) -> _Said:
    """The parts of a line. before: the turn whose fact an ellipsis goes on with."""
    text = re.sub(r"\bone['’]s\b", "one", text)
    line = " " + re.sub(LEAD, "", re.sub(r"[^a-z0-9%]+", " ", text.lower()).strip() + " ")
    if before.subject:
        place = ORDINALS.get(before.subject[0].rank + 1, "last")
        line = re.sub(r" next (?:largest|biggest)(?= )", f" {place}", line)
    threshold = parse_threshold(text)
    if threshold:
        line = _without(SIZES, line)
    fact = next((name for name, words in FACT_WORDS.items() if _has(words, line)), None)
    if fact:
        line = _without(FACT_WORDS[fact], line)
    if threshold and fact not in OF_SEVERAL:
        fact = "presence"
    target = ""
    separators = BEFORE_TARGET.get(fact or before.fact)
    if separators and (parts := re.match(rf"(.*) (?:{separators})( .*)", line)):
        line, target = parts[1] + " ", parts[2]
    return _Said(fact, _phrase(line), _phrase(target), threshold)


def _phrase(text: str) -> _Phrase:
    this = re.search(rf" {THIS}( .*)", text)
    rank = next((place for place, words in RANKS.items() if _has(words, text)), None)
    side = re.search(rf" {SIDES}(?= )", text)
    rest = text
    for words in (*RANKS.values(), SIDES, OTHER, PRONOUNS, THIS, ONE):
        rest = _without(words, rest)
    other, one = _has(OTHER, text), _has(ONE, _without(PRONOUNS, text)) or rank is not None
    return _Phrase(
        text, rest, this[1] if this else "", _has(PRONOUNS, text), one, other, side["side"] if side else None, rank
    )


def _has(words: str, line: str) -> bool:
    return re.search(rf" (?:{words})(?= )", line) is not None


def _without(words: str, line: str) -> str:
    return re.sub(rf" (?:{words})(?= )", "", line)


def _understood(phrase: _Phrase, names: tuple[str, ...], fact: str | None) -> bool:
    """Whether every word of a phrase was taken by a rule, names a structure, or says nothing."""
    spellings = {word.lower() for name in names for word in (name.replace("_", " "), *words_for(name))}
    said = {spelling for spelling in spellings if re.search(rf" {re.escape(spelling)}(?:e?s)?(?= |$)", phrase.rest)}
    known = (FILLER if fact else ARTICLES) | {word for spelling in said for word in spelling.split()}
    return all(word in known or re.sub("e?s$", "", word) in known for word in phrase.rest.split())


# What a phrase stands for -------------------------------------------------------------------------------------------


def _meant(phrase: _Phrase, mention: Mention, before: Turn, scene: Scene) -> tuple[Instance, ...]:
    """The instances that a phrase stands for, () where the scan has none of them."""
    if mention.classes or mention.others:
        pool = tuple(i for i in scene.instances if i.label in mention.classes)
    elif phrase.chooses:
        pool = before.subject if len(before.subject) > 1 else _family(before, scene)
    else:
        return before.subject
    if phrase.side and not any(i.side == phrase.side for i in pool):
        pool = _family(before, scene)
    if phrase.side:
        pool = tuple(i for i in pool if i.side == phrase.side)
    if phrase.other:
        pool = tuple(i for i in pool if i not in before.subject)
    if phrase.rank:
        order = sorted(pool, key=lambda i: -i.volume_ml)
        pool = tuple(order[-1:] if phrase.rank < 0 else order[phrase.rank - 1 : phrase.rank])
    return pool


def _family(before: Turn, scene: Scene) -> tuple[Instance, ...]:
    """Every instance of the classes spoken of; a class on the left and its counterpart belong together."""
    return tuple(i for i in scene.instances if split_side(i.label)[0] in _bases(before.names))


def _bases(names: Any) -> set[str]:
    return {split_side(name)[0] for name in names}


def _main(instances: tuple[Instance, ...]) -> tuple[Instance, ...]:
    """An organ in pieces is its largest piece; anything else stays as it is."""
    if len({i.label for i in instances}) == 1 and not is_lesion(instances[0].label):
        return (max(instances, key=lambda i: i.volume_ml),)
    return instances


def _lacking(phrase: _Phrase, mention: Mention, before: Turn, classes: tuple[str, ...]) -> str:
    """The name of what a phrase asks for and the scan lacks: "right-sided tumour", "liver"."""
    base = next(iter(mention.classes or mention.others or before.names))
    sided = f"{split_side(base)[0]}_{phrase.side}"
    if phrase.side and split_side(base)[1] is not None and sided in classes:
        return display(sided)
    rank = f"{ORDINALS[phrase.rank]} " if phrase.rank and phrase.rank > 1 else ""
    side = f"{phrase.side}-sided " if phrase.side and split_side(base)[1] is None else ""
    return f"{'other ' if phrase.other else ''}{side}{rank}{display(base)}"


def _in_evidence(answer: Answer, scene: Scene) -> tuple[Instance, ...]:
    known = {i.id: i for i in scene.instances}
    return tuple(known[item["instance"]] for item in answer.evidence if item["instance"] in known)


# Saying it in full --------------------------------------------------------------------------------------------------


def _full(fact: str, names: list[str], target: list[str], threshold: Threshold | None) -> str:
    """The full question about named structures."""
    ask = ASK_SIZED[fact] if threshold and fact in ASK_SIZED else ASK[fact]
    size = f"{COMPARED[threshold.op]} {threshold.value:g} {threshold.unit}" if threshold else ""
    things, other = (enumerate_things(f"the {name}" for name in some) if some else "it" for some in (names, target))
    return ask.format(things=things, target=other, size=size)


def _ask_back(fact: str, choices: tuple[Instance, ...], known: tuple[Instance, ...], scene: Scene) -> FollowUp:
    """Which one? known: the end of a pair that is clear already."""
    names = [f"the {name_in(scene, instance)}" for instance in choices]
    listed = f": {', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else ""
    labels = tuple(dict.fromkeys(i.label for i in choices))
    reason = "the question may mean several structures" if listed else "the question names one structure twice"
    return FollowUp(f"Which one do you mean{listed}?", fact, choices, known, labels, unclear=reason)


def _named_apart(answer: Answer, scene: Scene) -> Answer:
    """A comparison of two of one class ("the tumour is larger than the tumour") in names that tell them apart."""
    first, second = _in_evidence(answer, scene)
    if first.label != second.label:
        return answer
    large, small = name_in(scene, first), name_in(scene, second)
    text = f"The {large} is larger: {first.volume_ml:.1f} ml against {second.volume_ml:.1f} ml for the {small}."
    return replace(answer, text=text, choice=large)
