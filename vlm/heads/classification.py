"""Classification: one option (or several) that follows from the instances selected, or from the model's likelihood.

What a mask decides (is it there, which side, which is larger, single or multiple, what is in view) is read off the
instances; the modality off the scan; anything else is the likelihood of each option's words, per token.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.claims import asks_for_less, claimed, counted, is_claim
from vlm.data.threshold import Threshold
from vlm.data.wordings import enumerate_things
from vlm.heads import labels, rules
from vlm.heads.choose import choose, is_yes_or_no, match_option, number
from vlm.heads.ranks import FARTHEST_SAID, PLACES, SHOWN, Rank, compared_by, parse_rank, ranked
from vlm.heads.reading import Reading, a_or_an, evidence, may_hold, none_found, shown
from vlm.regions import REGIONS, SURE, region_of, regions_in_view


def decode(reading: Reading) -> dict[str, Any]:
    """choice (or choices for `contents`) in the words of the question's options where there are any."""
    return _READ.get(reading.fact, labels.decode)(reading)


def _presence(reading: Reading) -> dict[str, Any]:
    chosen, thing = reading.selected(), reading.thing()
    options = reading.question.options
    if options and not any(match_option(word, options) for word in ("yes", "no")):
        named = [i for i in chosen if match_option(i.label, options)]  # options are structures: which one is there?
        if named:
            instance = max(named, key=lambda i: i.volume_ml)
            text = f"The {display(instance.label)}."
            return choose(reading, instance.label, text, [instance], reading.confidence([instance]))
    if is_yes_or_no(options) and (said := counted(reading.question.question, len(chosen))) is not None:
        return number(reading, said, chosen)
    if reading.threshold and (judged := reading.meant()):
        return _sized(reading, reading.threshold, chosen, judged)
    if chosen:
        there = {i.label for i in chosen}
        lacking = [name for name in reading.mention.classes if name not in there and name not in reading.mention.places]
        if (
            lacking
            and not reading.mention.lesions
            and re.search(r"\band\b", reading.question.question.lower())
            and is_yes_or_no(options)
        ):
            text = f"No, no {' and no '.join(map(display, lacking))} was found."
            return choose(reading, "no", text, chosen, reading.confidence(chosen))
        text = f"Yes, there is {a_or_an(display(chosen[0].label))}."
        if _BOTH.search(reading.question.question.lower()):
            homes = {home.label for home in reading.homes([i for i in chosen if is_lesion(i.label)])}
            if without := [name for name in reading.mention.places if name not in homes]:
                text = f"No, none was found in the {enumerate_things(map(display, without))}."
                return choose(reading, "no", text, chosen, reading.confidence(chosen))
        things = dict.fromkeys(f"the {display(i.label)}" for i in chosen)
        if len(chosen) > 1 and any(is_lesion(i.label) for i in chosen):
            text = f"Yes, {len(chosen)} were found."
        elif len(things) > 1:
            text = f"Yes: {enumerate_things(things)}."
        return choose(reading, "yes", text, chosen, reading.confidence(chosen))
    where = f" in the {enumerate_things(map(display, reading.mention.places))}" if reading.mention.places else ""
    return choose(reading, "no", f"No, no {thing} was found{where}.", [], reading.confidence([]))


def _sized(reading: Reading, limit: Threshold, kept: list[Instance], judged: list[Instance]) -> dict[str, Any]:
    """Whether something of a size is there, with the size that decided: the largest, or for "below" the smallest."""
    sizes = {instance.id: getattr(instance, limit.attribute) or 0.0 for instance in judged}
    extreme = (max if limit.op[0] == ">" else min)(judged, key=lambda instance: sizes[instance.id])
    what, unit = SHOWN[limit.attribute]
    which = "the" if len(judged) == 1 else f"of {len(judged)} the {'largest' if limit.op[0] == '>' else 'smallest'}"
    answer = "yes" if kept else "no"
    if len(judged) > 1 and _ALL.search(reading.question.question.lower()):
        answer = "yes" if len(kept) == len(judged) else "no"
        extreme = (min if limit.op[0] == ">" else max)(judged, key=lambda instance: sizes[instance.id])
        which = f"of {len(judged)} the {'smallest' if limit.op[0] == '>' else 'largest'}"
    size = f"{a_or_an(what)} of {shown(sizes[extreme.id])} {unit}"
    text = f"{answer.capitalize()}, {which} {display(extreme.label)} has {size}."
    used = kept or [extreme]
    return choose(reading, answer, text, used, reading.confidence(used))


