"""Wordings: from what a question is about to how somebody might type it.

Enters a fact and the structures it concerns, leaves one line of text. The tables are two files that share nothing:
`wordings_train.yaml`, and `wordings_heldout.yaml` to measure whether a wording never seen is understood. Typing is
varied too: case, missing punctuation, a polite start and, in training only, a slip of the fingers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from string import Formatter
from typing import Any

import yaml

from seg_backbone.errors import InputError
from seg_backbone.labels import display
from vlm.data.targets import Targets
from vlm.data.threshold import Threshold
from vlm.facts import FACTS

PARTS = ("train", "heldout")
SLOTS = ("thing", "noun", "some", "things", "size", "list", "a", "b")
RANKS = ("largest", "second", "smallest", "larger", "smaller")
SPELLINGS = {  # how a unit may be typed -> base units in one
    "ml": {"ml": 1.0, "mL": 1.0, "cc": 1.0, "cm3": 1.0, "millilitres": 1.0},
    "mm": {"mm": 1.0, "cm": 10.0, "millimetres": 1.0},
}
PREFIX, LOWER, UPPER, BARE, TYPO = 0.06, 0.2, 0.01, 0.25, 0.05  # shares of the questions typed so
FRAMED = 0.5  # share of the questions made of a term in a frame, where a fact has terms

Texts = tuple[str, ...]
Parts = Mapping[str, Texts]  # part -> alternatives


@dataclass(frozen=True)
class Wordings:
    """The content of the two files (see the comments of wordings_train.yaml).

    facts: fact -> part -> wordings. terms: fact -> part -> noun phrases for the frames, () where it has none. frames:
    what a fact takes ("one", "pair") -> part -> frames. names: class or group -> part -> (singular, plural) pairs.
    groups: name -> classes. ranks: one of RANKS -> part -> words. sided, placed, prefixes: part -> texts. sized:
    operator -> part -> texts. extra_names: display names of classes outside the vocabulary.
    """

    facts: Mapping[str, Parts]
    terms: Mapping[str, Parts]
    frames: Mapping[str, Parts]
    names: Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]]
    groups: Mapping[str, Texts]
    ranks: Mapping[str, Parts]
    sided: Parts
    placed: Parts
    sized: Mapping[str, Parts]
    prefixes: Parts
    extra_names: Texts

    def with_targets(self, targets: Targets) -> Wordings:
        """These, and those of the targets of a user's table."""
        facts = {fact: target.wordings for fact, target in targets.targets.items()}
        nothing: Parts = {part: () for part in PARTS}
        return replace(self, facts={**self.facts, **facts}, terms={**self.terms, **dict.fromkeys(facts, nothing)})

    def fill(self, fact: str, part: str, random: Random, **slots: str) -> str:
        """One wording of `fact` with its placeholders filled, as somebody might type it.

        part: "train" or "heldout". slots: text for each of SLOTS that is known; a given `size` is always used.
        Raises InputError where no wording fits the slots.
        """
        fitting = [text for text in self.facts[fact][part] if _fits(placeholders(text), slots)]
        if not fitting:
            raise InputError("wordings", f"a {part} wording of {fact} for {sorted(slots)}", "none", "add one")
        wording, terms = random.choice(fitting), self.terms[fact][part]
        if terms and random.random() < FRAMED:
            frames = self.frames.get(FACTS[fact].takes, {}).get(part, ())
            framed = [text for text in frames if _fits(placeholders(text) - {"term"}, slots)]
            wording = random.choice(framed).replace("{term}", random.choice(terms)) if framed else wording
        if part == "train" and random.random() < TYPO:
            wording = _slip(wording, random)
        text = wording.format(**slots)
        text = text[0].upper() + text[1:]
        if random.random() < PREFIX:
            text = random.choice(self.prefixes[part]) + text
        style = random.random()
        text = text.lower() if style < LOWER else text.upper() if style > 1 - UPPER else text
        return text.rstrip("?. ") if random.random() < BARE else text

    def name(self, label: str, part: str, random: Random) -> tuple[str, str]:
        """A (singular, plural) name of a class or group; its display name where the table has none.

        "heldout" draws from its own names half of the time, else from those of training.
        """
        if label not in self.names:
            return display(label), display(label) + "s"
        choice = "heldout" if part == "heldout" and random.random() < 0.5 else "train"
        return random.choice(self.names[label][choice])

    def phrase(
        self,
        label: str,
        part: str,
        random: Random,
        rank: str | None = None,
        side: str | None = None,
        size: Threshold | None = None,
        place: str | None = None,
    ) -> dict[str, str]:
        """The slots thing, noun, some and things of a class or group, as "the largest tumour".

        rank: one of RANKS. side: "left" or "right". size: only those that it keeps. place: the class they lie in.
        """
        one, many = self.name(label, part, random)
        if rank:
            word = random.choice(self.ranks[rank][part])
            one, many = f"{word} {one}", f"{word} {many}"
        if side:
            form = random.choice(self.sided[part])
            one, many = (form.format(noun=noun, side=side) for noun in (one, many))
        if place:
            form, where = random.choice(self.placed[part]), self.name(place, part, random)[0]
            one, many = (form.format(noun=noun, place=where) for noun in (one, many))
        if size:
            words = self.size(size, part, random)
            one, many = f"{one} {words}", f"{many} {words}"
        some = f"{'an' if one[0] in 'aeiou' else 'a'} {one}"
        return {"thing": f"the {one}", "noun": one, "some": some, "things": many}

    def size(self, threshold: Threshold, part: str, random: Random) -> str:
        """The comparison in words: "larger than 5 ml"; parse_threshold reads it back."""
        unit, factor = random.choice(list(SPELLINGS[threshold.unit].items()))
        return random.choice(self.sized[threshold.op][part]).format(size=f"{threshold.value / factor:g} {unit}")


