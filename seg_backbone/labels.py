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

# What a class is called: by radiologists, in Latin, in contouring labels, by patients. The first is displayed.
_NEAR = ("in front of", "before", "below", "under", "beneath", "near", "next to", "by", "beside", "at", "of")
_PAROTID = (
    "parotid gland", "parotid", "parotis", "parotids", "parotides", "glandula parotidea", "glandula parotis",
    "glandulae parotes", "glandulae parotideae", "parotid salivary gland", "parotidean gland", "parotidean",
    "parotideal", "parotidea", "parotic gland", "gl parotidea", "gl parotis", "gln parotid", "glnd parotid",
    "parotid organ", "preauricular gland", "preauricular salivary gland", "ear salivary gland", "ear gland",
    *(f"{kind}gland {place} ear" for kind in ("", "salivary ", "saliva ", "spit ") for place in _NEAR),
    "cheek gland", "cheek salivary gland", "salivary gland of cheek", "salivary gland in cheek", "mumps gland",
    "parotid saliva gland", "parotid spit gland", "parot", "prtd", "par gl", "parotid gl", "pg", "parotida",
    "parotide", "ohrspeicheldruse",
)  # fmt: skip
WORDS: dict[str, tuple[str, ...]] = {
    "tumour": (
        "tumour", "tumor", "lesion", "mass", "neoplasm", "sarcoma", "cancer", "malignancy", "gtv", "growth",
        "carcinoma", "lump", "malignancies", "tumoural", "tumoral", "tumorous", "neoplastic", "cancerous",
        "neoformation", "blastoma", "neoplasmata", "sol", "space occupying lesion", "tumour mass", "tumor mass",
        "tumour lesion", "tumor lesion", "tumour nodule", "tumor nodule", "tumour manifestation", "tumor manifestation",
        "tumourous", "tumour tissue", "tumor tissue", "tumour burden", "tumor burden", "soft tissue mass",
        "soft tissue tumour", "soft tissue tumor", "soft tissue sarcoma", "sts", "primary tumour", "primary tumor",
        "primary lesion", "primary mass", "primary malignancy", "primary neoplasm", "primary sarcoma",
        "gross tumour volume", "gross tumor volume", "gross tumour", "gross tumor", "gross disease", "gtvp", "gtv p",
        "gtv primary", "gtvt", "gtv t", "index lesion", "target lesion", "neoplasma", "neoplasia", "neoplasias",
        "newgrowth", "new growth", "malignoma", "malignant process", "malignant disease", "tumour disease",
        "neoplastic process", "neoplastic tissue", "neoplastic disease", "expansile process", "expansive process",
        "space occupying process", "space occupying mass", "space occupation", "space occupier", "tumefaction",
        "blastema", "oncoma", "cancroid", "sarcomatous", "carcinomatous", "cancer tissue",
        "cancer mass", "cancerous lump", "cancerous growth",
        "abnormal growth", "suspicious lump", "suspicious mass", "suspicious lesion", "tumeur", "tumore", "geschwulst",
    ),
    "brainstem": (
        "brainstem", "brain stem", "truncus encephali", "truncus cerebri", "trunci encephali", "stem of brain",
        "stem of the brain", "stems of the brain", "truncus encephalicus", "encephalic trunk", "encephalic stem",
        "cerebral trunk", "cerebral stem", "brain trunk", "encephalon stem", "encephalon trunk", "trunk of cerebrum",
        "stem of cerebrum", "stem of encephalon", "stalk of brain", "brain stalk", "bstem", "brstem", "br stem",
        "brnstem", "brain st", "bs", "brainstem core", "brainstem prv", "brainstem surface",
        "truncus cerebralis", "caudex cerebri", "caudex encephali", "lower brain stem", "whole brain stem",
        "tronc cerebral", "tronco encefalico", "tronco cerebral", "hirnstamm",
    ),
    "spinal_cord": (
        "spinal cord", "cord", "medulla spinalis", "spinalcord", "spinal medulla", "spinal marrow", "myelon",
        "medullae spinales", "spinal chord", "spine cord", "spinal cords", "chorda spinalis", "cervical cord",
        "thoracic cord", "lumbar cord", "dorsal cord", "cervical spinal cord", "thoracic spinal cord",
        "cervical myelon", "cervical medulla spinalis", "upper cord", "myelos", "myelum", "medullary cord",
        "nervous cord", "nerve cord", "neural cord", "vertebral cord", "backbone cord", "vertebral marrow",
        "spine marrow", "marrow of spine", "cord of spine", "spinal nerve cord", "spinal column cord",
        "cord of spinal column", "cord of backbone", "cord in spine", "cord in backbone", "cord within spine",
        "nerve cord in back", "nerve cord in spine", "nerve cord of back", "cord of nerves", "back cord",
        "cord in back", "rachidian medulla", "spinal cord prv", "cord prv", "spinal cord tissue", "spc", "sp cord",
        "spcord", "spinalis cord", "rachidian cord", "medula spinalis", "medulla spin", "spinal c",
        "sc", "moelle epiniere", "medula espinal", "midollo spinale", "ruckenmark",
    ),
    "parotid_right": (
        *(f"right {word}" for word in _PAROTID), "parotid gland on the right", "rightparotid",
    ),
    "parotid_left": (
        *(f"left {word}" for word in _PAROTID), "parotid gland on the left", "leftparotid",
    ),
    "esophagus": (
        "esophagus", "oesophagus", "gullet", "food pipe", "foodpipe", "esophageal", "oesophageal", "esophagi",
        "oesophagi", "esophageal tube", "oesophageal tube", "esophagal", "oesophagal", "oesophageus", "food tube",
        "food passage", "food canal", "food channel", "feeding pipe", "feed pipe", "eating tube", "eating pipe",
        "swallowing tube", "swallowing pipe", "swallow tube", "swallow pipe", "swallowing passage", "gullet tube",
        "pipe to stomach", "tube to stomach", "stomach pipe", "esoph", "oesoph", "eso", "oes", "osophagus",
        "esofagus", "oesofagus", "esophag", "oesophag", "cervical esophagus", "cervical oesophagus",
        "thoracic esophagus", "thoracic oesophagus", "esophageal body", "oesophageal body", "alimentary tube",
        "oesophage", "esofago", "speiserohre",
    ),
    "larynx": (
        "larynx", "voice box", "voicebox", "laryngeal", "larynges", "voice organ", "organ of voice",
        "laryngeal skeleton", "laryngeal box", "laryngeal organ", "laryngeal complex", "laryngeal structures",
        "larynxes", "vocal organ", "vocal box", "vocal apparatus", "voice apparatus", "voice producing organ",
        "organ of phonation", "phonation organ", "phonatory organ", "phonatory apparatus", "organ of speech",
        "speech organ", "speech box", "speaking organ", "sound box", "box of voice", "laryngs",
        "endolarynx", "whole larynx", "entire larynx", "larynx prv", "lx", "laringe", "kehlkopf",
    ),
    "mandible": (
        "mandible", "lower jaw", "jaw bone", "jawbone", "jaw", "mandibular", "mandibula", "mandibulae",
        "mandibular bone", "bone mandible", "bone of lower jaw", "lower jaw bone", "lower jawbone", "inferior jaw",
        "inferior jaw bone", "inferior jawbone", "bottom jaw", "bottom jaw bone", "jaw lower", "under jaw", "underjaw",
        "nether jaw", "lower maxilla", "inferior maxilla", "inferior maxillary bone", "inferior maxillary",
        "lower maxillary bone", "maxilla inferior", "os mandibulare", "ossa mandibularia", "os mandibulae",
        "submaxilla", "submaxillary bone", "chin bone", "chinbone", "jaws", "lower jaws", "mandib", "mand",
        "mandibulum", "dentary", "dentary bone", "chewing bone", "mandibola", "mandibule", "unterkiefer",
    ),
}  # fmt: skip
LESIONS = ("tumour",)
LESION_WORDS = {*WORDS["tumour"], "tumours", "tumors", "lesions", "metastasis", "metastases", "nodule", "nodules"}
LESION_WORDS |= {"cyst", "cysts", "node", "nodes"}
NO_LESIONS = ("body mass", "muscle mass", "bone mass", "fat mass", "lean mass", "mass effect", "growth plate")
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
    """Whether a class name is that of lesions: "tumour", "liver_tumor", "Lung nodule left"."""
    words = name.lower().replace("_", " ").split()
    return " ".join(words) not in NO_LESIONS and not LESION_WORDS.isdisjoint(words)


