"""The vocabulary of classes: canonical names, the words people use for them, and which ones mirror each other.

A class name is lower case with underscores, the side last (`parotid_left`). `canonical` maps the spellings of other
datasets onto it. A class that a case does not annotate is unknown there, never background.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
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
        "neoformation", "blastoma", "neoplasmata", "sol", "space occupying lesion",
    ),
    "brainstem": (
        "brainstem", "brain stem", "truncus encephali", "truncus cerebri", "trunci encephali", "stem of the brain",
        "stems of the brain",
    ),
    "spinal_cord": (
        "spinal cord", "cord", "medulla spinalis", "spinalcord", "spinal medulla", "spinal marrow", "myelon",
        "medullae spinales",
    ),
    "parotid_right": (
        "right parotid gland", "right parotid", "parotid gland on the right", "rightparotid", "right parotis",
        "right glandula parotidea", "right glandulae parotideae", "right parotides", "right glandulae parotes",
    ),
    "parotid_left": (
        "left parotid gland", "left parotid", "parotid gland on the left", "leftparotid", "left parotis",
        "left glandula parotidea", "left glandulae parotideae", "left parotides", "left glandulae parotes",
    ),
    "esophagus": (
        "esophagus", "oesophagus", "gullet", "food pipe", "foodpipe", "esophageal", "oesophageal", "esophagi",
        "oesophagi",
    ),
    "larynx": ("larynx", "voice box", "voicebox", "laryngeal", "larynges", "voice organ", "organ of voice"),
    "mandible": ("mandible", "lower jaw", "jaw bone", "jawbone", "jaw", "mandibular"),
}  # fmt: skip
LESIONS = ("tumour",)
LESION_WORDS = (*WORDS["tumour"], "lesions", "tumours", "tumors", "metastasis", "metastases", "nodule", "nodules")
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
SIDES = {"left": "right", "right": "left"}


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


def other_side(name: str) -> str | None:
    """The class that a mirror makes of one: `parotid_left` -> "parotid_right"; None for a class without a side."""
    structure, _, side = name.rpartition("_")
    return f"{structure}_{SIDES[side]}" if structure and side in SIDES else None


def is_lesion(name: str) -> bool:
    """Whether a canonical class name is that of lesions: "tumour", "liver_tumor", "lung_nodule_left"."""
    return display(name) not in FALSE_FRIENDS and any(part in LESION_WORDS for part in name.split("_"))


def display(name: str) -> str:
    """The name to print in a sentence: `parotid_left` -> "left parotid gland"."""
    if name in WORDS:
        return WORDS[name][0]
    parts = name.split("_")
    return " ".join(parts[-1:] + parts[:-1]) if parts[-1] in ("left", "right") else " ".join(parts)


@dataclass(frozen=True)
class LabelFile:
    """What the values of a label map stand for, by canonical names.

    labels: class -> value, one class a value. regions: union -> its classes. unsure: value -> the classes that a voxel
    of it may be, "background" among them or not; () for any class at all (nnU-Net's ignore label).
    """

    labels: dict[str, int]
    regions: dict[str, tuple[str, ...]]
    unsure: dict[int, tuple[str, ...]]


def read_labels(path: str | Path) -> dict[str, int]:
    """Class name -> id of a dataset.json or a plain JSON of name -> id; see `read_label_file`. Raises LabelError."""
    return read_label_file(path).labels


def read_label_file(path: str | Path) -> LabelFile:
    """Read the `labels` of a dataset.json, or a plain JSON of name -> id. Raises LabelError.

    Names become canonical, in the file's order; background (id 0) is dropped. Names that begin with "ignore" are
    nnU-Net's ignore labels, as many as there are; the key `may_be` narrows what one stands for:
        "labels": {"tumour": 1, "ignore": 2, "ignore_rim": 3}, "may_be": {"ignore_rim": ["background", "tumour"]}
    A label with a list of values is a region, as nnU-Net has them; its classes are the single values: one that is a
    region of its own has that name, any other is the rest of the smallest region that holds it:
        "labels": {"whole": [1, 2], "core": 2}  ->  classes whole_rest 1 and core 2, region whole = both
    The older form of id -> name (nnU-Net v1, the Medical Segmentation Decathlon) is read too.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(path, "a dataset.json or a name -> id JSON", "no such file", "check the path")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        table = data.get("labels", data)
        if all(key.isdigit() and isinstance(name, str) for key, name in table.items()):
            if len(set(table.values())) < len(table):
                raise ValueError("one name for two ids")
            table = {name: int(value) for value, name in table.items()}
        pairs = [
            (str(name), tuple(int(v) for v in (value if isinstance(value, list) else [value])))
            for name, value in table.items()
        ]
        may_be = {str(name): tuple(map(canonical, names)) for name, names in data.get("may_be", {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise LabelError(path, "a name -> id JSON", f"something else ({error})", "see nnU-Net's dataset.json") from None
    unsure = {
        value: may_be.get(name, ())
        for name, values in pairs
        for value in values
        if name in may_be or name.casefold().startswith("ignore")
    }
    named: dict[str, tuple[int, ...]] = {}
    for name, values in pairs:
        foreground = tuple(sorted({value for value in values if value != 0} - set(unsure)))
        if foreground and named.setdefault(canonical(name), foreground) != foreground:
            raise LabelError(path, "one id a class", f"several for {canonical(name)}", "rename or merge the classes")
    labels, regions = _parts(named)
    strange = {name for names in unsure.values() for name in names} - {"background", *labels, *regions}
    if strange or any(name not in table for name in may_be):
        found = ", ".join(sorted(strange | {name for name in may_be if name not in table}))
        raise LabelError(path, "classes of `labels` in `may_be`", found, "name what `labels` names")
    return LabelFile(labels, regions, unsure)


def _parts(named: dict[str, tuple[int, ...]]) -> tuple[dict[str, int], dict[str, tuple[str, ...]]]:
    """Names of one or several values -> one class a value, and the names that are unions of classes."""
    labels: dict[str, int] = {}
    for name, values in named.items():
        if len(values) == 1:
            labels[name] = values[0]
            continue
        for value in values:
            smallest = min((n for n in named if value in named[n]), key=lambda n: len(named[n]))
            if value not in labels.values() and smallest == name:
                rest = f"{name}_rest"
                labels[rest if rest not in labels else f"{rest}_{value}"] = value
    of = {value: name for name, value in labels.items()}
    return labels, {name: tuple(of[v] for v in values) for name, values in named.items() if len(values) > 1}


def undrawn(scheme: str, classes: list[str]) -> list[str]:
    """The classes of a scheme that a model which draws `classes` never draws; none for "native"."""
    drawn = {"tumour" if name in LESIONS else name for name in classes}
    return [name for name in SCHEMES.get(scheme, {}) if name not in drawn]


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