def _side(reading: Reading) -> dict[str, Any]:
    instance = reading.one()
    if instance is None:
        return none_found(reading)
    if instance.side == "midline" and reading.scene.cut and is_lesion(instance.label):
        reason = "it lies in the middle of a scan that cuts the body, so the body's midline is not known"
        return {"text": f"I cannot tell: {reason}.", "abstained": True, "reason": reason}
    where = "in the midline" if instance.side == "midline" else f"on the {instance.side}"
    where += " of the part of the body in view" if reading.scene.cut and is_lesion(instance.label) else ""
    text = f"The {display(instance.label)} is {where}."
    return choose(reading, instance.side, text, [instance], reading.confidence([instance]))


def _multiplicity(reading: Reading) -> dict[str, Any]:
    chosen = reading.selected()
    if not chosen:
        return none_found(reading)
    if is_yes_or_no(reading.question.options):
        said = counted(reading.question.question, len(chosen))
        if said is not None:
            return number(reading, said, chosen)
    value = "single" if len(chosen) == 1 else "multiple"
    text = f"{value.capitalize()}: {len(chosen)} found."
    return choose(reading, value, text, chosen, reading.confidence(chosen))


def _larger(reading: Reading) -> dict[str, Any]:
    if rank := _rank(reading):
        return _ranked(reading, rank)
    pair = reading.pair()
    if pair is None:
        return none_found(reading)
    field = compared_by(reading.question.question)
    what, unit = SHOWN[field]
    ordered = sorted(pair, key=lambda i: -getattr(i, field))
    first, second = (display(instance.label) for instance in ordered)
    sizes = tuple(f"{getattr(instance, field):.1f} {unit}" for instance in ordered)
    how = "larger" if field == "volume_ml" else f"larger by its {what}"
    text = f"The {first} is {how}: {sizes[0]} against {sizes[1]} for the {second}."
    if first == second:
        text = f"The larger {first} has {sizes[0]}, the other {sizes[1]}."
    return _which(reading, ordered, text)


def _rank(reading: Reading) -> Rank | None:
    rank = parse_rank(reading.question.question, len(set(reading.mention.classes) - set(reading.mention.places)))
    return rank if rank and rank.asks else None


def _ranked(reading: Reading, rank: Rank) -> dict[str, Any]:
    """The structure at a place by size or density."""
    order = ranked(reading, rank)
    if len(order) < rank.place:
        kind = "organ" if rank.organs else "structure"
        reason = (
            f"the mask holds {f'only {len(order)}' if order else 'no'} {kind}{'s' * (len(order) > 1)} to choose from"
        )
        return {"text": f"I cannot tell: {reason}.", "abstained": True, "reason": reason}
    what, unit = SHOWN.get(rank.attribute, ("", ""))
    unit = unit if unit != "HU" or reading.scene.modality == "CT" else ""
    value, pieces = order[rank.place - 1]
    most = ("lowest", "highest") if rank.attribute == "intensity_mean" else ("smallest", "largest")
    ordinal = next((f"{word} " for word, n in PLACES.items() if n == rank.place), "")
    size = f"{shown(value)} {unit}".rstrip()
    name, kind = display(pieces[0].label), "organ" if rank.organs else "structure"
    text = f"The {name} has the {ordinal}{most[not rank.low]} {what} of {len(order)} {kind}s: {size}."
    if rank.attribute in FARTHEST_SAID:
        where = FARTHEST_SAID[rank.attribute][not rank.low]
        text = f"The centre of the {name} lies {ordinal}farthest {where} of {len(order)} {kind}s."
    elif len(order) == 1:
        text = f"There is no {kind} but the {name}, with a {what} of {size}."
    asked = set(reading.mention.classes)
    if len(asked) == 1 and is_claim(reading.question.question):  # "is the liver the largest organ?"
        answer = "yes" if pieces[0].label in asked else "no"
        return choose(reading, answer, f"{answer.capitalize()}: {text}", pieces, reading.confidence(pieces))
    return choose(reading, pieces[0].label, text, pieces, reading.confidence(pieces))


