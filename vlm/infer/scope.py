"""Is the question one this checkpoint may answer about this scan? If not, why not."""

from __future__ import annotations

import re

from seg_backbone.labels import display
from vlm.facts import FACTS
from vlm.grounding import Mention, is_lesion
from vlm.heads.reading import Reading
from vlm.scene import Scene

OFF_TOPIC = 0.5  # probability of "not about the scan" from which the model abstains
ANY_WILL_DO = re.compile(r"\b(organs?|structures?|things?|findings?|it|its|this|that|largest|biggest|smallest)\b")
THE_SCAN = re.compile(r"\b(this|that) (scan|image|study|exam\w*|patient|person|subject|ct|mri?|volume|series|case)\b")


def refusal(scene: Scene, mention: Mention, fact: str, off_topic: float, given: bool) -> str | None:
    """The reason to abstain, or None. given: the masks came from the user, so any class they name may be asked about.

    A question about anatomy that the checkpoint does not segment is refused, never answered "no".
    """
    if off_topic >= OFF_TOPIC and not mention.classes and not mention.others:
        return "the question is not about this scan"
    if FACTS[fact].takes == "scan":
        return None
    if mention.others and not mention.classes:
        where = "the given labels do not name" if given else "this checkpoint was not trained to find"
        return f"{where} the {mention.others[0]}"
    blind = [name for name in mention.classes if name in scene.untrained]
    if blind and len(blind) == len(mention.classes):
        return f"this checkpoint was not trained to find the {display(blind[0])} on {scene.modality}"
    return None


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
