"""Regions of the body: their names, and which structures in view tell that a scan shows one.

Structures that run through several regions (aorta, esophagus, spinal cord, bowel, muscle, skin) tell of none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from seg_backbone.labels import display
from seg_backbone.lesions import Instance

TELLING: dict[str, tuple[str, ...]] = {  # region -> structures, in the words of `display` without a side
    "head and neck": (
        "brain", "brainstem", "cerebellum", "hippocampus", "skull", "face", "eye", "optic nerve", "optic chiasm",
        "lens", "pituitary", "cochlea", "parotid", "parotid gland", "submandibular gland", "oral cavity", "tongue",
        "tonsil", "pharynx", "larynx", "mandible", "maxilla", "thyroid", "thyroid gland", "carotid artery", "hyoid",
    ),
    "chest": (
        "lung", "heart", "myocardium", "pericardium", "atrium", "trachea", "bronchus", "pleura", "thymus", "sternum",
        "rib", "breast", "pulmonary artery", "pulmonary vein", "diaphragm",
    ),
    "abdomen": (
        "liver", "spleen", "pancreas", "gallbladder", "kidney", "adrenal gland", "stomach", "duodenum", "portal vein",
    ),
    "pelvis": (
        "urinary bladder", "bladder", "prostate", "seminal vesicle", "uterus", "ovary", "rectum", "sacrum", "hip",
        "anal canal",
    ),
    "limb or trunk soft tissue": (
        "femur", "patella", "tibia", "fibula", "humerus", "radius", "ulna", "hand", "foot", "knee",
    ),
}  # fmt: skip
REGIONS = tuple(TELLING)
STATED = {name: name for name in REGIONS} | {"soft tissue": REGIONS[-1], "brain": REGIONS[0]}  # manifest -> region
SURE = 2  # structures from which a region counts, where a model found them: one alone may be an error


def regions_in_view(instances: Iterable[Instance]) -> dict[str, list[Instance]]:
    """Region -> the structures that tell of it, those of most structures first; {} where nothing tells.

    A lesion tells by the organ in its name. A structure without a probability was drawn by somebody and counts alone.
    """
    told: dict[str, dict[str, Instance]] = {}
    for instance in instances:
        if region := region_of(instance.label):
            told.setdefault(region, {}).setdefault(instance.label, instance)
    seen = {region: list(found.values()) for region, found in told.items()}
    sure = {r: found for r, found in seen.items() if len(found) >= SURE or found[0].probability is None}
    return dict(sorted(sure.items(), key=lambda item: -len(item[1])))


@lru_cache(maxsize=4096)
def region_of(label: str) -> str | None:
    """The region that a class tells of: "lung_upper_lobe_left" -> "chest", "liver_tumour" -> "abdomen"; else None."""
    name = f" {re.sub('[^a-z0-9]+', ' ', display(label).lower())} "
    return next(
        (r for r, words in TELLING.items() if any(re.search(f" {word}(?:e?s)? ", name) for word in words)), None
    )


def region_in(text: str) -> str | None:
    """The one region that a text names: "describe the abdomen"; None where it names none or several."""
    said = regions_said(text)
    return said.pop() if len(said) == 1 else None


def regions_said(text: str) -> set[str]:
    """The regions that a text names."""
    words = {
        **STATED,
        "thorax": "chest",
        "belly": "abdomen",
        "head": REGIONS[0],
        "neck": REGIONS[0],
        "abdominal": "abdomen",
    }
    return {name for word, name in words.items() if re.search(rf"\b{word}\b", text.lower())}
