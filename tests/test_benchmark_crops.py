"""Crops of benchmarks/crops.py: they keep the tumour and move it."""

import crops
import numpy as np


def test_a_crop_keeps_the_tumour_and_moves_it():
    tumour = np.zeros((20, 30, 10), bool)
    tumour[8:12, 1:29, 4:5] = True  # longer than 0.8 of the second axis
    places = [crops.draw(np.random.default_rng(seed), tumour, 0.8) for seed in range(50)]
    assert {tumour[place].sum() for place in places} == {tumour.sum()}
    assert {tumour[place].shape for place in places} == {(16, 28, 8)}
    assert {place[0].start for place in places} == {0, 1, 2, 3, 4} and {place[1].start for place in places} == {1}
    moved = crops.distance_mm(tumour, (slice(4, 20), slice(1, 29), slice(0, 8)), np.array([1.0, 1.0, 3.0]))
    assert moved == np.hypot(2, 3)
