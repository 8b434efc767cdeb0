"""Turns: what was said before in a conversation, and what words that lean on it stand for: "it", "the other kidney".

Enters a line of text that is a question of its own but for such words, and the turns before it; leaves the line with
the names of structures in their place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from seg_backbone.labels import display, is_lesion, other_side
from seg_backbone.lesions import Instance
from vlm.data.wordings import enumerate_things
from vlm.grounding import find_mentions
from vlm.scene import Scene, scene_classes
from vlm.schema import Answer

ORDINALS = {1: "largest", 2: "second largest", 3: "third largest", 4: "fourth largest", 5: "fifth largest"}
_MANY = r"they|them|these|those|both(?: of (?:them|these|those))?|(?:the|these|those) two(?: of them)?|their"
_SINGLE = r"\b(?:it|this one|that one|(?<=is )(?:this|that)(?= [a-z]+\W*$))\b"
_OTHER = re.compile(r"\bthe (?:other|opposite|contralateral) (one|side|\w+)\b", re.IGNORECASE)
_MORE = re.compile(  # of what is compared with nothing: "is the other one bigger?"
    r"\b(?:larger|bigger|greater|smaller|longer|shorter|wider|denser|brighter|darker|heavier|higher|lower)\W*$",
    re.IGNORECASE,
)
_RANK = r"(?:(?:second|third|2nd|3rd) )?(?:largest|biggest|greatest|smallest|tiniest|longest)"
_RANKED = re.compile(
    rf"\b(?P<rank>{_RANK})(?: one)?(?= (?:on|in|at|above|below|over|under|left|right|near|close|larger|smaller|longer"
    rf"|bigger|shorter|more|less|solid|cystic|measurable)\b|\W*$)",
    re.IGNORECASE,
)
_NEARER = re.compile(
    r"\bwhich (?:one |of (?:them|these|those) )?(?:is|lies) (?:the )?(?P<far>far|fur)?\w*"
    r"(?:closer|closest|nearer|nearest|ther|thest)(?: one)?(?= to\b| from\b)",
    re.IGNORECASE,
)
MOST_NAMED = 4  # structures that one question names


@dataclass(frozen=True)
class Turn:
    """One question as typed, as it was asked in full, and its answer.

    fact: what was asked for. subject: the instances it was about. target: the other end of a distance or comparison.
    names: the structures it was about, class names or other anatomy; () where it was about none.
    """

    question: str
    asked: str
    answer: Answer
    fact: str
    subject: tuple[Instance, ...] = ()
    target: tuple[Instance, ...] = ()
    names: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """{"question", "asked" where it differs, "answer"}."""
        asked = {"asked": self.asked} if self.asked != self.question else {}
        return {"question": self.question, **asked, "answer": self.answer.to_json()}


def name_in(scene: Scene, instance: Instance) -> str:
    """What to call an instance so that no other is meant: "left parotid gland", "second largest tumour"."""
    count = sum(i.label == instance.label for i in scene.instances)
    if count == 1 or (instance.rank == 1 and not is_lesion(instance.label)):
        return display(instance.label)
    place = ORDINALS.get(instance.rank, f"number {instance.rank} by size")
    return f"{'smallest' if instance.rank == count else place} {display(instance.label)}"


def in_full(text: str, turns: list[Turn], scene: Scene) -> str:
    """A question that names something besides "it", with the names of what was last spoken of in the place of pronouns:
    "does it contain a lesion?" -> "does the right kidney contain a lesion?". Of "they" and "the two" those of the last
    two turns; "the other kidney" is the one of the other side; "the largest" and "which one is closer?" are of the
    lesions that were spoken of. As it is where nothing was spoken of.
    """
    text = _of_the_lesions(text, turns, scene)
    last = (
        _latter(text, turns)
        or spoken_of(text, turns)
        or next((turn.subject for turn in reversed(turns) if turn.subject), ())
    )
    names = list(dict.fromkeys(name_in(scene, i) for i in last))
    if not names or len(names) > MOST_NAMED:
        return text
    if len(names) == 1:
        text = _other_side(text, last[0], scene)
        text = re.sub(r"\bthe (?:former|latter)\b", f"the {names[0]}", text, flags=re.IGNORECASE)
        text = re.sub(r"\bits\b", f"the {names[0]}'s", text, flags=re.IGNORECASE)
        return re.sub(_SINGLE, f"the {names[0]}", text, flags=re.IGNORECASE)
    together = enumerate_things(f"the {name}" for name in names)
    text = re.sub(r"\btheir\b(.*?)(?=[?.]|$)", rf"the\1 of {together}", text, count=1, flags=re.IGNORECASE)
    text = re.sub(r"\bfrom (?:each other|one another)\b", "", text, flags=re.IGNORECASE)
    return re.sub(rf"\b(?:{_MANY})\b", together, text, count=1, flags=re.IGNORECASE)


def _latter(text: str, turns: list[Turn]) -> tuple[Instance, ...]:
    """The end of the last comparison or distance that "the latter" or "the former" stands for; () without one."""
    said = re.search(r"\bthe (former|latter)\b", text, re.IGNORECASE)
    both = next((turn for turn in reversed(turns) if turn.subject and turn.target), None)
    if said is None or both is None:
        return ()
    first, second = sorted((both.subject, both.target), key=lambda end: _place(both.asked, end[0]))
    return first if said[1].lower() == "former" else second


def _place(text: str, instance: Instance) -> int:
    """Where a text names the class of an instance; beyond its end where it does not."""
    place = text.lower().find(display(instance.label).lower())
    return place if place >= 0 else len(text)


def spoken_of(text: str, turns: list[Turn]) -> tuple[Instance, ...]:
    """What "they" or "the two" stand for: both ends of the last turn, or the single subjects of the last two; () where
    they are what a single turn was about, or the text says neither.
    """
    about = [turn for turn in turns if turn.subject]
    if not about or not re.search(rf"\b(?:{_MANY})\b", text, re.IGNORECASE):
        return ()
    last = about[-1]
    family = next((turn.subject for turn in reversed(about) if len(turn.subject) > 2), ())
    two = re.search(r"\b(?:two|both)\b", text, re.IGNORECASE)
    if family and not (two or last.target) and {i.id for i in last.subject} <= {i.id for i in family}:
        return family  # "how many are there?", "how big is the largest?", "what is their total volume?"
    if last.target:
        return (*last.subject, *last.target)
    if len(last.subject) == 1 and len(about) > 1 and len(about[-2].subject) == 1:
        return tuple({i.id: i for i in (*about[-2].subject, *last.subject)}.values())
    return ()


def _other_side(text: str, instance: Instance, scene: Scene) -> str:
    """ "The other kidney" as the one of the other side, where the labels have it: of the kidney that was spoken of, or
    the one that holds the lesion that was. "Bigger" then is so than that one.
    """
    said = _OTHER.search(text)
    if said is None:
        return text
    noun, classes = said[1].lower(), scene_classes(scene)
    here: str | None = instance.label
    if noun not in ("one", "side"):
        pair = find_mentions(noun, classes).classes
        home = scene.relations.home(instance, (i for i in scene.instances if i.label in pair))
        here = next((i.label for i in (instance, home) if i and (i.label in pair or not pair)), None)
    twin = other_side(here) if here else None
    if here is None or twin is None or twin not in classes:
        return text
    text = f"{text[: said.start()]}the {display(twin)}{text[said.end() :]}"
    more = None if re.search(r"\bthan\b", text) else _MORE.search(text)
    return f"{text.rstrip(' ?.!')} than the {display(here)}?" if more else text


def _of_the_lesions(text: str, turns: list[Turn], scene: Scene) -> str:
    """A rank or a "which one is closer to" without a name as that among the several lesions of one class that were
    spoken of: "is the largest on the right?" -> "is the largest liver lesion on the right?".
    """
    names = next((turn.names for turn in reversed(turns) if turn.names), ())
    lesions = [i for i in scene.instances if is_lesion(i.label) and i.label in names]
    if len(lesions) < 2 or len({i.label for i in lesions}) > 1:
        return text
    name, ranked = display(lesions[0].label), _RANKED.search(text)
    if ranked and not find_mentions(text[: ranked.start()], scene_classes(scene)).classes:
        text = f"{text[: ranked.end('rank')]} {name}{text[ranked.end() :]}"
    return _NEARER.sub(lambda said: f"Which {name} is {'farthest' if said['far'] else 'closest'}", text)