@lru_cache(maxsize=4)
def read_wordings(folder: str | Path | None = None) -> Wordings:
    """Read and check wordings_train.yaml and wordings_heldout.yaml in a folder; without one those that ship.

    Raises InputError: every fact has wordings in both parts, none is in both, and placeholders are among SLOTS.
    """
    folder = Path(folder) if folder else Path(__file__).parent
    paths = {part: folder / f"wordings_{part}.yaml" for part in PARTS}
    path = folder
    try:
        data = {}
        for part, path in paths.items():
            data[part] = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
            if missing := [fact for fact in FACTS if not data[part]["facts"].get(fact, {}).get("wordings")]:
                raise InputError(path, "wordings for every fact", f"none for {', '.join(missing)}", "add them")
        train = data["train"]
        wordings = Wordings(
            facts={fact: _parts(data, "facts", fact, "wordings") for fact in FACTS},
            terms={
                fact: {part: _texts(data[part]["facts"][fact].get("terms", ())) for part in PARTS} for fact in FACTS
            },
            frames={takes: _parts(data, "frames", takes) for takes in train["frames"]},
            names={n: {p: tuple(data[p]["names"][n].items()) for p in PARTS} for n in train["names"]},
            groups={name: tuple(labels) for name, labels in train["groups"].items()},
            ranks={rank: _parts(data, "ranks", rank) for rank in RANKS},
            sided=_parts(data, "sided"),
            placed=_parts(data, "placed"),
            sized={op: _parts(data, "sized", op) for op in train["sized"]},
            prefixes=_parts(data, "prefixes"),
            extra_names=tuple(train["extra_names"]),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            path, "a table of wordings", f"something else ({error})", "see vlm/data/wordings_train.yaml"
        ) from None
    for fact, parts in wordings.facts.items():
        if shared := {text.lower() for text in parts["train"]} & {text.lower() for text in parts["heldout"]}:
            raise InputError(path, f"{fact} wordings in one part only", f"{min(shared)!r} in both", "remove one")
        for file, text in ((paths[part], text) for part in PARTS for text in parts[part]):
            if unknown := placeholders(text) - set(SLOTS):
                raise InputError(file, f"placeholders among {SLOTS}", f"{sorted(unknown)} in {text!r}", "correct it")
    return wordings


def placeholders(text: str) -> set[str]:
    """The names in braces: "How big is {thing}?" -> {"thing"}."""
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def enumerate_things(things: Iterable[str]) -> str:
    """ "the larynx, the mandible and the brainstem"; a single thing as it is."""
    *first, last = things
    return f"{', '.join(first)} and {last}" if first else last


def _parts(data: Mapping[str, Any], *keys: str) -> Parts:
    """The texts under `keys` in both files."""
    found = {}
    for part in PARTS:
        value = data[part]
        for key in keys:
            value = value[key]
        found[part] = _texts(value)
    return found


def _texts(values: Iterable[Any]) -> Texts:
    return tuple(str(value) for value in values)


def _fits(names: set[str], slots: Mapping[str, str]) -> bool:
    return names <= set(slots) and ("size" in names or "size" not in slots)


def _slip(text: str, random: Random) -> str:
    """Two inner letters of one long word of a wording exchanged; placeholders are never touched."""
    words = list(re.finditer(r"(?<![\w{])[A-Za-z]{6,}(?![\w}])", text))
    if not words:
        return text
    start = random.choice(words).start() + random.randrange(1, 4)
    return text[:start] + text[start + 1] + text[start] + text[start + 2 :]
