"""Distances of benchmarks/familiarity.py by hand, and training scans measured without their patient."""

from pathlib import Path

import familiarity
import numpy as np

from seg_backbone.cases import CaseFiles


def test_moments_of_a_window():
    mean_and_std = familiarity.pooled(2.0, np.array([2.0, 4.0]), np.array([4.0, 8.0]))
    assert mean_and_std.tolist() == [1.0, 2.0, 1.0, 0.0]


def test_distance_to_the_nearest_group():
    cross = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) * np.sqrt(2)  # variance 1 on each axis, no covariance
    groups = [cross, cross + np.array([10, 0])]
    found = familiarity.distances(groups, np.array([[0.0, 0], [10, 0], [3, 4], [10, 2]]))
    np.testing.assert_allclose(found, [0, 0, 5, 2], rtol=1e-4)


def seen(dataset, patient, trains, *vectors):
    files = CaseFiles(dataset, patient, patient, "CT", Path(f"{patient}_0000.nii.gz"), None, {}, ())
    return familiarity.Seen(files, trains, np.mean(vectors, axis=0), np.array(vectors))


def test_what_is_far_from_all_training_scans_is_unfamiliar():
    random = np.random.default_rng(0)
    scans = [seen(name, f"{name}{n}", True, *random.normal(size=(2, 3))) for name in "ab" for n in range(20)]
    scans += [seen("c", "near", False, np.zeros(3)), seen("c", "far", False, np.full(3, 9.0))]
    scans += [seen("c", "half", False, np.zeros(3), np.full(3, 9.0))]
    for windows in (False, True):
        *known, near, far, half = familiarity.unfamiliar(scans, windows)
        assert near < 1 < half and far > 2
        assert sum(one > 1 for one in known) == 2  # the rest of 95 % of 40
    alone = familiarity.unfamiliar([*scans[:-3], seen("a", "odd", True, np.full(3, 9.0))], False)
    assert alone[-1] > 2  # it is not compared with itself
