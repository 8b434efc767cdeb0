"""Scan -> mask -> instances -> measurements. Usable alone; imports nothing else of this project.

from seg_backbone import read_volume, Segmenter
segmentation = Segmenter.load("default")("scan.nii.gz")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seg_backbone.io import read_volume
    from seg_backbone.predict import Segmenter

__all__ = ["Segmenter", "read_volume"]
_HOMES = {"Segmenter": "seg_backbone.predict", "read_volume": "seg_backbone.io"}


def __getattr__(name: str) -> Any:
    """Load the public names on first use: importing this package stays instant (no torch)."""
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
