"""The lesion-wise Dice and HD95 of BraTS 2023.

Source: Saluja et al., github.com/rachitsaluja/BraTS-2023-Metrics, with the settings of the glioma task. Reference
lesions that touch after a dilation of 3 voxels are one; every predicted lesion that touches a dilated reference lesion
belongs to it; a predicted lesion that touches none is false. Reference lesions of up to 50 mm3 are not scored, but
their predictions are not false either.
"""

from __future__ import annotations

import cc3d
import numpy as np
from scipy.ndimage import binary_dilation, generate_binary_structure

from eval.overlap import dice, surface_scores, union

DILATION_VOXELS = 3
SMALLEST_MM3 = 50.0
MISSED_HD95_MM = 374.0  # of a missed and of a false lesion: the diagonal of a BraTS scan


def brats_scores(predicted: np.ndarray, reference: np.ndarray, spacing_mm: np.ndarray) -> tuple[float, float]:
    """Lesion-wise Dice, 0..1, and HD95, mm: the means over the scored and the false lesions.

    predicted, reference: boolean (i, j, k) of one shape. Both NaN where there is nothing to score, where BraTS has
    1 and 0.
    """
    margin = DILATION_VOXELS
    ours, truth = (np.pad(mask, margin).astype(np.uint8) for mask in (predicted, reference))
    lesions, count = cc3d.connected_components(ours, connectivity=26, return_N=True)
    grown = binary_dilation(truth, generate_binary_structure(3, 2), iterations=margin)
    groups, group_count = cc3d.connected_components(grown.view(np.uint8), connectivity=26, return_N=True)
    lesion_boxes, group_boxes = (cc3d.statistics(pieces)["bounding_boxes"] for pieces in (lesions, groups))
    false = set(range(1, count + 1))
    scores = []
    for group in range(1, group_count + 1):
        around = groups[group_boxes[group]] == group
        touching = np.unique(lesions[group_boxes[group]][around])
        touching = touching[touching > 0]
        false -= set(touching.tolist())
        if np.count_nonzero(truth[group_boxes[group]][around]) * np.prod(spacing_mm) <= SMALLEST_MM3:
            continue
        if not len(touching):
            scores.append((0.0, MISSED_HD95_MM))
            continue
        box = union([group_boxes[group], *(lesion_boxes[one] for one in touching)])
        lesion, found = (groups[box] == group) & (truth[box] > 0), np.isin(lesions[box], touching)
        scores.append((dice(found, lesion), surface_scores(found, lesion, spacing_mm, 0.0)[1]))
    scores += [(0.0, MISSED_HD95_MM)] * len(false)
    if not scores:
        return float("nan"), float("nan")
    mean_dice, mean_hd95 = np.mean(scores, axis=0).tolist()
    return mean_dice, mean_hd95
