"""Classification: one option (or several) that follows from the instances selected, or from the model's likelihood.

What a mask decides (is it there, which side, which is larger, single or multiple, what is in view) is read off the
instances; the modality off the scan; anything else is the likelihood of each option's words, per token.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from seg_backbone.labels import canonical, display
from seg_backbone.lesions import Instance
from vlm.heads.reading import Reading, evidence, none_found

_SAME = {
    "yes": ("yes", "present", "true", "visible", "positive"),
    "no": ("no", "absent", "false", "not visible", "negative"),
    "single": ("single", "one", "solitary", "1", "only one"),
    "multiple": ("multiple", "several", "more than one", "many"),
    "ct": ("ct", "computed tomography", "cat scan"),
    "mr": ("mr", "mri", "magnetic resonance", "magnetic resonance imaging"),
    "midline": ("midline", "middle", "central", "centre", "center"),
}


def decode(reading: Reading) -> dict[str, Any]:
    """choice (or choices for `contents`) in the words of the question's options where there are any."""
    return _READ[reading.fact](reading)


def match_option(value: str, options: tuple[str, ...]) -> str | None:
    """The option that says `value`, by synonyms, class names and whole words; None where none does."""
    wanted = value.lower()
    same = {wanted, *_SAME.get(wanted, ()), display(canonical(value)).lower(), canonical(value)}
    for option in options:
        plain = re.sub(r"[^a-z0-9_% ]+", "", option.lower()).strip()
        if plain in same or canonical(option) in same:
            return option
    for option in options:
        words = set(re.findall(r"[a-z]+", option.lower()))
        if wanted in words and not (wanted in ("left", "right") and {"left", "right"} <= words):
            return option
    return None


def _choose(reading: Reading, value: str, text: str, instances: list[Instance], confidence: float) -> dict[str, Any]:
    options = reading.question.options
    choice = match_option(value, options) if options else value
    if choice is None:
        reason = f"the answer ({value}) is none of the options"
        return {"text": text, "abstained": True, "reason": reason, "evidence": evidence(instances)}
    return {"text": text, "choice": choice, "evidence": evidence(instances), "confidence": confidence}


def _presence(reading: Reading) -> dict[str, Any]:
    chosen, thing = reading.selected(), reading.thing()
    options = reading.question.options
    if options and not any(match_option(word, options) for word in ("yes", "no")):
        named = [i for i in chosen if match_option(i.label, options)]  # options are structures: which one is there?
        if named:
            instance = max(named, key=lambda i: i.volume_ml)
            text = f"The {display(instance.label)}."
            return _choose(reading, instance.label, text, [instance], reading.confidence([instance]))
    if chosen:
        text = f"Yes, there {'is a' if len(chosen) == 1 else f'are {len(chosen)}'} {display(chosen[0].label)}."
        text = text if len(chosen) == 1 else f"Yes, {len(chosen)} were found."
        return _choose(reading, "yes", text, chosen, reading.confidence(chosen))
    return _choose(reading, "no", f"No, no {thing} was found.", [], reading.confidence([]))


def _side(reading: Reading) -> dict[str, Any]:
    instance = reading.one()
    if instance is None:
        return none_found(reading)
    where = "in the midline" if instance.side == "midline" else f"on the {instance.side}"
    text = f"The {display(instance.label)} is {where}."
    return _choose(reading, instance.side, text, [instance], reading.confidence([instance]))


def _multiplicity(reading: Reading) -> dict[str, Any]:
    chosen = reading.selected()
    if not chosen:
        return none_found(reading)
    value = "single" if len(chosen) == 1 else "multiple"
    text = f"{value.capitalize()}: {len(chosen)} found."
    return _choose(reading, value, text, chosen, reading.confidence(chosen))


def _larger(reading: Reading) -> dict[str, Any]:
    order = np.argsort(-reading.selection, kind="stable")[:2]
    if len(order) < 2 or reading.selection[order].min() < 0.25:
        return none_found(reading)
    pair = sorted((reading.scene.instances[n] for n in order), key=lambda i: -i.volume_ml)
    first, second = (display(instance.label) for instance in pair)
    volumes = tuple(f"{instance.volume_ml:.1f} ml" for instance in pair)
    text = f"The {first} is larger: {volumes[0]} against {volumes[1]} for the {second}."
    if first == second:
        text = f"The larger {first} has {volumes[0]}, the other {volumes[1]}."
    value = pair[0].label
    if reading.question.options and match_option(value, reading.question.options) is None:
        value = pair[0].side
    return _choose(reading, value, text, pair, reading.confidence(pair))


def _modality(reading: Reading) -> dict[str, Any]:
    return _choose(
        reading, reading.scene.modality, f"This is a {reading.scene.modality} scan.", [], reading.fact_probability
    )


def _region(reading: Reading) -> dict[str, Any]:
    options = reading.question.options or REGIONS
    organs = [i for i in reading.scene.instances if i.label in HEAD_AND_NECK]
    if len(organs) >= 2 and (choice := match_option(REGIONS[0], options)):  # what is in view tells where we are
        text = f"Head and neck: {', '.join(display(i.label) for i in organs)} in view."
        return _choose(reading, choice, text, organs, reading.fact_probability)
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


HEAD_AND_NECK = ("brainstem", "parotid_right", "parotid_left", "larynx", "mandible")
REGIONS = ("head and neck", "limb or trunk soft tissue")
_READ = {
    "presence": _presence,
    "side": _side,
    "multiplicity": _multiplicity,
    "larger": _larger,
    "modality": _modality,
    "region": _region,
    "contents": _contents,
}