def display(name: str) -> str:
    """The name to print in a sentence: `parotid_left` -> "left parotid gland", `vertebrae_L3` -> "L3 vertebra"."""
    if name in WORDS:
        return WORDS[name][0]
    if level := re.fullmatch(r"vertebrae?_([ctls]\d+)", name, re.IGNORECASE):
        return f"{level[1].upper()} vertebra"
    parts = name.split("_")
    sides = [part for part in parts if part in SIDES]
    return " ".join(sides[:1] + [part for part in parts if part not in SIDES]) if len(sides) == 1 else " ".join(parts)


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
            table = {name: _whole(value) for value, name in table.items()}
        pairs = [
            (str(name), tuple(_whole(v) for v in (value if isinstance(value, list) else [value])))
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
    of: dict[tuple[int, ...], str] = {}
    for name, values in named.items():
        if (other := of.setdefault(values, name)) != name:
            raise LabelError(path, "one class an id", f"{other} and {name} for {values}", "give each class its own")
    labels, regions = _parts(named)
    strange = {name for names in unsure.values() for name in names} - {"background", *labels, *regions}
    if strange or any(name not in table for name in may_be):
        found = ", ".join(sorted(strange | {name for name in may_be if name not in table}))
        raise LabelError(path, "classes of `labels` in `may_be`", found, "name what `labels` names")
    return LabelFile(labels, regions, unsure)


def _whole(value: int | float | str) -> int:
    """A label's value; ValueError for a fraction and below 0."""
    number = float(value)
    if number != int(number) or number < 0:
        raise ValueError(f"{value} is no whole number from 0")
    return int(number)


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
