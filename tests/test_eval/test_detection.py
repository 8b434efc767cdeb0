"""Boxes in world millimetres."""

import numpy as np
import pytest

from eval.detection import Box, box_iou, f1, match_boxes, overlaps, true_positives


def box(low, high, label=None):
    return Box(tuple(map(float, low)), tuple(map(float, high)), label)


def detection_counts(predicted, reference, threshold):
    """(true positives, false positives, false negatives) of one question."""
    true = int(true_positives(overlaps([predicted], [reference]), threshold)[0])
    return true, len(predicted) - true, len(reference) - true


def test_iou_by_hand():
    """2x2x2 shifted by 1: 4 shared of 8 + 8 - 4; the same; apart; touching faces share nothing."""
    one = box((0, 0, 0), (2, 2, 2))
    others = [box((1, 0, 0), (3, 2, 2)), one, box((5, 5, 5), (6, 6, 6)), box((2, 0, 0), (4, 2, 2))]
    np.testing.assert_allclose(box_iou([one], others), [[4 / 12, 1, 0, 0]])
    assert box_iou([], others).shape == (0, 4)
    flat = box((0, 0, 0), (2, 2, 0))
    assert box_iou([flat], [flat])[0, 0] == 0


def test_matching_is_one_to_one_and_finds_the_most_pairs():
    """Predicted 0 overlaps both references, predicted 1 only the first: greedy by IoU would leave one out."""
    references = [box((0, 0, 0), (10, 1, 1)), box((4, 0, 0), (14, 1, 1))]
    predicted = [box((1, 0, 0), (11, 1, 1)), box((-3, 0, 0), (7, 1, 1))]
    assert match_boxes(predicted, references, 0.5) == [(0, 1), (1, 0)]
    assert detection_counts(predicted, references[:1], 0.5) == (1, 1, 0)
    assert detection_counts([], references, 0.5) == (0, 0, 2)


def test_labels_that_differ_never_match():
    tumour, cyst, unnamed = (box((0, 0, 0), (2, 2, 2), name) for name in ("tumour", "cyst", None))
    assert detection_counts([cyst], [tumour], 0.5) == (0, 1, 1)
    assert detection_counts([unnamed], [tumour], 0.5) == (1, 0, 0)
    assert Box.from_json({"min_mm": [0, 0, 0], "max_mm": [1, 1, 1], "label": "Lesion"}).label == "tumour"


def test_f1():
    assert f1(1, 1, 0) == pytest.approx(2 / 3)
    assert np.isnan(f1(0, 0, 0))


@pytest.mark.parametrize(
    "record",
    [{}, {"min_mm": [0, 0], "max_mm": [1, 1]}, {"min_mm": [2, 0, 0], "max_mm": [1, 1, 1]}, "box", None, [1, 2]],
)
def test_broken_boxes_raise(record):
    with pytest.raises(ValueError, match="box|min_mm"):
        Box.from_json(record)
