"""Pseudo-labels: what a model draws in a scan without labels, as far as it can be believed. In a scan of which people
drew some classes it fills the others, where nobody drew.

Three filters. By voxel: where no class, background among them, has the probability `certain`, the voxel is marked as
to be ignored. By component: what the cleaning of a prediction would remove is ignored too, neither taught as the class
nor as background. By class of a case: where the certain voxels of two rounds agree too little, the case does not
annotate the class, so that the marginal loss leaves it open (see partial_labels).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from seg_backbone.export import argmax_slabs
from seg_backbone.labels import other_side
from seg_backbone.plan import Plan
from seg_backbone.postprocess import clean
from seg_backbone.preprocess import oriented, padding, preprocess, scan_box, separate_axis
from seg_backbone.resample import SMOOTH, nnunet_filters
from seg_backbone.sliding_window import Forward, mirrored, predict_blocks
from seg_backbone.volume import Mask, Volume

IGNORE = "ignore"


@dataclass(frozen=True)
class PseudoRules:
    """What is kept of a model's labels.

    certain: least probability of a voxel's class. stable: least Dice of a class with the round before. minimum_ml:
    class -> ml, components below which are ignored, over those of the model's plan. absence: a class that the model
    finds nowhere in a scan is taught to be absent, instead of left open. mirror: probabilities are those of the mean
    over the flips that the model was trained with.
    """

    certain: float = 0.9
    stable: float = 0.7
    minimum_ml: dict[str, float] = field(default_factory=dict)
    absence: bool = False
    mirror: bool = True

    def __post_init__(self) -> None:
        assert 0 < self.certain < 1, "certain is a probability between 0 and 1"
        assert 0 <= self.stable <= 1, "stable is a Dice from 0 to 1"
        assert all(value >= 0 for value in self.minimum_ml.values()), "minimum_ml are volumes"


def pseudo_labels(plan: Plan) -> dict[str, int]:
    """Class -> value of a plan's pseudo-labels: its classes, and last, as nnU-Net wants it, "ignore"."""
    return plan.labels | {IGNORE: len(plan.classes) + 1}


def taught(plan: Plan, modality: str, absent: Iterable[str] = ()) -> tuple[str, ...]:
    """The classes that a model may label in a scan: trained in its modality, and not known to be out of view."""
    return tuple(name for name in plan.trained_on.get(modality, ()) if name not in set(absent))


@torch.inference_mode()
def draw(network: torch.nn.Module, plan: Plan, volume: Volume, rules: PseudoRules, absent: Iterable[str] = ()) -> Mask:
    """The certain voxels of each class on the scan's own grid; the rest is background, or "ignore".

    The network runs where it is; windows, blending and resampling are those of `Segmenter` in accurate mode, nnU-Net's
    splines left out. absent: classes known not to be in view, which are never drawn. Memory holds one window's depth of
    logits, as there. The plan is one whose classes do not overlap (`painted` is empty).
    """
    assert not plan.painted, "overlapping regions have no single certain class"
    device = next(network.parameters()).device
    allowed = taught(plan, volume.modality, absent)
    excluded = tuple(value for name, value in plan.labels.items() if name not in allowed)
    image, _ = preprocess(volume, plan)
    forward: Forward = network
    if rules.mirror and plan.mirror_axes:
        order = [0, *(plan.labels.get(other_side(name) or name, value) for name, value in plan.labels.items())]
        forward = mirrored(network, plan.mirror_axes, order if plan.mirror_swaps_sides else None)
    blending = "nnunet" if plan.resampling == "nnunet" else "gaussian"
    tensor = torch.from_numpy(image).to(device)
    blocks = predict_blocks(
        lambda windows, _: forward(windows), tensor, plan.patch, plan.step, blending=blending, pad=padding(plan)
    )
    array = np.zeros(volume.grid.shape, dtype=np.uint8)
    (whole,), grid = oriented((array,), volume.grid, plan)  # a view
    ids = whole[scan_box(volume, plan)]
    filters = SMOOTH
    if plan.resampling == "nnunet":
        filters = nnunet_filters(separate_axis(np.array(plan.spacing_mm), tuple(grid.spacing_mm)))
    source = (image.shape[1], image.shape[2], image.shape[3])
    target = (ids.shape[0], ids.shape[1], ids.shape[2])
    doubted = _with_doubt(blocks, rules.certain, excluded)
    for place, part, _ in argmax_slabs(doubted, source, target, excluded=excluded, filters=filters):
        ids[place] = part.cpu().numpy()
    labels = pseudo_labels(plan)
    rejected = clean(ids.copy(), plan.with_(minimum_ml=plan.minimum_ml | rules.minimum_ml), volume.grid.voxel_volume_ml)
    ids[ids != rejected] = labels[IGNORE]
    return Mask(array, volume.grid, labels, volume.source)


def _with_doubt(blocks: Iterable[torch.Tensor], certain: float, excluded: tuple[int, ...]) -> Iterator[torch.Tensor]:
    """Blocks of logits -> log probabilities, with one more class of constant probability `certain`.

    That class wins exactly where no other one reaches it. The excluded classes have no part in the probabilities.
    """
    for block in blocks:
        kept = [number for number in range(block.shape[0]) if number not in excluded]
        block = block.float()
        log_p = block - block[kept].logsumexp(dim=0)
        yield torch.cat([log_p, torch.full_like(log_p[:1], float(np.log(certain)))])


def fill(mask: Mask, drawn: np.ndarray, code_of: Mapping[int, int], table: np.ndarray) -> Mask:
    """A model's labels of the classes that a case leaves open, where people drew nothing; else what they drew.

    drawn: (i, j, k) values of the case's own mask; code_of, table: what they are, see `cases.encoding`. A drawn voxel
    that may be of several classes, or that the case does not annotate, is to be ignored.
    """
    kept = np.append(table[0], True)  # background, the open classes, "ignore"
    own = np.full(int(drawn.max()) + 1, mask.labels[IGNORE], dtype=np.uint8)
    for value, code in code_of.items():
        classes = np.flatnonzero(table[code])
        if value < len(own) and (code == 0 or len(classes) == 1):
            own[value] = 0 if code == 0 else classes[0]
    return replace(mask, array=np.where(drawn > 0, own[drawn], mask.array * kept[mask.array]))


def annotation(
    mask: Mask, earlier: Mask | None, classes: Iterable[str], rules: PseudoRules
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Of `classes` those that a case annotates by its pseudo-labels, and the stability of those drawn in either round.

    earlier: the case's mask of the round before, on the same grid. Stability is the Dice of both. A class that was
    drawn neither now nor then is annotated only where `absence` says so.
    """
    annotated, stability = [], {}
    for name in classes:
        now = mask.of(name)
        before = now if earlier is None else earlier.of(name)
        size = int(now.sum()) + int(before.sum())
        if size and earlier is not None:
            stability[name] = round(2 * int((now & before).sum()) / size, 4)
        believed = stability.get(name, 1.0) >= rules.stable if now.any() else rules.absence and not size
        if believed:
            annotated.append(name)
    return tuple(annotated), stability
