"""Classification: one option (or several) that follows from the instances selected, or from the model's likelihood.

What a mask decides (is it there, which side, which is larger, single or multiple, what is in view) is read off the
instances; the modality off the scan; anything else is the likelihood of each option's words, per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.heads import labels, rules
from vlm.heads.choose import choose, match_option
from vlm.heads.reading import Reading, evidence, none_found
from vlm.regions import REGIONS, regions_in_view


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
    if chosen:
        text = f"Yes, there {'is a' if len(chosen) == 1 else f'are {len(chosen)}'} {display(chosen[0].label)}."
        text = text if len(chosen) == 1 else f"Yes, {len(chosen)} were found."
        return choose(reading, "yes", text, chosen, reading.confidence(chosen))
    return choose(reading, "no", f"No, no {thing} was found.", [], reading.confidence([]))


def _side(reading: Reading) -> dict[str, Any]:
    instance = reading.one()
    if instance is None:
        return none_found(reading)
    where = "in the midline" if instance.side == "midline" else f"on the {instance.side}"
    text = f"The {display(instance.label)} is {where}."
    return choose(reading, instance.side, text, [instance], reading.confidence([instance]))


def _multiplicity(reading: Reading) -> dict[str, Any]:
    chosen = reading.selected()
    if not chosen:
        return none_found(reading)
    value = "single" if len(chosen) == 1 else "multiple"
    text = f"{value.capitalize()}: {len(chosen)} found."
    return choose(reading, value, text, chosen, reading.confidence(chosen))


def _larger(reading: Reading) -> dict[str, Any]:
    pair = reading.pair()
    if pair is None:
        return none_found(reading)
    ordered = sorted(pair, key=lambda i: -i.volume_ml)
    first, second = (display(instance.label) for instance in ordered)
    volumes = tuple(f"{instance.volume_ml:.1f} ml" for instance in ordered)
    text = f"The {first} is larger: {volumes[0]} against {volumes[1]} for the {second}."
    if first == second:
        text = f"The larger {first} has {volumes[0]}, the other {volumes[1]}."
    return _which(reading, ordered, text)


def _denser(reading: Reading) -> dict[str, Any]:
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
    """The first of two as a class name, or by its side where the options are sides."""
    value = ordered[0].label
    if reading.question.options and match_option(value, reading.question.options) is None:
        value = ordered[0].side
    return choose(reading, value, text, ordered, reading.confidence(ordered))


def _nearest(reading: Reading) -> dict[str, Any]:
    instance = reading.one()
    if instance is None:
        return none_found(reading)
    organ = reading.scene.relations.nearest(instance, _organs(reading))
    if organ is None:
        reason = "the mask holds no organ that it could be near to"
        return {"text": f"I cannot tell: {reason}.", "abstained": True, "reason": reason}
    gap = reading.scene.relations.gap_mm(instance, organ)
    text = f"The {display(instance.label)} lies in or next to the {display(organ.label)} ({gap:.0f} mm)."
    used = [instance, organ]
    return choose(reading, organ.label, text, used, reading.confidence(used))


def _most_affected(reading: Reading) -> dict[str, Any]:
    lesions = [i for i in reading.selected() if is_lesion(i.label)]
    held: dict[str, list[Instance]] = {}
    for lesion in lesions:
        if organ := reading.scene.relations.nearest(lesion, _organs(reading)):
            held.setdefault(organ.label, []).append(lesion)
    if not held:
        return none_found(reading)
    volumes = {label: sum(i.volume_ml for i in some) for label, some in held.items()}
    label = max(volumes, key=lambda name: volumes[name])
    listed = ", ".join(f"{display(name)} {volume:.1f} ml" for name, volume in sorted(volumes.items()))
    text = f"The {display(label)}. Lesions by the nearest organ: {listed}."
    return choose(reading, label, text, held[label], reading.confidence(lesions))


def _organs(reading: Reading) -> list[Instance]:
    """The structures that a lesion may lie in: those that the options say, or those that the question names, or all."""
    organs = [i for i in reading.scene.instances if not is_lesion(i.label)]
    optional = [i for i in organs if match_option(i.label, reading.question.options)]
    return optional or [i for i in organs if i.label in reading.mention.classes] or organs


def _modality(reading: Reading) -> dict[str, Any]:
    return choose(
        reading, reading.scene.modality, f"This is a {reading.scene.modality} scan.", [], reading.fact_probability
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
    options = options or REGIONS
    scores = reading.score_options(options)
    best = int(np.argmax(scores))
    confidence = reading.fact_probability * float(scores[best])
    text = f"{options[best][:1].upper()}{options[best][1:]}."
    return {"text": text, "choice": options[best], "confidence": confidence}


def _contents(reading: Reading) -> dict[str, Any]:
    labels = list(dict.fromkeys(i.label for i in reading.selected()))
    options = reading.question.options
    if options:
        labels = [label for label in labels if match_option(label, options)]
    names = tuple((match_option(label, options) or "") if options else display(label) for label in labels)
    text = f"In view: {', '.join(names)}." if names else "None of them was found."
    chosen = [i for i in reading.selected() if i.label in labels]
    return {"text": text, "choices": names, "evidence": evidence(chosen), "confidence": reading.confidence(chosen)}


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
