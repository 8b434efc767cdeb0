"""Scans and masks in and out of files."""

from seg_backbone.io.atomic import replacing, require_writable
from seg_backbone.io.formats import (
    SUFFIXES,
    add_channels,
    case_name,
    find_scans,
    foresee,
    further_channel,
    read_image,
    read_mask,
    read_volume,
)
from seg_backbone.io.nifti import write_mask, write_volume

__all__ = [
    "SUFFIXES",
    "add_channels",
    "case_name",
    "find_scans",
    "foresee",
    "further_channel",
    "read_image",
    "read_mask",
    "read_volume",
    "replacing",
    "require_writable",
    "write_mask",
    "write_volume",
]