def _denser(reading: Reading) -> dict[str, Any]:
    if rank := _rank(reading):
        return _ranked(reading, rank)
    pair = reading.pair()
    if pair is None or any(instance.intensity_mean is None for instance in pair):
        return none_found(reading)
    ordered = sorted(pair, key=lambda i: -(i.intensity_mean or 0.0))
    unit = " HU" if reading.scene.modality == "CT" else ""
    means = tuple(f"{instance.intensity_mean:.0f}{unit}" for instance in ordered)
    text = (
        f"The {display(ordered[0].label)} is denser: {means[0]} against {means[1]} of the {display(ordered[1].label)}."
    )
    return _which(reading, ordered, text)


def _which(reading: Reading, ordered: list[Instance], text: str) -> dict[str, Any]:
    """The first of two, or the second where less is asked for, by its class or by its side if the options are sides."""
    chosen = ordered[asks_for_less(reading.fact, reading.question.question)]
    value = chosen.label
    if reading.question.options and match_option(value, reading.question.options) is None:
        value = chosen.side
    return choose(reading, value, text, ordered, reading.confidence(ordered))


def _nearest(reading: Reading) -> dict[str, Any]:
    instance = reading.one()
    if instance is None:
        return none_found(reading)
    organ = reading.scene.relations.nearest(instance, (i for i in _organs(reading) if i.label != instance.label))
    if organ is None:
        reason = "the mask holds no organ that it could be near to"
        return {"text": f"I cannot tell: {reason}.", "abstained": True, "reason": reason}
    gap = reading.scene.relations.gap_mm(instance, organ)
    text = f"The {display(instance.label)} lies in or next to the {display(organ.label)} ({gap:.0f} mm)."
    used = [instance, organ]
    return choose(reading, organ.label, text, used, reading.confidence(used))


def _most_affected(reading: Reading) -> dict[str, Any]:
    """The organ that most of the lesions' volume lies in, or the largest part of whose volume they are ("burden")."""
    lesions = [i for i in reading.selected() if is_lesion(i.label)]
    asked, held = {i.label: i for i in _organs(reading)}, dict[str, list[Instance]]()
    every = [i for i in reading.scene.instances if not is_lesion(i.label)]
    for lesion in lesions:
        organ = reading.scene.relations.nearest(lesion, (i for i in every if may_hold(i.label, lesion.label)))
        if organ and organ.label in asked:
            held.setdefault(organ.label, []).append(lesion)
    if not held:
        return none_found(reading)
    volumes = {label: sum(i.volume_ml for i in some) for label, some in held.items()}
    unit, most = "ml", volumes
    if _BY_NUMBER.search(reading.question.question.lower()):
        unit, most = "", {label: float(len(some)) for label, some in held.items()}
    if _BURDEN.search(reading.question.question.lower()):
        unit = "%"
        most = {name: 100 * ml / (ml + reading.whole(asked[name]).volume_ml) for name, ml in volumes.items()}
    label = max(most, key=lambda name: most[name])
    shares = {name: f"{amount:.1f} {unit}" if unit else f"{amount:.0f}" for name, amount in sorted(most.items())}
    listed = ", ".join(f"{display(name)} {share}" for name, share in shares.items())
    text = f"The {display(label)}. Lesions by the nearest organ: {listed}."
    value = label
    if reading.question.options and match_option(label, reading.question.options) is None:
        value = "both" if len(held) == 2 and not _MOST.search(reading.question.question.lower()) else asked[label].side
    return choose(reading, value, text, held[label], reading.confidence(lesions))


def _organs(reading: Reading) -> list[Instance]:
    """The structures that a lesion may lie in: those that the options say, or those that the question names, or all."""
    organs = [i for i in reading.scene.instances if not is_lesion(i.label)]
    optional = [i for i in organs if match_option(i.label, reading.question.options)]
    subject = reading.one() if reading.fact == "nearest" else None
    said = {*reading.mention.classes, *reading.mention.places}
    named = [i for i in organs if i.label in said and not (subject and i.label == subject.label)]
    return optional or named or organs


def _modality(reading: Reading) -> dict[str, Any]:
    return choose(
        reading,
        reading.scene.modality,
        f"This is {_A_SCAN[reading.scene.modality]} scan.",
        [],
        reading.fact_probability,
    )


