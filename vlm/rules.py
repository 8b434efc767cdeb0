"""Rules: what measured facts mean. The thresholds and their sources lie in vlm/rules.yaml; every answer names its rule.

Each rule is a function of instances to a `Verdict`, used for answers and for the references of generated questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from seg_backbone.labels import display
from seg_backbone.lesions import Instance
from vlm.grounding import split_side

RANDOM_NEIGHBOUR = 0.55396  # mean distance to the nearest of points at random, times the cube root of their density
FEWEST = 3  # lesions that a judgement about many needs


class Verdict(NamedTuple):
    """answer: the choice, None where no rule can tell; text: why, in a sentence without its full stop. rule: its name.

    clear: how far the measure is from its limit, as a share of the limit; references are made of clear cases only.
    """

    answer: str | None
    text: str
    rule: str = ""
    clear: float = np.inf


@lru_cache(maxsize=1)
def rules() -> dict[str, Any]:
    """The content of vlm/rules.yaml, by fact."""
    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text("utf-8"))
    return table


def enlarged(organ: Instance) -> Verdict:
    """yes or no, for an organ that has a rule."""
    table = rules()["enlarged"]
    rule = table.get(organ.label) or table.get(split_side(organ.label)[0])
    if rule is None:
        return Verdict(None, f"there is no rule for when the {display(organ.label)} is enlarged")
    value, limit = getattr(organ, rule["property"]), rule["above"]
    text = f"{_shown(value, rule['property'])} against a limit of {_shown(limit, rule['property'])}"
    return _yes_or_no(value > limit, text, rule["name"], abs(value - limit) / limit)


def asymmetric(first: Instance, second: Instance) -> Verdict:
    """yes or no: is the larger one larger by more than the rule's ratio?"""
    rule = rules()["asymmetric"]
    small, large = sorted(getattr(instance, rule["property"]) for instance in (first, second))
    ratio = large / small
    text = f"{_shown(large, rule['property'])} against {_shown(small, rule['property'])}, a ratio of {ratio:.2f}"
    return _yes_or_no(ratio > rule["ratio"], text, rule["name"], abs(ratio - rule["ratio"]) / rule["ratio"])


def composition(lesion: Instance, modality: str) -> Verdict:
    """cystic or solid, on CT only."""
    rule, value = rules()["composition"], lesion.intensity_mean
    if modality != "CT" or value is None:
        return Verdict(None, "cystic or solid is told by Hounsfield units, which only a CT has")
    answer = "cystic" if rule["from"] <= value <= rule["to"] else "solid"
    text = f"{answer.capitalize()}: a mean of {value:.0f} HU, fluid lies within {rule['from']} to {rule['to']} HU"
    return Verdict(answer, text, rule["name"], min(abs(value - rule["from"]), abs(value - rule["to"])) / 100)


def fatty(instances: Sequence[Instance], modality: str) -> Verdict:
    """yes or no from the liver's HU, against the spleen's where there is one, on CT only."""
    rule, means = rules()["fatty"], {i.label: i.intensity_mean for i in sorted(instances, key=lambda i: i.volume_ml)}
    liver, spleen = means.get("liver"), means.get("spleen")
    if modality != "CT" or liver is None:
        return Verdict(
            None, "a fatty liver is told by the liver's Hounsfield units, and there is no liver on a CT here"
        )
    value, limit, what = liver, rule["liver"], "the liver's mean is"
    if spleen is not None:
        value, limit, what = liver - spleen, rule["difference"], "liver minus spleen is"
    text = f"{what} {value:.0f} HU against a limit of {limit} HU, if no contrast was given"
    return _yes_or_no(value <= limit, text, rule["name"], abs(value - limit) / 100)


def size_category(tumour: Instance) -> Verdict:
    """The T category by size."""
    rule = rules()["size_category"].get(tumour.label)
    if rule is None:
        return Verdict(None, f"there is no rule for the T category of a {display(tumour.label)}")
    value = getattr(tumour, rule["property"])
    answer = next((name for name, most in rule["up_to"].items() if value <= most), rule["beyond"])
    clear = min(abs(value - most) / most for most in rule["up_to"].values())
    return Verdict(answer, f"{answer}: {_shown(value, rule['property'])}", rule["name"], clear)


def categories() -> tuple[str, ...]:
    """Every T category there is a rule for."""
    table = rules()["size_category"].values()
    return tuple(dict.fromkeys(name for rule in table for name in (*rule["up_to"], rule["beyond"])))


def measurable(lesion: Instance) -> Verdict:
    """yes or no: may it be a RECIST target lesion?"""
    table = rules()["measurable"]
    rule = table.get(split_side(lesion.label)[0], table["lesion"])
    value, least = getattr(lesion, rule["property"]), rule["at_least"]
    text = f"{_shown(value, rule['property'])} against at least {_shown(least, rule['property'])}"
    return _yes_or_no(value >= least, text, rule["name"], abs(value - least) / least)


def outlier(lesions: Sequence[Instance]) -> Verdict:
    """yes or no: does the volume of one stand out? Of fewer than three none does."""
    rule, logs = rules()["outlier"], np.log([i.volume_ml for i in lesions])
    away = np.abs(logs - np.median(logs))
    spread = float(np.median(away))
    most = 0.6745 * float(away.max()) / spread if spread else np.inf if away.any() else 0.0
    text = f"volumes of {', '.join(f'{i.volume_ml:.1f}' for i in lesions)} ml"
    found = len(lesions) >= FEWEST and most > rule["score"]
    return _yes_or_no(found, text, rule["name"], abs(most - rule["score"]) / rule["score"])


def clustered(lesions: Sequence[Instance], within_ml: float) -> Verdict:
    """clustered or scattered in a space of within_ml."""
    rule = rules()["clustered"]
    if len(lesions) < FEWEST:
        return Verdict(None, f"there {'is' if len(lesions) == 1 else 'are'} only {len(lesions)}, {FEWEST} are needed")
    centres = np.array([i.center_mm for i in lesions])
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.diag([np.inf] * len(lesions))
    observed = float(apart.min(axis=1).mean())
    expected = RANDOM_NEIGHBOUR * (1000 * within_ml / len(lesions)) ** (1 / 3)
    answer = "clustered" if observed < expected else "scattered"
    text = f"{answer.capitalize()}: {observed:.0f} mm to the nearest on average, {expected:.0f} mm if at random"
    return Verdict(answer, text, rule["name"], abs(observed - expected) / expected)


def _yes_or_no(found: bool, text: str, rule: str, clear: float) -> Verdict:
    answer = "yes" if found else "no"
    return Verdict(answer, f"{answer.capitalize()}: {text}", rule, clear)


def _shown(value: float, attribute: str) -> str:
    return f"{value:.1f} {'ml' if attribute.endswith('_ml') else 'mm'}"
