"""The vocabulary of classes: canonical names, the words people use for them, and which ones mirror each other.

A class name is lower case with underscores, the side last (`parotid_left`). `canonical` maps the spellings of other
datasets onto it. A class that a case does not annotate is unknown there, never background.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from seg_backbone.errors import ConfigError, LabelError

if TYPE_CHECKING:
    from seg_backbone.volume import Mask

# Words for each class as radiologists write them; the first is the display name.
WORDS: dict[str, tuple[str, ...]] = {
    "tumour": (
        "tumour", "tumor", "lesion", "mass", "neoplasm", "sarcoma", "cancer", "malignancy", "gtv", "growth",
        "carcinoma", "lump", "malignancies", "tumoural", "tumoral", "tumorous", "neoplastic", "cancerous",
    ),
    "brainstem": ("brainstem", "brain stem", "truncus encephali"),
    "spinal_cord": ("spinal cord", "cord", "medulla spinalis", "spinalcord"),
    "parotid_right": (
        "right parotid gland", "right parotid", "parotid gland on the right", "rightparotid", "right parotis",
    ),
    "parotid_left": ("left parotid gland", "left parotid", "parotid gland on the left", "leftparotid", "left parotis"),
    "esophagus": (
        "esophagus", "oesophagus", "gullet", "food pipe", "esophageal", "oesophageal", "esophagi", "oesophagi",
    ),
    "larynx": ("larynx", "voice box", "voicebox", "laryngeal", "larynges"),
    "mandible": ("mandible", "lower jaw", "jaw bone", "jawbone", "jaw", "mandibular"),
}  # fmt: skip
LESIONS = ("tumour",)
# Anatomy that people ask about and no checkpoint here segments: what to answer is "not trained for it", never "no".
OTHER_ANATOMY: tuple[str, ...] = (
    "liver", "spleen", "pancreas", "gallbladder", "kidney", "adrenal gland", "stomach", "duodenum", "small bowel",
    "bowel", "colon", "rectum", "appendix", "urinary bladder", "bladder", "prostate", "uterus", "ovary", "testis",
    "heart", "left ventricle", "atrium", "aorta", "inferior vena cava", "superior vena cava", "portal vein",
    "pulmonary artery", "carotid artery", "iliac artery", "lung", "lung lobe", "upper lobe", "lower lobe", "trachea",
    "bronchus", "pleura", "pleural effusion", "thyroid", "thyroid gland", "thymus", "breast", "submandibular gland",
    "tonsil", "tongue", "pharynx", "oral cavity", "eye", "optic nerve", "optic chiasm", "lens", "pituitary", "cochlea",
    "brain", "cerebellum", "hippocampus", "ventricle", "white matter", "grey matter", "skull", "maxilla", "sternum",
    "rib", "clavicle", "scapula", "humerus", "radius", "ulna", "femur", "tibia", "fibula", "patella", "pelvis", "hip",
    "sacrum", "vertebra", "vertebrae", "intervertebral disc", "muscle", "gluteus maximus", "iliopsoas", "lymph node",
    "necrosis", "oedema", "edema", "cyst", "nodule", "metastasis", "fracture", "haemorrhage", "hemorrhage",
)  # fmt: skip
# Names that hold a word of a class and mean something else.
FALSE_FRIENDS = (
    "vocal cord",
    "spermatic cord",
    "umbilical cord",
    "body mass",
    "muscle mass",
    "bone mass",
    "growth plate",
)
# English words one slip away from an anatomical one.
NO_SLIPS = ("lesson", "lessons", "legion", "legions", "cancel", "cancels", "canter", "radium")
# Ids that a challenge's scorer expects. Every lesion class stands under "tumour".
FLARE23_LABELS = {
    "liver": 1,
    "kidney_right": 2,
    "spleen": 3,
    "pancreas": 4,
    "aorta": 5,
    "inferior_vena_cava": 6,
    "adrenal_gland_right": 7,
    "adrenal_gland_left": 8,
    "gallbladder": 9,
    "esophagus": 10,
    "stomach": 11,
    "duodenum": 12,
    "kidney_left": 13,
    "tumour": 14,
}
FLARE24_LABELS = {"tumour": 1}
SCHEMES = {"flare23": FLARE23_LABELS, "flare24": FLARE24_LABELS}
MIRRORED = {"parotid_right": "parotid_left", "parotid_left": "parotid_right"}


def canonical(name: str) -> str:
    """The canonical class name for a dataset's spelling: "RightParotid", "parotid right" -> "parotid_right".

    A name outside the vocabulary comes back in lower case with underscores.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.sub(r"[_\-\s]+", " ", words).strip().lower()
    sides = [w for w in words.split() if w in ("left", "right")]
    plain = "_".join([w for w in words.split() if w not in ("left", "right")] + sides[:1])
    for known, spellings in WORDS.items():
        if plain == known or words in spellings or words.replace(" ", "") == known.replace("_", ""):
            return known
    return plain


def display(name: str) -> str:
    """The name to print in a sentence: `parotid_left` -> "left parotid gland"."""
    if name in WORDS:
        return WORDS[name][0]
    parts = name.split("_")
    return " ".join(parts[-1:] + parts[:-1]) if parts[-1] in ("left", "right") else " ".join(parts)


def read_labels(path: str | Path) -> dict[str, int]:
    """Read class name -> id from a dataset.json (its `labels`) or a plain JSON of name -> id. Raises LabelError.

    Names become canonical, in the file's order; background (id 0) is dropped.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(path, "a dataset.json or a name -> id JSON", "no such file", "check the path")
    try:
        data = json.loads(path.read_text())
        table = data.get("labels", data)
        pairs = [(canonical(str(name)), int(value)) for name, value in table.items()]
    except (ValueError, TypeError, AttributeError) as error:
        raise LabelError(path, "a name -> id JSON", f"something else ({error})", "see nnU-Net's dataset.json") from None
    labels = {name: value for name, value in pairs if value != 0}
    if twice := [name for name, value in pairs if value not in (0, labels.get(name))]:
        raise LabelError(path, "one id a class", f"several for {twice[0]}", "rename or merge the classes")
    return labels


def to_scheme(mask: Mask, scheme: str) -> tuple[Mask, list[str]]:
    """The mask under the ids of a scheme, and the classes that the scheme has no id for (background there).

    scheme: "native" (the mask as it is) or one of SCHEMES. Every lesion class takes the scheme's id of "tumour". The
    labels of the result are the classes that both sides have: what the model was never asked for is not in them.
    Raises ConfigError for an unknown scheme.
    """
    if scheme == "native":
        return mask, []
    if scheme not in SCHEMES:
        raise ConfigError("labels", f"native or one of {sorted(SCHEMES)}", repr(scheme), "choose one of them")
    names = {name: "tumour" if name in LESIONS else name for name in mask.labels}
    table = np.zeros(max(mask.labels.values(), default=0) + 1, dtype=np.uint8)
    labels = {}
    for name, known in names.items():
        if known in SCHEMES[scheme]:
            table[mask.labels[name]] = labels[known] = SCHEMES[scheme][known]
    return replace(mask, array=table[mask.array], labels=labels), [n for n in names if names[n] not in labels]
