"""Is the question one this checkpoint may answer about this scan? If not, why not."""

from __future__ import annotations

from seg_backbone.labels import display
from vlm.facts import FACTS
from vlm.grounding import Mention
from vlm.scene import Scene

OFF_TOPIC = 0.5  # probability of "not about the scan" from which the model abstains


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
