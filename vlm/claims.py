"""Claims: what a yes/no question says to be so.

"Is there no lesion?" claims "no" of presence, "Is it an MRI?" claims "MR" of the modality, "Is A smaller than B?"
claims "B" of which is larger. The answer is yes where the fact, read off the mask, is what was claimed. Enters a
question's text, leaves the claim, or None for a text that asks otherwise ("which", "left or right?"). Rules, not the
language model, whose facts have no opposite.
"""

from __future__ import annotations

import re
from typing import Any

from vlm.grounding import Mention

STATES = ("presence", "enlarged", "asymmetric", "outlier", "fatty", "measurable")  # facts that are "yes" or "no"
DIFFERENCES = ("volume_difference", "intensity_difference")
_FLAGS = re.compile(r"\b(?:please|(?:answer )?yes(?: or |/|, | )no|y/n|true or false|or not)\b")
_TAG = re.compile(
    r"[,;.?-]\s*(?:right|correct|agreed?|ok|okay|eh|(?:is|are|was|does|do|has|have|can)(?: ?n['’]?t)? "
    r"(?:there|it|they|he|she|you))\s*\W*$"
)
_START = r"^\W*(?:(?:so|and|but|then|now|well|hello|hi|ok|okay|also)\b\W*)*"
_LEAD = re.compile(  # what comes before the claim itself
    rf"{_START}(?:(?:.*?\b(?:if|whether))\b"
    r"|(?:is it|am i|are you|would you say it is)\b[^,?]*?\b(?:that|say|think\w*|assum\w*)\b)\s+"
)
_ASKED = re.compile(
    rf"{_START}(?:is|are|was|were|do|does|did|has|have|had|can|could|would|will|should|may|might|must)(?:n['’]?t)?\b"
)
_OPEN = re.compile(r"\b(?:which|what|where|who|whose|how|why|when|(?:name|pick(?: out)?|choose|give(?: me)?) the)\b")
_ORDER = re.compile(
    r"^\W*(?:exclude|rule|look|screen|search|assess|comment|report|give|describe|list|count|name|show|find|measure|"
    r"mark|locate|state|tell|classify|decide|determine|confirm|check|choose|pick|note|specify|provide)\b"
)
_NO = re.compile(
    r"\b(?:no(?! (?:larger|bigger|smaller|longer|shorter|more|less|greater|fewer|wider|taller|doubt))|without|"
    r"free (?:of|from)|(?<=-)free|lacks?|lacking|devoid of|none|nothing|never|clear of|negative for|nowhere|zero)\b"
)
_NOT = re.compile(
    r"(?:\bnot|\bcannot|n['’]t)\b"
    r"(?! (?:only|just|larger|bigger|smaller|longer|shorter|more|less|exceeding|over|under|above|below))"
)
_NOT_THERE = re.compile(
    r"\b(?:absent|absence of|missing|exclud\w+|rul(?:e|ed|ing) out|invisible|unseen|undetectable|gone|removed|"
    r"not (?:be )?(?:visible|present|there|seen|found|shown|in view|included|detected|detectable|depicted|imaged|"
    r"visuali[sz]ed|identified|identifiable))\b"
)
_NEGATIVE = {  # of a fact: what says the opposite of it, and what makes that harmless
    "presence": (_NOT_THERE, None),
    "enlarged": (
        re.compile(r"\b(?:normal\w*|within (?:the )?limits?|unremarkable|not enlarged|too small|unenlarged)\b"),
        re.compile(
            r"\b(?:than|above|over|exceed\w*|beyond|outside|past|greater|upper|abnormal\w*|outgrow\w*|ab)\b.*\b(?:normal|limits?|norm)\b"
            r"|\babnormal"
        ),
    ),
    "asymmetric": (
        re.compile(r"\b(?:symmetr\w*|same|equal\w*|similar\w*|alike|matched|matching|balanced)\b"),
        re.compile(
            r"\b(?:asymmetr\w*|unequal\w*|uneven\w*|differ\w*|unlike|mismatch\w*|ill-match\w*|dissimilar\w*|lost|loss|lack\w*)\b"
        ),
    ),
    "outlier": (
        re.compile(r"\b(?:all|both)\b.*\b(?:similar\w*|same|equal\w*|alike|comparable|uniform\w*)\b"),
        re.compile(r"\b(?:not|differ\w*|unlike|stand\w*|outlier)\b"),
    ),
    "fatty": (
        re.compile(r"\b(?:normal|healthy|non-?fatty|lean|exclud\w+|ruled out)\b"),
        re.compile(r"\bthan normal\b"),
    ),
    "measurable": (
        re.compile(r"\b(?:too small|non-?measurable|non-?target|unmeasurable|not measurable|below)\b"),
        None,
    ),
}
_LESS = r"(?:smaller|less|lower|tinier|shorter|thinner|narrower|lighter|outsized by|exceeded by|below that)"
_LESS_DENSE = (
    r"(?:darker|less (?:dense|bright|attenuating|intense)|lower (?:in )?(?:density|hu|attenuation|intensity|signal)"
    r"|hypo\w+|below that)"
)
_COMPARED = re.compile(
    r"\b(?:than|as|above that|below that|exceeds?|outsizes?|outweighs?|compared (?:with|to)|relative to)\b|[<>]"
)
_WORDS = {  # fact -> value -> how it is said
    "side": {
        "left": r"left(?:-?sided)?|sinister",
        "right": r"right(?:-?sided)?|dexter",
        "midline": r"midline|central(?:ly)?|middle|centre|center",
    },
    "modality": {"CT": r"ct|cts|cat scan|computed tomography|x-?rays?", "MR": r"mri?s?|magnet\w*"},
    "composition": {"cystic": r"cyst\w*|fluid\w*|liquid", "solid": r"solid\w*|soft[ -]tissue"},
    "clustered": {"clustered": r"cluster\w*|grouped|close together", "scattered": r"scatter\w*|dispersed|spread\w*"},
    "size_category": {f"T{n}": rf"c?t ?{n}[ab]?" for n in range(1, 5)},
    "region": {
        "head and neck": r"head|neck|brain|skull|face",
        "chest": r"chest|thora\w+|lungs?",
        "abdomen": r"abdom\w+|belly",
        "pelvis": r"pelvi\w+",
        "limb or trunk soft tissue": r"limbs?|extremit\w+|legs?|arms?|thighs?|soft tissue",
    },
}
_NUMBERS = {"one": 1, "single": 1, "solitary": 1, "two": 2, "both": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_NO_UNIT = r"(?!\s*(?:[.,]\d|mm|cm|ml|cc|l\b|hu\b|%|milli|centi|cubic|square|lit(?:re|er)|inch|of the|or |slice))"
_SEVERAL = (
    rf"\b(?:several|multiple|multifocal|many|more than (?:a single|one|1)|plural|numerous|a number of)\b{_NO_UNIT}"
)
_SINGLE = (
    r"\b(?:the only|on its own|alone|isolated|unifocal|(?:only|exactly|just) (?:the )?(?:1|one|a single)"
    r"|(?<!more than a )single|solitary|lone)\b"
)
_NUMBER = re.compile(
    r"(?:^|\b(?:there|are|is|has|have|see|shows?|contains?|find|exactly|only|just|with|all) )"
    rf"(?:(?P<how>at least|at most|no more than|more than|fewer than|less than) )?(?P<n>\d+|{'|'.join(_NUMBERS)})"
    rf"\b{_NO_UNIT}"
)


def is_claim(text: str) -> bool:
    """Whether a text asks for a yes or a no: "Is it ...?", "Tell me whether ...", "No tumours?"; not "which?"."""
    text = _plain(text)
    if _LEAD.match(text):
        return not _OPEN.search(_LEAD.sub("", text, count=1))
    return not (_OPEN.search(text) or _ORDER.match(text))


def negated(fact: str, text: str) -> bool:
    """Whether a text asks for the opposite of one of STATES: "Is there no lesion?", "Are they of the same size?".

    Two negations cancel out. "Present or absent?" asks for neither. A "not" beside the verb of a question ("isn't
    there", "is this not") does not turn it, in a statement ("there isn't any, right?") it does.
    """
    if fact not in STATES or not (is_claim(text) or fact == "asymmetric"):
        return False
    said = _LEAD.sub("", _plain(text), count=1)
    first, either, _ = said.partition(" or ")
    turns = len(_NO.findall(first))
    opposite, harmless = _NEGATIVE[fact]
    both = bool(either) and fact != "asymmetric"
    there = opposite.search(said) and not (harmless and harmless.search(said)) and not both
    turns += bool(there)
    if not (_ASKED.match(said) or there or both):
        turns += len(_NOT.findall(first))
    return turns % 2 == 1


def as_asked(fact: str, answer: Any, text: str, options: tuple[str, ...] = ()) -> Any:
    """The reference answer that fits the words of a question: of STATES the opposite where it asks for that, of two
    structures the other one where the smaller or darker one is asked for, of a difference its size where no sign is.
    """
    if fact in DIFFERENCES:
        return answer if asks_for_signed(text) else abs(answer)
    if fact in STATES and negated(fact, text):
        return {"yes": "no", "no": "yes"}.get(answer, answer)
    if fact in ("larger", "denser") and len(options) == 2 and asks_for_less(fact, text):
        return next((option for option in options if option != answer), answer)
    return answer


def asks_for_signed(text: str) -> bool:
    """Whether a difference is that of the first structure named minus the second."""
    return re.search(r"\bminus\b", text.lower()) is not None


def asks_for_less(fact: str, text: str) -> bool:
    """Whether "which of the two?" wants the smaller (`larger`) or the darker (`denser`) one."""
    less = re.search(rf"\b{_LESS_DENSE if fact == 'denser' else _LESS}\b", _plain(text))
    return (
        bool(less)
        and not is_claim(text)
        and not re.search(r"\b(?:larger|bigger|greater|denser|brighter)\b", _plain(text))
    )


def claimed(fact: str, text: str, mention: Mention) -> tuple[str, ...] | None:
    """The values of a fact that a yes/no question says to be so; None where it is no such question, or says none.

    mention: what the text names, for the facts whose values are structures.
    """
    if not is_claim(text):
        return None
    said = _plain(text)
    if fact in _WORDS:
        found = tuple(
            value for value, words in _WORDS[fact].items() if re.search(rf"(?<![a-z])(?:{words})(?![a-z])", said)
        )
        if len(found) != 1 or re.search(r"\bor\b|/", said):
            return None
        turned = bool(_NO.search(said)) or (not _ASKED.match(said) and bool(_NOT.search(said)))
        return tuple(value for value in _WORDS[fact] if value not in found) if turned else found
    if fact in ("larger", "denser") and len(mention.classes) == 2 and _COMPARED.search(said) and " or " not in said:
        less = re.search(rf"\b{_LESS_DENSE if fact == 'denser' else _LESS}\b", said)
        return (mention.classes[1 if less else 0],)
    return None


def counted(text: str, count: int) -> bool | None:
    """Whether a number is as a yes/no question says ("Are there two?", "More than one?"); None where it says none."""
    said = _plain(text)
    several, single = re.search(_SEVERAL, said), re.search(_SINGLE, said)
    if not is_claim(text) or re.search(r"\b(?:or|vs|versus)\b|/", said) or (several and single):
        return None
    if several:
        return (count > 1) != bool(_NO.search(said) or re.search(r"\bno(?:t)? more than", said))
    match = _NUMBER.search(said)
    stated = said.startswith(("there is ", "there are "))  # as an option: "there is one lesion"
    if match is None or (match["n"] in ("1", "one") and not (match["how"] or single or stated)):
        return (count == 1) != bool(_NO.search(said)) if single else None
    number = int(match["n"]) if match["n"].isdigit() else _NUMBERS[match["n"]]
    as_said = {
        "at least": count >= number,
        "at most": count <= number,
        "no more than": count <= number,
        "more than": count > number,
        "fewer than": count < number,
        "less than": count < number,
    }
    return as_said.get(match["how"], count == number)


def _plain(text: str) -> str:
    """Lower case without a tag ("..., right?") and without what only says that it is a yes/no question."""
    text = _TAG.sub("", text.lower().replace("’", "'"))
    return re.sub(r"\s+", " ", _FLAGS.sub(" ", text)).strip()
