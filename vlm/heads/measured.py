"""What a measure is made of before it is said: a value, the instances that it is of, and what they are called."""

from __future__ import annotations

from typing import NamedTuple

from seg_backbone.labels import display, is_lesion
from seg_backbone.lesions import Instance
from vlm.heads.reading import Reading
from vlm.wholes import OF_THE_LARGEST, Whole

CALLED = {  # fact of one instance -> what it is called where that of several is told
    "long_axis": "long axis",
    "short_axis": "short axis",
    "diameter_3d": "largest 3D diameter",
    "craniocaudal": "extent from top to bottom",
    "anteroposterior": "extent from front to back",
    "transverse": "extent from left to right",
    "volume": "volume",
    "intensity": "mean attenuation",
}


class Measured(NamedTuple):
    """value in `unit`, by default the fact's, of `instances`; words: what the sentence says besides. says: the
    sentence, where it is not that of the fact.
    """

    value: float
    instances: list[Instance]
    words: dict[str, str]
    says: str | None = None
    unit: str | None = None


def name_of(reading: Reading, instance: Instance) -> str:
    """What to call an instance in a sentence: "left parotid gland", "second largest tumour"."""
    if isinstance(instance, Whole) and reading.fact not in OF_THE_LARGEST:
        return display(instance.label)
    same = [i for i in reading.scene.instances if i.label == instance.label]
    ranks = {1: "largest ", 2: "second largest ", 3: "third largest "}
    lead = "" if len(same) == 1 else ranks.get(instance.rank, "smallest " if instance.rank == len(same) else "")
    piece = f"{lead}piece of the " if lead and not is_lesion(instance.label) else lead
    return piece + display(instance.label)


def volume_of(instances: list[Instance]) -> float:
    """Their volume together, ml."""
    return sum(instance.volume_ml for instance in instances)
