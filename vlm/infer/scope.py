"""Is the question one this checkpoint may answer about this scan? If not, why not; if in part, which part not."""

from __future__ import annotations

import re
from typing import Any

from seg_backbone.labels import display, is_lesion
from vlm.data.wordings import enumerate_things
from vlm.facts import FACTS
from vlm.grounding import Mention
from vlm.heads.reading import Reading
from vlm.scene import Scene, scene_classes

LESION = "lesion"  # what is missing where no class of the mask holds lesions
OFF_TOPIC = 0.5  # probability of "not about the scan" from which the model abstains
ANY_WILL_DO = re.compile(r"\b(organs?|structures?|things?|findings?|largest|biggest|smallest)\b")
OF_ALL = ("total_volume", "share", "count", "multiplicity", "most_affected", "outlier", "clustered")  # of all named
STATE = re.compile(  # at the end of a question
    r"^(?:is|are|does|do|looks?|has|have) (?:the|this|that|these|it|they)\b.* (\w*compressed|displaced|invaded"
    r"|infiltrated|invasive|malignant|benign|(?:ab)?normal|healthy|enhancing|necrotic|calcified|broken|inflamed|infected|operable"
    r"|resectable|aggressive|curable|dangerous|painful|growing|dilated|narrowed|thickened|intact|damaged)\W*$"
)
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
    if set(mention.classes) <= set(scene.untrained) or (mention.elsewhere and not given):
        return _why(scene, mention, missing, given)
    together = FACTS[fact].takes == "pair" or fact in OF_ALL
    return _why(scene, mention, missing, given) if together and set(missing) - set(mention.elsewhere) else None


def unknown(scene: Scene, mention: Mention) -> tuple[str, ...]:
    """What a question names and this checkpoint cannot find in this scan: other anatomy, classes that it was not
    trained for here, and lesions where no class holds any.
    """
    blind = [display(name) for name in mention.classes if name in scene.untrained]
    lesions = [LESION] if mention.lesions and not any(map(is_lesion, scene_classes(scene))) else []
    return *mention.others, *blind, *lesions


def told_in_part(reading: Reading, parts: dict[str, Any], given: bool) -> dict[str, Any]:
    """The parts of an answer to a question that names what this checkpoint cannot find, too: what is not known is said.

    That something is not there cannot be said of structures of which some are not known.
    """
    missing = unknown(reading.scene, reading.mention)
    if FACTS[reading.fact].takes == "scan" or parts.get("abstained") or not missing:
        return parts
    reason = _why(reading.scene, reading.mention, missing, given)
    if reading.fact == "presence" and not parts["evidence"]:
        return {"text": f"I cannot answer: {reason}.", "abstained": True, "reason": reason}
    return parts | {"text": f"{parts['text']} Not known: {reason}.", "unknown": missing}


def _why(scene: Scene, mention: Mention, missing: tuple[str, ...], given: bool) -> str:
    listed = enumerate_things("any lesion" if name == LESION else f"the {name}" for name in missing)
    if given:
        return f"the given labels do not name {listed}"
    here = f" on {scene.modality}" if set(mention.classes) & set(scene.untrained) and not mention.others else ""
    return f"this checkpoint was not trained to find {listed}{here}"


def unmeasured(reading: Reading) -> str | None:
    """The reason to abstain where it is asked how something is that no mask shows: "is the cord compressed?"."""
    state = STATE.search(reading.question.question.lower())
    if reading.fact != "presence" or state is None:
        return None
    return f"a mask tells that something is there, not whether it is {state[1]}"


def unclear(reading: Reading) -> str | None:
    """The reason to abstain where a fact of one or two structures was asked in words that name none of the scan's.

    A word that this program does not know ("encephalic trunk") is then all there is to choose an organ by, and the
    pointer is more often wrong than right about it. A lesion may be meant without a name ("how big is it?").
    """
    takes = FACTS[reading.fact].takes
    asked = THE_SCAN.sub("", reading.question.question.lower())
    if takes not in ("one", "pair") or reading.mention.classes or ANY_WILL_DO.search(asked):
        return None
    only = reading.one() if takes == "one" else None
    meant = list(reading.pair() or ()) if takes == "pair" else [only] if only else []
    shown = dict.fromkeys(instance.label for instance in reading.scene.instances)
    if not meant or any(is_lesion(instance.label) for instance in meant) or len(shown) < 2:
        return None
    names = ", ".join(map(display, shown))
    return f"it is not clear which structure is meant; those in this scan: {names}"
