"""Is the question one this checkpoint may answer about this scan? If not, why not; if in part, which part not."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import is_claim
from vlm.data.wordings import enumerate_things
from vlm.facts import FACTS
from vlm.grounding import Mention, is_finding
from vlm.heads.ranks import parse_lesion_ranks, parse_rank
from vlm.heads.reading import Reading, may_hold
from vlm.plain_words import PRONOUNS, is_bare, phrase_in, plain_line, says
from vlm.scene import Scene, scene_classes

LESION = "lesion"  # what is missing where no class of the mask holds lesions
OFF_TOPIC = 0.5  # probability of "not about the scan" from which the model abstains
OF_ALL = ("total_volume", "share", "count", "multiplicity", "most_affected", "outlier", "clustered")  # of all named
JUDGED = ("fatty", "asymmetric", "outlier", "clustered", "modality", "region")  # facts whose rules have such words
UNNAMED = (
    "presence",
    "multiplicity",
    "box",
    "count",
    "total_volume",
    "share",
)  # facts that need a name for what is meant
UNSURE = 0.35  # probability of the fact below which the question was not understood
FOREIGN = re.compile(  # words of questions in French, German, Spanish, Italian, Portuguese and Dutch
    r"\b(?:le|la|les|du|des|est|quel|quelle|où|combien|une|dans|il|sur|taille|der|die|das|ist|wie|gibt|es|ein|eine|wo"
    r"|welche|welches|groß|gross|von|im|den|und|el|los|las|hay|cuál|cual|qué|que|un|una|del|dónde|donde|cuántos|cuantos"
    r"|cuantas|tiene|en|de|derech[oa]|izquierd[oa]|droite?|gauche|rechts|rechten?|linken?|volumen|esquerd[oa]|direit[oa]"
    r"|destr[oa]|qual|quanto|quanti|dov|è|lo|gli|di|sono|quante|onde|há|é|tem|quantos|o|het|een|hoe|waar|welk)\b"
)
ENGLISH = re.compile(
    r"\b(?:the|is|are|of|what|which|how|where|does|do|there|this|that|it|in|on|an|any|has|have|from)\b"
)
ORDINARY = "approximate approximately rough roughly estimated maximal minimal grade graded rate"
WORDINGS = Path(__file__).parents[1] / "data" / "wordings_train.yaml"
THE_SCAN = re.compile(r"\b(this|that) (scan|image|study|exam\w*|patient|person|subject|ct|mri?|volume|series|case)\b")


def refusal(scene: Scene, mention: Mention, fact: str, off_topic: float, given: bool) -> str | None:
    """The reason to abstain, or None. given: the masks came from the user, so any class they name may be asked about.

    A question about anatomy that the checkpoint does not segment is refused, never answered "no"; so is one that also
    names some that it does, where the answer is about all of them together (a total, a distance) or where they are
    lesions of an organ that it cannot tell ("liver tumours").
    """
    if off_topic >= OFF_TOPIC and not mention.classes and not mention.others:
        return "the question is not about this scan"
    missing = unknown(scene, mention)
    if FACTS[fact].takes == "scan" or not missing:
        return None
    if LESION in missing and mention.places and FACTS[fact].kind == "measurement":  # "size of the pancreatic lesion"
        return _why(scene, mention, missing, given)
    if set(mention.classes) <= set(scene.untrained) or (mention.elsewhere and not given):
        return _why(scene, mention, missing, given)
    if fact in ("nearest", "most_affected"):  # "in which lobe of the liver?"
        return _why(scene, mention, missing, given)
    together = FACTS[fact].takes == "pair" or fact in OF_ALL
    return _why(scene, mention, missing, given) if together and set(missing) - set(mention.elsewhere) else None


def unknown(scene: Scene, mention: Mention) -> tuple[str, ...]:
    """What a question names and this checkpoint cannot find in this scan: other anatomy, classes that it was not
    trained for here, and lesions where no class holds any.
    """
    blind = [display(name) for name in mention.classes if name in scene.untrained]
    named = [name for name in (scene_classes(scene) if mention.lesions else mention.classes) if is_lesion(name)]
    serve = any(not mention.places or any(may_hold(place, name) for place in mention.places) for name in named)
    lesions = [LESION] if (mention.lesions or (named and mention.places)) and not serve else []
    return *mention.others, *blind, *lesions


def told_in_part(reading: Reading, parts: dict[str, Any], given: bool) -> dict[str, Any]:
    """The parts of an answer to a question that names what this checkpoint cannot find, too: what is not known is said.

    That something is not there cannot be said of structures of which some are not known, and that an organ is there
    is no answer to whether it holds a cyst.
    """
    missing = unknown(reading.scene, reading.mention)
    if FACTS[reading.fact].takes == "scan" or parts.get("abstained") or not missing:
        return parts
    reason = _why(reading.scene, reading.mention, missing, given)
    if reading.fact == "presence" and (not parts["evidence"] or any(map(is_finding, missing))):
        return {"text": f"I cannot answer: {reason}.", "abstained": True, "reason": reason}
    return parts | {"text": f"{parts['text']} Not known: {reason}.", "unknown": missing}


def _why(scene: Scene, mention: Mention, missing: tuple[str, ...], given: bool) -> str:
    where = f" in the {enumerate_things(map(display, mention.places))}" if mention.places else ""
    listed = enumerate_things(f"any lesion{where}" if name == LESION else f"the {name}" for name in missing)
    if given:
        return f"the given labels do not name {listed}"
    here = f" on {scene.modality}" if set(mention.classes) & set(scene.untrained) and not mention.others else ""
    return f"this checkpoint was not trained to find {listed}{here}"


def unmeasured(reading: Reading) -> str | None:
    """The reason to abstain where it is asked how something is that no mask shows ("is the cord compressed?"), or for a
    quantity that is not measured ("the perimeter", "the median HU").
    """
    text, fact = reading.question.question.lower(), reading.fact
    line = plain_line(text)
    clauses = [clause for clause in re.split(r"[.;,!]\s", text) if len(clause.split()) > 2] or [text]
    other = phrase_in("other_measures", plain_line(clauses[-1]))  # "The dose depends on it. What is its volume?"
    if other and ":" not in fact and FACTS[fact].takes != "scan":
        return f"no {re.sub('hu$', 'HU', re.sub('heav.*|weigh.*', 'weight', other))} is measured here"
    if grading := phrase_in("gradings", line):
        return f"no {grading} category is told here"
    part = phrase_in("part_of_an_organ", line)
    if part and fact in ("count", "presence", "nearest", "box", "multiplicity", "region"):
        noun = part.removesuffix(" of").split()[-1]
        if not any(noun in name for name in scene_classes(reading.scene)):
            return f"no {noun} is known here, only whole structures"
    mention = reading.mention
    unnamed = fact in ("contents", "presence") and not (mention.classes or mention.others or mention.lesions)
    of_scan = fact in ("modality", "region", "findings", "off_topic")
    described = fact == "findings" and says("describe", line)  # "describe this T1 image"
    if (
        (of_scan or unnamed)
        and not (mention.classes or described or says("scan_kind", line))
        and says("not_seen", line)
    ):
        return "contrast, sequence, plane, quality and who the patient is are not read off the scan here"
    if of_scan:
        return None if fact != "modality" or says("of_the_scan", line) else "it is not clear what is asked for"
    if says("farthest", line) and not (parse_rank(text, len(reading.mention.classes)) or parse_lesion_ranks(text)):
        return "which structure lies farthest in a direction is not told, only how two of them lie"
    if fact == "count" and not reading.threshold and re.search(r"er than the\b", text):
        return "structures are counted against a size in numbers, not against another structure"
    if fact == "presence" and says("in_view", line):
        return "a mask tells that something is there, not whether all of it is in view"
    compared = ("presence", "enlarged", "larger")
    if fact in compared and not reading.threshold and says("than_something", line):
        return "it is not clear what it is compared with"
    if fact == "fatty" and not re.search(r"liver|hepat|steato", text):
        return "whether a structure holds fat is told of the liver alone"
    ratio = says("a_ratio", line) and not says("of_density", line) and FACTS[fact].kind == "measurement"
    if ratio and fact not in ("volume_ratio", "axis_ratio", "share", "total_volume"):
        return "no such ratio of sizes is measured here, but that of two volumes is"
    things = {name for name in mention.classes if not is_lesion(name)} | set(mention.others)
    things |= {LESION} if mention.lesions or any(map(is_lesion, mention.classes)) else set()
    if fact == "presence" and len(things) > 1 and is_claim(text) and says("relation", line):
        return "whether structures grow into or press on each other is not told, only how they lie and how far apart"
    if says("in_between", line):
        return "what lies between structures or on one side of them is not told, only how two of them lie"
    state = line.split()[-1] if line.strip() else ""
    by_size = (
        fact == "enlarged"
        and state.endswith("normal")
        and re.search(r" (?:size[ds]?|large|big|small|volume|or) ", line)
    )
    if (
        not (says("its_state", line) and says("states", f" {state} "))
        or by_size
        or fact in JUDGED
        or FACTS[fact].kind not in ("classification", "detection")
    ):
        return None
    return f"a mask tells that something is there, not whether it is {state}"


def not_understood(reading: Reading) -> str | None:
    """The reason to abstain where the question is not in English, or the router is not sure what it asks for."""
    text = reading.question.question.lower()
    letters = re.findall(r"[^\W\d_]", text)
    foreign = len(FOREIGN.findall(text))
    if 2 * sum(letter.isascii() for letter in letters) < len(letters) or foreign > max(1, len(ENGLISH.findall(text))):
        return "questions are understood in English only"
    return None if reading.fact_probability >= UNSURE else "it is not clear what is asked for"


def unclear(reading: Reading) -> str | None:
    """The reason to abstain where instances are asked about in words that name none of the scan's.

    A word that this program does not know ("how many flurbs?", "volume of the encephalic trunk") is then all there is
    to choose by, and the pointer is more often wrong than right about it. A lesion may be meant without a name ("how
    big is it?"), and so may what is abnormal.
    """
    fact, mention, text = reading.fact, reading.mention, reading.question.question
    takes, asked = FACTS[fact].takes, THE_SCAN.sub("", text.lower())
    shown = dict.fromkeys(instance.label for instance in reading.scene.instances)
    line, meant = plain_line(asked), _meant(reading)
    any_will_do = (
        says("any_will_do", line)
        and (takes != "pair" or parse_rank(text))
        and (fact != "box" or meant)  # "where is the smallest one?"
    )
    if mention.classes or mention.lesions or any_will_do or (takes == "any" and fact not in UNNAMED):
        return None
    if takes == "scan" or reading.lacking:
        return None
    lesion = any(is_lesion(instance.label) for instance in meant)
    strange = [word for word in re.findall(r"[^\W\d_]{3,}", asked) if word not in _known_words()]
    if lesion and (is_bare(text) or re.search(rf" (?:{PRONOUNS}) ", line) or says("hints", line)):
        return None
    if takes != "any" and not strange and (lesion or not meant or len(shown) < 2):
        return None
    named = (
        f"{strange[0]!r} is no structure that is known here" if strange else "it is not clear which structure is meant"
    )
    return f"{named}; those in this scan: {', '.join(map(display, shown)) or 'none'}"


def _meant(reading: Reading) -> list[Instance]:
    """The instances that the question selects, by the number that its fact takes."""
    takes = FACTS[reading.fact].takes
    if takes == "pair":
        return list(reading.pair() or ())
    one = reading.one()
    return reading.selected() if takes == "any" else [one] if one else []


@lru_cache(maxsize=1)
def _known_words() -> frozenset[str]:
    """Every word in which questions were asked in training, and some more."""
    return frozenset(ORDINARY.split()) | frozenset(re.findall(r"[a-z]{3,}", WORDINGS.read_text("utf-8").lower()))
