"""Several questions in one: two measures asked for side by side, the largest and the smallest, and options: those that
are statements, and those written into the question.

Enters a Reading or a question, leaves the facts to tell one after the other, or the questions to answer one by one.
Whoever answers (Engine.reply) asks each as a question of its own.
"""

from __future__ import annotations

import re
from dataclasses import replace

from vlm.facts import FACTS
from vlm.grounding import find_mentions
from vlm.heads.ranks import THINGS, compared_by, superlatives
from vlm.heads.reading import Reading
from vlm.plain_words import fact_in, plain_line, says
from vlm.scene import scene_classes
from vlm.schema import Question

_AND = re.compile(r"\band\b|\bas well as\b|\bplus\b|\bx\b|\bby\b|[,;&+/×]")
_AXIS = r"(?:long|short|longest|shortest|major|minor)"
_TWO_AXES = re.compile(rf"\b({_AXIS})(?=\s*(?:and|x|by|[,&/×])\s*(?:the )?{_AXIS}\b)")  # "long and short axis"
_OF_ONE = tuple(name for name, fact in FACTS.items() if fact.kind == "measurement" and fact.takes == "one")
_LETTER = re.compile(r"^\W*(?:[a-h1-9][.):]\s+)?", re.IGNORECASE)
_VERB = re.compile(r"\b(?:is|are|has|have|lies?|contains?|measures?|exceeds?|shows?|there)\b", re.IGNORECASE)
SHORTEST = 4  # words of a statement
_MARK = re.compile(r"(?:(?<=\s)|(?<=[?.:;,])|^)(?:\(([A-Ha-h])\)|([A-Ha-h])[.):])\s*(?=\S)")
_BY_HOW_MUCH = re.compile(r"\b(?:by|and) how (?:much|many)\b|\bhow much (?:larger|bigger|smaller|denser)\b.*\bwhich\b")
_DIFFERENCE = {"larger": "volume_difference", "denser": "intensity_difference"}
LESIONS = "lesion|tumou?r|nodule|mass|metastasis|cyst|node"
_TWO_RANKS = re.compile(
    rf"^(?P<lead>.*?)\b(?P<first>{superlatives()})(?: (?:{THINGS}|{LESIONS})s?)?,? (?:and|as well as|&)"
    rf" (?:(?:which|what)(?: one)? )?(?:(?:is|are) )?(?:the )?(?P<second>{superlatives()})"
    rf" (?P<thing>{THINGS}|(?:[a-z]+ ){{0,2}}(?:{LESIONS}))s?\b(?P<tail>.*)$",
    re.IGNORECASE | re.DOTALL,
)
_OF_SCAN = ("modality", "region")
_AND_OF_SCAN = re.compile(
    r"\bmodality and (?:the |which )?(?:body |anatom\w+ )?(?:region|part|area)"
    r"|\b(?:region|part|area) and (?:the )?modality"
)
_WH = r"(?:which|what|where|how|who)"
_CLAUSES = re.compile(
    rf"[?;]\s+(?:and,? )?(?:if so,? )?|,? (?:and,? if so|if so|and),? (?=(?:(?:on|in|at|to) )?{_WH}\b|if so\b)",
    re.IGNORECASE,
)
_OPENS = re.compile(
    rf"(?:(?:on|in|at|to) )?{_WH}\b|(?:is|are|does|do|has|have|can|tell|give|report|state|count|find)\b", re.IGNORECASE
)
_OF_BOTH = re.compile(
    r"\b(?:between|difference|ratio|compare\w*|than|from|versus|vs|together|total|sum|combined|how many)\b"
)


def measures_in(reading: Reading) -> tuple[str, ...]:
    """The measures of one structure that a question asks for side by side, in its order: "length and volume of the
    tumour"; (the fact,) of a question that asks for one, compares it, or names a structure beside each measure.
    """
    text, one = reading.question.question, (reading.fact,)
    if reading.fact in _DIFFERENCE and compared_by(text) == "volume_ml" and _BY_HOW_MUCH.search(text.lower()):
        return (reading.fact, _DIFFERENCE[reading.fact])
    if reading.fact in _OF_SCAN and _AND_OF_SCAN.search(text.lower()):
        return _OF_SCAN
    if reading.fact not in _OF_ONE or reading.limit or reading.threshold or says("asked", plain_line(text)):
        return one
    classes = scene_classes(reading.scene)
    parts = [part for part in _AND.split(_TWO_AXES.sub(r"\1 axis", text.lower())) if part.strip()]
    facts = [fact for part in parts if (fact := fact_in(part, _OF_ONE))]
    if "intensity_spread" in facts and any(part.split()[-1:] in (["mean"], ["average"]) for part in parts):
        facts = ["intensity", *facts]  # "mean and standard deviation"
    named = [mention for part in parts if (mention := find_mentions(part, classes).classes)]
    return tuple(dict.fromkeys(facts)) if len(set(facts)) > 1 and len(named) < 2 else one


def clauses_in(question: Question) -> tuple[str, ...]:
    """The questions that stand side by side in one: "How many lesions are there and how big is the largest?"; () of one
    that is a single question, has options, or whose first part names nothing.
    """
    parts = [part.strip(" ?,;") for part in _CLAUSES.split(question.question)]
    if len(parts) < 2 or question.options or not all(_OPENS.match(part) for part in parts):
        return ()
    return tuple(f"{part}?" for part in parts) if all(len(part.split()) > 1 for part in parts) else ()


def statements_in(options: tuple[str, ...]) -> tuple[str, ...]:
    """The options without their letters where each is a statement: "B. The liver is the largest"; else ()."""
    plain = tuple(_LETTER.sub("", option) for option in options)
    stated = all(len(option.split()) >= SHORTEST and _VERB.search(option) for option in plain)
    return plain if len(plain) > 1 and stated else ()


def ranks_in(question: Question) -> tuple[Question, ...]:
    """The questions about each of two ranks among structures: "the largest and the smallest organ"; else ()."""
    text = question.question
    said = _TWO_RANKS.match(text)
    if said is None or question.options or says("asked", plain_line(text)) or _OF_BOTH.search(text.lower()):
        return ()
    each = (f"{said['lead']}{said[rank]} {said['thing']}{said['tail']}" for rank in ("first", "second"))
    return tuple(replace(question, question=one) for one in each)


def with_options(question: Question) -> Question:
    """A question with the options that stand in its text, "... A) CT B) MR", taken out of it; as it is without such."""
    if question.options:
        return question
    marks, wanted = list[re.Match[str]](), iter("abcdefgh")
    letter = next(wanted)
    for mark in _MARK.finditer(question.question):
        if (mark[1] or mark[2]).lower() == letter:
            marks.append(mark)
            letter = next(wanted, "")
    if len(marks) < 2 or not re.search(r"\w{3}", question.question[: marks[0].start()]):
        return question
    ends = [*(mark.start() for mark in marks[1:]), len(question.question)]
    texts = [question.question[mark.end() : end].strip(" \n\t,;") for mark, end in zip(marks, ends, strict=True)]
    if not all(texts):
        return question
    options = tuple(f"{(m[1] or m[2]).upper()}. {text}" for m, text in zip(marks, texts, strict=True))
    return replace(question, question=question.question[: marks[0].start()].strip(), options=options)
