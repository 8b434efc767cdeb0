"""The rules by which a folder of masks is scored, by name.

The official scripts have habits that a careful scorer would not choose. `flare23`, `flare24` and `automsc` keep them,
so that a figure compares with a published one; `corrected` mends them. Every result names its protocol.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seg_backbone.errors import ConfigError
from seg_backbone.labels import FLARE23_LABELS, FLARE24_LABELS, canonical

# NSD tolerances in mm of the FLARE challenges; any other class has DEFAULT_TOLERANCE_MM.
TOLERANCES_MM = {
    "liver": 5.0,
    "kidney_right": 3.0,
    "kidney_left": 3.0,
    "spleen": 3.0,
    "pancreas": 5.0,
    "aorta": 2.0,
    "inferior_vena_cava": 2.0,
    "adrenal_gland_right": 2.0,
    "adrenal_gland_left": 2.0,
    "gallbladder": 2.0,
    "esophagus": 3.0,
    "stomach": 5.0,
    "duodenum": 7.0,
    "tumour": 2.0,
}
DEFAULT_TOLERANCE_MM = 2.0
# Tubes whose ends are a convention: scored only on the axial slices where the reference has them.
Z_LIMITED = ("aorta", "inferior_vena_cava", "ivc", "postcava", "esophagus")


@dataclass(frozen=True)
class Protocol:
    """How a folder is scored. `description` goes into every result.

    labels: ids that the protocol fixes, None where the user gives them. official: the arrays are compared as stored,
    whatever the headers say, slices run along the third array axis and distances take the spacing of the header.
    stored_as: the integer type that the script casts voxels to, "" where it compares the values themselves.
    digits: decimals that each score is rounded to, None for all. empty_score: score where neither side has the class
    (NaN: left out). nsd_floor: a DSC below it forces NSD to 0. z_limited: the classes of Z_LIMITED count only in the
    reference's z range; drop_top_slice: without its last slice (the official off-by-one). only_label: a prediction with
    any value above it scores 0. missing: a reference case without a prediction ends the run, is left out, or scores 0.
    extra: a prediction without a reference ends the run or is left out. border_nsd: NSD over border voxels, else over
    surface elements. tolerance_mm: of every class, else each has its own. pooled_mean: the overall mean is over all
    cases and classes at once, else over the classes' means. detailed: also NSD over border voxels, HD95 and, for lesion
    classes, each lesion by itself.
    """

    name: str
    description: str
    labels: dict[str, int] | None = None
    official: bool = False
    stored_as: Literal["", "int8", "uint8"] = ""
    digits: int | None = None
    empty_score: float = float("nan")
    nsd_floor: float = 0.0
    z_limited: bool = False
    drop_top_slice: bool = False
    only_label: int | None = None
    missing: Literal["refuse", "skip", "zero"] = "refuse"
    extra: Literal["refuse", "skip"] = "refuse"
    border_nsd: bool = False
    tolerance_mm: float | None = None
    pooled_mean: bool = False
    detailed: bool = False


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # FLARE23_DSC_NSD_Eval.py of github.com/JunMa11/FLARE
        Protocol(
            "flare23",
            "FLARE23's script: 14 fixed ids; both empty 1, one empty 0; DSC < 0.1 forces NSD 0; aorta, inferior vena "
            "cava and esophagus in the reference's z range without its last slice; a missing case ends the run, an "
            "extra one is not looked at; arrays compared as stored, voxels cast to int8, values outside the ids are "
            "background; scores rounded to 4 decimals",
            labels=FLARE23_LABELS,
            official=True,
            stored_as="int8",
            digits=4,
            empty_score=1.0,
            nsd_floor=0.1,
            z_limited=True,
            drop_top_slice=True,
            extra="skip",
        ),
        # T1_FLARE24_DSC_NSD_Eval.py of the same
        Protocol(
            "flare24",
            "FLARE24 task 1's script: lesion is 1, a prediction with any other value scores 0; both empty 1, one empty "
            "0; DSC < 0.2 forces NSD 0; no organ, so no z range; runs over the predictions: a missing case goes "
            "unpenalised, an extra one ends the run; arrays compared as stored, voxels cast to uint8; scores rounded "
            "to 4 decimals",
            labels=FLARE24_LABELS,
            official=True,
            stored_as="uint8",
            digits=4,
            empty_score=1.0,
            nsd_floor=0.2,
            only_label=1,
            missing="skip",
        ),
        Protocol(
            "corrected",
            "both empty is left out, one empty 0; a missing or extra case is refused, or with --allow-missing scores 0 "
            "for each annotated class or is left out; unannotated classes are skipped; aorta, inferior vena cava and "
            "esophagus in the reference's whole z range; another grid, NaN or an unnamed label value is refused; "
            "FLARE tolerances, 2 mm for other classes, unless given; HD95 over the cases where both sides have the "
            "class; lesions as 26-connected components",
            z_limited=True,
            detailed=True,
        ),
        # eval_metrics.py of github.com/medfm-flare/AutoMSC-Baseline
        Protocol(
            "automsc",
            "FLARE26 task 2's script: DSC, and NSD over border voxels (26 neighbours) at 1 mm; both empty is left out, "
            "one empty 0; no z range; a missing or extra case is left out; arrays compared as stored, values outside "
            "the labels are background; the overall mean is over all cases and classes at once",
            official=True,
            missing="skip",
            extra="skip",
            border_nsd=True,
            tolerance_mm=1.0,
            pooled_mean=True,
        ),
    )
}


def tolerance_of(label: str) -> float:
    """NSD tolerance of a class, mm."""
    return TOLERANCES_MM.get(label, DEFAULT_TOLERANCE_MM)


def read_tolerances(path: str | Path) -> dict[str, float]:
    """Class (canonical name) -> NSD tolerance in mm, of a JSON object. Raises ConfigError unless all are positive."""
    try:
        table = {canonical(name): float(value) for name, value in json.loads(Path(path).read_text()).items()}
        if not all(0 < value < math.inf for value in table.values()):
            raise ValueError("not all of them are above 0")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(path, "a JSON of class -> mm", f"something else ({error})", "see --tolerances") from None
    return table