def _region(reading: Reading) -> dict[str, Any]:
    """What structures in view tell: every region, or of those that the options name the one of most structures; the
    likeliest option where nothing tells.
    """
    options, seen = reading.question.options, regions_in_view(reading.scene.instances)
    named = [region for region in seen if not options or match_option(region, options)]
    if named:
        used = [instance for found in seen.values() for instance in found]
        names = ", ".join(dict.fromkeys(display(i.label) for i in used))
        text = f"{', '.join(seen).capitalize()}: {names} in view."
        return choose(reading, named[0] if options else ", ".join(named), text, used, reading.fact_probability)
    if not options and claimed("region", reading.question.question, reading.mention):
        reason = "no structure in view tells the region of the body"
        return {"text": f"I cannot tell: {reason}.", "abstained": True, "reason": reason}
    options = options or _possible(reading)
    scores = reading.score_options(options)
    best = int(np.argmax(scores))
    confidence = reading.fact_probability * float(scores[best])
    text = f"{options[best][:1].upper()}{options[best][1:]}."
    return {"text": text, "choice": options[best], "confidence": confidence}


def _possible(reading: Reading) -> tuple[str, ...]:
    """REGIONS without those of which several structures are known and none is in view."""
    classes = [name for name in reading.scene.classes if name not in reading.scene.untrained]
    known = Counter(region_of(name) for name in classes)
    return tuple(region for region in REGIONS if known[region] < SURE)


def _contents(reading: Reading) -> dict[str, Any]:
    labels = list(dict.fromkeys(i.label for i in reading.selected()))
    options = reading.question.options
    if MISSING.search(reading.question.question.lower()):
        return _missing(reading)
    if options:
        labels = [label for label in labels if match_option(label, options)]
    line, listed = reading.question.question.lower(), "In view"
    dense = re.search(r"\b(?:density|attenuation|hu)\b", line)
    what, unit = SHOWN["intensity_mean" if dense else "volume_ml"]
    sizes = {i.label: (i.intensity_mean or 0.0) if dense else i.volume_ml for i in reading.structures()}
    if ordered := _ORDERED.search(line) is not None:
        rising = re.search(r"\b(?:ascending|increasing|smallest (?:first|to)|from small)\b", line)
        labels.sort(key=lambda label: sizes[label] * (1 if rising else -1))
        listed = f"By {what}"
    names = tuple((match_option(label, options) or "") if options else display(label) for label in labels)
    shown_names = [f"{display(n)} {sizes[n]:.1f} {unit}" for n in labels] if ordered else names
    text = f"{listed}: {', '.join(shown_names)}." if names else "None of them was found."
    chosen = [i for i in reading.selected() if i.label in labels]
    return {"text": text, "choices": names, "evidence": evidence(chosen), "confidence": reading.confidence(chosen)}


def _missing(reading: Reading) -> dict[str, Any]:
    """Of the structures that could be there, by the options or the labels, those that are not."""
    scene, options = reading.scene, reading.question.options
    there = {i.label for i in scene.instances}
    known = [
        name for name in scene.classes if name not in scene.untrained and (not options or match_option(name, options))
    ]
    names = tuple((match_option(n, options) or "") if options else display(n) for n in known if n not in there)
    text = f"Not found: {', '.join(names)}." if names else "None of them is missing."
    return {"text": text, "choices": names, "evidence": (), "confidence": reading.confidence([])}


_A_SCAN = {"CT": "a CT", "MR": "an MR"}
_BURDEN = re.compile(r"\b(?:tumou?r|lesion|disease) burden\b|per ?cent|%|\bproportion|\brelative")
_BY_NUMBER = re.compile(
    r"\b(?:more|most|number of) (?:\w+ )?(?:lesions|nodules|tumou?rs|mets|metastases|cysts|nodes|masses|deposits)\b"
)
_MOST = re.compile(r"\b(?:most|more|higher|highest|greater|greatest|larger|largest)\b")
_ORDERED = re.compile(
    r"\b(?:rank|order\w*|sort\w*|arrange\w*|ascending|descending|increasing|decreasing|(?:small|larg|bigg)est to)\b"
)
_BOTH = re.compile(r"\b(?:both|each)\b")
_ALL = re.compile(r"\b(?:all|every|each|both)\b")
MISSING = re.compile(
    r"\b(?:missing|absent|lacking|not (?:\w+ )?(?:visible|present|seen|shown|there|in view|found|included|depicted))\b"
)
RULED = ("outlier", "clustered", "enlarged", "asymmetric", "composition", "fatty", "size_category", "measurable")
_READ = {
    "presence": _presence,
    "side": _side,
    "multiplicity": _multiplicity,
    "larger": _larger,
    "modality": _modality,
    "region": _region,
    "contents": _contents,
    "denser": _denser,
    "nearest": _nearest,
    "most_affected": _most_affected,
    **dict.fromkeys(RULED, rules.decode),
}
