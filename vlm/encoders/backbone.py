"""The default encoder: features that the segmentation network computed for the mask, so that a scan is encoded once.

Features of two stages of the network are kept, with the world position of each vector: deep ones for the visual tokens
of the whole scan, finer ones for the token of each instance.
"""

from __future__ import annotations

import torch

from seg_backbone.predict import Features, Segmenter
from seg_backbone.volume import Volume

VISUAL_STAGE, INSTANCE_STAGE = 4, 2  # stages of the network behind the visual tokens and the instance tokens


class SegmentationEncoder:
    """The segmentation network's encoder. See `vlm.encoders.Encoder`."""

    shared_stages = (VISUAL_STAGE, INSTANCE_STAGE)

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter, self.version = segmenter, segmenter.version

    @property
    def channels(self) -> tuple[int, int]:
        """Widths of the two stages, seen by running the network on one empty window."""
        plan = self.segmenter.plan
        window = torch.zeros(1, plan.inputs, *plan.patch, device=self.segmenter.device)
        with torch.inference_mode():
            maps = self.segmenter.network.encoder(window)
        return maps[VISUAL_STAGE].shape[1], maps[INSTANCE_STAGE].shape[1]

    def __call__(self, volume: Volume) -> Features:
        """Features of windows that overlap little (the fast mode)."""
        return self.segmenter(volume, fast=True, keep_stages=self.shared_stages).features
