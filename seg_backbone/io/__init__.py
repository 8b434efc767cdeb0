"""Scans and masks in and out of files."""

from seg_backbone.io.atomic import replacing
from seg_backbone.io.nifti import SUFFIXES, read_mask, read_volume, write_mask, write_volume

__all__ = ["SUFFIXES", "read_mask", "read_volume", "replacing", "write_mask", "write_volume"]
