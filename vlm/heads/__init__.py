"""Heads: from what the network made of a question to the parts of an answer. One file each, one protocol.

`read` networks (pointer, router, quantiles) score; `decode` functions turn the scores into values, which code reads off
the selected instances, and into the sentence that says them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from vlm.facts import FACTS
from vlm.heads.reading import Reading

_DECODERS = {
    "classification": "vlm.heads.classification",
    "multilabel": "vlm.heads.classification",
    "detection": "vlm.heads.detection",
    "counting": "vlm.heads.counting",
    "measurement": "vlm.heads.measurement",
    "regression": "vlm.heads.regression",
    "open": "vlm.heads.findings",
}


_PLACES = ("position", "bearing", "same_side", "confined", "nearer", "level", "neighbours", "longest_extent")
_SAID = dict.fromkeys(_PLACES, "vlm.heads.places") | dict.fromkeys(
    ("slices", "slice_range", "voxel_size", "field_of_view"), "vlm.heads.acquisition"
)


def decode(reading: Reading) -> dict[str, Any]:
    """The answer's fields (see vlm.schema.Answer) for the fact that was read. A reading never raises: it abstains."""
    function: Callable[[Reading], dict[str, Any]] = import_module(
        _SAID.get(reading.fact, _DECODERS[FACTS[reading.fact].kind])
    ).decode
    return function(reading)
